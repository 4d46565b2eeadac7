"""Signals that ask for a last save: noted by a handler that does nothing else.

What was installed before is called after it, and put back in the end. Others may install theirs
on top and take them away in any order, so a handler that is not on top when it is to go stays
where it is and only hands on; and one that nobody can take away any more goes when it is called.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

from ckptdb.core import fork
from ckptdb.errors import SignalsElsewhere

SignalNumber = signal.Signals

_NO_HANDLER: Final = ("SIGKILL", "SIGSTOP")
_TOO_LATE: Final = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV")
_UNUSABLE: Final = frozenset(SignalNumber.__members__[name] for name in (*_NO_HANDLER, *_TOO_LATE))


def find_signal(name: object) -> SignalNumber | None:
    """Return the signal of a name such as ``"SIGTERM"`` or ``"TERM"``; None if there is none.

    Those of which no handler is called, or too late, are none.
    """
    found: SignalNumber | None = None
    if isinstance(name, SignalNumber):
        found = name
    elif isinstance(name, str):
        found = SignalNumber.__members__.get(f"SIG{name.upper().removeprefix('SIG')}")
    return None if found in _UNUSABLE else found


class Signals:
    """Notes the signals that one manager waits for, between `start` and `stop`.

    Attributes:
        received: Name of the last one that came; whoever has answered it sets None.
    """

    def __init__(self, wanted: Sequence[SignalNumber]) -> None:
        self.received: str | None = None
        self._wanted = wanted
        self._handlers: tuple[_Handler, ...] = ()
        fork.AFTER_FORK.add(self)

    def start(self) -> None:
        """Install the handlers; again does nothing.

        Raises:
            SignalsElsewhere: Python lets only the main thread do that.
        """
        if self._handlers or not self._wanted:
            return
        try:
            self._handlers = tuple(_Handler(number, self) for number in self._wanted)
        except ValueError as error:
            raise SignalsElsewhere([number.name for number in self._wanted]) from error

    def stop(self) -> None:
        """Put back what was there before."""
        for handler in reversed(self._handlers):
            handler.release()
        self._handlers = ()

    def after_fork(self) -> None:
        """Let a child die of what it is sent: whoever ends a worker does it with SIGTERM."""
        self.stop()
        self.received = None


class _Handler:
    """What is installed for one signal.

    It keeps its owner by a weak reference only: a manager that is forgotten without `shutdown`
    must not leave a process behind that cannot be ended.
    """

    def __init__(self, number: SignalNumber, owner: Signals) -> None:
        self._number = number
        self._owner = weakref.ref(owner)
        self._released = False
        self._previous: Any = signal.SIG_DFL
        self._previous = signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        owner = None if self._released else self._owner()
        previous = self._find_previous()
        if owner is not None:
            owner.received = self._number.name
            # Python's own for SIGINT is no one's wish: it would end the step that is to be saved.
            if previous is signal.default_int_handler:
                return
        elif self._is_installed:
            signal.signal(number, previous)
            signal.raise_signal(number)
            return
        if callable(previous):
            previous(number, frame)

    def release(self) -> None:
        """Put back what was there before, or only hand on from now on."""
        self._released = True
        if self._is_installed:
            try:
                signal.signal(self._number, self._find_previous())
            except ValueError:
                return  # not in this thread; the next signal does it

    def _find_previous(self) -> Any:
        """Return what is to be called next, or stands for what the system does."""
        found = self._previous
        while isinstance(found, _Handler) and found._is_idle:  # noqa: SLF001  # one of its own kind
            found = found._previous  # noqa: SLF001
        # None is a handler that was not installed by Python, and cannot be put back by it.
        return signal.SIG_DFL if found is None else found

    @property
    def _is_installed(self) -> bool:
        installed: object = signal.getsignal(self._number)
        return installed is self

    @property
    def _is_idle(self) -> bool:
        return self._released or self._owner() is None
