"""What differs between disk and index, and what that calls for. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.recorded import IndexedRun, RecordedRun
from ckptdb.core.records import NO_ANNOTATIONS, Annotations, Checkpoint
from ckptdb.disk import identity, manifest, names
from ckptdb.disk.identity import Identity
from ckptdb.disk.journal import Facts
from ckptdb.disk.scan import Leftover, Observation, Tmp
from ckptdb.reconcile import doubt
from ckptdb.reconcile.doubt import Missing

ActionKind = Literal[
    # where index and journal contradict each other, or the journal is damaged
    "damaged journal",
    "contradicted",
    # what the index has to learn
    "new run",
    "moved run",
    "changed run",
    "added",
    "changed",
    "vanished",
    "reappeared",
    "replaced",
    "deleted",
    "new tmp",
    "annotated",
    # what a crash left on disk
    "complete tmp",
    "orphan old",
    "unfinished removal",
    # what only a person can settle
    "lost",
    "unreadable",
    "damaged",
    # what is only reported
    "abandoned tmp",
    "live tmp",
    "blocked tmp",
    "not verifiable",
    "rejected",
    "duplicate",
    "foreign",
]

NOT_RANKED: Final = "; kept, not ranked"
"""What becomes of a checkpoint that cannot be trusted, behind the reason."""

OF_A_RUN: Final = frozenset({"new run", "moved run", "changed run"})
REPAIRS: Final = frozenset({"complete tmp", "orphan old", "unfinished removal"})
OF_THE_JOURNAL: Final = frozenset({"damaged journal", "contradicted"})
LASTING: Final = frozenset({"lost", "unreadable", "damaged"})
REPORTED: Final = frozenset(
    {
        "abandoned tmp", "live tmp", "blocked tmp", "not verifiable", "rejected", "duplicate",
        "foreign",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action(JsonRecord):
    """One difference.

    Attributes:
        what: For a person: what was found, and what applying does about it.
        checkpoint: As it has to be in the index.
        leftover: The directory that a crash left.
        missing: What the journal does not tell and the index knows.
        is_lost: Whether what has vanished was a published checkpoint.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "kind": "kind", "step": "step", "what": "what", "drift": "is_drift",
    }  # fmt: skip

    kind: ActionKind
    what: str
    step: int | None = None
    checkpoint: Checkpoint | None = None
    uuid: str | None = None
    annotations: Annotations | None = None
    leftover: Path | Leftover | None = None
    missing: Missing | None = None
    is_lost: bool = False

    @property
    def is_drift(self) -> bool:
        """Something is not as it should be; false for what is only reported."""
        return self.kind not in REPORTED

    @property
    def is_change(self) -> bool:
        """Applying would change something."""
        return self.is_drift and self.kind not in LASTING

    @property
    def is_lasting(self) -> bool:
        """Only a person can settle it; whatever is applied, it is there the next time."""
        return self.kind in LASTING or self.is_lost

    def told(self) -> Action:
        """Return the difference without the record: a report may hold a hundred thousand."""
        if self.checkpoint is None:
            return self
        return Action(self.kind, self.what, self.step, uuid=self.uuid, is_lost=self.is_lost)


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """All differences of one run.

    Attributes:
        blocked: Why nothing that is missing may be recorded as deleted, or None.
        config: The run's configuration when the index has to learn it.
        doubt: Why nothing may be deleted by what the journal says, in words.
    """

    actions: tuple[Action, ...]
    blocked: str | None = None
    config: Mapping[str, Any] | None = None
    doubt: str | None = None

    @property
    def has_changes(self) -> bool:
        """Whether applying would change anything."""
        return any(action.is_change for action in self.actions)


