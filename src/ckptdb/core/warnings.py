"""The line outside ckptdb that a warning points at."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from ckptdb.core.text import clean

_logger = logging.getLogger("ckptdb")

# What stands between us and the caller's line, as in leaving `with manager.save(…)`, or below a
# thread of our own, which no line of the caller's is behind.
_BETWEEN: Final = frozenset({"contextlib", "threading", "concurrent.futures.thread"})


class _Held(threading.local):
    """What this thread warns of when it has done its work; None: at once."""

    messages: list[str] | None = None


_held = _Held()


@contextmanager
def warning_afterwards(*, raises: bool = True) -> Iterator[None]:
    """Let this thread do all of its work before it warns of anything.

    Where warnings are errors, one in the middle of a save or a prune would end it there.

    Args:
        raises: Whether such an error comes out, when all is done; else it is logged, as another
            exception may be in flight, or nobody is there to catch it.
    """
    if _held.messages is not None:
        yield
        return
    messages = _held.messages = []
    failed = True
    try:
        yield
        failed = False
    finally:
        _held.messages = None
        error = _warn_all(messages)
        if error is not None and (failed or not raises):
            _logger.warning("%s", error)
        elif error is not None:
            raise error


def _warn_all(messages: list[str]) -> Warning | None:
    """Warn of all; return the first that is an error."""
    first: Warning | None = None
    for message in messages:
        try:
            warn(message)
        except Warning as error:  # the others are to be told as well
            first = first or error
    return first


def warn(message: str) -> None:
    """Warn at the line that called into ckptdb, from however deep inside.

    What others have named is spelled out where a terminal would obey it.

    Python 3.12 can skip files by prefix; 3.11 cannot.
    """
    if _held.messages is not None:
        _held.messages.append(message)
        return
    level = 1
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # what warnings itself counts in
    while frame is not None and _is_inside(frame):
        frame = frame.f_back
        level += 1
    warnings.warn(clean(message), stacklevel=level)


def _is_inside(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return module.partition(".")[0] == "ckptdb" or module in _BETWEEN
