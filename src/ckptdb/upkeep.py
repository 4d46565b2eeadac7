"""Deleting by hand and by rule: say first what would go and why, then do exactly that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdb.catalog.catalog import Catalog, Seen
from ckptdb.disk import identity, journal, manifest, scan
from ckptdb.disk.publish import Doomed, Publisher
from ckptdb.errors import PinnedCheckpoint, UnknownCheckpoint, UnknownDirection, UnknownMetric
from ckptdb.records import Run
from ckptdb.retention import Best, Decision, Policy, decide


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a crash left in a run and `collect` removes.

    Attributes:
        kind: ``"unfinished save"`` or ``"retired"``.
    """

    path: Path
    step: int
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or would go, from one run.

    Attributes:
        decisions: For each live checkpoint whether it stays and why, when there was a policy.
        leftovers: Unfinished saves and bytes that were retired before.
    """

    run: str
    directory: Path
    decisions: tuple[Decision, ...]
    leftovers: tuple[Leftover, ...]
    applied: bool

    @property
    def freed_bytes(self) -> int:
        """Sum of what goes."""
        gone = [d.size_bytes or 0 for d in self.decisions if not d.keep]
        return sum(gone) + sum(left.size_bytes for left in self.leftovers)

    @property
    def plan(self) -> str:
        """What the plan is known by: another as soon as it would do anything else."""
        told = [str(self.directory)]
        told += [f"{d.uuid} {'keep' if d.keep else 'gone'} {d.size_bytes}" for d in self.decisions]
        told += [f"{left.path} {left.size_bytes}" for left in self.leftovers]
        return hashlib.sha256("\n".join(told).encode(errors="surrogateescape")).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "run": self.run,
            "plan": self.plan,
            "directory": str(self.directory),
            "applied": self.applied,
            "freed_bytes": self.freed_bytes,
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
            "leftovers": [
                {
                    "path": str(left.path),
                    "step": left.step,
                    "kind": left.kind,
                    "size_bytes": left.size_bytes,
                }
                for left in self.leftovers
            ],
        }


def judge(catalog: Catalog, seen: Seen, policy: Policy) -> tuple[Decision, ...]:
    """Say what a retention policy keeps of a run, and why; nothing without limits.

    Args:
        catalog: Already reconciled with the run.
        seen: The run.
        policy: Its metric may be None for the run's own.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has that metric.
    """
    if not policy.has_limit:
        return ()
    if policy.metric is None and seen.run.metric_name is not None:
        policy = replace(policy, metric=seen.run.metric_name, mode=seen.run.mode)
    candidates = catalog.candidates(seen.id, policy.metrics, tags=policy.asks_for_tags)
    ranking = [rule for rule in policy.rules if isinstance(rule, Best) and rule.count]
    if policy.keep_top_k and policy.metric is None:
        ranking.append(Best(policy.keep_top_k))
    for rule in ranking if candidates else ():
        # A loop has chosen to have the newest for the best; somebody who asks by hand has not.
        if rule.metric is None:
            raise UnknownDirection(None, run=seen.run.name)
        if all(rule.metric not in candidate.values for candidate in candidates):
            known = set(catalog.metric_names(seen.id)) - {rule.metric}
            raise UnknownMetric(rule.metric, known, run=seen.run.name)
    return decide(candidates, policy)


def choose(
    catalog: Catalog, seen: Seen, steps: Sequence[int], *, force: bool
) -> tuple[Decision, ...]:
    """Say what goes when the checkpoints at some steps are deleted by hand.

    Args:
        catalog: Already reconciled with the run.
        seen: The run.
        steps: All of them, or nothing goes.
        force: Also pinned ones.

    Raises:
        UnknownCheckpoint: A step has no live checkpoint.
        PinnedCheckpoint: One is pinned.
    """
    rows = catalog.checkpoints(run_id=seen.id, status="final", steps=sorted(set(steps)))
    live = {checkpoint.step: checkpoint for checkpoint in rows}
    for step in steps:
        if step not in live:
            raise UnknownCheckpoint(seen.run.name, step)
        if live[step].pinned and not force:
            raise PinnedCheckpoint(seen.run.name, step)
    return tuple(
        Decision(step, cp.uuid, keep=False, reason="by hand", size_bytes=cp.size_bytes)
        for step, cp in sorted(live.items())
    )


def collect(
    run: Run, publisher: Publisher, decisions: tuple[Decision, ...], *, dry_run: bool
) -> Collected:
    """Carry out what `judge` said, and remove what crashes left behind.

    Args:
        run: The run.
        publisher: Of the run.
        decisions: Without any only leftovers are removed.
        dry_run: Only say what would go.
    """
    observed = scan.observe(publisher.directory)
    pinned = journal.Pins(identity.hidden(publisher.directory)).find()
    unfinished = [tmp for tmp in observed.tmps.values() if tmp.abandoned]
    retired = [left for left in observed.trash if left.uuid not in pinned]
    leftovers = (
        *(_leftover(tmp.checkpoint.path, tmp.checkpoint.step, "unfinished save")
          for tmp in unfinished),
        *(_leftover(left.path, left.step, "retired") for left in retired),
    )  # fmt: skip
    if not dry_run:
        _make_space(publisher)
        for tmp in unfinished:
            # Meanwhile somebody may have begun to save that step anew.
            publisher.discard(
                tmp.checkpoint.path,
                reason="discarded: left unfinished, removed by gc",
                uuid=tmp.checkpoint.uuid,
            )
        decisions = _retire(publisher, decisions)
        publisher.empty_trash()
    return Collected(run.name, publisher.directory, decisions, leftovers, not dry_run)


def remove(
    run: Run,
    publisher: Publisher,
    decisions: tuple[Decision, ...],
    *,
    force: bool,
    dry_run: bool,
) -> Collected:
    """Carry out what `choose` said.

    Args:
        run: The run.
        publisher: Of the run.
        decisions: What goes.
        force: Also what is pinned by now.
        dry_run: Only say what would go.
    """
    if not dry_run:
        _make_space(publisher)
        decisions = _retire(publisher, decisions, force=force, by_hand=True)
        publisher.empty_trash()
    return Collected(run.name, publisher.directory, decisions, (), not dry_run)


def _make_space(publisher: Publisher) -> None:
    # On a full disk nothing can be recorded before something is free; this needs no record.
    with suppress(OSError):  # it is tried again in the end, and raised then
        publisher.empty_trash()


def _retire(
    publisher: Publisher,
    decisions: tuple[Decision, ...],
    *,
    force: bool = False,
    by_hand: bool = False,
) -> tuple[Decision, ...]:
    """Retire what is to go; return what became of each."""
    doomed = [Doomed(d.step, d.uuid, d.reason, force, by_hand) for d in decisions if not d.keep]
    gone = {cp.uuid for cp in publisher.retire(doomed).gone} if doomed else set()
    return tuple(
        decision
        if decision.keep or decision.uuid in gone
        else replace(decision, keep=True, reason="kept: changed, pinned or rejected meanwhile")
        for decision in decisions
    )


def _leftover(path: Path, step: int, kind: str) -> Leftover:
    try:
        sizes = manifest.list_files(path)
    except FileNotFoundError:
        sizes = {}  # another process removes it at the same time
    return Leftover(path, step, kind, sum(sizes.values()))
