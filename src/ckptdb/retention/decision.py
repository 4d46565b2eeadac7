"""Decisions of a policy about checkpoints, each with its reason. Pure: records in, records out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ckptdb.core.candidates import Candidate
from ckptdb.core.ranking import rank_key
from ckptdb.core.records import CheckpointProblem
from ckptdb.retention.policy import Policy
from ckptdb.retention.reasons import (
    KeptByNoRule,
    KeptByRule,
    OverLimit,
    Protected,
    Reason,
    describe,
)
from ckptdb.retention.rules import AtMost, Latest

Reasons = Mapping[int, Reason]
"""Reasons by step."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision whether one checkpoint stays.

    Attributes:
        because: The reason as data; `reason` is its sentence.
        damage: Known damage, which the files may not show at once.
        is_previous: The checkpoint stays only because of the rules before; see `keep_previous`.
    """

    JSON_KEYS: ClassVar = {
        "step": "step", "uuid": "uuid", "keep": "keep", "reason": "reason",
        "size_bytes": "size_bytes",
    }  # fmt: skip

    step: int
    uuid: str
    keep: bool
    because: Reason
    size_bytes: int | None = None
    damage: CheckpointProblem | None = None
    is_previous: bool = False

    @property
    def reason(self) -> str:
        """The reason as a sentence."""
        text = describe(self.because)
        return f"{text}, as until now" if self.is_previous else text


def decide(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    exclude_latest: bool = True,
    leased: Mapping[str, str] | None = None,
    in_use: Mapping[str, str] | None = None,
    now: float | None = None,
) -> tuple[Decision, ...]:
    """Decide about every live checkpoint of a run, by step.

    Pinned and leased checkpoints, checkpoints in use and the one that training was last resumed
    from stay whatever the rules say.

    Args:
        candidates: All live, trusted checkpoints of the run.
        policy: The rules.
        exclude_latest: Always keep the highest step.
        leased: Purpose and holder of each lease, by uuid.
        in_use: Use that the current training makes of a checkpoint, by uuid.
        now: Seconds since the epoch; None for the clock's.
    """
    by_step = sorted(candidates, key=lambda c: c.step)
    if not policy.has_limit:
        no_limit = {candidate.step: Protected("no limit") for candidate in by_step}
        return _make_decisions(by_step, no_limit | _find_pinned(by_step), policy)
    protected = _find_in_use(by_step, in_use or {})
    protected |= _find_protected(by_step, leased or {}, exclude_latest=exclude_latest)
    kept = _apply_rules(by_step, policy, time.time() if now is None else now)
    if policy.at_most is None:
        return _make_decisions(by_step, kept | protected, policy)
    over = _apply_limit(by_step, policy, policy.at_most, kept, protected)
    left = {step: reason for step, reason in kept.items() if step not in over}
    return tuple(
        replace(decision, because=over[decision.step]) if decision.step in over else decision
        for decision in _make_decisions(by_step, left | protected, policy)
    )


def decide_below(
    candidates: Sequence[Candidate],
    policy: Policy,
    newest: Sequence[int],
    *,
    exclude_latest: bool,
    leased: Mapping[str, str] | None = None,
    in_use: Mapping[str, str] | None = None,
    resumed_from: str | None = None,
) -> tuple[Decision, ...]:
    """Decide, as `decide` does, about the checkpoints that rank below the best ``keep_top_k``.

    Args:
        candidates: All checkpoints of the run that rank there.
        policy: A policy of nothing but ``keep_top_k`` by a metric and ``ft_keep_latest_k``.
        newest: The highest steps of the run, the highest first, as many as the policy keeps of
            the newest, and at least one.
        exclude_latest: Always keep the highest step.
        leased: Purpose and holder of each lease, by uuid.
        in_use: Use that the current training makes of a checkpoint, by uuid.
        resumed_from: uuid of the checkpoint that training was last resumed from.
    """
    latest = Latest(policy.ft_keep_latest_k or 0)
    kept: dict[int, Reason] = dict.fromkeys(newest[: latest.count], KeptByRule(latest))
    kept |= _find_in_use(candidates, in_use or {})
    kept |= {c.step: Protected("resumed from") for c in candidates if c.uuid == resumed_from}
    kept |= _find_leased(candidates, leased or {})
    if exclude_latest:
        kept |= dict.fromkeys(newest[:1], Protected("latest"))
    return _make_decisions(candidates, kept | _find_pinned(candidates), policy)


def keep_previous(
    decisions: Sequence[Decision], previous: Sequence[Decision]
) -> tuple[Decision, ...]:
    """Keep also the checkpoints that the rules before keep.

    Args:
        decisions: Decisions by the current rules.
        previous: Decisions about the same checkpoints by the rules before.
    """
    kept = {decision.uuid: decision.because for decision in previous if decision.keep}
    return tuple(
        replace(decision, keep=True, is_previous=True, because=kept[decision.uuid])
        if not decision.keep and decision.uuid in kept
        else decision
        for decision in decisions
    )


def find_resumed_from(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the checkpoint that training was last resumed from."""
    resumed = [candidate for candidate in candidates if candidate.resumed_at is not None]
    return max(resumed, key=lambda c: (c.resumed_at or "", c.step), default=None)


