"""Locks of a run, while it is reconciled."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ckptdb.disk import fsutil, identity
from ckptdb.disk.lock import read_lock, run_lock
from ckptdb.disk.safe_path import anchored
from ckptdb.errors import Obstructed

_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def lock_to_change(directory: Path) -> AbstractContextManager[None]:
    """Hold a run's lock to change the run, where there is one and it can be taken.

    Raises:
        RunLocked: Another process holds it.
    """
    return _lock(directory, run_lock)


def lock_to_read(directory: Path) -> AbstractContextManager[None]:
    """Hold a run's lock so that no process changes the run meanwhile; creates no file.

    Raises:
        RunLocked: Another process holds it.
    """
    return _lock(directory, read_lock)


@contextmanager
def _lock(directory: Path, lock: Callable[[Path], AbstractContextManager[None]]) -> Iterator[None]:
    hidden = identity.hidden(directory)
    with ExitStack() as stack:
        # Without the folder no process of ours changes the run, and reading must not create it.
        if fsutil.is_folder(hidden):
            stack.enter_context(anchored(directory))
            try:
                stack.enter_context(lock(hidden))
            except Obstructed:
                raise
            except OSError as error:
                # Another user's run, or a read-only mount: it is read without the lock.
                if error.errno not in _NOT_OURS:
                    raise
        yield