def plan(observed: Observation, recorded: RecordedRun) -> ReconcilePlan:
    """Compare one run on disk with the index.

    Args:
        observed: Everything, or everything that the caller did not know yet.
        recorded: What the index holds; with history whenever ``observed.facts`` is there.
    """
    blocked = _blocked(observed, recorded)
    both = _Both(observed, recorded)
    actions = [
        *_run(observed, recorded),
        *_journal(both),
        *_finals(both),
        *_unreadable(observed, recorded),
        *(Action("not verifiable", why, step) for step, why in observed.doubts.items()),
        *_rejected(both),
        *_tmps(both),
        *_missing(both),
        *_lost(both),
        *_unwritten(both),
        *_history(both),
        *_inconsistent(recorded),
        *_annotations(both),
        *_leftovers(both),
        *(Action("foreign", f"{name} is no checkpoint; left alone") for name in observed.foreign),
    ]
    if blocked:
        # What stands in its place is seen, not missed.
        actions = [a for a in actions if a.kind != "vanished" or a.step in observed.finals]
    config = observed.config
    ended = (
        a.checkpoint and (a.kind == "vanished" or _is_gone(a.checkpoint))
        for a in actions
        if a.kind not in OF_THE_JOURNAL
    )
    known = recorded.indexed.run.config if recorded.indexed else None
    if any(ended):
        # With what ended the index forgets the configuration, should it have come from there.
        config = known if config is None else config
    elif known == config:
        config = None
    elif config is not None and (known or config) and not any(a.is_change for a in actions):
        # With a checkpoint that comes or goes, it does too; by itself it does not.
        what = f"{observed.identity.run.directory} has another configuration than the catalog says"
        actions.append(Action("changed run", what))
    return ReconcilePlan(tuple(actions), blocked, config, both.doubt)


class _Both:
    """Disk and index, with what several comparisons have to know of both."""

    def __init__(self, observed: Observation, recorded: RecordedRun) -> None:
        self.observed = observed
        self.recorded = recorded

    @cached_property
    def published(self) -> set[str]:
        """The uuids of what is published."""
        return {
            checkpoint.uuid if checkpoint else self.recorded.finals[step][0]
            for step, checkpoint in self.observed.finals.items()
        }

    @cached_property
    def here(self) -> set[str]:
        """What is on disk, except for a tmp that only holds what was replaced."""
        tmps = self.observed.tmps.values()
        return self.published | {tmp.checkpoint.uuid for tmp in tmps if tmp.fate != "trash"}

    @cached_property
    def missing(self) -> dict[str, Missing]:
        """What the journal does not tell of checkpoints and the index knows."""
        return doubt.find_missing(self.observed, self.recorded, self.here)

    @cached_property
    def doubt(self) -> str | None:
        """Why nothing may be deleted by what the journal says."""
        return doubt.tell(self.observed, self.recorded, self.missing)

    @cached_property
    def known(self) -> set[str]:
        """What the index will have a row of."""
        gone = set(self.observed.facts.gone) if self.observed.facts else set()
        return self.here | gone | set(self.recorded.gone)


def find_missing(observed: Observation, recorded: RecordedRun) -> dict[str, Missing]:
    """Return by uuid what the index knows and the journal does not tell."""
    return _Both(observed, recorded).missing


def _is_gone(checkpoint: Checkpoint) -> bool:
    return checkpoint.status == "deleted"


def _blocked(observed: Observation, recorded: RecordedRun) -> str | None:
    directory = observed.identity.run.directory
    empty = not observed.finals and not observed.tmps and not observed.unreadable
    if empty and recorded.finals and not observed.identity.marked:
        # Exactly what the mount point of an unmounted volume looks like.
        return (
            f"{directory} holds no checkpoint any more; nothing of it is recorded as deleted. "
            "Mount or restore it, or `ckptdb forget` the run"
        )
    if not observed.errors:
        return None
    more = f" and {len(observed.errors) - 1} more" if len(observed.errors) > 1 else ""
    return (
        f"{observed.errors[0]}{more}; nothing missing is recorded as deleted until it can be read"
    )


def _run(observed: Observation, recorded: RecordedRun) -> Iterator[Action]:
    if recorded.indexed or observed.identity.marked or observed.finals or observed.tmps:
        yield from compare_run(observed.identity, recorded.indexed)


def compare_run(who: Identity, seen: IndexedRun | None) -> Iterator[Action]:
    """Compare what a run says of itself with what the index does."""
    run = who.run
    if seen is None:
        yield Action("new run", f"{run.directory} is new to the catalog")
    elif seen.run.directory != run.directory:
        yield Action("moved run", f"{seen.run.directory} is now {run.directory}")
    elif replace(seen.run, config=None) != run:
        what = (
            "was copied, and is a run of its own now"
            if run.forked_from == seen.run.uuid
            else "says another metric or name than the catalog"
        )
        yield Action("changed run", f"{run.directory} {what}")


