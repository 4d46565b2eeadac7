"""Differences in published checkpoints. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import replace

from ckptdb.core.observed import Observation
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import Checkpoint, CheckpointProblem
from ckptdb.disk import names
from ckptdb.reconcile.action import NOT_RANKED, Action, ActionKind
from ckptdb.reconcile.comparison import Comparison, find_any_step, is_same_record


def plan_published(both: Comparison) -> Iterator[Action]:
    """Return the differences in everything that is published."""
    yield from _plan_finals(both)
    yield from _plan_unreadable(both.observed, both.recorded)
    for step, why in both.observed.doubts.items():
        yield Action("not verifiable", why, step)
    yield from _report_rejected(both)


def _plan_finals(both: Comparison) -> Iterator[Action]:
    recorded = both.recorded
    for step, checkpoint in both.observed.finals.items():
        if checkpoint is None:
            if not recorded.problems:
                continue
            problem = recorded.problems.get(recorded.finals[step][0])
        else:
            difference = compare_published(checkpoint, recorded, lambda: both.known)
            problem = checkpoint.find_problem()
            if difference:
                yield difference
        if problem:
            kind: ActionKind = "damaged" if problem.is_damage else "unreadable"
            yield Action(kind, f"{problem.text}{NOT_RANKED}", step)


def compare_published(
    checkpoint: Checkpoint, recorded: RecordedRun, parents: Callable[[], Container[str]]
) -> Action | None:
    """Compare a published checkpoint with the index.

    Args:
        checkpoint: As it was read.
        recorded: The run in the index, with the record of what it has under that uuid.
        parents: Returns the uuids of which the index will have a row.
    """
    step, uuid = checkpoint.step, checkpoint.uuid
    known = recorded.records.get(uuid)
    if known is None or known.status != "final":
        if uuid in recorded.gone:
            return Action("reappeared", "is back on disk", step, checkpoint, uuid)
        what = "is on disk, not in the catalog"
        return Action("added", what, step, checkpoint, uuid)
    same_parent = known.parent == checkpoint.parent or (
        known.parent is None and checkpoint.parent not in parents()
    )
    if same_parent and is_same_record(known, checkpoint, recorded):
        return None
    return Action("changed", "differs from the catalog", step, checkpoint, uuid)


def keep_damage(
    checkpoint: Checkpoint, recorded: RecordedRun, *, sizes_verified: bool
) -> Checkpoint:
    """Return a checkpoint with the damage that this reading was not thorough enough to refute.

    Args:
        checkpoint: As it was read.
        recorded: The run in the index.
        sizes_verified: Whether the sizes of its files were compared; contents never are here.
    """
    known = recorded.problems.get(checkpoint.uuid)
    if known is None or not known.is_damage or checkpoint.problem is not None:
        return checkpoint
    if sizes_verified and known.kind != "corrupt":
        return checkpoint
    return checkpoint.with_problem(known)


def _plan_unreadable(observed: Observation, recorded: RecordedRun) -> Iterator[Action]:
    """Return what is there and cannot be read now: neither gone nor to be trusted."""
    for name, why in observed.unreadable.items():
        step, problem = names.find_final_step(name), f"{name} cannot be read ({why})"
        uuid = None if step is None else recorded.finals.get(step, ("",))[0]
        known = recorded.records.get(uuid or "")
        if known and known.problem is None:
            marked = replace(known, fingerprint=None).with_problem(
                CheckpointProblem("unreadable", problem)
            )
            yield Action("changed", "cannot be read any more", step, marked, known.uuid)
        yield Action("unreadable", f"{problem}{NOT_RANKED}", find_any_step(name))


def _report_rejected(both: Comparison) -> Iterator[Action]:
    """Return the checkpoints that somebody has rejected."""
    facts = both.observed.facts
    annotations = both.recorded.annotations if facts is None else facts.annotations
    why = {uuid: a.rejected for uuid, a in annotations.items() if a.rejected is not None}
    for step in both.observed.finals if why else ():
        uuid = both.get_uuid(step)
        if uuid in why:
            yield Action("rejected", f"{why[uuid]}{NOT_RANKED}", step)
