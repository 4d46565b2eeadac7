"""Applying the plan of one run: repairs on disk, lines of the journal, rows of the index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.changes import Changes
from ckptdb.core.records import Checkpoint
from ckptdb.core.stamp import Stamp
from ckptdb.disk import identity, run_stamp
from ckptdb.errors import CkptdbError
from ckptdb.reconcile import journal_updates, missing_facts
from ckptdb.reconcile.action import REPAIRS, Action
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.journal_updates import record_vanished
from ckptdb.reconcile.locks import lock_to_change, lock_to_read
from ckptdb.reconcile.options import Options
from ckptdb.reconcile.planned_run import PlannedRun, plan_run
from ckptdb.reconcile.repairs import Completing
from ckptdb.reconcile.report import RunReport

_ROUNDS = 3
"""Repairs of one kind can uncover another (an old one put back lets a tmp be published)."""


def is_worth_storing(planned: PlannedRun, options: Options) -> bool:
    """Tell whether applying a plan would store anything."""
    indexed, observed, config = planned.recorded.indexed, planned.observation, planned.plan.config
    if planned.plan.doubt is not None:
        # Nothing but differences is stored as long as index and journal contradict each other.
        unrecorded = options.writes_journal and planned.has_unrecorded_contradiction
        return planned.has_changes or unrecorded
    # That there is no configuration is stored along with another change.
    is_new_config = config is not None and indexed is not None and bool(indexed.run.config)
    if planned.has_changes or config or is_new_config:
        return True
    # Nothing differs: only the stamp is left to store.
    if indexed is None or observed.unsure:
        return False
    if observed.settled:
        # A file that nothing depends on, e.g. a checksum, was written into a checkpoint.
        return not is_exact(indexed, observed.stamp) or bool(_find_settled(planned))
    return options.assume and indexed.stamp != str(observed.stamp)


def is_new_copy(planned: PlannedRun, options: Options) -> bool:
    """Tell whether the run is a copy that would be unknown again once it is moved."""
    who = planned.observation.identity
    copied = who.marked and not who.recorded and not who.problem
    # A question is no reason to write into a run.
    return copied and options.writes_journal and options.depth != "changes"


def repair(
    repairs: Completing, catalog: Catalog, planned: PlannedRun
) -> tuple[list[Action], list[str]]:
    """Repair what a crash left on disk; return what was done, and why something was not."""
    done: list[Action] = []
    blocked: list[str] = []
    directory = repairs.directory
    for _ in range(_ROUNDS):
        before = len(done)
        for action in planned.plan.actions:
            if not repairs.may_repair(action):
                continue
            try:
                if repairs.repair(action):
                    done.append(action)
            except (OSError, CkptdbError) as error:
                blocked.append(f"{directory}: {error}")
        if blocked or len(done) == before:
            break
        # With the journal: what a repair has put into the trash is removed in the next round.
        again = plan_run(catalog, directory, Options("files", repairs))
        if isinstance(again, RunReport):
            break
        planned = again
    return done, blocked


def apply_plan(
    catalog: Catalog,
    first: PlannedRun,
    options: Options,
    repaired: tuple[list[Action], list[str]],
) -> RunReport:
    """Write a plan to the journal and the index, under the run's lock.

    Args:
        catalog: The index.
        first: The run as planned without the lock.
        options: Of reconciling it.
        repaired: What `repair` returned.
    """
    directory = first.directory
    done, blocked = repaired
    _establish(first, options)
    with _lock(directory, options):
        # Between the plan and the lock a trainer may have published or retired a checkpoint.
        planned: PlannedRun | RunReport = first
        if not _is_still_true(catalog, first):
            planned = plan_run(catalog, directory, options, before=first.observation)
        if isinstance(planned, RunReport):
            return planned
        _record_contradiction(planned, options)
        checkpoints, failure = _write_journal(planned, options)
        blocked += failure
        unsettled = blocked or planned.plan.blocked or planned.plan.doubt
        stamp = None if unsettled else _find_stored_stamp(planned)
        changes = _collect_changes(first, planned, options, checkpoints)
        run_id = catalog.apply(_with_stamp(changes, planned, options, stamp))
    if planned is not first:
        planned = replace(planned, stored=first.stored)
    return _report(planned, options, (done, blocked), run_id, stamp)


def _report(
    planned: PlannedRun,
    options: Options,
    repaired: tuple[list[Action], list[str]],
    run_id: int,
    stamp: Stamp | None,
) -> RunReport:
    """Return the report of a plan that was applied.

    Args:
        planned: The run as planned under the lock.
        options: Of reconciling it.
        repaired: The repairs that were done, and why something was not.
        run_id: The run's row.
        stamp: The stamp that the index is exact for, None when it is not known.
    """
    done, blocked = repaired
    sure = planned.observation.settled and not planned.observation.unsure
    actions = (*done, *(action for action in planned.actions if action.kind not in REPAIRS))
    reasons = [*blocked, *([planned.plan.blocked] if planned.plan.blocked else [])]
    return replace(
        planned.report(),
        actions=tuple(action.without_record() for action in actions),
        blocked="; ".join(reasons) or None,
        applied=True,
        run_id=run_id,
        verified=stamp if sure else None,
        is_unfinished=not options.writes_journal and planned.is_unfinished,
    )


def _establish(planned: PlannedRun, options: Options) -> None:
    """Make the run's identity permanent where its journal is about to be written."""
    vanished = any(action.kind == "vanished" for action in planned.plan.actions)
    unrecorded = vanished and not planned.observation.identity.recorded
    if options.finishing and (unrecorded or is_new_copy(planned, options)):
        with suppress(OSError):  # then nothing can be appended to its journal either
            options.finishing.establish()


