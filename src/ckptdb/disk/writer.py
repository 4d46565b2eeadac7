"""Writers of staged checkpoints: ``.writer.json``, and the locks on it.

The process that stages a checkpoint holds two locks on its ``.writer.json`` until it publishes or
discards it. They go with the process however that ends, and are seen from every container of the
machine, where the number of a process says nothing; see `liveness`.

One is `flock`, for earlier versions, which know no other. Whoever may read the file can take that
lock, too, and let a writer that is dead seem alive. So where there is the other one, it alone says
whether the writer lives: a write lock on the open file (``F_OFD_SETLK``), which takes a file
that is open for writing.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from ckptdb.core import process
from ckptdb.core.observed import Locked, Writer
from ckptdb.disk import fsutil, lock, names, ownership, paths
from ckptdb.disk.json_file import RECORD_BYTES, load_json, raise_if_unknown
from ckptdb.errors import UnreadableInfo

# `struct flock`: type, whence, start, length (0 for all of the file), process (0 for this kind).
_FLOCK: Final = struct.Struct("hhqqi4x")


_locked: Final[dict[Path, int]] = {}
"""Locked file descriptors of this process, by staged directory."""


_guard: Final = threading.RLock()


def write(folder: Path, checkpoint_uuid: str, created_at: str) -> Writer:
    """Record in a staged checkpoint that this process writes it, locked until `release`.

    Raises:
        OSError: There is a record already, or it cannot be written.
    """
    with _guard:
        # Locked before it has its name, and before anybody else may open it: nobody may find it
        # free meanwhile, nor hold its lock when it is to be locked.
        aside = folder / f"{names.WRITER}.new"
        handle = paths.open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            me = process.this_process()
            locked = _find_lock(handle)
            has_write_lock = locked is not None and _take_write_lock(handle)
            writer = Writer(checkpoint_uuid, created_at, locked, has_write_lock, **me)
            left = memoryview(json.dumps(asdict(writer)).encode() + b"\n")
            while left:
                left = left[os.write(handle, left) :]
            # Who may look into the checkpoint may read this, too.
            with paths.opened(folder, follow=True) as around:
                ownership.share(handle, around, with_readers=True)
            fsutil.rename_new(aside, folder / names.WRITER)
        except BaseException:
            os.close(handle)
            with suppress(OSError):
                paths.unlink(aside)
            raise
        release(folder)
        _locked[folder] = handle
    return writer


def release(folder: Path) -> None:
    """Release the locks of a staged checkpoint, if this process has them."""
    handle = _locked.pop(folder, None)
    if handle is not None:
        # By name: a child that is being forked at this moment may hold a copy.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        _set_write_lock(handle, fcntl.F_UNLCK)
        os.close(handle)


def remove(folder: Path) -> None:
    """Remove the record of the writer of a staged checkpoint."""
    # First: network file systems keep a file that is removed while it is open.
    release(folder)
    paths.unlink(folder / names.WRITER, missing_ok=True)


def find(folder: Path) -> Writer | None:
    """Return who stages a checkpoint, or None when that was not recorded legibly.

    Raises:
        OSError: It cannot be read now.
    """
    try:
        content, _ = load_json(folder / names.WRITER, RECORD_BYTES)
        return Writer(
            uuid=str(uuid.UUID(content["uuid"])),
            created_at=process.parse_text(content["created_at"]),
            lock=_parse_lock(content.get("lock")),
            has_write_lock=content.get("has_write_lock") is True,
            **process.parse_process(content),
        )
    except UnreadableInfo as error:
        raise_if_unknown(error)
        return None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def look_at_lock(
    folder: Path, writer: Writer | None
) -> Literal["locked", "free", "unseen", "none"]:
    """Return what has become of a writer's lock.

    ``free`` says that the writer has ended. ``unseen`` is a lock that nobody holds as far as can
    be seen from here, and that may be held on another machine; ``none`` one that was never taken,
    or is not that file's.

    Args:
        folder: The ``tmp_step_N``.
        writer: Its recorded writer; None when that cannot be read.
    """
    found = _try(folder / names.WRITER, writer)
    if isinstance(found, str):
        return found
    taken = writer.lock if writer else None
    if writer is None or taken is None or taken.inode != found.inode:
        return "none"  # or of a copy, which nobody has locked
    # Within a boot locks reach wherever it is the same file; beyond, where both have it on a file
    # system that one machine at a time can have.
    if writer.is_of_this_boot:
        reaches = found == taken
    else:
        reaches = found.system == taken.system and found.system in lock.LOCAL
    return "free" if reaches else "unseen"


def _try(path: Path, writer: Writer | None) -> Locked | Literal["locked", "unseen"]:
    """Return which file has that name, when no writer holds a lock on it."""
    try:
        handle = paths.open_file(path, os.O_RDONLY)
    except OSError:
        return "unseen"
    try:
        match _is_write_locked(handle):
            case True:
                return "locked"
            case False if writer is None or writer.has_write_lock:
                # Whoever holds the other one may be anybody.
                return _locked_file(handle)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _locked_file(handle)
    except BlockingIOError:
        return "locked"
    except OSError:
        return "unseen"
    finally:
        os.close(handle)


def _find_lock(handle: int) -> Locked | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in lock.NO_LOCKS:
            raise
        return None
    return _locked_file(handle)


def _take_write_lock(handle: int) -> bool:
    return _set_write_lock(handle, fcntl.F_WRLCK)


def _set_write_lock(handle: int, kind: int) -> bool:
    """Tell whether there are such locks here, and it could be taken or let go."""
    with suppress(AttributeError, OSError):  # not on every system, nor on every file system
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
        return True
    return False


def _is_write_locked(handle: int) -> bool | None:
    """Tell whether anybody holds a write lock on a file; None where that cannot be asked."""
    with suppress(AttributeError, OSError):
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    return None


def _locked_file(handle: int) -> Locked:
    found = os.fstat(handle)
    return Locked(lock.find_file_system(handle), found.st_dev, found.st_ino)


def _parse_lock(content: Any) -> Locked | None:
    return None if content is None else Locked(*map(int, content))


def _close_inherited() -> None:
    # Closing leaves the lock with the parent; and a child that outlives it must not keep it.
    for handle in _locked.values():
        os.close(handle)
    _locked.clear()
    _guard.release()


# The guard is taken for the fork: a file that another thread is about to lock would be missed.
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_inherited
)
