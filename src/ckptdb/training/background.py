"""What a manager does behind the training loop: one finalization, and small work after it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ckptdb.core import fork, warnings
from ckptdb.core.threads import Task

_logger = logging.getLogger("ckptdb")

Work = Callable[[], None]


class WorkQueue:
    """Work that one thread does in the order in which it came.

    A loop that ends without `drain` still gets all of it: the interpreter waits for it.
    """

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()
        self._guard = threading.Lock()
        self._worker: Task | None = None
        fork.AFTER_FORK.add(self)

    def submit(self, work: Work) -> None:
        """Put work into the queue."""
        with self._guard:
            self._waiting.append(work)
            if self._worker is not None and not self._worker.has_ended:
                return
            worker = self._worker = Task(self._work_off, lasting=True)
        _begin(worker)

    def drain(self) -> bool:
        """Wait until the queue is empty; return whether there was anything to wait for.

        Work that waits for its own queue does not: it goes on, and so does the queue.
        """
        worker = self._worker
        if worker is not None and worker.is_here:
            return False
        there_was = worker is not None
        while (worker := self._worker) is not None and not worker.has_ended:
            if not worker.is_under_way:
                worker.give_up()  # an interrupt may have kept it from being started
            worker.wait()
        self._work_off()
        return there_was

    def after_fork(self) -> None:
        """Begin anew in a child, without the parent's thread and what is its to do."""
        self._waiting = deque()
        self._guard = threading.Lock()
        self._worker = None

    def _work_off(self) -> None:
        while True:
            with self._guard:
                if not self._waiting:
                    self._worker = None  # whoever brings more finds nobody at work
                    return
                work = self._waiting.popleft()
            try:
                work()
            except Exception:
                _logger.exception("work in the background failed")


class Background:
    """At most one finalization at a time, and a queue of small work behind it.

    Attributes:
        pending: What is being finalized, or was and has not been collected.
    """

    def __init__(self) -> None:
        self.pending: Path | None = None
        self._finalization: Task | None = None
        self._queue = WorkQueue()
        fork.AFTER_FORK.add(self)

    def finalize(self, path: Path, work: Work, *, then: Work) -> None:
        """Begin to work on a checkpoint; nothing is pending.

        Args:
            path: The checkpoint.
            work: Its error is kept for `collect`.
            then: Put into the queue when the work has succeeded.
        """

        def finalize() -> None:
            try:
                work()
            except BaseException:
                _logger.exception("background finalization of %s failed", path)
                raise
            self.submit(then)

        task = self._finalization = Task(finalize, lasting=True)
        self.pending = path
        _begin(task)

    def collect(self) -> None:
        """Wait for the finalization; the queue may go on.

        Raises:
            RuntimeError: It failed, with the reason as its cause; raised once.
        """
        task = self._finalization
        if task is not None:
            # An interrupt while waiting leaves it to be collected.
            task.wait()
        self._finalization = self.pending = None
        if task is not None and task.error is not None:
            raise RuntimeError("Background checkpoint finalization failed") from task.error

    def submit(self, work: Work) -> None:
        """Put work into the queue."""
        self._queue.submit(work)

    def drain(self) -> bool:
        """Wait until the queue is empty, as `WorkQueue.drain` does."""
        return self._queue.drain()

    def wait(self) -> None:
        """Wait for the finalization and for the queue; an error of it is still to be collected."""
        task = self._finalization
        if task is not None and not task.is_here:
            task.wait()
        self.drain()

    def after_fork(self) -> None:
        """Begin anew in a child, without the parent's threads and what is theirs to do."""
        self._finalization = self.pending = None


def shutdown_beside_error(shutdown: Work) -> None:
    """Shut down while another exception is raised, which an error must not replace: it warns."""
    try:
        shutdown()
    except Exception as failure:  # noqa: BLE001  # the exception in flight matters more
        with warnings.warning_afterwards(raises=False):
            warnings.warn(
                f"Checkpoint finalization failed while another exception was raised: "
                f"{failure.__cause__ or failure!r}"
            )


def _begin(task: Task) -> None:
    try:
        task.start()
    except RuntimeError:
        # The process has too many threads, or the interpreter takes no more: here, then.
        task.run()
