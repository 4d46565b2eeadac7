"""Background check: a check of the whole catalog in a thread, beside statements that only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckptdb.core.threads import Task


class BackgroundCheck:
    """At most one check that is under way."""

    def __init__(self) -> None:
        self._task: Task | None = None

    @contextmanager
    def run(self, check: Callable[[], None]) -> Iterator[None]:
        """Run a check beside the body; its error comes before any error of the body."""
        self._task = task = Task(check)
        try:
            try:
                task.start()
            except RuntimeError:
                task.run()  # there can be no more threads
            try:
                yield
            except Exception:
                _wait(task)
                raise
            _wait(task)
        finally:
            self._task = None
            task.give_up()  # interrupted at the wrong moment, it was not even started
            task.wait()

    def wait(self) -> None:
        """Wait for the check that is under way, if there is one; raise its error."""
        if self._task is not None:
            _wait(self._task)


def _wait(task: Task) -> None:
    task.wait()
    if task.error is not None:
        raise task.error
