"""Differences in checkpoints that are gone: deleted, replaced, vanished. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdb.core.facts import Facts
from ckptdb.core.observed import Observation
from ckptdb.core.recorded import RecordedEnd, RecordedRun
from ckptdb.reconcile.action import Action, ActionKind
from ckptdb.reconcile.comparison import Comparison, is_same_record


def plan_gone(both: Comparison) -> Iterator[Action]:
    """Return the differences in everything that is gone."""
    yield from _plan_missing(both)
    yield from _report_lost(both)
    yield from _plan_unjournaled(both)
    yield from _plan_history(both)


def _plan_missing(both: Comparison) -> Iterator[Action]:
    """Return what is live in the index and not on disk."""
    observed, recorded, finals = both.observed, both.recorded, both.observed.finals
    # Nearly every step is unchanged, and skipped before anything more is computed.
    same = {step for step, checkpoint in finals.items() if checkpoint is None}
    changed = [step for step in recorded.finals if step not in same]
    live = {recorded.finals[step][0]: step for step in changed} | dict(recorded.tmps)
    for uuid, step in live.items():
        if uuid in both.here:
            continue
        # A published checkpoint at its step explains the absence; a tmp shares its name with none.
        if step in both.unclear_steps and (uuid in recorded.tmps or step not in finals):
            continue
        ended = observed.facts.gone.get(uuid) if observed.facts else None
        if ended:
            kind: ActionKind = "replaced" if ended.deleted_kind == "replaced" else "deleted"
            yield Action(kind, ended.deleted_reason or "deleted", step, ended, uuid)
        elif uuid in recorded.records:
            is_lost = uuid not in recorded.tmps and not both.may_be_edited(uuid, step)
            what = "is in the catalog, not on disk; recorded as vanished"
            if is_lost:
                what = f"{what}; {_explain_choice(observed, step)}"
            yield Action("vanished", what, step, recorded.records[uuid], uuid, is_lost=is_lost)


def _report_lost(both: Comparison) -> Iterator[Action]:
    """Return what has vanished before, and nobody has accepted."""
    facts = both.observed.facts
    for uuid in sorted(facts.lost - both.here) if facts else ():
        ended = facts.gone[uuid] if facts else None
        if ended and not both.may_be_edited(uuid, ended.step):
            what = f"missing on disk since {ended.deleted_at}, not deleted by ckptdb"
            what = f"{what}; {_explain_choice(both.observed, ended.step)}"
            yield Action("lost", what, ended.step, uuid=uuid)


def _explain_choice(observed: Observation, step: int) -> str:
    run = observed.identity.run.name
    return f"restore it, or accept the loss with `ckptdb accept {step} --run {run}`"


def _plan_unjournaled(both: Comparison) -> Iterator[Action]:
    """Return checkpoints that a question saw disappear; the journal does not record it yet."""
    observed, recorded = both.observed, both.recorded
    gone = find_unjournaled(recorded, observed.facts) if observed.facts else ()
    for uuid in sorted(gone):
        ended = None if uuid in both.here else recorded.records.get(uuid)
        if ended and ended.step not in both.unclear_steps:
            what = "has vanished; known to the catalog, not to the journal"
            is_lost = ended.finalized_at is not None and not both.may_be_edited(uuid, ended.step)
            if is_lost:
                what = f"{what}; {_explain_choice(observed, ended.step)}"
            yield Action("vanished", what, ended.step, ended, uuid, is_lost=is_lost)


def find_unjournaled(recorded: RecordedRun, facts: Facts) -> set[str]:
    """Return the uuids of vanished checkpoints whose end only the index records."""
    vanished = {uuid for uuid, end in recorded.gone.items() if end.has_vanished}
    return vanished - set(facts.gone)


def _plan_history(both: Comparison) -> Iterator[Action]:
    """Return the ends that the journal records and the index does not."""
    observed, recorded = both.observed, both.recorded
    if observed.facts is None or not observed.facts.gone:
        return
    live = {uuid for uuid, _ in recorded.finals.values()} | set(recorded.tmps)
    for uuid, ended in observed.facts.gone.items():
        if uuid in both.here or uuid in live or ended.step in both.unclear_steps:
            continue
        parent = ended.parent if ended.parent in both.known else None
        end = RecordedEnd(ended.deleted_at, ended.deleted_kind, ended.deleted_reason, parent)
        if recorded.gone.get(uuid) != end:
            what = f"{ended.deleted_reason}; known to the journal, not to the catalog"
            yield Action("deleted", what, ended.step, ended, uuid)
        elif (known := recorded.records.get(uuid)) and not is_same_record(known, ended, recorded):
            what = "what it was before it went differs from the journal"
            yield Action("deleted", what, ended.step, ended, uuid)