def _lock(directory: Path, options: Options) -> AbstractContextManager[None]:
    if options.locked:
        return nullcontext()
    return lock_to_change(directory) if options.writes_journal else lock_to_read(directory)


def _record_contradiction(planned: PlannedRun, options: Options) -> None:
    """Write to the journal that the index contradicts it, where it does not say so yet."""
    why = planned.plan.doubt
    if why is None or not options.writes_journal or not planned.has_unrecorded_contradiction:
        return
    short = missing_facts.is_short(planned.observation, planned.recorded)
    with suppress(OSError):  # then nothing can be deleted either
        journal_updates.record_contradiction(planned.directory, why, short=short)


def _write_journal(
    planned: PlannedRun, options: Options
) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """Record what vanished and came back; return what the index has to store, and a failure."""
    actions, directory = planned.plan.actions, planned.directory
    gone = [action for action in actions if action.kind == "vanished"]
    back = [a for a in actions if a.kind == "reappeared" and _has_journaled_end(planned, a)]
    stored = [a.checkpoint for a in actions if a.checkpoint and a.kind != "vanished"]
    try:
        ended = record_vanished(directory, gone, back, writes_journal=options.writes_journal)
    except OSError as error:
        # The index must not record what no line of the journal could rebuild.
        kept = {action.step for action in gone}
        left = tuple(checkpoint for checkpoint in stored if checkpoint.step not in kept)
        return left, (f"{directory}: deletions cannot be recorded ({error.strerror})",)
    return (*stored, *ended), ()


def _collect_changes(
    first: PlannedRun, planned: PlannedRun, options: Options, checkpoints: Sequence[Checkpoint]
) -> Changes:
    return Changes(
        run=planned.observation.identity.run,
        checkpoints=(*checkpoints, *_find_settled(planned)),
        children=first.children,
        annotations={
            action.uuid: action.annotations
            for action in planned.plan.actions
            if action.uuid and action.annotations is not None
        },
        config=planned.plan.config,
        without_parent=(
            _find_parentless(planned, checkpoints) if options.depth != "changes" else ()
        ),
        repair_copies=bool(planned.recorded.inconsistent),
    )


def _find_parentless(planned: PlannedRun, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return what has a parent in the index and none on disk."""
    known = planned.recorded.records
    return [
        cp.uuid
        for cp in checkpoints
        if cp.parent is None and cp.status != "tmp" and cp.uuid in known and known[cp.uuid].parent
    ]


def _has_journaled_end(planned: PlannedRun, action: Action) -> bool:
    """Tell whether the journal records the end of what is back; else only the index did."""
    facts = planned.observation.facts
    return facts is None or action.uuid in facts.gone


def _is_still_true(catalog: Catalog, planned: PlannedRun) -> bool:
    """Tell whether reading everything again would surely give the same plan.

    A settled stamp proves that of the directory, and the run's row proves it of the index. A plan
    without new checkpoints was made without the journal, which decides why one is missing.
    """
    observed = planned.observation
    if not observed.settled or (planned.plan.has_changes and observed.facts is None):
        return False
    directory = planned.directory
    return (
        run_stamp.find_stamp(directory) == observed.stamp
        and identity.identify(directory) == observed.identity
        and catalog.runs.find(observed.identity.run.uuid) == planned.recorded.indexed
    )


def _find_settled(planned: PlannedRun) -> list[Checkpoint]:
    """Return checkpoints that were too fresh to trust their fingerprint, and now are not."""
    acted = {action.uuid for action in planned.plan.actions if action.checkpoint}
    known = dict(planned.recorded.finals.values())
    return [
        checkpoint
        for checkpoint in planned.observation.finals.values()
        if checkpoint
        and checkpoint.uuid in known
        and checkpoint.uuid not in acted
        and checkpoint.fingerprint != known[checkpoint.uuid]
    ]


def _with_stamp(
    changes: Changes, planned: PlannedRun, options: Options, stamp: Stamp | None
) -> Changes:
    """Add the stamp up to which the index is exact once the changes are stored, if it is known."""
    observed = planned.observation
    if planned.plan.doubt is not None:
        return changes  # the stamp that is stored keeps the journal's former length
    if observed.unsure:
        # It may become readable without moving the stamp: the next question looks again.
        return replace(changes, stamp="", stamp_verified=False)
    if stamp is None:
        return changes
    if observed.settled or options.assume:
        return replace(changes, stamp=str(stamp), stamp_verified=observed.settled)
    if observed.facts is None or not stamp.journal_bytes:
        return changes
    # The stamp is too young to prove anything about the directory, but its journal's length
    # counts: from now on a shorter journal has lost lines that the index knows.
    before = Stamp(0, 0, 0)
    indexed = planned.recorded.indexed
    with suppress(ValueError):  # SQLite has no checksums
        before = Stamp.parse((indexed and indexed.stamp) or str(before))
    known = replace(before, journal_bytes=stamp.journal_bytes)
    return replace(changes, stamp=str(known), stamp_verified=False)


def _find_stored_stamp(planned: PlannedRun) -> Stamp | None:
    """Return the stamp that the index is exact for, unless another process came in between."""
    observed = planned.observation.stamp
    now = run_stamp.find_stamp(planned.directory)
    # Our own lines in the journal are in it; nobody else writes there while we hold the lock.
    same = now and (now.mtime_ns, now.links) == (observed.mtime_ns, observed.links)
    return now if same else None
