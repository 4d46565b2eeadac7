"""Evaluators' leases: files ``.ckptdb/leases/<uuid>.<evaluation>``, and which are active.

As long as one holds, nobody else begins that evaluation of that checkpoint, and nobody deletes
the checkpoint. It ends when its holder has died on this machine, or when nobody has touched the
file for as long as it says. How long that is, is told by the file system, whose clock wrote the
mtime too: those of two machines are not compared. (A run's one trainer has a lease of another
kind; see `lease`.)
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptdb.core import process
from ckptdb.disk import fs_clock, fsutil, names, paths
from ckptdb.disk.json_file import RECORD_BYTES, parse_object, raise_if_unknown, read_with_status
from ckptdb.disk.safe_path import anchored
from ckptdb.disk.trainer_lock import Holder
from ckptdb.errors import UnreadableInfo

SECONDS = 300.0
"""Time that a lease lasts without renewal; also of a lease whose file does not say it."""
_FOLDER = "leases"
_NAMED = 5
"""Number of leases on a checkpoint that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease of an evaluator on a checkpoint.

    Attributes:
        evaluation: Name of the evaluation; different ones may run at the same time.
        holder: None when that cannot be read.
        seconds: Time that it lasts after its last renewal.
        token: Tells it apart from one that was taken later.
        touched: The file's mtime.
    """

    path: Path
    uuid: str
    evaluation: str
    holder: Holder | None
    seconds: float
    token: str
    touched: float

    def __str__(self) -> str:
        return f"{self.evaluation!r} by {self.holder or 'somebody'}"

    def has_ended(self, now: float) -> bool:
        """Tell whether the lease is over.

        Args:
            now: By the clock that has written ``touched``.
        """
        # One from the future was copied from elsewhere, or the clock was set back: `settle` gives
        # it the time that it is.
        return now - self.touched > self.seconds or (
            self.holder is not None and self.holder.life == "dead"
        )


def find(hidden: Path, *, now: float | None = None) -> tuple[Lease, ...]:
    """Return the active leases of a run; writes nothing.

    Args:
        hidden: The run's ``.ckptdb`` folder.
        now: From `tell_time`; None asks without writing, and takes this machine's clock where that
            is not possible, which is good enough for telling people.

    Raises:
        OSError: There may be some, and it cannot be read now.
    """
    found = _load(hidden)
    if now is None and found:
        now = fs_clock.find_time(hidden, may_touch=False)
    at = time.time() if now is None else now
    return tuple(lease for lease in found if not lease.has_ended(at))


def find_leased(hidden: Path, *, now: float | None = None) -> dict[str, str]:
    """Return which checkpoints are leased, by uuid, and in words for what and by whom.

    Args and errors are those of `find`.
    """
    who: dict[str, list[Lease]] = {}
    for lease in find(hidden, now=now):
        who.setdefault(lease.uuid, []).append(lease)
    return {uuid: _name(active) for uuid, active in who.items()}


def _name(active: list[Lease]) -> str:
    more = f" and {len(active) - _NAMED} more" if len(active) > _NAMED else ""
    return ", ".join(map(str, active[:_NAMED])) + more


def settle(hidden: Path) -> tuple[Lease, ...]:
    """Remove the leases that are over; return the active ones. The caller has the run's lock.

    Raises:
        OSError: There may be some, and it cannot be read now.
    """
    found = _load(hidden)
    now = tell_time(hidden) if found else 0.0
    active = []
    for lease in found:
        if lease.has_ended(now):
            with suppress(OSError):  # it protects nothing, and will be found again
                remove(lease)
            continue
        active.append(lease)
        if lease.touched - now > lease.seconds:
            # Its holder renews it again, or nobody does: then it ends after its time from now on.
            with suppress(OSError):
                paths.touch(lease.path)
    return tuple(active)


def tell_time(hidden: Path) -> float:
    """Return what time it is for the file system that has a run's leases."""
    now = fs_clock.find_time(hidden, may_touch=True)
    return time.time() if now is None else now  # nothing can be written there anyway


def write(hidden: Path, uuid_: str, evaluation: str, *, seconds: float, since: str) -> Lease:
    """Take a lease that nobody holds; the caller has the run's lock."""
    fsutil.make_folder(hidden / _FOLDER, durable=False)
    path = hidden / _FOLDER / names.lease_name(uuid_, evaluation)
    holder = Holder.this_process(since)
    content = {**asdict(holder), "seconds": seconds, "token": str(uuid.uuid4())}
    # Not flushed: after a power cut its holder is gone, too.
    fsutil.write_json(path, content, durable=False)
    return Lease(
        path=path,
        uuid=uuid_,
        evaluation=evaluation,
        holder=holder,
        seconds=seconds,
        token=content["token"],
        touched=paths.get_status(path).st_mtime,
    )


def find_current(lease: Lease) -> Lease | None:
    """Return the lease that is there now in the place of one taken before, None when none is.

    Raises:
        OSError: It cannot be read now.
    """
    return _read(lease.path, lease.uuid, lease.evaluation)


def renew(lease: Lease) -> bool:
    """Renew a lease; tell whether it is still that one.

    Without the lock: should it be taken over at this moment, the new holder's is renewed once.

    Raises:
        OSError: It cannot be read now.
    """
    current = find_current(lease)
    if current is None or current.token != lease.token:
        return False
    with suppress(FileNotFoundError):
        paths.touch(lease.path)
    return True


def remove(lease: Lease) -> None:
    """End a lease; the caller has the run's lock."""
    paths.unlink(lease.path, missing_ok=True)


def _load(hidden: Path) -> list[Lease]:
    try:
        entries = paths.list_names(hidden / _FOLDER)
        if not entries:
            return []
        # There may be very many: the folder is not looked for again for each of them.
        with anchored(hidden.parent):
            return list(_read_all(hidden, entries))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_all(hidden: Path, entries: list[str]) -> Iterator[Lease]:
    for name in entries:
        named = names.find_lease(name)
        if named is None:
            continue
        path = hidden / _FOLDER / name
        try:
            lease = _read(path, *named)
        except OSError:
            lease = _unknown(path, *named)
        if lease is not None:
            yield lease


def _read(path: Path, uuid_: str, evaluation: str) -> Lease | None:
    try:
        # Opening it asks a network file system again how old it is.
        raw, status = read_with_status(path, RECORD_BYTES)
        content = parse_object(path, raw)
        return Lease(
            path=path,
            uuid=uuid_,
            evaluation=evaluation,
            holder=Holder(
                since=process.parse_text(content["since"]), **process.parse_process(content)
            ),
            seconds=_parse_seconds(content["seconds"]),
            token=process.parse_text(content["token"]),
            touched=status.st_mtime,
        )
    except UnreadableInfo as error:
        raise_if_unknown(error)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return _unknown(path, uuid_, evaluation)


def _unknown(path: Path, uuid_: str, evaluation: str) -> Lease | None:
    """Return a lease that cannot be read: it may be anybody's, and gets the usual time."""
    try:
        touched = paths.get_status(path).st_mtime
    except FileNotFoundError:
        return None
    return Lease(
        path=path,
        uuid=uuid_,
        evaluation=evaluation,
        holder=None,
        seconds=SECONDS,
        token="",
        touched=touched,
    )


def _parse_seconds(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(value)
    return seconds
