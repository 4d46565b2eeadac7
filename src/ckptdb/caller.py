"""The line outside ckptdb that a warning points at."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Final

# What stands between us and the caller's line, as in leaving `with manager.save(…)`, or below a
# thread of our own, which no line of the caller's is behind.
_BETWEEN: Final = frozenset({"contextlib", "threading", "concurrent.futures.thread"})


def warn(message: str) -> None:
    """Warn at the line that called into ckptdb, from however deep inside.

    Python 3.12 can skip files by prefix; 3.11 cannot.
    """
    level = 1
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # what warnings itself counts in
    while frame is not None and _is_inside(frame):
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)


def _is_inside(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module.partition(".")[0] == __package__ or module in _BETWEEN
