"""Warnings that point at the line of the user's code that called ckptdb."""

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

# Modules of Python between ckptdb and the line of the caller, e.g. at the end of
# `with manager.save(…)`, or below a background thread, which no line of the caller is behind.
_BETWEEN: Final = frozenset({"contextlib", "threading", "concurrent.futures.thread"})


class _Delayed(threading.local):
    """Warnings of this thread that wait for the end of its work; None when they do not wait."""

    messages: list[str] | None = None


_delayed = _Delayed()


@contextmanager
def warning_afterwards(*, raises: bool = True) -> Iterator[None]:
    """Delay the warnings of this thread until the block has ended.

    Where warnings are errors, a warning in the middle of a save or a prune would stop it there.

    Args:
        raises: Whether a warning that is an error is raised at the end; else it is logged.
    """
    if _delayed.messages is not None:
        yield
        return
    messages = _delayed.messages = []
    failed = True
    try:
        yield
        failed = False
    finally:
        _delayed.messages = None
        error = _warn_all(messages)
        if error is not None and (failed or not raises):
            _logger.warning("%s", error)
        elif error is not None:
            raise error


def _warn_all(messages: list[str]) -> Warning | None:
    """Give all warnings; return the first one that is raised as an error."""
    first: Warning | None = None
    for message in messages:
        try:
            warn(message)
        except Warning as error:  # the other warnings still follow
            first = first or error
    return first


def warn(message: str) -> None:
    """Give a warning that points at the line that called ckptdb, however deep the call is.

    Control characters are spelled out. Python 3.12 can skip files by prefix; 3.11 cannot.
    """
    if _delayed.messages is not None:
        _delayed.messages.append(message)
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