def _journal(both: _Both) -> Iterator[Action]:
    """What is wrong with the journal, and what of it the index can restore."""
    observed, recorded = both.observed, both.recorded
    damage = observed.facts.damage if observed.facts else None
    if damage is not None:
        what = (
            f"{damage}; what can be read becomes the journal, with what the catalog knows, and the "
            "damaged one is kept beside it. Pins, tags, rejections, late metrics and history that "
            "nothing else tells are lost"
        )
        yield Action("damaged journal", what)
    elif both.doubt is not None and not both.missing:
        yield Action("contradicted", f"{both.doubt}; nothing of it has to be restored")
    steps = doubt.find_steps(observed, recorded) if both.missing else {}
    for uuid, missing in sorted(both.missing.items(), key=lambda item: steps.get(item[0], -1)):
        named = ", ".join(missing.names())
        what = f"the catalog knows {named} that its journal does not; written to the journal"
        ended = recorded.records.get(uuid) if missing.ended else None
        yield Action("contradicted", what, steps.get(uuid), ended, uuid, missing=missing)


def _finals(both: _Both) -> Iterator[Action]:
    recorded = both.recorded
    for step, checkpoint in both.observed.finals.items():
        if checkpoint is None:
            if not recorded.problems:
                continue
            problem = recorded.problems.get(recorded.finals[step][0])
        else:
            found = compare(checkpoint, recorded, lambda: both.known)
            problem = checkpoint.problem
            if found:
                yield found
        if problem:
            kind: ActionKind = "damaged" if problem.startswith("damaged") else "unreadable"
            yield Action(kind, f"{problem}{NOT_RANKED}", step)


def _unreadable(observed: Observation, recorded: RecordedRun) -> Iterator[Action]:
    """What is there and cannot be read now: neither gone nor to be trusted."""
    for name, why in observed.unreadable.items():
        step, problem = names.find_final_step(name), f"{name} cannot be read ({why})"
        uuid = None if step is None else recorded.finals.get(step, ("",))[0]
        known = recorded.records.get(uuid or "")
        if known and known.problem is None:
            marked = replace(known, problem=problem, fingerprint=None)
            yield Action("changed", "cannot be read any more", step, marked, known.uuid)
        yield Action("unreadable", f"{problem}{NOT_RANKED}", _step_of(name))


def _rejected(both: _Both) -> Iterator[Action]:
    """What somebody has put aside."""
    facts = both.observed.facts
    said = both.recorded.annotations if facts is None else facts.annotations
    why = {uuid: found.rejected for uuid, found in said.items() if found.rejected is not None}
    for step, checkpoint in both.observed.finals.items() if why else ():
        uuid = checkpoint.uuid if checkpoint else both.recorded.finals[step][0]
        if uuid in why:
            yield Action("rejected", f"{why[uuid]}{NOT_RANKED}", step)


def _unjudged(observed: Observation) -> set[int | None]:
    """Steps of which something cannot be read, or waits for its name: it may be what is missing."""
    unreadable = {_step_of(name) for name in observed.unreadable}
    return unreadable | {old.step for old in observed.olds if old.step not in observed.finals}


def _step_of(name: str) -> int | None:
    step = names.find_final_step(name)
    return names.find_tmp_step(name) if step is None else step