def _find_protected(
    by_step: Sequence[Candidate], leased: Mapping[str, str], *, exclude_latest: bool
) -> dict[int, Reason]:
    """Return the checkpoints that no rule and no limit removes."""
    last = find_resumed_from(by_step)
    kept: dict[int, Reason] = {} if last is None else {last.step: Protected("resumed from")}
    kept |= _find_leased(by_step, leased)
    if exclude_latest:
        kept |= {candidate.step: Protected("latest") for candidate in by_step[-1:]}
    return kept | _find_pinned(by_step)


def _find_leased(candidates: Sequence[Candidate], leased: Mapping[str, str]) -> dict[int, Reason]:
    return {c.step: Protected("leased", leased[c.uuid]) for c in candidates if c.uuid in leased}


def _find_in_use(candidates: Sequence[Candidate], in_use: Mapping[str, str]) -> dict[int, Reason]:
    return {c.step: Protected("in use", in_use[c.uuid]) for c in candidates if c.uuid in in_use}


def _find_pinned(candidates: Sequence[Candidate]) -> dict[int, Reason]:
    return {candidate.step: Protected("pinned") for candidate in candidates if candidate.pinned}


def _apply_rules(by_step: Sequence[Candidate], policy: Policy, now: float) -> dict[int, Reason]:
    """Return the checkpoints that rules keep; all of them where there is only a limit in bytes."""
    if not policy.rules and policy.at_most is not None:
        return {candidate.step: KeptByRule(policy.at_most) for candidate in by_step}
    kept: dict[int, Reason] = {}
    for rule in policy.rules:  # the first rule that keeps a checkpoint is the reason
        for candidate in rule.kept(by_step, now):
            kept.setdefault(candidate.step, KeptByRule(rule))
    return kept


def _apply_limit(
    by_step: Sequence[Candidate],
    policy: Policy,
    limit: AtMost,
    kept: Reasons,
    protected: Reasons,
) -> dict[int, OverLimit]:
    """Return the checkpoints that must go so that the rest fits: the lowest ranked first."""
    metric, mode = policy.metric, policy.mode
    staying = [c for c in by_step if c.step in kept or c.step in protected]
    ranked = sorted(
        staying, key=lambda c: rank_key(c.values.get(metric or ""), c.step, mode or "min")
    )
    left_bytes = sum(c.size_bytes or 0 for c in staying)
    over: dict[int, OverLimit] = {}
    for place, candidate in reversed(list(enumerate(ranked, 1))):
        if left_bytes <= limit.size_bytes:
            break
        if candidate.step in protected or not candidate.size_bytes:
            continue
        value = None if metric is None else candidate.values.get(metric)
        over[candidate.step] = OverLimit(limit, place, len(ranked), metric, mode, value)
        left_bytes -= candidate.size_bytes
    return over


def _make_decisions(
    candidates: Sequence[Candidate], kept: Reasons, policy: Policy
) -> tuple[Decision, ...]:
    return tuple(
        Decision(
            candidate.step,
            candidate.uuid,
            keep=candidate.step in kept,
            because=kept.get(candidate.step) or _find_missed(candidate, policy),
            size_bytes=candidate.size_bytes,
        )
        for candidate in candidates
    )


def _find_missed(candidate: Candidate, policy: Policy) -> KeptByNoRule:
    ranked_by = policy.ranked_by
    values = tuple((m, candidate.values[m]) for m in ranked_by if m in candidate.values)
    return KeptByNoRule(candidate.step, policy.rules, values)
