"""Judging a run: which checkpoints a policy, or somebody by hand, would delete in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from ckptdb import retention
from ckptdb.catalog.catalog import Catalog
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.observed import KnownFingerprints
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Run
from ckptdb.disk import fs_clock, identity, leases, names, run_stamp, symlinks
from ckptdb.disk.observation import ReadFiles
from ckptdb.disk.retire import Confirm
from ckptdb.disk.safe_path import DirectoryId
from ckptdb.errors import (
    CatalogError,
    LeasedCheckpoint,
    LinkedCheckpoint,
    NothingFinite,
    PinnedCheckpoint,
    RunChanged,
    UnknownCheckpoint,
    UnknownDirection,
    UnknownMetric,
)
from ckptdb.reconcile import disk_candidates
from ckptdb.reconcile.disk_candidates import FileCandidates
from ckptdb.retention import Best, Decision, Policy, Replay, RetentionPlan, plan
from ckptdb.retention.reasons import ByHand


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run with the decisions of a policy about its checkpoints.

    Attributes:
        plan: The decisions; empty where the run is not judged.
        known: Files of the run that need not be read again.
        confirm: Check under the run's lock that the same checkpoints would still go.
        differs: Whether the catalog and the files say different things about the run.
        place: The directory that was judged.
    """

    run: Run
    plan: RetentionPlan = field(default_factory=RetentionPlan)
    known: KnownFingerprints | None = None
    confirm: Confirm | None = None
    differs: bool = False
    place: DirectoryId | None = None


def judge_by_files(policy: Policy, catalog: Catalog, indexed: IndexedRun) -> JudgedRun:
    """Judge a run by its files.

    Args:
        policy: The policy; without a metric, the run's own is taken.
        catalog: A catalog that was already reconciled with the run. Only one of its facts counts:
            which checkpoints are damaged, because their files do not show it at once. Those stay.
        indexed: The run in that catalog.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has that metric.
        OSError: The run cannot be read.
    """
    if not policy.has_limit:
        return JudgedRun(indexed.run)
    directory, base = indexed.run.directory, catalog.database.location.base
    files = ReadFiles(directory)
    observed = files.observe()
    run = observed.identity.run
    policy = with_run_metric(policy, run)
    if observed.errors:
        return JudgedRun(run)  # a run that cannot be read completely is not judged
    candidates = disk_candidates.read_candidates(catalog, indexed, observed, policy.wanted)
    refuse_unknown_metrics(catalog, indexed, policy, candidates.found)
    planned = judge(run, policy, candidates)
    known = KnownFingerprints(
        {cp.step: (cp.uuid, cp.fingerprint) for cp in observed.finals.values() if cp}
    )
    agrees = _agrees(catalog, indexed, run, policy.wanted, candidates.sound)
    # A process that has changed the run since may not have updated the catalog yet.
    is_same = indexed.stamp == str(observed.stamp) == str(run_stamp.find_stamp(directory))
    differs = is_same and not agrees
    if not planned.gone:
        return JudgedRun(run, planned, known, differs=differs)

    def confirm(leaving: Collection[str]) -> None:
        """Judge again, under the run's lock."""
        now = files.observe()
        current = now.identity.run
        if now.errors or (current.uuid, current.ranked_by) != (run.uuid, run.ranked_by):
            raise RunChanged(directory)
        found = disk_candidates.find_candidates(now, policy.wanted, base)
        again = judge(run, policy, replace(candidates, found=found))
        if not set(leaving) <= {decision.uuid for decision in again.gone}:
            raise RunChanged(directory)

    return JudgedRun(run, planned, known, confirm, differs=differs)


def judge(run: Run, policy: Policy, candidates: FileCandidates) -> RetentionPlan:
    """Return the plan of a policy for a run, with what protects checkpoints there now.

    Args:
        run: The run.
        policy: A policy with a limit, and with the metric that the run is ranked by.
        candidates: Live, trusted checkpoints of the run.
    """
    hidden = identity.hidden(run.directory)
    # A clock of this machine that is ahead must not remove young checkpoints.
    now = min(time.time(), fs_clock.find_time(hidden, may_touch=False) or math.inf)
    decisions = retention.judge(
        candidates.found,
        policy,
        leased=leases.find_leased(hidden),
        linked=symlinks.find_linked(run.directory, [one.step for one in candidates.found]),
        damaged=candidates.damaged,
        now=now,
    )
    return plan.make(decisions, candidates.sound, policy)


