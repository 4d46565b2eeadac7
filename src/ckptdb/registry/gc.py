"""Deleting by hand and by rule: say first what would go and why, then do exactly that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ckptdb import retention
from ckptdb.catalog.catalog import Catalog
from ckptdb.core.candidates import Candidate
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Run
from ckptdb.disk import (
    fs_clock,
    identity,
    journal,
    leases,
    liveness,
    manifest,
    names,
    scan,
    symlinks,
)
from ckptdb.disk.process import Life
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Confirm, Deletion
from ckptdb.disk.safe_path import Place
from ckptdb.errors import (
    DeletionIncomplete,
    LeasedCheckpoint,
    LinkedCheckpoint,
    NotDeleted,
    NothingFinite,
    PinnedCheckpoint,
    RunChanged,
    UnknownCheckpoint,
    UnknownDirection,
    UnknownMetric,
)
from ckptdb.retention import Best, Decision, Policy, Replay, RetentionPlan, Standing, plan
from ckptdb.retention.linked import without_bytes

_MEANWHILE = "kept: changed, pinned, leased, rejected or resumed from meanwhile"


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """What goes from a run by rule.

    Attributes:
        plan: Empty where nothing is judged.
        known: What of the run need not be read again.
        confirm: Makes sure, under the run's lock, that the same would still go.
        differs: Whether the catalog says something else of the run than its files.
        place: Which directory it was when it was judged.
    """

    run: Run
    plan: RetentionPlan = field(default_factory=RetentionPlan)
    known: scan.KnownFingerprints | None = None
    confirm: Confirm | None = None
    differs: bool = False
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class CollectedLeftover:
    """What a crash left in a run and `collect` removes.

    Attributes:
        kind: ``"unfinished save"`` or ``"retired"``; ``"can be undeleted"`` of what stays yet.
    """

    path: Path
    step: int
    kind: str
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        told = {name: getattr(self, name) for name in self.__slots__}
        return {**told, "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class SparedSave:
    """An unfinished save that `collect` leaves alone.

    Attributes:
        life: What is known of its writer: ``"alive"`` or ``"unknown"``.
        why: In words, with what becomes of it.
    """

    path: Path
    step: int
    life: Life
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"path": str(self.path), "step": self.step, "life": self.life, "why": self.why}


@dataclass(frozen=True, slots=True)
class GcResult:
    """What went, or would go, from one run.

    Attributes:
        retention: What a policy says, or what is deleted by hand; nothing of either without.
        leftovers: Unfinished saves and bytes that were retired before.
        waiting: What was deleted before, can be undeleted, and takes its bytes until then.
        trash_ttl_seconds: For how long that is so of what goes now.
        failed: What was to go and did not, or has bytes left.
        spared: Unfinished saves that stay, because somebody writes them or may do.
    """

    run: str
    directory: Path
    retention: RetentionPlan
    leftovers: tuple[CollectedLeftover, ...]
    applied: bool
    waiting: tuple[CollectedLeftover, ...] = ()
    trash_ttl_seconds: float = 0.0
    failed: tuple[NotDeleted, ...] = ()
    spared: tuple[SparedSave, ...] = ()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """For each checkpoint that was judged whether it stays and why."""
        return self.retention.decisions

    @property
    def freed_bytes(self) -> int:
        """Sum of what is on the disk no more."""
        # What is left of it, nobody has counted.
        gone = () if self.trash_ttl_seconds else self.retention.gone
        now = sum(decision.size_bytes or 0 for decision in gone if not self.is_left(decision))
        return now + sum(left.size_bytes for left in self.leftovers if not self.is_left(left))

    @property
    def went(self) -> tuple[int, ...]:
        """Steps of the checkpoints that are out of sight now."""
        return tuple(decision.step for decision in self.retention.gone) if self.applied else ()

    def count_removed(self) -> int:
        """Return how many leftovers are there no more."""
        return sum(not self.is_left(left) for left in self.leftovers) if self.applied else 0

    def is_left(self, one: Decision | CollectedLeftover) -> bool:
        """Whether bytes of something that was to go are still there, in its place or elsewhere."""
        return any(_is_of(failed, one) for failed in self.failed)

    @property
    def plan(self) -> str:
        """What the plan is known by: another as soon as it would do anything else."""
        told = [str(self.directory)]
        told += [f"{d.uuid} {'keep' if d.keep else 'gone'} {d.size_bytes}" for d in self.decisions]
        told += [f"{left.path} {left.size_bytes}" for left in self.leftovers]
        return plan.fingerprint(told)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "run": self.run,
            "plan": self.plan,
            "directory": str(self.directory),
            "applied": self.applied,
            "freed_bytes": self.freed_bytes,
            "trash_ttl_seconds": self.trash_ttl_seconds,
            "before": _standing(self.retention.before),
            "after": _standing(self.retention.after),
            "checkpoints": [
                {
                    "step": d.step,
                    "uuid": d.uuid,
                    "keep": d.keep,
                    "reason": d.reason,
                    "size_bytes": d.size_bytes,
                }
                for d in self.decisions
            ],
            "leftovers": [left.as_dict() for left in self.leftovers],
            "waiting": [left.as_dict() for left in self.waiting],
            "failed": [one.as_dict() for one in self.failed],
            "spared": [spared.as_dict() for spared in self.spared],
        }


def _is_of(failed: NotDeleted, one: Decision | CollectedLeftover) -> bool:
    if failed.left is None or failed.step != one.step:
        return False
    # On its way out it gets other names, which keep step and uuid.
    retired = names.find_trash(failed.left.name)
    if isinstance(one, Decision):
        return retired is None or retired[1] == one.uuid
    was = names.find_trash(one.path.name)
    return failed.left == one.path or was is None or was == retired


def judge(
    run: Run,
    policy: Policy,
    candidates: Sequence[Candidate],
    *,
    damaged: Collection[str] = (),
) -> RetentionPlan:
    """Say what a retention policy keeps of a run, and why.

    Args:
        run: The run.
        policy: With a limit, and with the metric that the run is ranked by.
        candidates: Its live, trusted checkpoints.
        damaged: uuids of those that are said to be damaged, which their files do not tell at once.
            They stay, and so does what goes only because one of them is better.
    """
    hidden = identity.hidden(run.directory)
    # What is young must not go because this machine's clock is ahead.
    now = min(time.time(), fs_clock.find_time(hidden, may_touch=False) or math.inf)
    linked = symlinks.find_linked(run.directory, [candidate.step for candidate in candidates])
    leased = leases.find_leased(hidden)
    make = partial(plan.make, policy=policy, leased=leased, now=now, linked=linked)
    planned = make(candidates)
    sound = [candidate for candidate in candidates if candidate.uuid not in damaged]
    if len(sound) == len(candidates):
        return planned
    kept = {decision.uuid: decision for decision in planned.decisions if decision.keep}
    decisions = tuple(kept.get(one.uuid, one) for one in make(sound).decisions)
    return plan.of(decisions, without_bytes(sound, linked), policy)


def refuse_to_guess(
    catalog: Catalog, seen: IndexedRun, policy: Policy, candidates: Sequence[Candidate]
) -> None:
    """Make sure that what is to be kept can be told.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has that metric.
    """
    if candidates:
        there_are = {name for candidate in candidates for name in candidate.values}
        _refuse_to_guess(
            catalog,
            seen,
            policy,
            there_are,
            lambda name: catalog.find_unranked(seen.id, name).not_finite,
        )


def replay(catalog: Catalog, seen: IndexedRun, policy: Policy) -> Replay:
    """Say what a policy would have made of a run, had it been the run's from the beginning.

    Args:
        catalog: Already reconciled with the run.
        seen: The run.
        policy: Its metric may be None for the run's own.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has ever had that metric.
    """
    policy = judged_by_its_own(policy, seen.run)
    history = catalog.checkpoints(run_id=seen.id)
    if history:
        finite = {n for cp in history for n, value in cp.metrics.items() if value is not None}
        _refuse_to_guess(
            catalog,
            seen,
            policy,
            finite,
            lambda name: [cp.step for cp in history if name in cp.metrics],
        )
    matches = catalog.matching(seen.id, policy.wanted.conditions, ever=True)
    ancestors: frozenset[str] = frozenset()
    if policy.wanted.ancestors:
        resumed = {uuid for uuid, _ in catalog.resumed(seen.id)}
        ancestors = catalog.ancestors_of_live(seen.id) & resumed
    return retention.replay(seen.run.name, history, policy, matches=matches, ancestors=ancestors)


def judged_by_its_own(policy: Policy, run: Run) -> Policy:
    """Return a policy with the metric and direction of a run, if it has none."""
    if policy.metric is not None or run.metric_name is None:
        return policy
    return replace(policy, metric=run.metric_name, mode=run.mode)


def _refuse_to_guess(
    catalog: Catalog,
    seen: IndexedRun,
    policy: Policy,
    there_are: Collection[str],
    find_not_finite: Callable[[str], Sequence[int]],
) -> None:
    # A loop has chosen to have the newest for the best; somebody who asks by hand has not.
    rules = (rule for rule in policy.rules if isinstance(rule, Best) and rule.count)
    if any(rule.metric is None for rule in rules) or (policy.keep_top_k and policy.metric is None):
        raise UnknownDirection(None, run=seen.run.name)
    for metric in policy.named:
        if metric not in there_are:
            known = set(catalog.metric_names(seen.id)) - {metric}
            if steps := find_not_finite(metric):
                raise NothingFinite(metric, {seen.run.name: steps}, known=known)
            raise UnknownMetric(metric, known, run=seen.run.name)


def choose(
    catalog: Catalog, seen: IndexedRun, steps: Sequence[int], *, force: bool
) -> RetentionPlan:
    """Say what goes when the checkpoints at some steps are deleted by hand.

    Args:
        catalog: Already reconciled with the run.
        seen: The run.
        steps: All of them, or nothing goes.
        force: Also pinned and leased ones.

    Raises:
        UnknownCheckpoint: A step has no live checkpoint.
        LinkedCheckpoint: One is behind a symlink.
        PinnedCheckpoint: One is pinned.
        LeasedCheckpoint: One is being evaluated.
    """
    rows = catalog.checkpoints(run_id=seen.id, status="final", steps=sorted(set(steps)))
    live = {checkpoint.step: checkpoint for checkpoint in rows}
    linked = symlinks.find_linked(seen.run.directory, steps)
    leased = {} if force else leases.find_leased(identity.hidden(seen.run.directory))
    for step in steps:
        if step in linked:
            path = seen.run.directory / names.final_name(step)
            raise LinkedCheckpoint(path, symlinks.find_target(path) or "another place")
        if step not in live:
            raise UnknownCheckpoint(seen.run.name, step)
        if live[step].pinned and not force:
            raise PinnedCheckpoint(seen.run.name, step)
        if live[step].uuid in leased:
            raise LeasedCheckpoint(seen.run.name, step, leased[live[step].uuid])
    decisions = tuple(
        Decision(
            step,
            cp.uuid,
            keep=False,
            reason="by hand",
            size_bytes=cp.size_bytes,
            damage=manifest.find_damage(cp.problem),
        )
        for step, cp in sorted(live.items())
    )
    policy = judged_by_its_own(Policy(), seen.run)
    return plan.of(decisions, catalog.candidates(seen.id, policy.wanted), policy)


def collect(
    publisher: Publisher, judged: JudgedRun, *, dry_run: bool, empty_trash: bool = False
) -> GcResult:
    """Carry out what was judged, and remove what crashes left behind.

    Args:
        publisher: Of the run.
        judged: The run, and what goes; without any decision only leftovers are removed.
        dry_run: Only say what would go.
        empty_trash: Also what can still be undeleted.
    """
    observed = scan.observe(publisher.directory, judged.known, may_touch=not dry_run)
    planned = judged.plan
    pinned = journal.Pins(identity.hidden(publisher.directory)).find()
    unfinished = [tmp for tmp in observed.tmps.values() if tmp.abandoned]
    kept = pinned | observed.leased
    # What could not be moved into the trash is being deleted where it stands.
    in_place = [left for left in observed.trash if left.path.parent == publisher.directory]
    listed = (*scan.list_trash(publisher.directory), *in_place)
    trash = [left for left in listed if left.uuid not in kept]
    retired = [left for left in trash if empty_trash or left in observed.trash]
    waiting = tuple(
        _leftover(left.path, left.step, "can be undeleted") for left in trash if left not in retired
    )
    spared = [_spared(tmp) for tmp in observed.tmps.values() if not (tmp.abandoned or tmp.fate)]
    leftovers = [
        *(_leftover(tmp.checkpoint.path, tmp.checkpoint.step, "unfinished save")
          for tmp in unfinished),
        *(_leftover(left.path, left.step, "retired") for left in retired),
    ]  # fmt: skip
    attempt = _Attempt(publisher)
    if not dry_run:
        _make_space(publisher)
        for left in in_place:
            with attempt.at(left.step, left.path):
                publisher.finish_deletion(left)
        for tmp in unfinished:
            # Meanwhile somebody may have begun to save that step anew, or gone on with it.
            path, uuid = tmp.checkpoint.path, tmp.checkpoint.uuid
            reason = "discarded: left unfinished, removed by gc"
            with attempt.at(tmp.checkpoint.step, path):
                if not publisher.discard(path, reason=reason, uuid=uuid).gone:
                    leftovers = [left for left in leftovers if left.path != path]
        if empty_trash and publisher.trash_ttl_seconds:
            with attempt.at():
                publisher.empty_trash(everything=True, unidentified=True)
            empty_trash = False  # what goes from here on is promised to wait
        planned = attempt.retire(planned, confirm=judged.confirm)
        with attempt.at():
            publisher.empty_trash(everything=empty_trash, unidentified=empty_trash)
    return GcResult(
        judged.run.name,
        publisher.directory,
        planned,
        tuple(leftovers),
        not dry_run,
        waiting,
        publisher.trash_ttl_seconds,
        tuple(attempt.failed),
        tuple(spared),
    )


def remove(
    run: Run,
    publisher: Publisher,
    chosen: RetentionPlan,
    *,
    force: bool,
    dry_run: bool,
) -> GcResult:
    """Carry out what `choose` said.

    Args:
        run: The run.
        publisher: Of the run.
        chosen: What goes.
        force: Also what is pinned or leased by now.
        dry_run: Only say what would go.
    """
    attempt = _Attempt(publisher)
    if not dry_run:
        _make_space(publisher)
        chosen = attempt.retire(chosen, force=force, by_hand=True)
        with attempt.at():
            publisher.empty_trash()
    return GcResult(
        run.name,
        publisher.directory,
        chosen,
        (),
        not dry_run,
        trash_ttl_seconds=publisher.trash_ttl_seconds,
        failed=tuple(attempt.failed),
    )


def _make_space(publisher: Publisher) -> None:
    # On a full disk nothing can be recorded before something is free; this needs no record.
    with suppress(OSError):  # it is tried again in the end, and raised then
        publisher.empty_trash()


class _Attempt:
    """Carries out what is to go from a run, whatever fails in between.

    Attributes:
        failed: What did not go, or has bytes left.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.failed: list[NotDeleted] = []

    @contextmanager
    def at(self, step: int | None = None, left: Path | None = None) -> Iterator[None]:
        """Take down what fails; ``left`` is what was to be removed."""
        try:
            yield
        except DeletionIncomplete as error:
            self.failed += error.failed
        except OSError as error:
            self.failed.append(NotDeleted(self._publisher.directory, step, error, left))

    def retire(
        self,
        planned: RetentionPlan,
        *,
        force: bool = False,
        by_hand: bool = False,
        confirm: Confirm | None = None,
    ) -> RetentionPlan:
        """Retire what is to go; return what became of each."""
        deletions = [
            Deletion(d.step, d.uuid, d.reason, force, by_hand, d.damage) for d in planned.gone
        ]
        if not deletions:
            return planned
        try:
            gone = {
                cp.uuid
                for cp in self._publisher.retire(deletions, checked=True, confirm=confirm).gone
            }
        except DeletionIncomplete as error:
            self.failed += error.failed
            gone = {cp.uuid for cp in error.done.gone}
        except RunChanged as error:
            self.failed.append(NotDeleted(self._publisher.directory, None, error))
            gone = set()
        if gone.issuperset(deletion.uuid for deletion in deletions):
            return planned
        why = {one.step: f"not deleted: {one.cause}" for one in self.failed if one.left is None}
        decisions = tuple(
            decision
            if decision.keep or decision.uuid in gone
            else replace(decision, keep=True, reason=why.get(decision.step, _MEANWHILE))
            for decision in planned.decisions
        )
        return replace(planned, decisions=decisions, after=None)


def _standing(standing: Standing | None) -> dict[str, Any] | None:
    return None if standing is None else standing.as_dict()


def _spared(tmp: scan.Tmp) -> SparedSave:
    why = liveness.describe(tmp.writer, tmp.life)
    if tmp.blocked:
        why = "complete, its name is taken; move that away, then `ckptdb reconcile` publishes it"
    return SparedSave(tmp.checkpoint.path, tmp.checkpoint.step, tmp.life, why)


def _leftover(path: Path, step: int, kind: str) -> CollectedLeftover:
    try:
        sizes = manifest.list_files(path)
    except FileNotFoundError:
        sizes = {}  # another process removes it at the same time
    return CollectedLeftover(path, step, kind, sum(sizes.values()))
