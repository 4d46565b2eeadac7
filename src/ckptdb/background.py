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


class Background:
    """At most one finalization at a time, and a queue that one thread works off.

    Attributes:
        pending: What is being finalized, or was and has not been collected.
    """

    def __init__(self) -> None:
        self.pending: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._executor: ThreadPoolExecutor | None = None
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
        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="ckptdb")
            self._executor.submit(work)
        except RuntimeError:
            # We or the interpreter are shutting down and take no more work: do it here.
            work()

    def drain(self) -> None:
        """Wait until the queue is empty, and end its thread."""
        if self._executor is not None:
            # Forgotten only then: what the work still hands on must not start another one.
            self._executor.shutdown(wait=True)
            self._executor = None

    def after_fork(self) -> None:
        """Begin anew in a child, without the parent's threads and what is theirs to do."""
        self._thread = self.pending = self._error = self._executor = None

    def _run(self, path: Path, work: Work, then: Work) -> None:
        try:
            work()
        except BaseException as error:  # raised by whoever collects it
            _logger.exception("background finalization of %s failed", path)
            self._error = error
            return
        self.submit(then)
