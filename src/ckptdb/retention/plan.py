"""A plan of retention: what of a run stays and goes, and what that makes of best and latest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ckptdb.core.candidates import Candidate
from ckptdb.core.ranking import Mode, rank_key
from ckptdb.retention.decision import Decision, decide
from ckptdb.retention.linked import keep, without_bytes
from ckptdb.retention.policy import Policy

_TOP: Final = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """Which steps of a run are its best, its latest and its top 3; without a metric, the newest."""

    best: int | None
    latest: int | None
    top: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"best": self.best, "latest": self.latest, "top": list(self.top)}


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a policy does to a run at one moment.

    Attributes:
        decisions: For each live checkpoint whether it stays and why, by step.
        before: The run as it is, None when nothing was judged.
        after: The run without what goes, None when something else has happened meanwhile.
        exclude_latest: Whether the highest step stays whatever the rules say.
    """

    decisions: tuple[Decision, ...] = ()
    before: Standing | None = None
    after: Standing | None = None
    exclude_latest: bool = True

    @property
    def gone(self) -> tuple[Decision, ...]:
        """What goes."""
        return tuple(decision for decision in self.decisions if not decision.keep)

    @property
    def freed_bytes(self) -> int:
        """Sum of what goes."""
        return sum(decision.size_bytes or 0 for decision in self.gone)


def make(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    exclude_latest: bool = True,
    leased: Mapping[str, str] | None = None,
    in_use: Mapping[str, str] | None = None,
    now: float | None = None,
    linked: Collection[int] = (),
) -> RetentionPlan:
    """Plan what `decide` decides, with the same arguments.

    Args:
        candidates: As there.
        policy: As there.
        exclude_latest: As there.
        leased: As there.
        in_use: As there.
        now: As there.
        linked: Steps of checkpoints behind a symlink.
    """
    candidates = without_bytes(candidates, linked)
    decisions = decide(
        candidates,
        policy,
        exclude_latest=exclude_latest,
        leased=leased,
        in_use=in_use,
        now=now,
    )
    decisions = keep(decisions, linked)
    return replace(of(decisions, candidates, policy), exclude_latest=exclude_latest)


def of(
    decisions: tuple[Decision, ...], candidates: Sequence[Candidate], policy: Policy
) -> RetentionPlan:
    """Plan what was decided about some of a run's checkpoints.

    Args:
        decisions: What stays and goes.
        candidates: All of the run's, with their values of the policy's metric.
        policy: Says what is best.
    """
    gone = {decision.uuid for decision in decisions if not decision.keep}
    left = [candidate for candidate in candidates if candidate.uuid not in gone]
    ranked_by = policy.metric, policy.mode
    return RetentionPlan(decisions, standing(candidates, *ranked_by), standing(left, *ranked_by))


def standing(candidates: Sequence[Candidate], metric: str | None, mode: Mode | None) -> Standing:
    """Return where a run would stand if these were its checkpoints."""
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
    """Return what a plan is known by: another as soon as a line of it is another."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]
