"""The trainer lock: only one process at a time saves into a run.

It is `flock` on ``.ckptdb/trainer``, held from the first save of a process until its last
manager of that run lets go, and gone with the process however that ends. What the file says is
there for the error that a second trainer gets, and decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Self

from ckptdb.core import process
from ckptdb.core.process import Process
from ckptdb.disk import lock, paths
from ckptdb.disk.json_file import RECORD_BYTES, load_json
from ckptdb.errors import RunInUse, UnreadableInfo

PATIENCE_SECONDS = 0.2
"""Time for which a lock without a recorded holder is read again."""
_PAUSE_SECONDS = 0.01
_NAME: Final = "trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder(Process):
    """The process that has a lock or a lease, and since when."""

    since: str

    @classmethod
    def this_process(cls, since: str) -> Self:
        """Describe the calling process."""
        return cls(since=since, **process.this_process())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class TrainerLock:
    """A taken trainer lock; it lasts as long as this object, in the process that took it."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._end = weakref.finalize(self, _release, file)

    def abandon(self) -> None:
        """Close the copy of a forked child; the parent keeps the lock."""
        self._end.detach()
        self._file.close()


_taken: Final[weakref.WeakValueDictionary[tuple[int, int], TrainerLock]] = (
    weakref.WeakValueDictionary()
)
"""Locks of this process, by device and inode of the file."""
_guard: Final = threading.RLock()


def take(hidden: Path, *, since: str) -> TrainerLock:
    """Take the trainer lock of a run; a second call in this process returns the same lock.

    Args:
        hidden: The ``.ckptdb`` folder of the run, which must exist.
        since: Start time that a second trainer reports, in UTC.

    Raises:
        RunInUse: Another process holds it.
    """
    path = hidden / _NAME
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with _guard:
            taken = _find_taken(path) or _try(path, since)
        if taken is not None:
            return taken
        holder = find_holder(hidden)
        # A dead process in the file is the previous holder: the present one is just writing its
        # name, or could not. This process is a manager that releases the lock in another thread.
        life = "dead" if holder is None or holder.is_me else holder.life
        if life == "alive":
            raise RunInUse(hidden.parent, str(holder))
        if time.monotonic() >= deadline:
            last = f" (the last one to say so was {holder})" if life == "unknown" else ""
            raise RunInUse(hidden.parent, f"another process{last}")
        time.sleep(_PAUSE_SECONDS)


def is_held(hidden: Path) -> bool:
    """Tell whether this process holds the trainer lock of a run, given its ``.ckptdb`` folder."""
    return _find_taken(hidden / _NAME) is not None


def find_holder(hidden: Path) -> Holder | None:
    """Return the process that the file names as the holder, None when that cannot be read."""
    try:
        content, _ = load_json(hidden / _NAME, RECORD_BYTES)
        return Holder(since=process.parse_text(content["since"]), **process.parse_process(content))
    except (UnreadableInfo, KeyError, TypeError, ValueError, OverflowError):
        return None


def _find_taken(path: Path) -> TrainerLock | None:
    key = _find_key(path)
    return None if key is None else _taken.get(key)


def _try(path: Path, since: str) -> TrainerLock | None:
    # A file object can be closed twice: an exception of a signal handler may come after the lock
    # owns it. A descriptor that is closed twice may belong to another file by then.
    file = open(path, "rb", buffering=0, opener=_open)  # noqa: SIM115  # the lock keeps it
    try:
        # Looked at again: a lock on a file that was removed meanwhile keeps nobody out.
        if _lock(file, path) and _find_key(path) == (key := _key(os.fstat(file.fileno()))):
            _write(file, Holder.this_process(since))
            taken = _taken[key] = TrainerLock(file)
            return taken
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _open(path: str, _: int) -> int:
    return lock.open_lock(Path(path))  # as `open` hands it on


def _lock(file: FileIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in lock.NO_LOCKS:
            raise
        lock.warn_of_no_locks(path.parent)
    return True


def _write(file: FileIO, holder: Holder) -> None:
    # Only the lock counts. A name that cannot be written, on a full disk, must not fail a save;
    # an empty file is better than the name of the previous holder.
    with suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), json.dumps(asdict(holder)).encode() + b"\n", 0)


def _release(file: FileIO) -> None:
    if file.closed:
        return
    with file:
        with suppress(OSError):
            os.ftruncate(file.fileno(), 0)
        with suppress(OSError):
            # By name: a child that is being forked at this moment may hold a copy.
            fcntl.flock(file, fcntl.LOCK_UN)


def _find_key(path: Path) -> tuple[int, int] | None:
    found = paths.find_status(path)
    return None if found is None else _key(found)


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _abandon_inherited() -> None:
    for lease in list(_taken.values()):
        lease.abandon()
    _taken.clear()
    _guard.release()


# The guard is taken for the fork: a handle that another thread is about to enter would be missed.
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_abandon_inherited
)
