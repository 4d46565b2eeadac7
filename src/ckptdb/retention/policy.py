"""What to keep and why. Pure: it looks at records and touches nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ckptdb.catalog.catalog import Candidate
from ckptdb.errors import InvalidPolicy
from ckptdb.records import Mode
from ckptdb.retention.rules import (
    Best,
    EverySteps,
    Latest,
    Rule,
    Tagged,
    judged_by,
    metrics_of,
    parse_all,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of a run's checkpoints survive; a checkpoint stays if any rule keeps it.

    The first three are those of NVIDIA NeMo-RL's checkpointing config, with their meaning there;
    `rules` says the same in rules.

    Attributes:
        keep_top_k: Of the steps divisible by ``save_period``, keep this many of the best by
            ``metric``, of the newest when there is no metric, or all when None.
        ft_keep_latest_k: Keep this many of the newest, whatever their step.
        metric: What the best are the best by, where a rule does not say so itself.
        mode: Direction of ``metric``; None only without one.
        keep: What is kept besides: rules, or the texts of rules.

    Raises:
        InvalidPolicy: Lists everything about it that makes no sense.
    """

    save_period: int = 1
    keep_top_k: int | None = None
    ft_keep_latest_k: int | None = None
    metric: str | None = None
    mode: Mode | None = None
    keep: Sequence[Rule | str] = ()

    def __post_init__(self) -> None:
        least = {"save_period": 1, "keep_top_k": 0, "ft_keep_latest_k": 0}
        given = {name: getattr(self, name) for name in least}
        faults = [
            f"{name} must be at least {least[name]}, not {value!r}"
            for name, value in given.items()
            if value is not None and value < least[name]
        ]
        try:
            Best(0, self.metric, self.mode)
        except InvalidPolicy as error:
            faults += error.faults
        keep, wrong = parse_all(self.keep)
        if faults or wrong:
            raise InvalidPolicy([*faults, *wrong])
        object.__setattr__(self, "keep", keep)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules; none of them keeps what goes."""
        found: list[Rule] = []
        if self.keep_top_k is not None and self.metric is not None:
            found.append(Best(self.keep_top_k, self.metric, self.mode, self.save_period))
        elif self.keep_top_k is not None:
            found.append(Latest(self.keep_top_k, self.save_period))
        elif self.ft_keep_latest_k is not None:
            found.append(EverySteps(self.save_period))
        if self.ft_keep_latest_k is not None:
            found.append(Latest(self.ft_keep_latest_k))
        keep = cast("tuple[Rule, ...]", self.keep)  # parsed when it was made
        return (*found, *(judged_by(rule, self.metric, self.mode) for rule in keep))

    @property
    def has_limit(self) -> bool:
        """Whether anything can ever go."""
        return bool(self.rules)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its rules rank by."""
        return metrics_of(self.rules)

    @property
    def asks_for_tags(self) -> bool:
        """Whether a rule depends on tags."""
        return any(isinstance(rule, Tagged) for rule in self.keep)

    def keeps_all(self, count: float) -> bool:
        """Whether nothing can go as long as there are no more than ``count`` checkpoints."""
        return not self.has_limit or any(_keeps_all(rule, count) for rule in self.rules)


def _keeps_all(rule: Rule, count: float) -> bool:
    if isinstance(rule, EverySteps):
        return rule.steps == 1
    return isinstance(rule, Best | Latest) and rule.period == 1 and rule.count >= count


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one checkpoint stays, and the rule that says so."""

    step: int
    uuid: str
    keep: bool
    reason: str
    size_bytes: int | None = None


def decide(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    exclude_latest: bool = True,
    now: float | None = None,
) -> tuple[Decision, ...]:
    """Judge every live checkpoint of a run, by step.

    Args:
        candidates: All live, trusted checkpoints of the run.
        policy: The rules.
        exclude_latest: Always keep the highest step.
        now: Seconds since the epoch; None for the clock's.
    """
    by_step = sorted(candidates, key=lambda c: c.step)
    kept = _kept(by_step, policy, time.time() if now is None else now)
    if exclude_latest and policy.has_limit:
        kept |= {candidate.step: "kept: the latest" for candidate in by_step[-1:]}
    return _decisions(by_step, kept, policy)


def decide_below(
    candidates: Sequence[Candidate], policy: Policy, newest: Sequence[int], *, exclude_latest: bool
) -> tuple[Decision, ...]:
    """Judge the checkpoints of a run that rank below the best ``keep_top_k``, as `decide` does.

    Args:
        candidates: All that rank there.
        policy: Of nothing but ``keep_top_k`` by a metric, and the newest.
        newest: The highest steps of the run, the highest first, as many as the policy keeps of
            the newest, and at least one.
        exclude_latest: Always keep the highest step.
    """
    latest = Latest(policy.ft_keep_latest_k or 0)
    kept = dict.fromkeys(newest[: latest.count], f"kept: {latest}")
    if exclude_latest:
        kept |= dict.fromkeys(newest[:1], "kept: the latest")
    return _decisions(candidates, kept, policy)


def _kept(by_step: Sequence[Candidate], policy: Policy, now: float) -> dict[int, str]:
    if not policy.has_limit:
        return {candidate.step: "kept: no limit is set" for candidate in by_step}
    kept: dict[int, str] = {}
    for rule in policy.rules:  # the first that keeps it is the reason
        for candidate in rule.kept(by_step, now):
            kept.setdefault(candidate.step, f"kept: {rule}")
    return kept


def _decisions(
    candidates: Sequence[Candidate], kept: Mapping[int, str], policy: Policy
) -> tuple[Decision, ...]:
    return tuple(
        Decision(
            c.step,
            c.uuid,
            c.pinned or c.step in kept,
            "kept: pinned" if c.pinned else kept.get(c.step) or _why_not(c, policy),
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
    value = candidate.values.get(rule.metric)
    return " (no value)" if value is None else f" ({value:.6g})"
