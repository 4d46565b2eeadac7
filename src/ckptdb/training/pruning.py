"""What a manager prunes: chosen by the index, and only where the files say the same."""

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
from ckptdb.core.records import NO_ANNOTATIONS
from ckptdb.disk import (
    identity,
    journal,
    leases,
    names,
    symlinks,
    training_info,
)
from ckptdb.disk.retire import Deletion
from ckptdb.errors import UnreadableInfo
from ckptdb.reconcile import disk_candidates
from ckptdb.retention import (
    Decision,
    Policy,
    RetentionPlan,
    decide,
    decide_below,
    find_resumed_from,
    keep_previous,
    plan,
)
from ckptdb.retention.linked import keep as keep_linked
from ckptdb.retention.linked import without_bytes
from ckptdb.training.index import Followed, RunIndex

_SHORT_BYTES = 1_000_000
"""Up to this size a journal is read at every prune that has to look at all files."""

Judgement = tuple[Sequence[Candidate], Sequence[Decision]]
"""What was judged, and how: all of a run, or those that rank below what is kept for its rank."""
_NOTHING: Judgement = ((), ())


@dataclass(frozen=True, slots=True)
class Terms:
    """By what it is decided what goes.

    Attributes:
        exclude_latest: Always keep the highest step.
        in_use: By uuid, what this process needs it for: that stays, too.
        previous: The rules by the metric of before, when that was another one: what they keep stays
            once more.
    """

    policy: Policy
    exclude_latest: bool
    in_use: Mapping[str, str] = field(default_factory=dict)
    previous: Policy | None = None

    @property
    def wanted(self) -> Wanted:
        """What has to be known of the candidates."""
        wanted = self.policy.wanted
        if self.previous is None:
            return wanted
        metrics = dict.fromkeys([*wanted.metrics, *self.previous.wanted.metrics])
        return replace(wanted, metrics=tuple(metrics))

    def judge(self, candidates: Sequence[Candidate], directory: Path) -> tuple[Decision, ...]:
        """Judge all live, trusted checkpoints of a run."""
        leased = _find_leased(directory)
        now, *previous = (
            decide(
                candidates,
                policy,
                exclude_latest=self.exclude_latest,
                leased=leased,
                in_use=self.in_use,
            )
            for policy in (self.policy, self.previous)
            if policy is not None
        )
        decided = keep_previous(now, previous[0]) if previous else now
        return _without_linked(decided, directory)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What goes from a run.

    Attributes:
        is_settled: The rules of before have had their say.
    """

    deletions: tuple[Deletion, ...] = ()
    is_settled: bool = False


def choose(index: RunIndex, directory: Path, terms: Terms) -> Chosen:
    """Return the checkpoints of a run that no retention rule keeps.

    Args:
        index: Of that run.
        directory: The run.
        terms: The rules, and what stays whatever they say.

    Raises:
        JournalInDoubt: The run's journal is damaged, or the catalog contradicts it.
    """
    policy = terms.policy
    followed = index.follow()
    if not policy.has_limit or (followed and policy.keeps_all(followed.at_most)):
        return Chosen()
    judge = _Judge(index, directory, terms)
    # A stamp that only we advanced may hide what somebody did by hand in between. It is good
    # enough to see that nothing has to go. To choose what goes, the listing must not be old.
    judged = index.ask(judge.quickly, nothing=_NOTHING, trust_own=True)
    if all(decision.keep and not decision.is_previous for decision in judged[1]):
        return Chosen()
    followed = index.follow()
    if followed and followed.is_fresh and _agree_with_files(directory, terms, judged, followed):
        return _chosen(judged)

    def compared(catalog: Catalog, run_id: int, memo: Any) -> Judgement | None:
        judged = judge.wholly(catalog, run_id, memo)
        return judged if judge.is_true(catalog, judged) else None

    none: Judgement | None = _NOTHING
    agreed = index.ask(compared, nothing=none)
    if agreed is None:
        # Perhaps because the journal is damaged: then nobody reads again, but somebody is told.
        index.look_for_doubt()
        index.refuse_in_doubt()
        index.read_again()
        agreed = index.ask(compared, nothing=none)
    # Files that still say something else are being changed at this moment: next time.
    return _chosen(agreed or _NOTHING)


def plan_all(index: RunIndex, directory: Path, terms: Terms) -> RetentionPlan:
    """Plan what `choose` returns, with every checkpoint of the run in it."""

    def find(catalog: Catalog, run_id: int, _: Any) -> RetentionPlan:
        candidates = catalog.candidates(run_id, terms.wanted)
        steps = [candidate.step for candidate in candidates]
        candidates = without_bytes(candidates, symlinks.find_linked(directory, steps))
        planned = plan.of(terms.judge(candidates, directory), candidates, terms.policy)
        return replace(planned, exclude_latest=terms.exclude_latest)

    return index.ask(find, nothing=RetentionPlan())


def find_unknown_metrics(
    index: RunIndex, policy: Policy
) -> tuple[list[str], tuple[str, ...], list[str]]:
    """Return what a policy ranks by and no checkpoint has ever had a finite value of.

    First the metrics that none has had at all, then the metrics that there are, and then those
    of them that were never finite.
    """

    def find(catalog: Catalog, run_id: int, _: Any) -> tuple[list[str], tuple[str, ...], list[str]]:
        missing = [name for name in policy.named if not catalog.count_ranked(run_id, name)]
        names = catalog.metric_names(run_id) if missing else ()
        never = [
            name for name in missing if name in names and not catalog.was_ever_finite(run_id, name)
        ]
        return [name for name in missing if name not in names], names, never

    nothing: tuple[list[str], tuple[str, ...], list[str]] = ([], (), [])
    return index.ask(find, nothing=nothing, trust_own=True)


class _Judge:
    """Asks the index what a policy keeps of a run."""

    def __init__(self, index: RunIndex, directory: Path, terms: Terms) -> None:
        self._index = index
        self._directory = directory
        self._policy = terms.policy
        self._terms = terms

    def quickly(self, catalog: Catalog, run_id: int, memo: Any) -> Judgement:
        """Judge only those below the best, where each has a rank: the others need not be read."""
        policy, followed = self._policy, self._index.follow()
        metric, mode, best = policy.metric, policy.mode, policy.keep_top_k
        if followed is None or self._terms.previous or metric not in followed.ranked_by:
            return self.wholly(catalog, run_id, memo)
        is_simple = policy.save_period == 1 and not policy.keep
        if metric is None or mode is None or best is None or not is_simple:
            return self.wholly(catalog, run_id, memo)
        below = catalog.below(run_id, metric, mode, best)
        if not below:
            # Not asked again, nor counted, before there are more of them.
            followed.at_most = catalog.count_ranked(run_id, metric)
            return _NOTHING
        newest = catalog.newest_steps(run_id, max(policy.ft_keep_latest_k or 0, 1))
        decisions = decide_below(
            below,
            policy,
            newest,
            exclude_latest=self._terms.exclude_latest,
            leased=_find_leased(self._directory),
            in_use=self._terms.in_use,
            resumed_from=followed.resumed_from,
        )
        return below, _without_linked(decisions, self._directory)

    def wholly(self, catalog: Catalog, run_id: int, _: Any) -> Judgement:
        """Judge all, unless there are so few that nothing can go."""
        policy, followed = self._policy, self._index.follow()
        count = catalog.count_live(run_id)
        if followed:
            followed.at_most = count
        if policy.keeps_all(count):
            return _NOTHING
        candidates = catalog.candidates(run_id, self._terms.wanted)
        if policy.at_most is not None:
            linked = symlinks.find_linked(self._directory, [c.step for c in candidates])
            candidates = without_bytes(candidates, linked)
        if followed:
            followed.ranked_by |= {
                name for name in policy.ranked_by if all(name in c.values for c in candidates)
            }
            last = find_resumed_from(candidates)
            followed.resumed_from = None if last is None else last.uuid
        return candidates, self._terms.judge(candidates, self._directory)

    def is_true(self, catalog: Catalog, judged: Judgement) -> bool:
        """Tell whether the files say of a whole run what it was judged by."""
        if all(decision.keep for decision in judged[1]):
            return True
        found = self._find_by_files(catalog, judged[0])
        if found is None:
            return False
        followed = self._index.follow()
        if followed:
            followed.by_files = {candidate.uuid: candidate for candidate in found}
        if self._policy.at_most is not None:
            linked = symlinks.find_linked(self._directory, [c.step for c in found])
            found = without_bytes(found, linked)
        return tuple(judged[0]) == tuple(found)

    def _find_by_files(
        self, catalog: Catalog, told: Sequence[Candidate]
    ) -> tuple[Candidate, ...] | None:
        """Return by the files what may be judged; None when they cannot be read."""
        files, wanted = self._index.files, self._terms.wanted
        known = catalog.find_run(identity.identify(self._directory).run.uuid)
        if known is None:
            return None
        damaged = disk_candidates.find_damaged(catalog, known)
        published = files.find_published()
        if published is None:
            return None
        by_uuid = {cp.uuid: cp for cp in published if cp.problem is None}
        trusted = by_uuid.keys() - damaged
        if self._has_to_read_journal(told) or trusted != {c.uuid for c in told}:
            observed = files.observe()
            if observed.errors:
                return None
            found = disk_candidates.find_candidates(
                observed, wanted, catalog.database.location.base
            )
            return tuple(candidate for candidate in found if candidate.uuid not in damaged)
        # What is pinned, and what was resumed from, is read in the journal before anything goes.
        return tuple(
            replace(
                disk_candidates.as_candidate(by_uuid[candidate.uuid], NO_ANNOTATIONS, wanted),
                pinned=candidate.pinned,
                resumed_at=candidate.resumed_at,
            )
            for candidate in told
        )

    def _has_to_read_journal(self, told: Sequence[Candidate]) -> bool:
        wanted = self._terms.wanted
        if wanted.tags or wanted.conditions or wanted.ancestors or any(c.late for c in told):
            return True
        return journal.size(self._directory) <= _SHORT_BYTES


def _without_linked(decisions: tuple[Decision, ...], directory: Path) -> tuple[Decision, ...]:
    """Keep what is behind a symlink; only what is to go is looked at for that."""
    deletions = [decision.step for decision in decisions if not decision.keep]
    return keep_linked(decisions, symlinks.find_linked(directory, deletions))


def _find_leased(directory: Path) -> dict[str, str]:
    return leases.find_leased(identity.hidden(directory))


def _chosen(judged: Judgement) -> Chosen:
    decisions = judged[1]
    # In one order, whichever way they were judged.
    going = sorted((d for d in decisions if not d.keep), key=lambda d: d.step)
    deletions = tuple(Deletion(d.step, d.uuid, d.reason) for d in going)
    return Chosen(deletions, is_settled=bool(deletions) or any(d.is_previous for d in decisions))


def _agree_with_files(directory: Path, terms: Terms, judged: Judgement, followed: Followed) -> bool:
    """Whether what is about to be judged by the index is what the files say.

    SQLite has no checksums: a flipped bit may turn the best checkpoint into the worst, and so may
    anybody who can write the catalog. Those that go are all read; of what stays, what was read
    once is known, and of what this process has saved itself.
    """
    candidates, decisions = judged
    metrics, stays = terms.wanted.metrics, followed.by_files
    deletions = {decision.uuid for decision in decisions if not decision.keep}
    if not deletions:
        return True
    if stays is None or not all(
        c.uuid in stays and _is_same(c, stays[c.uuid], metrics) for c in candidates
    ):
        return False
    going = [candidate for candidate in candidates if candidate.uuid in deletions]
    if not all(_is_read(directory, candidate, metrics) for candidate in going):
        return False
    left = [one for one in stays.values() if one.uuid not in deletions]
    return len(candidates) == len(stays) or _are_below(going, left, terms)


def _is_read(directory: Path, candidate: Candidate, metrics: Sequence[str]) -> bool:
    with suppress(UnreadableInfo):  # what cannot be read has been found by the listing
        said = metrics_of(training_info.load_info(directory / names.final_name(candidate.step))[0])
        own = [name for name in metrics if name not in candidate.late]
        return all(said.get(name) == candidate.values.get(name) for name in own)
    return True


def _are_below(going: Sequence[Candidate], left: Sequence[Candidate], terms: Terms) -> bool:
    """Whether enough of what was not judged is better, and newer, than what goes."""
    policy, newest = terms.policy, max(candidate.step for candidate in going)
    latest = max(terms.policy.ft_keep_latest_k or 0, int(terms.exclude_latest))
    if sum(one.step > newest for one in left) < latest:
        return False
    metric, mode, best = policy.metric, policy.mode, policy.keep_top_k
    if metric is None or mode is None or not best:
        return True
    first = min(rank_key(c.values.get(metric), c.step, mode) for c in going)
    return sum(rank_key(c.values.get(metric), c.step, mode) < first for c in left) >= best


def _is_same(told: Candidate, read: Candidate, metrics: Sequence[str]) -> bool:
    return told.step == read.step and all(
        told.values.get(name) == read.values.get(name) for name in metrics
    )
