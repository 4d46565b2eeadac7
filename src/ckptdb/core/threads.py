"""Threads that stay sound when a signal interrupts the thread that waits for them.

``threading`` and ``concurrent.futures`` wait on a condition written in Python. A signal handler
that raises just after the main thread has taken the lock of a condition leaves it taken, and the
other thread waits for ever; a loop that SIGTERM should end hangs. `Task` waits on a lock of the
interpreter alone.
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
    """A function that runs once in a thread of its own.

    Args:
        work: The function.
        lasting: Whether the interpreter waits for the task before it exits.

    Attributes:
        error: The exception that the function raised.
    """

    def __init__(self, work: Callable[[], object], *, lasting: bool = False) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._is_lasting = lasting
        self._ident: int | None = None
        # Each flag is set once and never reset, so that no interrupt finds them half changed.
        self._is_started = self._has_begun = self._has_ended = self._is_unwanted = False
        self._at_work = _thread.allocate_lock()
        self._at_work.acquire()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread runs this task now."""
        return self._ident == _thread.get_ident() and not self._has_ended

    @property
    def is_under_way(self) -> bool:
        """Whether the task is started, neither ended nor given up."""
        return self._is_started and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the task has ended, or was given up before it began."""
        return self._has_ended or (self._is_unwanted and not self._has_begun)

    def start(self) -> None:
        """Start the thread; after an interrupt, the task has either started or never will.

        Raises:
            RuntimeError: No more threads are possible: the process has too many, or it exits.
                `run` can still be called.
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
        """Run the function in the calling thread, unless the task was given up."""
        self._ident = _thread.get_ident()
        # Set before the check below: `give_up` sets its flag first and looks here afterwards.
        self._has_begun = True
        try:
            if not self._is_unwanted:
                self._work()
        except BaseException as error:  # noqa: BLE001  # the waiting thread looks at it
            self.error = error
        finally:
            self._has_ended = True
            _lasting.discard(self)
            self._at_work.release()

    def give_up(self) -> None:
        """Prevent the task from beginning, if it has not begun yet."""
        self._is_unwanted = True

    def wait(self) -> None:
        """Wait until the task has ended; it must be started or given up."""
        while not self.has_ended:
            # An interrupt after this line leaves the lock taken: other waiting threads look again.
            if self._at_work.acquire(timeout=_LOOK_AGAIN_SECONDS):
                self._at_work.release()


@contextmanager
def tasks_at(
    work: Callable[[], object], count: int, *, end: Callable[[], object]
) -> Iterator[Sequence[Task]]:
    """Run one function in several tasks; at the end of the block, wait for all of them.

    Args:
        work: The function.
        count: Number of tasks; fewer are started when no more threads are possible.
        end: Called at the end of the block; lets every running function end soon.
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
                task.give_up()  # an interrupt may have come before it was started
                task.wait()
        except BaseException:
            end()  # without a wait, the tasks still have to end
            raise


def _wait_for_lasting() -> None:
    while _lasting:
        for task in tuple(_lasting):
            task.wait()
            _lasting.discard(task)


# As in concurrent.futures: atexit comes after the last moment at which threads can be started.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_lasting)
os.register_at_fork(after_in_child=_lasting.clear)