def compare(
    checkpoint: Checkpoint, recorded: RecordedRun, parents: Callable[[], Container[str]]
) -> Action | None:
    """Compare a published checkpoint with the index.

    Args:
        checkpoint: As it was read.
        recorded: What the index holds, with the contents of what it has under that uuid.
        parents: Returns what the index will have a row of.
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
    # A late value hides the one that came with the checkpoint.
    if known.path != checkpoint.path and recorded.indexed:
        # That the run has moved is told of the run, and moves all paths with it.
        known = _as_if_moved(known, recorded.indexed.run.directory, checkpoint.path.parent)
    if same_parent and _content(known, known.late) == _content(checkpoint, known.late):
        return None
    return Action("changed", "differs from the catalog", step, checkpoint, uuid)


def keep_damage(
    checkpoint: Checkpoint, recorded: RecordedRun, *, sizes_verified: bool
) -> Checkpoint:
    """Return a checkpoint with the damage that only a closer look can tell is gone.

    Args:
        checkpoint: As it was read.
        recorded: What the index holds.
        sizes_verified: Whether the sizes of its files were compared; contents never are here.
    """
    known = recorded.problems.get(checkpoint.uuid)
    if known is None or not known.startswith("damaged") or checkpoint.problem is not None:
        return checkpoint
    if sizes_verified and manifest.DIFFERS not in known:
        return checkpoint
    return replace(checkpoint, problem=known)


def _as_if_moved(known: Checkpoint, before: Path, now: Path) -> Checkpoint:
    """Return a checkpoint with the path that it has once its run has moved."""
    if not known.path.is_relative_to(before):
        return known
    return replace(known, path=now / known.path.relative_to(before))


def _content(checkpoint: Checkpoint, late: Container[str]) -> tuple[Any, ...]:
    own = {k: v for k, v in checkpoint.metrics.items() if k not in late}
    return (
        checkpoint.step, checkpoint.path, checkpoint.created_at, checkpoint.finalized_at,
        checkpoint.size_bytes, checkpoint.file_count, checkpoint.problem, checkpoint.info, own,
        checkpoint.deleted_at, checkpoint.deleted_reason,
    )  # fmt: skip


def _tmps(both: _Both) -> Iterator[Action]:
    seen: set[str] = set()
    for step, tmp in both.observed.tmps.items():
        uuid = tmp.checkpoint.uuid
        if uuid in both.published or uuid in seen:
            yield Action("duplicate", "tmp holds a copy of another checkpoint; left alone", step)
            continue
        seen.add(uuid)
        yield _tmp(step, tmp)
        # A line that says it was discarded or replaced counts only once it is gone.
        if tmp.fate != "trash" and not _same_tmp(tmp.checkpoint, both.recorded):
            what = "is being written or was left unfinished; not in the catalog"
            yield Action("new tmp", what, step, tmp.checkpoint, uuid)


def _tmp(step: int, tmp: Tmp) -> Action:
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


def _same_tmp(checkpoint: Checkpoint, recorded: RecordedRun) -> bool:
    known = recorded.records.get(checkpoint.uuid)
    if known is None or known.status != "tmp":
        return False
    if known.path != checkpoint.path and recorded.indexed:
        known = _as_if_moved(known, recorded.indexed.run.directory, checkpoint.path.parent)
    return _content(known, known.late) == _content(checkpoint, known.late)


def _missing(both: _Both) -> Iterator[Action]:
    """What the index has as live and the disk has no more."""
    observed, recorded, finals = both.observed, both.recorded, both.observed.finals
    # At nearly every step it is still what it was, and that needs no second thought.
    same = {step for step, checkpoint in finals.items() if checkpoint is None}
    doubtful = [step for step in recorded.finals if step not in same]
    live = {recorded.finals[step][0]: step for step in doubtful} | dict(recorded.tmps)
    if not live:
        return
    unjudged = _unjudged(observed)
    journal = observed.facts.gone if observed.facts else {}
    for uuid, step in live.items():
        # What stands in its place is seen; a tmp has its place for itself.
        if uuid in both.here or (
            step in unjudged and (uuid in recorded.tmps or step not in finals)
        ):
            continue
        if uuid in journal:
            ended = journal[uuid]
            kind: ActionKind = (
                "replaced" if "replaced" in (ended.deleted_reason or "") else "deleted"
            )
            yield Action(kind, ended.deleted_reason or "deleted", step, ended, uuid)
        elif uuid in recorded.records:
            is_lost = uuid not in recorded.tmps and not _is_edited(both, uuid, step)
            what = "is in the catalog, not on disk; recorded as vanished"
            if is_lost:
                what = f"{what}; {_to_settle(observed, step)}"
            yield Action("vanished", what, step, recorded.records[uuid], uuid, is_lost=is_lost)


def _lost(both: _Both) -> Iterator[Action]:
    """What has vanished before, and nobody has accepted."""
    facts = both.observed.facts
    for uuid in facts.lost - both.here if facts else ():
        ended = facts.gone[uuid] if facts else None
        if ended and not _is_edited(both, uuid, ended.step):
            what = f"missing on disk since {ended.deleted_at}, not deleted by ckptdb"
            what = f"{what}; {_to_settle(both.observed, ended.step)}"
            yield Action("lost", what, ended.step, uuid=uuid)


def _is_edited(both: _Both, uuid: str, step: int) -> bool:
    """Whether what is at its step may be the same one, with other metadata.

    Without a manifest that can be read, a checkpoint is known by its training_info.json.
    """
    if step not in both.observed.finals:
        return False
    checkpoint = both.observed.finals[step]
    there = checkpoint.uuid if checkpoint else both.recorded.finals[step][0]
    return identity.is_derived(uuid) or identity.is_derived(there)


def _to_settle(observed: Observation, step: int) -> str:
    run = observed.identity.run.name
    return f"restore it, or accept the loss with `ckptdb accept {step} --run {run}`"


def _unwritten(both: _Both) -> Iterator[Action]:
    """Checkpoints that a question saw disappear; the journal does not record it yet."""
    observed, recorded = both.observed, both.recorded
    lost = unwritten(recorded, observed.facts) if observed.facts else ()
    for uuid in sorted(lost):
        ended = None if uuid in both.here else recorded.records.get(uuid)
        if ended and ended.step not in _unjudged(observed):
            what = "has vanished; known to the catalog, not to the journal"
            is_lost = ended.finalized_at is not None and not _is_edited(both, uuid, ended.step)
            if is_lost:
                what = f"{what}; {_to_settle(observed, ended.step)}"
            yield Action("vanished", what, ended.step, ended, uuid, is_lost=is_lost)


def unwritten(recorded: RecordedRun, facts: Facts) -> set[str]:
    """Return the uuids that only the index knows to have vanished."""
    ends = recorded.gone.items()
    vanished = {uuid for uuid, (_, why, _) in ends if why and why.startswith("vanished")}
    return vanished - set(facts.gone)


def _history(both: _Both) -> Iterator[Action]:
    """What the journal knows to be gone and the index does not."""
    observed, recorded = both.observed, both.recorded
    if observed.facts is None or not observed.facts.gone:
        return
    unjudged = _unjudged(observed)
    live = {uuid for uuid, _ in recorded.finals.values()} | set(recorded.tmps)
    for uuid, ended in observed.facts.gone.items():
        if uuid in both.here or uuid in live or ended.step in unjudged:
            continue
        parent = ended.parent if ended.parent in both.known else None
        if recorded.gone.get(uuid) != (ended.deleted_at, ended.deleted_reason, parent):
            what = f"{ended.deleted_reason}; known to the journal, not to the catalog"
            yield Action("deleted", what, ended.step, ended, uuid)
        elif (known := recorded.records.get(uuid)) and not _is_same_end(known, ended, recorded):
            what = "what it was before it went differs from the journal"
            yield Action("deleted", what, ended.step, ended, uuid)


def _is_same_end(known: Checkpoint, ended: Checkpoint, recorded: RecordedRun) -> bool:
    if recorded.indexed and known.path != ended.path:
        known = _as_if_moved(known, recorded.indexed.run.directory, ended.path.parent)
    return _content(known, known.late) == _content(ended, known.late)


def _inconsistent(recorded: RecordedRun) -> Iterator[Action]:
    """What the index says twice, and not the same."""
    for uuid, step in recorded.inconsistent.items():
        yield Action("changed", "the catalog ranks it by what is not its own", step, uuid=uuid)


def _annotations(both: _Both) -> Iterator[Action]:
    if both.observed.facts is None:
        return
    told, known = both.observed.facts.annotations, both.recorded.annotations
    for uuid in {*told, *known}:
        now = told.get(uuid, NO_ANNOTATIONS)
        now = doubt.standing(now, both.missing.get(uuid))
        if uuid in both.known and now != known.get(uuid, NO_ANNOTATIONS):
            what = "what was added to it differs from the journal"
            yield Action("annotated", what, uuid=uuid, annotations=now)


def _leftovers(both: _Both) -> Iterator[Action]:
    observed = both.observed
    for old in observed.olds:
        what = f"{old.path.name} was left by an interrupted replacement; put back or put away"
        yield Action("orphan old", what, old.step, leftover=old)
    if observed.facts is None or both.doubt is not None:
        return  # without the journal it is not known what is kept there because it is pinned
    for gone in observed.trash:
        if observed.facts.annotations.get(gone.uuid, NO_ANNOTATIONS).pinned:
            continue
        if gone.uuid in observed.leased:
            continue
        what = "is retired, its bytes are not removed yet"
        yield Action("unfinished removal", what, gone.step, uuid=gone.uuid, leftover=gone)
