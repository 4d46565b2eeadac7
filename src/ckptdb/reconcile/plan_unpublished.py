"""Differences in staged checkpoints and leftovers. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ckptdb.core.observed import Tmp
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import NO_ANNOTATIONS, Checkpoint
from ckptdb.disk import names
from ckptdb.reconcile.action import Action
from ckptdb.reconcile.comparison import Comparison, is_same_record


def plan_tmps(both: Comparison) -> Iterator[Action]:
    """Return the differences in staged checkpoints."""
    reported: set[str] = set()
    for step, tmp in both.observed.tmps.items():
        uuid = tmp.checkpoint.uuid
        if uuid in both.published or uuid in reported:
            yield Action("duplicate", "tmp holds a copy of another checkpoint; left alone", step)
            continue
        reported.add(uuid)
        yield _report_tmp(step, tmp)
        # A line that says it was discarded or replaced counts only once it is gone.
        if tmp.fate != "trash" and not _is_recorded(tmp.checkpoint, both.recorded):
            what = "is being written or was left unfinished; not in the catalog"
            yield Action("new tmp", what, step, tmp.checkpoint, uuid)


def _is_recorded(checkpoint: Checkpoint, recorded: RecordedRun) -> bool:
    known = recorded.records.get(checkpoint.uuid)
    if known is None or known.status != "tmp":
        return False
    return is_same_record(known, checkpoint, recorded)


def _report_tmp(step: int, tmp: Tmp) -> Action:
    if tmp.fate:
        what = (
            "is complete and only lacks its final name; published"
            if tmp.fate == "publish"
            else "holds what a newer save has replaced; removed"
        )
        return Action("complete tmp", what, step, leftover=tmp.checkpoint.path)
    if tmp.blocked:
        what = (
            f"is complete, but {names.final_name(step)} is taken by what is no checkpoint; kept. "
            "Move that away, then `ckptdb reconcile` publishes it"
        )
        return Action("blocked tmp", what, step)
    if tmp.abandoned:
        return Action("abandoned tmp", "was left unfinished; `ckptdb gc` removes it", step)
    if tmp.life == "alive":
        return Action("live tmp", f"is being written by {tmp.writer or 'another process'}", step)
    later = "`ckptdb gc` removes it a day after its last change"
    if tmp.writer:
        who = f"{tmp.writer}, which cannot be asked from here"
        return Action("live tmp", f"is being written, or was left, by {who}; {later}", step)
    return Action("abandoned tmp", f"unfinished save (writer unknown); {later}", step)


def plan_leftovers(both: Comparison) -> Iterator[Action]:
    """Return what replacements and removals left when they were interrupted."""
    observed = both.observed
    for old in observed.olds:
        what = f"{old.path.name} was left by an interrupted replacement; put back or put away"
        yield Action("orphan old", what, old.step, leftover=old)
    if observed.facts is None or both.doubt is not None:
        return  # without the journal it is unknown what is kept there because it is pinned
    for gone in observed.trash:
        if observed.facts.annotations.get(gone.uuid, NO_ANNOTATIONS).pinned:
            continue
        if gone.uuid in observed.leased:
            continue
        what = "is retired, its bytes are not removed yet"
        yield Action("unfinished removal", what, gone.step, uuid=gone.uuid, leftover=gone)
