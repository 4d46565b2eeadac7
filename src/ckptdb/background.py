"""What a manager does behind the training loop: one finalization, and small work after it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckptdb.catalog import fork

_logger = logging.getLogger("ckptdb")

Work = Callable[[], None]


class Queue:
    """Work that one thread does in the order in which it came."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._worker: int | None = None
        fork.HEIRS.add(self)

    def submit(self, work: Work) -> None:
        """Put work into the queue."""
        try:
            executor = self._executor
            if executor is None:
                executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
                self._executor = executor
            executor.submit(self._do, work)
        except RuntimeError:
            # We or the interpreter are shutting down and take no more work: do it here.
            work()

    def drain(self) -> bool:
        """Wait until the queue is empty, and end its thread; return whether there was one.

        Work that waits for its own queue does not: it goes on, and so does the queue.
        """
        executor = self._executor
        if executor is None or self._worker == threading.get_ident():
            return False
        # Forgotten only then: what the work still hands on must not start another one.
        executor.shutdown(wait=True)
        if self._executor is executor:
            self._executor = None
        return True

    def after_fork(self) -> None:
        """Begin anew in a child, without the parent's thread and what is its to do."""
        self._executor = self._worker = None

    def _do(self, work: Work) -> None:
        self._worker = threading.get_ident()
        try:
            work()
        finally:
            self._worker = None


class Background:
    """At most one finalization at a time, and a queue of small work behind it.

    Attributes:
        pending: What is being finalized, or was and has not been collected.
    """

    def __init__(self) -> None:
        self.pending: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._queue = Queue("ckptdb")
        fork.HEIRS.add(self)

    def finalize(self, path: Path, work: Work, *, then: Work) -> None:
        """Begin to work on a checkpoint; nothing is pending.

        Args:
            path: The checkpoint.
            work: Its error is kept for `collect`.
            then: Put into the queue when the work has succeeded.
        """
        # Not a daemon: a loop that ends without shutdown() still gets its last checkpoint.
        self._thread = threading.Thread(
            target=self._run, args=(path, work, then), name="ckptdb-finalize"
        )
        self.pending = path
        self._thread.start()

    def collect(self) -> None:
        """Wait for the finalization; the queue may go on.

        Raises:
            RuntimeError: It failed, with the reason as its cause; raised once.
        """
        if self._thread is not None:
            # An interrupt while waiting leaves it to be collected.
            self._thread.join()
        self._thread = self.pending = None
        error, self._error = self._error, None
        if error is not None:
            raise RuntimeError("Background checkpoint finalization failed") from error

    def submit(self, work: Work) -> None:
        """Put work into the queue."""
        self._queue.submit(work)

    def drain(self) -> bool:
        """Wait until the queue is empty, as `Queue.drain` does."""
        return self._queue.drain()

    def wait(self) -> None:
        """Wait for the finalization and for the queue; an error of it is still to be collected."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.drain()

    def after_fork(self) -> None:
        """Begin anew in a child, without the parent's threads and what is theirs to do."""
        self._thread = self.pending = self._error = None

    def _run(self, path: Path, work: Work, then: Work) -> None:
        try:
            work()
        except BaseException as error:  # raised by whoever collects it
            _logger.exception("background finalization of %s failed", path)
            self._error = error
            return
        self.submit(then)
