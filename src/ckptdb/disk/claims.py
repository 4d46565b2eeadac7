"""Evaluators' leases: files ``.ckptdb/leases/<uuid>.<evaluation>``, and which of them hold.

As long as one holds, nobody else begins that evaluation of that checkpoint, and nobody deletes
the checkpoint. It ends when its holder has died on this machine, or when nobody has touched the
file for as long as it says. How long that is, is told by the file system, whose clock wrote the
mtime too: those of two machines are not compared. (A run's one trainer has a lease of another
kind; see `lease`.)
"""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckptdb.disk import durable, identity, names
from ckptdb.disk.info import MAX_BYTES, parse_object, raise_if_unknown, read_with_status
from ckptdb.disk.lease import Holder
from ckptdb.errors import UnreadableInfo

SECONDS = 300.0
"""How long a lease holds that is not renewed; also one that does not say how long it does."""
_FOLDER = "leases"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One evaluator's lease on one checkpoint.

    Attributes:
        evaluation: What is measured; two different ones may go on at the same time.
        holder: None when that is not legible.
        namespace: In which the holder's pid means something.
        seconds: How long it holds after it was touched.
        token: Tells it apart from one that was taken later.
        touched: The file's mtime.
    """

    path: Path
    uuid: str
    evaluation: str
    holder: Holder | None
    namespace: int | None
    seconds: float
    token: str
    touched: float

    def __str__(self) -> str:
        return f"{self.evaluation!r} by {self.holder or 'somebody'}"

    def has_ended(self, now: float) -> bool:
        """Whether it holds no longer.

        Args:
            now: By the clock that has written ``touched``.
        """
        # One from the future was copied from elsewhere, or the clock was set back: it is renewed
        # soon, or by nobody.
        return abs(now - self.touched) > self.seconds or self._has_died()

    def _has_died(self) -> bool:
        holder = self.holder
        # Of one elsewhere nothing can be known, and a name may be that of two machines, or of two
        # containers on one.
        if holder is None or not holder.is_here or self.namespace != _find_namespace():
            return False
        return holder.is_alive is False


def find(hidden: Path, *, now: float | None = None) -> tuple[Claim, ...]:
    """Return the leases of a run that hold; writes nothing.

    Args:
        hidden: The run's ``.ckptdb`` folder.
        now: From `tell_time`; None takes this machine's clock, which is good enough for telling
            people.

    Raises:
        OSError: There may be some, and it cannot be told now.
    """
    found = tuple(_load(hidden))
    at = time.time() if now is None else now
    return tuple(claim for claim in found if not claim.has_ended(at))


def find_leased(hidden: Path, *, now: float | None = None) -> dict[str, str]:
    """Return which checkpoints are leased, by uuid, and in words for what and by whom.

    Args and errors are those of `find`.
    """
    who: dict[str, str] = {}
    for claim in find(hidden, now=now):
        who[claim.uuid] = f"{who[claim.uuid]}, {claim}" if claim.uuid in who else str(claim)
    return who


def settle(hidden: Path) -> tuple[Claim, ...]:
    """Remove the leases that have ended; return those that hold. The caller has the run's lock.

    Raises:
        OSError: There may be some, and it cannot be told now.
    """
    found = tuple(_load(hidden))
    now = tell_time(hidden) if found else 0.0
    ended = [claim for claim in found if claim.has_ended(now)]
    for claim in ended:
        with suppress(OSError):  # it protects nothing, and will be found again
            remove(claim)
    return tuple(claim for claim in found if claim not in ended)


def tell_time(hidden: Path) -> float:
    """Return what time it is for the file system that has a run's leases; touches their folder."""
    folder = hidden / _FOLDER
    try:
        os.utime(folder)
        return folder.stat().st_mtime
    except OSError:
        return time.time()  # there is none, or it may only be read


def write(hidden: Path, uuid_: str, evaluation: str, *, seconds: float, since: str) -> Claim:
    """Take a lease that nobody holds; the caller has the run's lock."""
    durable.make_directories(hidden / _FOLDER, durable=False)
    path = hidden / _FOLDER / names.lease_name(uuid_, evaluation)
    holder = Holder.this_process(since)
    content = {
        **asdict(holder),
        "namespace": _find_namespace(),
        "seconds": seconds,
        "token": str(uuid.uuid4()),
    }
    # Not flushed: after a power cut its holder is gone, too.
    durable.write_json(path, content, durable=False)
    return Claim(
        path=path,
        uuid=uuid_,
        evaluation=evaluation,
        holder=holder,
        namespace=content["namespace"],
        seconds=seconds,
        token=content["token"],
        touched=path.stat().st_mtime,
    )


def find_current(claim: Claim) -> Claim | None:
    """Return the lease that is there now in the place of one taken before, None when none is.

    Raises:
        OSError: It cannot be told now.
    """
    return _read(claim.path, claim.uuid, claim.evaluation)


def renew(claim: Claim) -> bool:
    """Let a lease hold on from now; tell whether it is still that one.

    Without the lock: should it be taken over at this moment, the new holder's is renewed once.

    Raises:
        OSError: It cannot be told now.
    """
    current = find_current(claim)
    if current is None or current.token != claim.token:
        return False
    with suppress(FileNotFoundError):
        os.utime(claim.path)
    return True


def remove(claim: Claim) -> None:
    """End a lease; the caller has the run's lock."""
    claim.path.unlink(missing_ok=True)


def _load(hidden: Path) -> Iterator[Claim]:
    try:
        entries = sorted(os.listdir(hidden / _FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in entries:
        named = names.find_lease(name)
        if named is None:
            continue
        path = hidden / _FOLDER / name
        try:
            claim = _read(path, *named)
        except OSError:
            claim = _unknown(path, *named)
        if claim is not None:
            yield claim


def _read(path: Path, uuid_: str, evaluation: str) -> Claim | None:
    try:
        # Opening it asks a network file system again how old it is.
        raw, status = read_with_status(path, MAX_BYTES)
        content = parse_object(path, raw)
        return Claim(
            path=path,
            uuid=uuid_,
            evaluation=evaluation,
            holder=Holder(
                since=identity.legible_text(content["since"]), **identity.legible_process(content)
            ),
            namespace=content["namespace"],
            seconds=_legible_seconds(content["seconds"]),
            token=identity.legible_text(content["token"]),
            touched=status.st_mtime,
        )
    except UnreadableInfo as error:
        raise_if_unknown(error)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return _unknown(path, uuid_, evaluation)


def _unknown(path: Path, uuid_: str, evaluation: str) -> Claim | None:
    """Return a lease that is not legible: it may be anybody's, and gets the usual time."""
    try:
        touched = path.lstat().st_mtime
    except FileNotFoundError:
        return None
    return Claim(
        path=path,
        uuid=uuid_,
        evaluation=evaluation,
        holder=None,
        namespace=None,
        seconds=SECONDS,
        token="",
        touched=touched,
    )


def _legible_seconds(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(value)
    return seconds


def _find_namespace() -> int | None:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
