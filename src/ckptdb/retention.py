"""What to keep and why. Pure: it looks at records and touches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptdb.catalog.catalog import Candidate
from ckptdb.errors import InvalidPolicy
from ckptdb.records import MODES, Mode, rank_key


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of a run's checkpoints survive; a checkpoint stays if any rule keeps it.

    The three limits and their meaning are those of NVIDIA NeMo-RL's checkpointing config.

    Attributes:
        keep_top_k: Of the steps divisible by ``save_period``, keep this many of the best by
            ``metric``, of the newest when there is no metric, or all when None.
        ft_keep_latest_k: Keep this many of the newest, whatever their step.
        mode: Direction of ``metric``; None only without one.

    Raises:
        InvalidPolicy: Lists everything about it that makes no sense.
    """

    save_period: int = 1
    keep_top_k: int | None = None
    ft_keep_latest_k: int | None = None
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        least = {"save_period": 1, "keep_top_k": 0, "ft_keep_latest_k": 0}
        given = {name: getattr(self, name) for name in least}
        faults = [
            f"{name} must be at least {least[name]}, not {value!r}"
            for name, value in given.items()
            if value is not None and value < least[name]
        ]
        if self.mode is not None and self.mode not in MODES:
            faults.append(f"mode must be 'min' or 'max', not {self.mode!r}")
        elif self.metric is None and self.mode is not None:
            faults.append(f"mode={self.mode!r} needs a metric")
        elif self.metric is not None and self.mode is None:
            faults.append(
                f"say whether {self.metric!r} is better low or high: mode='min' or mode='max'"
            )
        if faults:
            raise InvalidPolicy(faults)

    @property
    def has_limit(self) -> bool:
        """Whether anything can ever go."""
        return self.keep_top_k is not None or self.ft_keep_latest_k is not None

    def keeps_all(self, count: float) -> bool:
        """Whether nothing can go as long as there are no more than ``count`` checkpoints."""
        if not self.has_limit or (self.ft_keep_latest_k or 0) >= count:
            return True
        return self.save_period == 1 and (self.keep_top_k is None or self.keep_top_k >= count)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one checkpoint stays, and the rule that says so."""

    step: int
    uuid: str
    keep: bool
    reason: str
    size_bytes: int | None = None


def decide(
    candidates: Sequence[Candidate], policy: Policy, *, exclude_latest: bool = True
) -> tuple[Decision, ...]:
    """Judge every live checkpoint of a run, by step.

    Args:
        candidates: All live, trusted checkpoints of the run.
        policy: The rules.
        exclude_latest: Always keep the highest step.
    """
    kept = _kept(candidates, policy, exclude_latest=exclude_latest)
    by_step = sorted(candidates, key=lambda c: c.step)
    return tuple(_decision(candidate, kept, policy) for candidate in by_step)


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
    why = f"kept: among the {policy.ft_keep_latest_k} newest"
    kept = dict.fromkeys(newest[: policy.ft_keep_latest_k or 0], why)
    if exclude_latest:
        kept |= dict.fromkeys(newest[:1], "kept: the latest")
    kept |= {c.step: "kept: pinned" for c in candidates if c.pinned}
    return tuple(_decision(candidate, kept, policy) for candidate in candidates)


def _decision(candidate: Candidate, kept: Mapping[int, str], policy: Policy) -> Decision:
    return Decision(
        candidate.step,
        candidate.uuid,
        candidate.step in kept,
        kept.get(candidate.step) or _why_not(candidate, policy),
        candidate.size_bytes,
    )


def _kept(
    candidates: Sequence[Candidate], policy: Policy, *, exclude_latest: bool
) -> dict[int, str]:
    if not policy.has_limit:
        return {candidate.step: "kept: no limit is set" for candidate in candidates}
    newest_first = sorted(candidates, key=lambda c: -c.step)
    kept: dict[int, str] = {}
    # Later rules name themselves over earlier ones: the most personal reason is shown.
    for candidate in newest_first[: policy.ft_keep_latest_k or 0]:
        kept[candidate.step] = f"kept: among the {policy.ft_keep_latest_k} newest"
    periodic = [c for c in newest_first if c.step % policy.save_period == 0]
    if policy.keep_top_k is None:
        kept |= {c.step: f"kept: a multiple of save_period={policy.save_period}" for c in periodic}
    else:
        ranked = periodic
        mode = policy.mode
        if mode is not None:
            ranked = sorted(periodic, key=lambda c: rank_key(c.value, c.step, mode))
        kept |= {c.step: f"kept: {_ranks(policy)}" for c in ranked[: policy.keep_top_k]}
    if exclude_latest:
        kept |= {candidate.step: "kept: the latest" for candidate in newest_first[:1]}
    return kept | {c.step: "kept: pinned" for c in candidates if c.pinned}


def _ranks(policy: Policy) -> str:
    if policy.metric is None:
        return f"among the {policy.keep_top_k} newest"
    return f"among the {policy.keep_top_k} best by {policy.metric}"


def _why_not(candidate: Candidate, policy: Policy) -> str:
    reasons = []
    if candidate.step % policy.save_period:
        reasons.append(f"not a multiple of save_period={policy.save_period}")
    elif policy.keep_top_k:
        value = "" if policy.metric is None else f" ({_shown(candidate.value)})"
        reasons.append(f"not {_ranks(policy)}{value}")
    if policy.ft_keep_latest_k is not None:
        reasons.append(f"not among the {policy.ft_keep_latest_k} newest")
    return "retention: " + (", ".join(reasons) or "keep_top_k=0")


def _shown(value: float | None) -> str:
    return "no value" if value is None else f"{value:.6g}"
