"""What is done to a run while nobody else of ours changes it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import fsutil, identity, journal
from ckptdb.disk.journal import Fact
from ckptdb.disk.lock import read_lock, run_lock
from ckptdb.disk.safe_path import hold
from ckptdb.errors import Obstructed
from ckptdb.reconcile.doubt import Missing
from ckptdb.reconcile.plan import Action

_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def held(directory: Path) -> AbstractContextManager[None]:
    """Hold a run's lock to change it, where there is one and it can be taken.

    Raises:
        RunLocked: Somebody else keeps it.
    """
    return _held(directory, run_lock)


def held_to_look(directory: Path) -> AbstractContextManager[None]:
    """Hold a run's lock so that nobody changes it meanwhile; nothing is made for that.

    Raises:
        RunLocked: Somebody else keeps it.
    """
    return _held(directory, read_lock)


@contextmanager
def _held(directory: Path, lock: Callable[[Path], AbstractContextManager[None]]) -> Iterator[None]:
    hidden = identity.hidden(directory)
    with ExitStack() as stack:
        # Without the folder nobody of ours changes the run, and looking must not create it.
        if fsutil.is_folder(hidden):
            stack.enter_context(hold(directory))
            try:
                stack.enter_context(lock(hidden))
            except Obstructed:
                raise
            except OSError as error:
                # Somebody else's run, or a read-only mount: what we see is all we can know.
                if error.errno not in _NOT_OURS:
                    raise
        yield


def bury(
    directory: Path, vanished: Sequence[Action], back: Sequence[Action], *, writes: bool
) -> list[Checkpoint]:
    """Return how what vanished ended; write that, and what came back, to the journal.

    Args:
        directory: The run.
        vanished: What is gone.
        back: What is there again.
        writes: Whether the journal may be written to; if not, whoever acts next does it.

    Raises:
        OSError: It cannot be written.
    """
    if not vanished and not back:
        return []
    at, reason = utc(time.time()), "vanished: not on disk any more"
    found = [
        replace(
            checkpoint,
            status="deleted",
            deleted_at=checkpoint.deleted_at or at,
            deleted_reason=checkpoint.deleted_reason or reason,
            path=directory / f"step_{checkpoint.step}",
        )
        for checkpoint in (action.checkpoint for action in vanished)
        if checkpoint
    ]
    facts = [
        journal.gone(end, "vanished", end.deleted_reason or reason, end.deleted_at or at)
        for end in found
    ]
    # What may only have other metadata now is no loss, whatever becomes of it.
    edited = (a for a in vanished if not a.is_lost and a.checkpoint and a.checkpoint.finalized_at)
    facts += [Fact(at, "accepted", action.uuid) for action in edited if action.uuid]
    facts += [Fact(at, "reappeared", action.uuid) for action in back if action.uuid]
    if writes:
        journal.append(identity.hidden(directory), facts, make_durable=True)
    return found


def settle(
    directory: Path, missing: Sequence[Action], *, is_damaged: bool, longest_bytes: int
) -> Path | None:
    """Write to the journal what it did not tell, and that nothing is in doubt any more.

    Args:
        directory: The run, whose lock the caller holds.
        missing: What the index knows.
        is_damaged: Whether the journal has to be written anew; the damaged one is kept beside it.
        longest_bytes: How long it was at most.

    Returns:
        Where the damaged one is.

    Raises:
        OSError: It cannot be written; all is as it was.
    """
    at, hidden = utc(time.time()), identity.hidden(directory)
    restored = [fact for action in missing for fact in _restored(action, at)]
    settled = Fact(at, "settled", "", {"restored": len(restored), "bytes": longest_bytes})
    if is_damaged:
        return journal.rewrite(hidden, [*restored, settled])
    journal.append(hidden, [*restored, settled], make_durable=True)
    return None


def doubt(directory: Path, why: str, *, short: bool) -> None:
    """Write to the journal that a catalog contradicts it: whoever deletes has to know.

    Raises:
        OSError: It cannot be written.
    """
    fact = Fact(utc(time.time()), "contradicted", "", {"why": why, "short": short})
    journal.append(identity.hidden(directory), [fact], make_durable=True)


def _restored(action: Action, at: str) -> Iterator[Fact]:
    uuid, missing, ended = action.uuid, action.missing, action.checkpoint
    if uuid is None or missing is None:
        return
    if ended is not None:
        reason = ended.deleted_reason or "deleted"
        yield journal.gone(ended, _kind_of(reason), reason, ended.deleted_at or at)
    yield from (Fact(when, kind, uuid, more) for when, kind, more in _facts_of(missing, at))


def _kind_of(reason: str) -> journal.Gone:
    if reason.startswith("replaced"):
        return "replaced"
    return "discarded" if reason.startswith("discarded") else "deleted"


def _facts_of(missing: Missing, at: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    said = missing.annotations
    if said.pinned:
        yield at, "pin", {}
    if said.notes is not None:
        yield at, "note", {"text": said.notes}
    if said.rejected is not None:
        yield at, "rejected", {"reason": said.rejected}
    for name, when in said.tags:
        yield when, "tag", {"name": name}
    for m in said.late:
        yield m.reported_at, "metric", {"name": m.name, "value": m.value, "source": m.source}
    for one in said.resumptions:
        yield one.resumed_at, "resumed", {"host": one.host, "pid": one.pid}
