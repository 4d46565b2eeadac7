"""Reasons of retention decisions: data, and the one place that puts them into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckptdb.core.ranking import Mode
from ckptdb.retention.rules import AtMost, Best, Clause, Rule

Protection = Literal[
    "no limit", "latest", "resumed from", "in use", "leased", "pinned", "linked", "changed"
]
"""Why a checkpoint stays whatever the rules say."""

_PROTECTIONS: dict[Protection, str] = {
    "no limit": "no limit is set",
    "latest": "the latest",
    "resumed from": "training was resumed from it",
    "in use": "{}",
    "leased": "leased for {}",
    "pinned": "pinned",
    "linked": "behind a symlink",
    "changed": "changed, pinned, leased, rejected or resumed from meanwhile",
}


@dataclass(frozen=True, slots=True)
class Protected:
    """Something other than a rule keeps the checkpoint.

    Attributes:
        detail: Purpose of the lease, or of the use.
    """

    protection: Protection
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class KeptByRule:
    """A rule keeps the checkpoint: the first one of the policy that does."""

    rule: Clause


@dataclass(frozen=True, slots=True)
class DeletionFailed:
    """The deletion failed, so the checkpoint is still there.

    Attributes:
        cause: The error.
    """

    cause: str


@dataclass(frozen=True, slots=True)
class KeptByNoRule:
    """No rule keeps the checkpoint.

    Attributes:
        rules: The rules of the policy.
        values: Values of the metrics that these rank by; a metric without a value is left out.
    """

    step: int
    rules: tuple[Rule, ...]
    values: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class OverLimit:
    """Rules keep the checkpoint, and a limit in bytes has no room for it.

    Attributes:
        place: Its rank among the checkpoints that rules keep, from 1.
        count: Number of these checkpoints.
        metric: Metric that ranks them, None for the step.
        value: Value of that metric, None without one.
    """

    limit: AtMost
    place: int
    count: int
    metric: str | None
    mode: Mode | None
    value: float | None


@dataclass(frozen=True, slots=True)
class ByHand:
    """Somebody deletes the checkpoint by hand."""


Reason = Protected | KeptByRule | DeletionFailed | KeptByNoRule | OverLimit | ByHand


def describe(reason: Reason) -> str:
    """Return the sentence of a reason, as it is printed and recorded."""
    match reason:
        case Protected(protection, detail):
            return f"kept: {_PROTECTIONS[protection].format(detail)}"
        case KeptByRule(rule):
            return f"kept: {rule}"
        case DeletionFailed(cause):
            return f"not deleted: {cause}"
        case KeptByNoRule():
            return f"retention: {_describe_missed(reason)}"
        case OverLimit(limit, place, count, metric, mode, value):
            by = "by step" if metric is None else f"by {metric} {mode}{_describe_value(value)}"
            return f"retention: {limit}, ranked {place} of {count} {by}"
        case ByHand():
            return "by hand"


def _describe_missed(reason: KeptByNoRule) -> str:
    # A rule that keeps no checkpoint at all explains nothing.
    rules = (rule for rule in reason.rules if getattr(rule, "count", 1))
    missed = [f"not {rule}{_describe_rank(rule, reason)}" for rule in rules]
    return ", ".join(missed) or "nothing but the latest is kept"


def _describe_rank(rule: Rule, reason: KeptByNoRule) -> str:
    if not isinstance(rule, Best) or rule.metric is None or reason.step % rule.period:
        return ""
    return _describe_value(dict(reason.values).get(rule.metric))


def _describe_value(value: float | None) -> str:
    return " (no value)" if value is None else f" ({value:.6g})"
