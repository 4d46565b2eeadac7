"""Retention plans: decisions about a run, with its best and latest before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ckptdb.core.candidates import Candidate
from ckptdb.core.ranking import Mode, rank_key
from ckptdb.retention.decision import Decision
from ckptdb.retention.policy import Policy

_TOP: Final = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """Best, latest and top 3 steps of a run; without a metric the newest steps."""

    best: int | None
    latest: int | None
    top: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """Effect of a policy on a run at one moment.

    Attributes:
        decisions: Decisions about the live checkpoints, by step.
        before: Standing of the run as it is, None when nothing was judged.
        after: Standing without the checkpoints that go, None when some of them did not go.
        exclude_latest: Whether the highest step stays whatever the rules say.
    """

    decisions: tuple[Decision, ...] = ()
    before: Standing | None = None
    after: Standing | None = None
    exclude_latest: bool = True

    @property
    def gone(self) -> tuple[Decision, ...]:
        """Decisions about the checkpoints that go."""
        return tuple(decision for decision in self.decisions if not decision.keep)

    @property
    def freed_bytes(self) -> int:
        """Sum of the bytes of the checkpoints that go."""
        return sum(decision.size_bytes or 0 for decision in self.gone)


def make(
    decisions: tuple[Decision, ...],
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    exclude_latest: bool = True,
) -> RetentionPlan:
    """Make a plan of decisions about some of a run's checkpoints.

    Args:
        decisions: Which stay and which go.
        candidates: All checkpoints of the run that were judged, with their values of the metric
            that the policy ranks by.
        policy: The policy, for what is best.
        exclude_latest: Whether the highest step stays whatever the rules say.
    """
    gone = {decision.uuid for decision in decisions if not decision.keep}
    left = [candidate for candidate in candidates if candidate.uuid not in gone]
    before, after = (find_standing(some, policy.metric, policy.mode) for some in (candidates, left))
    return RetentionPlan(decisions, before, after, exclude_latest)


def find_standing(
    candidates: Sequence[Candidate], metric: str | None, mode: Mode | None
) -> Standing:
    """Return the standing of a run that has these checkpoints."""
    steps = sorted((candidate.step for candidate in candidates), reverse=True)
    latest = steps[0] if steps else None
    if metric is None or mode is None:
        return Standing(latest, latest, tuple(steps[:_TOP]))
    ranked = sorted(
        (c for c in candidates if metric in c.values),
        key=lambda c: rank_key(c.values[metric], c.step, mode),
    )
    top = tuple(candidate.step for candidate in ranked[:_TOP])
    return Standing(top[0] if top else latest, latest, top)


def fingerprint(lines: Iterable[str]) -> str:
    """Return the identifier of a plan: a hash of its lines."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
