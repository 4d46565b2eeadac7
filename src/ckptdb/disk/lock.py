"""The run's short lock, under which names and journal are changed.

It is `flock`, which dies with its process. A fork inherits the descriptor, and with it the
lock; so it is released by name (``LOCK_UN``), which frees it whoever else still holds a copy,
and a forked child closes its copies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdb.core import warnings
from ckptdb.disk import fsutil, ownership, paths
from ckptdb.errors import LockForbidden, RunLocked

TIMEOUT_SECONDS = 60.0
_JUST_NOW_SECONDS = 2.0
_FIRST_WAIT_SECONDS = 0.0005
_LONGEST_WAIT_SECONDS = 0.05
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of a file system without locks."""

LOCAL = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E, 0x2FC12FC1, 0x01021994})
"""The kinds of file systems that one machine at a time can have, where every lock is seen by all:
ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS and tmpfs."""

_open_handles: set[int] = set()
_warned: set[Path] = set()


@contextmanager
def run_lock(hidden: Path) -> Iterator[None]:
    """Hold the lock of a run, given its ``.ckptdb`` folder.

    Raises:
        RunLocked: Another process or thread kept it for `TIMEOUT_SECONDS`.
    """
    path = hidden / "lock"
    with _locked(open_lock(path), path, fcntl.LOCK_EX):
        yield


def open_lock(path: Path) -> int:
    """Open a file for its lock, making it when it is missing; only to read where that must do.

    Raises:
        LockForbidden: It is not open to this user, who may write its directory.
        OSError: It cannot be opened, or made.
    """
    try:
        return fsutil.open_kept(path, os.O_RDWR, for_writers=True)
    except PermissionError:
        found = paths.find_status(path)
        if found is None:
            raise
    try:
        # Another user's, who shares the run but not this file: it can be locked all the same.
        return paths.open_file(path, os.O_RDONLY)
    except PermissionError as error:
        if ownership.may_write(path.parent):
            raise LockForbidden(path, ownership.name_of(found.st_uid)) from error
        raise


@contextmanager
def read_lock(hidden: Path) -> Iterator[None]:
    """Keep everybody from changing a run meanwhile, others may look; changes nothing itself.

    Where nobody has ever locked the run there is nothing to hold.

    Args:
        hidden: The run's ``.ckptdb`` folder.

    Raises:
        RunLocked: Another process or thread kept it for `TIMEOUT_SECONDS`.
        OSError: It may not be looked at.
    """
    path = hidden / "lock"
    try:
        # Not for writing, which a file system of many machines wants of an exclusive one.
        handle = paths.open_file(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    with _locked(handle, path, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(handle: int, path: Path, kind: int) -> Iterator[None]:
    """Hold the lock of an open file, and close the file afterwards."""
    _open_handles.add(handle)
    try:
        _take(handle, path, kind)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        _open_handles.discard(handle)
        os.close(handle)


def may_be_locked(hidden: Path) -> bool:
    """Tell whether somebody may be changing a run just now, given its ``.ckptdb`` folder."""
    try:
        handle = paths.open_file(hidden / "lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return _has_just_changed(hidden.parent)  # the lock is not for us to see
    _open_handles.add(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)  # by name: a fork may just have copied it
    except OSError:
        return True
    finally:
        _open_handles.discard(handle)
        os.close(handle)
    return False


def _has_just_changed(directory: Path) -> bool:
    try:
        return time.time() - os.stat(directory).st_mtime < _JUST_NOW_SECONDS
    except OSError:
        return True


def _take(handle: int, path: Path, kind: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    wait = _FIRST_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise RunLocked(path, TIMEOUT_SECONDS) from None
            time.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warn_of_no_locks(path.parent)
            return
        else:
            return


def find_file_system(handle: int) -> int:
    """Return the kind of the file system that an open file is on, as the kernel numbers them.

    0 when that cannot be told.
    """
    try:
        # The first field of the answer, which is otherwise not looked at, is as wide as a word.
        answer = (ctypes.c_long * 64)()
        failed = ctypes.CDLL(None).fstatfs(handle, answer)
    except (AttributeError, OSError):
        return 0
    return 0 if failed else answer[0] & 0xFFFFFFFF


def warn_of_no_locks(hidden: Path) -> None:
    """Say once that nothing keeps others out of a run, given its ``.ckptdb`` folder."""
    if hidden in _warned:
        return
    _warned.add(hidden)
    warnings.warn(
        f"{hidden} is on a file system without locks; "
        "let only one process at a time change this run."
    )


def _close_inherited() -> None:
    for handle in _open_handles:
        os.close(handle)
    _open_handles.clear()


os.register_at_fork(after_in_child=_close_inherited)