def judge_by_hand(
    catalog: Catalog, indexed: IndexedRun, steps: Sequence[int], *, force: bool
) -> RetentionPlan:
    """Return the plan for deleting the checkpoints at some steps by hand.

    Args:
        catalog: A catalog that was already reconciled with the run.
        indexed: The run.
        steps: Steps of the checkpoints; all of them go, or none.
        force: Also pinned and leased ones.

    Raises:
        UnknownCheckpoint: A step has no live checkpoint.
        LinkedCheckpoint: One is behind a symlink.
        PinnedCheckpoint: One is pinned.
        LeasedCheckpoint: One is being evaluated.
    """
    run = indexed.run
    rows = catalog.checkpoints.list_all(run_id=indexed.id, status="final", steps=sorted(set(steps)))
    live = {checkpoint.step: checkpoint for checkpoint in rows}
    linked = symlinks.find_linked(run.directory, steps)
    leased = {} if force else leases.find_leased(identity.hidden(run.directory))
    for step in steps:
        if step in linked:
            path = run.directory / names.final_name(step)
            raise LinkedCheckpoint(path, symlinks.find_target(path) or "another place")
        if step not in live:
            raise UnknownCheckpoint(run.name, step)
        if live[step].pinned and not force:
            raise PinnedCheckpoint(run.name, step)
        if live[step].uuid in leased:
            raise LeasedCheckpoint(run.name, step, leased[live[step].uuid])
    decisions = tuple(
        Decision(
            step,
            checkpoint.uuid,
            keep=False,
            because=ByHand(),
            size_bytes=checkpoint.size_bytes,
            damage=checkpoint.find_damage(),
        )
        for step, checkpoint in sorted(live.items())
    )
    policy = with_run_metric(Policy(), run)
    return plan.make(decisions, catalog.candidates.of_run(indexed.id, policy.wanted), policy)


def replay(catalog: Catalog, indexed: IndexedRun, policy: Policy) -> Replay:
    """Return what would be left of a run if a policy had been in use from its first save on.

    Args:
        catalog: A catalog that was already reconciled with the run.
        indexed: The run.
        policy: The policy; without a metric, the run's own is taken.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has ever had that metric.
    """
    policy = with_run_metric(policy, indexed.run)
    history = catalog.checkpoints.list_all(run_id=indexed.id)
    if history:
        finite = {n for cp in history for n, value in cp.metrics.items() if value is not None}
        _refuse_unknown_metrics(
            catalog,
            indexed,
            policy,
            finite,
            lambda name: [cp.step for cp in history if name in cp.metrics],
        )
    matches = catalog.candidates.matching(indexed.id, policy.wanted.conditions, ever=True)
    ancestors: frozenset[str] = frozenset()
    if policy.wanted.ancestors:
        resumed = {uuid for uuid, _ in catalog.lineage.resumptions(indexed.id)}
        ancestors = catalog.lineage.ancestors_of_live(indexed.id) & resumed
    return retention.replay(indexed.run.name, history, policy, matches=matches, ancestors=ancestors)


def refuse_unknown_metrics(
    catalog: Catalog, indexed: IndexedRun, policy: Policy, candidates: Sequence[Candidate]
) -> None:
    """Make sure that a policy ranks by metrics that checkpoints of the run have.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has that metric.
    """
    if candidates:
        present = {name for candidate in candidates for name in candidate.values}
        _refuse_unknown_metrics(
            catalog,
            indexed,
            policy,
            present,
            lambda name: catalog.ranking.unranked(indexed.id, name).not_finite,
        )


def with_run_metric(policy: Policy, run: Run) -> Policy:
    """Return a policy with the metric and direction of a run, if it has none of its own."""
    if policy.metric is not None or run.metric_name is None:
        return policy
    return replace(policy, metric=run.metric_name, mode=run.mode)


def _agrees(
    catalog: Catalog,
    indexed: IndexedRun,
    run: Run,
    wanted: Wanted,
    candidates: Sequence[Candidate],
) -> bool:
    """Return whether a catalog, which may hold anything, says the same as the files of a run."""
    if replace(indexed.run, config=None) != replace(run, config=None):
        return False
    try:
        return catalog.candidates.of_run(indexed.id, wanted) == tuple(candidates)
    except (CatalogError, ValueError, TypeError):
        return False  # SQLite has no checksums, and no types


def _refuse_unknown_metrics(
    catalog: Catalog,
    indexed: IndexedRun,
    policy: Policy,
    present: Collection[str],
    find_not_finite: Callable[[str], Sequence[int]],
) -> None:
    # A loop has decided that the newest stand for the best; a person who asks by hand has not.
    rules = (rule for rule in policy.rules if isinstance(rule, Best) and rule.count)
    if any(rule.metric is None for rule in rules) or (policy.keep_top_k and policy.metric is None):
        raise UnknownDirection(None, run=indexed.run.name)
    for metric in policy.named:
        if metric not in present:
            known = set(catalog.metrics.names(indexed.id)) - {metric}
            if steps := find_not_finite(metric):
                raise NothingFinite(metric, {indexed.run.name: steps}, known=known)
            raise UnknownMetric(metric, known, run=indexed.run.name)
