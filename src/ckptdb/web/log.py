"""The log of the server: bounded in size, and without control characters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TextIO

from ckptdb.core.text import clean

MOST_A_MINUTE: Final = 30
LONGEST: Final = 8_000
"""Characters of one message, traceback included: its beginning and its end are kept."""

_MINUTE: Final = 60.0


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes only so many messages a minute, each only so long, and how many were left out."""

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._clock = clock
        self._since = clock()
        self._written = self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or count it."""
        if self._clock() - self._since >= _MINUTE:
            self._since, self._written = self._clock(), 0
        if self._written >= MOST_A_MINUTE:
            self._left_out += 1
            return
        self._written += 1
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return a message as it is written."""
        text = super().format(record)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 4]} ... {text[-LONGEST // 4 * 3 :]}"
        lines = [clean(line) for line in text.split("\n")]
        if self._left_out:
            lines.insert(0, f"({self._left_out} messages were left out here.)")
            self._left_out = 0
        return "\n".join(lines)
