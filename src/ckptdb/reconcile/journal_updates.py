"""Lines that reconciling writes to a run's journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptdb.core.facts import Fact
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import identity, journal, journal_records, journal_repair
from ckptdb.reconcile.action import Action
from ckptdb.reconcile.missing_facts import MissingFacts


def record_vanished(
    directory: Path, vanished: Sequence[Action], back: Sequence[Action], *, writes_journal: bool
) -> list[Checkpoint]:
    """Write to the journal what vanished and what came back.

    Args:
        directory: The run.
        vanished: Checkpoints that are gone.
        back: Checkpoints that are there again.
        writes_journal: False to write nothing; the next `reconcile_run` does.

    Returns:
        The vanished checkpoints as the index has to store them.

    Raises:
        OSError: The journal cannot be written.
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
            deleted_kind="vanished",
            path=directory / f"step_{checkpoint.step}",
        )
        for checkpoint in (action.checkpoint for action in vanished)
        if checkpoint
    ]
    facts = [journal_records.gone(end) for end in found]
    # A checkpoint that may only have other metadata now is no loss.
    edited = (a for a in vanished if not a.is_lost and a.checkpoint and a.checkpoint.finalized_at)
    facts += [Fact(at, "accepted", action.uuid) for action in edited if action.uuid]
    facts += [Fact(at, "reappeared", action.uuid) for action in back if action.uuid]
    if writes_journal:
        journal.append(identity.hidden(directory), facts, make_durable=True)
    return found


def restore(
    directory: Path, missing: Sequence[Action], *, is_damaged: bool, longest_bytes: int
) -> Path | None:
    """Write to the journal the facts that it lacks, and that it contradicts nothing any more.

    Args:
        directory: The run, whose lock the caller holds.
        missing: The facts that the index knows.
        is_damaged: Whether the journal has to be written anew; the damaged one is kept beside it.
        longest_bytes: The journal's greatest length so far.

    Returns:
        The path of the damaged journal.

    Raises:
        OSError: The journal cannot be written; nothing has changed.
    """
    at, hidden = utc(time.time()), identity.hidden(directory)
    restored = [fact for action in missing for fact in _restore_facts(action, at)]
    settled = Fact(at, "settled", "", {"restored": len(restored), "bytes": longest_bytes})
    if is_damaged:
        return journal_repair.rewrite(hidden, [*restored, settled])
    journal.append(hidden, [*restored, settled], make_durable=True)
    return None


def record_contradiction(directory: Path, why: str, *, short: bool) -> None:
    """Write to the journal that a catalog contradicts it, which forbids every deletion.

    Raises:
        OSError: The journal cannot be written.
    """
    fact = Fact(utc(time.time()), "contradicted", "", {"why": why, "short": short})
    journal.append(identity.hidden(directory), [fact], make_durable=True)


def _restore_facts(action: Action, at: str) -> Iterator[Fact]:
    uuid, missing, ended = action.uuid, action.missing, action.checkpoint
    if uuid is None or missing is None:
        return
    if ended is not None:
        reason, kind = ended.deleted_reason or "deleted", ended.deleted_kind or "unknown"
        yield journal_records.gone(ended.ended(kind, reason, ended.deleted_at or at))
    yield from (Fact(when, kind, uuid, more) for when, kind, more in _list_annotations(missing, at))


def _list_annotations(missing: MissingFacts, at: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    annotations = missing.annotations
    if annotations.pinned:
        yield at, "pin", {}
    if annotations.notes is not None:
        yield at, "note", {"text": annotations.notes}
    if annotations.rejected is not None:
        yield at, "rejected", {"reason": annotations.rejected}
    for name, when in annotations.tags:
        yield when, "tag", {"name": name}
    for m in annotations.late:
        yield m.reported_at, "metric", {"name": m.name, "value": m.value, "source": m.source}
    for resumption in annotations.resumptions:
        yield resumption.resumed_at, "resumed", {"host": resumption.host, "pid": resumption.pid}
