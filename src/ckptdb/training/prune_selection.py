"""Selection of the checkpoints that a manager prunes: by the index, checked against the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.metrics import metrics_of
from ckptdb.core.ranking import rank_key
from ckptdb.disk import identity, leases, names, run_stamp, symlinks, training_info
from ckptdb.errors import UnreadableInfo
from ckptdb.reconcile import disk_candidates
from ckptdb.retention import (
    Decision,
    Policy,
    RetentionPlan,
    decide_below,
    find_resumed_from,
    judge,
    keep_linked,
    plan,
    without_linked_bytes,
)
from ckptdb.training.followed_run import FollowedRun
from ckptdb.training.index import RunIndex


@dataclass(frozen=True, slots=True)
class PruneRules:
    """Rules of one prune, and what protects checkpoints from it.

    Attributes:
        exclude_latest: Always keep the highest step.
        in_use: Use that this process makes of a checkpoint, by uuid; such checkpoints stay.
        previous: The rules before, when the metric has changed: what they keep stays once more.
    """

    policy: Policy
    exclude_latest: bool
    in_use: Mapping[str, str] = field(default_factory=dict)
    previous: Policy | None = None

    @property
    def wanted(self) -> Wanted:
        """Facts about candidates that the rules ask for."""
        wanted = self.policy.wanted
        if self.previous is None:
            return wanted
        metrics = dict.fromkeys([*wanted.metrics, *self.previous.wanted.metrics])
        return replace(wanted, metrics=tuple(metrics))

    def judge(self, candidates: Sequence[Candidate], directory: Path) -> tuple[Decision, ...]:
        """Judge all live, trusted checkpoints of a run."""
        decisions = judge(
            candidates,
            self.policy,
            previous=self.previous,
            exclude_latest=self.exclude_latest,
            leased=_find_leased(directory),
            in_use=self.in_use,
        )
        return _keep_linked(decisions, directory)


@dataclass(frozen=True, slots=True)
class PruneSelection:
    """Checkpoints that a prune removes.

    Attributes:
        removed: Decisions about the checkpoints that go, by step.
        is_settled: The rules before a change of the metric have been applied once more.
        is_contradicted: Nothing goes, because index and files still disagree after everything
            was read again.
    """

    removed: tuple[Decision, ...] = ()
    is_settled: bool = False
    is_contradicted: bool = False


@dataclass(frozen=True, slots=True)
class _Judged:
    """Decisions by the index.

    Attributes:
        candidates: All checkpoints of a run, or those that rank below the ones kept for their rank.
        decisions: Decisions about them.
    """

    candidates: Sequence[Candidate] = ()
    decisions: Sequence[Decision] = ()

    @property
    def removed(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.keep]

    def select(self) -> PruneSelection:
        removed = tuple(sorted(self.removed, key=lambda decision: decision.step))
        is_settled = bool(removed) or any(decision.is_previous for decision in self.decisions)
        return PruneSelection(removed, is_settled)


_NOTHING = _Judged()


def select(index: RunIndex, directory: Path, rules: PruneRules) -> PruneSelection:
    """Return the checkpoints of a run that no retention rule keeps.

    Args:
        index: Index of the run.
        directory: The run.
        rules: The rules, and what protects checkpoints from them.

    Raises:
        JournalInDoubt: The run's journal is damaged, or the catalog contradicts it.
    """
    policy = rules.policy
    followed = index.find_followed()
    if not policy.has_limit or (followed and policy.keeps_all(followed.at_most)):
        return PruneSelection()
    judging = _Judging(index, directory, rules)
    # A stamp that only our own changes have advanced may hide a change that somebody made by hand
    # in between. It is exact enough to see that nothing goes, not to choose what goes.
    judged = index.query(judging.judge_below_best, nothing=_NOTHING, trust_own=True)
    if all(decision.keep and not decision.is_previous for decision in judged.decisions):
        return PruneSelection()
    followed = index.find_followed()
    if followed and followed.is_fresh and _is_confirmed(directory, rules, judged, followed):
        return judged.select()
    none: _Judged | None = _NOTHING
    before = run_stamp.find_stamp(directory)
    confirmed = index.query(judging.judge_and_compare, nothing=none)
    if confirmed is None:
        # A damaged journal may be the cause: then nothing is read again, and the error says so.
        index.check_journal()
        index.ensure_deletable()
        index.read_everything()
        confirmed = index.query(judging.judge_and_compare, nothing=none)
    if confirmed is not None:
        return confirmed.select()
    # Files that another process changes at this moment contradict nothing: the next prune tries
    # again. Files that nobody has changed do.
    is_unchanged = before is not None and before.is_same(run_stamp.find_stamp(directory))
    return PruneSelection(is_contradicted=is_unchanged)


def plan_all(index: RunIndex, directory: Path, rules: PruneRules) -> RetentionPlan:
    """Return the plan of a prune, with a decision about every checkpoint of the run."""

    def find(catalog: Catalog, run_id: int, _: Any) -> RetentionPlan:
        candidates = catalog.candidates.of_run(run_id, rules.wanted)
        linked = symlinks.find_linked(directory, [candidate.step for candidate in candidates])
        candidates = tuple(without_linked_bytes(candidates, linked))
        decisions = rules.judge(candidates, directory)
        return plan.make(decisions, candidates, rules.policy, exclude_latest=rules.exclude_latest)

    return index.query(find, nothing=RetentionPlan())


@dataclass(frozen=True, slots=True)
class UnknownMetrics:
    """Metrics that a policy names and that no checkpoint has ever had a finite value of.

    Attributes:
        unknown: Metrics that no checkpoint has had.
        never_finite: Metrics of which all values were NaN or infinite.
        known: All metrics of the run, when there is anything to report.
    """

    unknown: tuple[str, ...] = ()
    never_finite: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


def find_unknown_metrics(index: RunIndex, policy: Policy) -> UnknownMetrics:
    """Return the metrics of a policy that rank no checkpoint of the run."""

    def find(catalog: Catalog, run_id: int, _: Any) -> UnknownMetrics:
        missing = [name for name in policy.named if not catalog.ranking.count_ranked(run_id, name)]
        known = catalog.metrics.names(run_id) if missing else ()
        return UnknownMetrics(
            tuple(name for name in missing if name not in known),
            tuple(
                name
                for name in missing
                if name in known and not catalog.metrics.was_ever_finite(run_id, name)
            ),
            known,
        )

    return index.query(find, nothing=UnknownMetrics(), trust_own=True)


class _Judging:
    """Queries of the index about the checkpoints that rules keep."""

    def __init__(self, index: RunIndex, directory: Path, rules: PruneRules) -> None:
        self._index = index
        self._directory = directory
        self._policy = rules.policy
        self._rules = rules

    def judge_below_best(self, catalog: Catalog, run_id: int, _: Any) -> _Judged:
        """Judge only the checkpoints below the best, where each has a rank: no other is read."""
        policy, followed = self._policy, self._index.find_followed()
        metric, mode, best = policy.metric, policy.mode, policy.keep_top_k
        if followed is None or self._rules.previous or metric not in followed.ranked_by:
            return self._judge_all(catalog, run_id)
        is_simple = policy.save_period == 1 and not policy.keep
        if metric is None or mode is None or best is None or not is_simple:
            return self._judge_all(catalog, run_id)
        below = catalog.candidates.below_best(run_id, metric, mode, best)
        if not below:
            # No further query, and no further count, before there are more of them.
            followed.at_most = catalog.ranking.count_ranked(run_id, metric)
            return _NOTHING
        newest = catalog.ranking.newest_steps(run_id, max(policy.ft_keep_latest_k or 0, 1))
        decisions = decide_below(
            below,
            policy,
            newest,
            exclude_latest=self._rules.exclude_latest,
            leased=_find_leased(self._directory),
            in_use=self._rules.in_use,
            resumed_from=followed.resumed_from,
        )
        return _Judged(below, _keep_linked(decisions, self._directory))

    def judge_and_compare(self, catalog: Catalog, run_id: int, _: Any) -> _Judged | None:
        """Judge all checkpoints; return None when the files say something else about them."""
        judged = self._judge_all(catalog, run_id)
        return judged if not judged.removed or self._agrees(catalog, judged.candidates) else None

    def _judge_all(self, catalog: Catalog, run_id: int) -> _Judged:
        """Judge all checkpoints, unless there are so few that nothing can go."""
        policy, followed = self._policy, self._index.find_followed()
        count = catalog.checkpoints.count_live(run_id)
        if followed:
            followed.at_most = count
        if policy.keeps_all(count):
            return _NOTHING
        candidates = self._without_linked_bytes(
            catalog.candidates.of_run(run_id, self._rules.wanted)
        )
        if followed:
            followed.ranked_by |= {
                name for name in policy.ranked_by if all(name in c.values for c in candidates)
            }
            last = find_resumed_from(candidates)
            followed.resumed_from = None if last is None else last.uuid
        return _Judged(candidates, self._rules.judge(candidates, self._directory))

    def _agrees(self, catalog: Catalog, indexed: Sequence[Candidate]) -> bool:
        """Return whether the files say the same as the index about all candidates."""
        compared = disk_candidates.compare_candidates(
            catalog, self._directory, self._index.files, self._rules.wanted, indexed
        )
        if compared is None:
            return False
        followed = self._index.find_followed()
        if followed:
            followed.by_files = {candidate.uuid: candidate for candidate in compared.sound}
        return tuple(indexed) == tuple(self._without_linked_bytes(compared.sound))

    def _without_linked_bytes(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        if self._policy.at_most is None:
            return candidates
        steps = [candidate.step for candidate in candidates]
        return without_linked_bytes(candidates, symlinks.find_linked(self._directory, steps))


def _keep_linked(decisions: tuple[Decision, ...], directory: Path) -> tuple[Decision, ...]:
    """Keep checkpoints behind a symlink; only those that would go are looked at for that."""
    removed = [decision.step for decision in decisions if not decision.keep]
    return keep_linked(decisions, symlinks.find_linked(directory, removed))


def _find_leased(directory: Path) -> dict[str, str]:
    return leases.find_leased(identity.hidden(directory))


# --- decisions of a prune whose files were read before ------------------------------------------


def _is_confirmed(
    directory: Path, rules: PruneRules, judged: _Judged, followed: FollowedRun
) -> bool:
    """Return whether the files are known to say the same as the index about what is judged.

    SQLite has no checksums: a flipped bit may turn the best checkpoint into the worst, and so may
    anybody who can write the catalog. The checkpoints that go are all read; of those that stay,
    the ones that were read before, or saved by this process, are known.
    """
    metrics, known = rules.wanted.metrics, followed.by_files
    removed = {decision.uuid for decision in judged.removed}
    if not removed:
        return True
    if known is None or not all(
        c.uuid in known and _is_same(c, known[c.uuid], metrics) for c in judged.candidates
    ):
        return False
    going = [candidate for candidate in judged.candidates if candidate.uuid in removed]
    if not all(_has_same_values(directory, candidate, metrics) for candidate in going):
        return False
    left = [candidate for candidate in known.values() if candidate.uuid not in removed]
    return len(judged.candidates) == len(known) or _are_below(going, left, rules)


def _has_same_values(directory: Path, candidate: Candidate, metrics: Sequence[str]) -> bool:
    """Return whether the file of a checkpoint holds the values of the index."""
    folder = directory / names.final_name(candidate.step)
    with suppress(UnreadableInfo):  # the listing has already found what cannot be read
        values = metrics_of(training_info.load_info(folder)[0])
        saved = [name for name in metrics if name not in candidate.late]
        return all(values.get(name) == candidate.values.get(name) for name in saved)
    return True


def _are_below(going: Sequence[Candidate], left: Sequence[Candidate], rules: PruneRules) -> bool:
    """Return whether enough of the checkpoints that are left are better, and newer."""
    policy, newest = rules.policy, max(candidate.step for candidate in going)
    latest = max(policy.ft_keep_latest_k or 0, int(rules.exclude_latest))
    if sum(candidate.step > newest for candidate in left) < latest:
        return False
    metric, mode, best = policy.metric, policy.mode, policy.keep_top_k
    if metric is None or mode is None or not best:
        return True
    first = min(rank_key(c.values.get(metric), c.step, mode) for c in going)
    return sum(rank_key(c.values.get(metric), c.step, mode) < first for c in left) >= best


def _is_same(indexed: Candidate, known: Candidate, metrics: Sequence[str]) -> bool:
    return indexed.step == known.step and all(
        indexed.values.get(name) == known.values.get(name) for name in metrics
    )
