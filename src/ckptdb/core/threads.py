"""Threads that an interrupt of whoever waits for them leaves unharmed.

What ``threading`` and ``concurrent.futures`` wait with is a condition, written in Python. A
signal's handler that raises in the instant in which the main thread has taken a condition's lock
leaves it taken, and the thread at the other end waits for it for ever; so does a loop that was told
to end by SIGTERM. What is here waits with a lock of the interpreter and nothing else.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_LOOK_AGAIN_SECONDS: Final = 1.0

_lasting: Final[set[Task]] = set()


class Task:
    """Work for a thread of its own.

    Args:
        work: Is called once.
        lasting: Whether the interpreter waits for it before it ends.

    Attributes:
        error: What the work has raised.
    """

    def __init__(self, work: Callable[[], object], *, lasting: bool = False) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._is_lasting = lasting
        self._ident: int | None = None
        # Each is set once and never taken back, so that no interrupt finds them half changed.
        self._is_started = self._has_begun = self._has_ended = self._is_unwanted = False
        self._at_work = _thread.allocate_lock()
        self._at_work.acquire()

    @property
    def is_here(self) -> bool:
        """Whether this thread is at work on it."""
        return self._ident == _thread.get_ident() and not self._has_ended

    @property
    def is_under_way(self) -> bool:
        """Whether it will end by itself: started, and not given up."""
        return self._is_started and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to wait for; one that was given up will not begin."""
        return self._has_ended or (self._is_unwanted and not self._has_begun)

    def start(self) -> None:
        """Begin; interrupted in between, it has begun or it never will.

        Raises:
            RuntimeError: There can be no more threads: the process has too many, or it ends. The
                work can still be done by `run`.
        """
        try:
            if self._is_lasting:
                _lasting.add(self)
            _thread.start_new_thread(self.run, ())
            self._is_started = True
        except RuntimeError:
            raise
        except BaseException:
            self.give_up()
            raise

    def run(self) -> None:
        """Do the work in this thread, unless it was given up."""
        self._ident = _thread.get_ident()
        # Before it looks: whoever gives it up looks after that.
        self._has_begun = True
        try:
            if not self._is_unwanted:
                self._work()
        except BaseException as error:  # noqa: BLE001  # whoever waits for it looks
            self.error = error
        finally:
            self._has_ended = True
            _lasting.discard(self)
            self._at_work.release()

    def give_up(self) -> None:
        """Keep it from beginning, if it has not begun."""
        self._is_unwanted = True

    def wait(self) -> None:
        """Wait until it has ended; it must have been started, or given up."""
        while not self.has_ended:
            # Interrupted after this, the lock stays taken: whoever else waits has to look again.
            if self._at_work.acquire(timeout=_LOOK_AGAIN_SECONDS):
                self._at_work.release()


@contextmanager
def tasks_at(
    work: Callable[[], object], count: int, *, end: Callable[[], object]
) -> Iterator[Sequence[Task]]:
    """Give some tasks that do the same; on leaving, wait until all have ended.

    Args:
        work: Of each.
        count: As many, or fewer when there can be no more threads.
        end: Is called on leaving, and makes the work of each end soon.
    """
    begun: list[Task] = []
    try:
        for _ in range(count):
            task = Task(work)
            begun.append(task)
            try:
                task.start()
            except RuntimeError:
                begun.remove(task)
                break
        yield begun
    finally:
        try:
            end()
            for task in begun:
                task.give_up()  # interrupted at the wrong moment, it was not even started
                task.wait()
        except BaseException:
            end()  # whoever does not wait for them must not leave them waiting
            raise


def _wait_for_lasting() -> None:
    while _lasting:
        for task in tuple(_lasting):
            task.wait()
            _lasting.discard(task)


# As concurrent.futures does: while there can still be threads, which atexit is too late for.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_lasting)
os.register_at_fork(after_in_child=_lasting.clear)
