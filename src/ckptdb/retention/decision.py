"""What a policy says of each checkpoint, and why. Pure: it looks at records and touches nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptdb.core.candidates import Candidate
from ckptdb.core.ranking import rank_key
from ckptdb.retention.policy import Policy
from ckptdb.retention.rules import Best, Latest, Rule


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one checkpoint stays, and the rule that says so.

    Attributes:
        damage: What is known to be wrong with it, which its files may not tell at once.
        is_previous: Only the rules of before keep it; see `keep_previous`.
    """

    step: int
    uuid: str
    keep: bool
    reason: str
    size_bytes: int | None = None
    damage: str | None = None
    is_previous: bool = False


def decide(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    exclude_latest: bool = True,
    leased: Mapping[str, str] | None = None,
    in_use: Mapping[str, str] | None = None,
    now: float | None = None,
) -> tuple[Decision, ...]:
    """Judge every live checkpoint of a run, by step.

    Whatever the rules say, what is pinned, leased or in use stays, and what training was last
    resumed from.

    Args:
        candidates: All live, trusted checkpoints of the run.
        policy: The rules.
        exclude_latest: Always keep the highest step.
        leased: By uuid, for what and by whom.
        in_use: By uuid, what the training that asks needs it for.
        now: Seconds since the epoch; None for the clock's.
    """
    by_step = sorted(candidates, key=lambda c: c.step)
    if not policy.has_limit:
        kept = dict.fromkeys((c.step for c in by_step), "kept: no limit is set")
        return _decisions(by_step, kept | _pinned(by_step), policy)
    protected = _in_use(by_step, in_use or {})
    protected |= _protected(by_step, leased or {}, exclude_latest=exclude_latest)
    kept = _kept(by_step, policy, time.time() if now is None else now)
    if policy.at_most is None:
        return _decisions(by_step, kept | protected, policy)
    over = _over(by_step, policy, policy.at_most.size_bytes, kept, protected)
    left = {step: reason for step, reason in kept.items() if step not in over}
    return tuple(
        replace(decision, reason=over[decision.step]) if decision.step in over else decision
        for decision in _decisions(by_step, left | protected, policy)
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
    """Judge the checkpoints of a run that rank below the best ``keep_top_k``, as `decide` does.

    Args:
        candidates: All that rank there.
        policy: Of nothing but ``keep_top_k`` by a metric, and the newest.
        newest: The highest steps of the run, the highest first, as many as the policy keeps of
            the newest, and at least one.
        exclude_latest: Always keep the highest step.
        leased: By uuid, for what and by whom.
        in_use: By uuid, what the training that asks needs it for.
        resumed_from: uuid of what training was last resumed from.
    """
    latest = Latest(policy.ft_keep_latest_k or 0)
    kept = dict.fromkeys(newest[: latest.count], f"kept: {latest}")
    kept |= _in_use(candidates, in_use or {})
    kept |= {c.step: _RESUMED for c in candidates if c.uuid == resumed_from}
    kept |= _leased(candidates, leased or {})
    if exclude_latest:
        kept |= dict.fromkeys(newest[:1], _LATEST)
    return _decisions(candidates, kept | _pinned(candidates), policy)


def keep_previous(
    decisions: Sequence[Decision], previous: Sequence[Decision]
) -> tuple[Decision, ...]:
    """Keep of what was decided also what the rules of before keep.

    Args:
        decisions: By the rules of now.
        previous: Of the same checkpoints, by those of before.
    """
    kept = {one.uuid: f"{one.reason}, as until now" for one in previous if one.keep}
    return tuple(
        replace(one, keep=True, is_previous=True, reason=kept[one.uuid])
        if not one.keep and one.uuid in kept
        else one
        for one in decisions
    )


_LATEST = "kept: the latest"
_RESUMED = "kept: training was resumed from it"


def _protected(
    by_step: Sequence[Candidate], leased: Mapping[str, str], *, exclude_latest: bool
) -> dict[int, str]:
    """Return what no rule and no limit takes away, by step, and why."""
    last = find_resumed_from(by_step)
    kept = {} if last is None else {last.step: _RESUMED}
    kept |= _leased(by_step, leased)
    if exclude_latest:
        kept |= {candidate.step: _LATEST for candidate in by_step[-1:]}
    return kept | _pinned(by_step)


def find_resumed_from(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return what of a run training was last resumed from."""
    resumed = [candidate for candidate in candidates if candidate.resumed_at is not None]
    return max(resumed, key=lambda c: (c.resumed_at or "", c.step), default=None)


def _leased(candidates: Sequence[Candidate], leased: Mapping[str, str]) -> dict[int, str]:
    return {c.step: f"kept: leased for {leased[c.uuid]}" for c in candidates if c.uuid in leased}


def _in_use(candidates: Sequence[Candidate], in_use: Mapping[str, str]) -> dict[int, str]:
    return {c.step: f"kept: {in_use[c.uuid]}" for c in candidates if c.uuid in in_use}


def _pinned(candidates: Sequence[Candidate]) -> dict[int, str]:
    return {c.step: "kept: pinned" for c in candidates if c.pinned}


def _kept(by_step: Sequence[Candidate], policy: Policy, now: float) -> dict[int, str]:
    rules = policy.rules
    if not rules:
        return dict.fromkeys((c.step for c in by_step), f"kept: {policy.at_most}")
    kept: dict[int, str] = {}
    for rule in rules:  # the first that keeps it is the reason
        for candidate in rule.kept(by_step, now):
            kept.setdefault(candidate.step, f"kept: {rule}")
    return kept


def _over(
    by_step: Sequence[Candidate],
    policy: Policy,
    limit_bytes: int,
    kept: Mapping[int, str],
    protected: Mapping[int, str],
) -> dict[int, str]:
    """Return what has to go for the rest to fit, by step, and why: the lowest ranked first."""
    metric, mode = policy.metric, policy.mode
    staying = [c for c in by_step if c.step in kept or c.step in protected]
    ranked = sorted(
        staying, key=lambda c: rank_key(c.values.get(metric or ""), c.step, mode or "min")
    )
    left = sum(c.size_bytes or 0 for c in staying)
    by = "by step" if metric is None else f"by {metric} {mode}"
    over: dict[int, str] = {}
    for place, candidate in reversed(list(enumerate(ranked, 1))):
        if left <= limit_bytes:
            break
        if candidate.step in protected or not candidate.size_bytes:
            continue
        value = "" if metric is None else _value(candidate, metric)
        over[candidate.step] = (
            f"retention: {policy.at_most}, ranked {place} of {len(ranked)} {by}{value}"
        )
        left -= candidate.size_bytes
    return over


def _decisions(
    candidates: Sequence[Candidate], kept: Mapping[int, str], policy: Policy
) -> tuple[Decision, ...]:
    return tuple(
        Decision(
            c.step,
            c.uuid,
            c.step in kept,
            kept.get(c.step) or _why_not(c, policy),
            c.size_bytes,
        )
        for c in candidates
    )


def _why_not(candidate: Candidate, policy: Policy) -> str:
    # Of a rule that keeps none there is nothing to say.
    rules = (rule for rule in policy.rules if getattr(rule, "count", 1))
    reasons = [f"not {rule}{_shown(rule, candidate)}" for rule in rules]
    return "retention: " + (", ".join(reasons) or "nothing but the latest is kept")


def _shown(rule: Rule, candidate: Candidate) -> str:
    if not isinstance(rule, Best) or rule.metric is None or candidate.step % rule.period:
        return ""
    return _value(candidate, rule.metric)


def _value(candidate: Candidate, metric: str) -> str:
    value = candidate.values.get(metric)
    return " (no value)" if value is None else f" ({value:.6g})"
