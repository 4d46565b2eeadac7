"""Rules of retention: each keeps some checkpoints of a run, and a checkpoint stays if any keeps it.

A rule has one text, e.g. ``best 3 by val:loss min``: it is written so in a config, on the command
line and in the reasons that are recorded, and `grammar.parse` reads it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ckptdb.core import conditions, units
from ckptdb.core.candidates import Candidate
from ckptdb.core.ranking import MODES, Mode, rank_key
from ckptdb.core.times import seconds
from ckptdb.errors import InvalidCondition, InvalidPolicy

_HOUR_SECONDS = 3600.0


class Rule(Protocol):
    """One reason to keep a checkpoint; ``str()`` is its text."""

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the candidates that the rule keeps.

        Args:
            candidates: All live, trusted checkpoints of a run, the lowest step first.
            now: Seconds since the epoch.
        """


@dataclass(frozen=True, slots=True)
class Best:
    """The best checkpoints by a metric, of the steps divisible by a period.

    Checkpoints without a finite value rank last, the newest of them first, as with ``keep_top_k``
    in NVIDIA NeMo-RL.

    Attributes:
        metric: The metric; None for the one that the run is ranked by.
        mode: Its direction; None with ``metric`` alone.
    """

    count: int
    metric: str | None = None
    mode: Mode | None = None
    period: int = 1

    def __post_init__(self) -> None:
        faults = _at_least(0, count=self.count) + _at_least(1, period=self.period)
        if self.mode is not None and self.mode not in MODES:
            faults.append(f"mode must be 'min' or 'max', not {self.mode!r}")
        elif self.metric is None and self.mode is not None:
            faults.append(f"mode={self.mode!r} needs a metric")
        elif self.metric is not None and self.mode is None:
            faults.append(
                f"say whether {self.metric!r} is better low or high: mode='min' or mode='max'"
            )
        _refuse(faults)

    def __str__(self) -> str:
        by = "" if self.metric is None else f" by {self.metric} {self.mode}"
        return f"best {self.count}{by}{_of_every(self.period)}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the best checkpoints."""
        periodic = [c for c in reversed(candidates) if c.step % self.period == 0]
        metric, mode = self.metric, self.mode
        if metric is not None and mode is not None:
            periodic.sort(key=lambda c: rank_key(c.values.get(metric), c.step, mode))
        return periodic[: self.count]


@dataclass(frozen=True, slots=True)
class Latest:
    """The checkpoints with the highest steps, of the steps divisible by a period."""

    count: int
    period: int = 1

    def __post_init__(self) -> None:
        _refuse(_at_least(0, count=self.count) + _at_least(1, period=self.period))

    def __str__(self) -> str:
        return f"latest {self.count}{_of_every(self.period)}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the checkpoints with the highest steps."""
        periodic = [c for c in candidates if c.step % self.period == 0]
        return periodic[max(len(periodic) - self.count, 0) :]


@dataclass(frozen=True, slots=True)
class EverySteps:
    """The checkpoints whose step is divisible by a number."""

    steps: int

    def __post_init__(self) -> None:
        _refuse(_at_least(1, steps=self.steps))

    def __str__(self) -> str:
        return f"every {self.steps} steps"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the periodic checkpoints."""
        return [c for c in candidates if c.step % self.steps == 0]


@dataclass(frozen=True, slots=True)
class EveryHours:
    """The first checkpoint, and then, in the order of steps, the next after each interval of hours.

    The order is by step, because clocks are set back, and those of several machines differ. A time
    before that of the checkpoint kept last begins a new interval: no kept checkpoint goes because a
    later step has an earlier time, and each one that is not kept was published within one interval
    after a kept one. Checkpoints without a known time are kept.
    """

    hours: float

    def __post_init__(self) -> None:
        _refuse(_positive(hours=self.hours))

    def __str__(self) -> str:
        return f"every {units.duration(self.hours)}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the checkpoints that are far enough from the one kept before."""
        last: float | None = None
        found = []
        for candidate in candidates:
            at = seconds(candidate.finalized_at)
            if at is None:
                found.append(candidate)
            elif last is None or not last <= at < last + self.hours * _HOUR_SECONDS:
                found.append(candidate)
                last = at
        return found


@dataclass(frozen=True, slots=True)
class NewerThan:
    """The checkpoints published less than some hours ago, and those without a known time.

    A checkpoint counts as no older than any lower step: when the clock was set back between two
    saves, the later save has the earlier time.
    """

    hours: float

    def __post_init__(self) -> None:
        _refuse(_positive(hours=self.hours))

    def __str__(self) -> str:
        return f"newer than {units.duration(self.hours)}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the young checkpoints."""
        since = now - self.hours * _HOUR_SECONDS
        newest = float("-inf")
        found = []
        for candidate in candidates:
            at = seconds(candidate.finalized_at)
            # A time in the future says nothing about the other checkpoints.
            if at is not None and at <= now:
                newest = max(newest, at)
            if at is None or max(at, newest) > since:
                found.append(candidate)
        return found


@dataclass(frozen=True, slots=True)
class Steps:
    """The checkpoints at given steps."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        faults = [] if self.steps else ["steps must name at least one"]
        _refuse(faults + [fault for step in self.steps for fault in _at_least(0, step=step)])

    def __str__(self) -> str:
        return f"steps {','.join(map(str, self.steps))}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the checkpoints at these steps."""
        return [c for c in candidates if c.step in self.steps]


@dataclass(frozen=True, slots=True)
class Tagged:
    """The checkpoints with a tag: a given one, or any."""

    name: str | None = None

    def __str__(self) -> str:
        return "tagged" if self.name is None else f"tagged {self.name}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the tagged checkpoints."""
        return [c for c in candidates if (c.tags if self.name is None else self.name in c.tags)]


@dataclass(frozen=True, slots=True)
class Awaiting:
    """The checkpoints without a metric, for some hours after they were published.

    A metric whose value was reported after the save is no longer awaited, even if it is not finite.
    """

    metric: str
    hours: float

    def __post_init__(self) -> None:
        _refuse(_positive(hours=self.hours) + _named(metric=self.metric))

    def __str__(self) -> str:
        return f"awaiting {self.metric} for {units.duration(self.hours)}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the young checkpoints without the metric."""
        return [
            c
            for c in NewerThan(self.hours).kept(candidates, now)
            if self.metric not in c.values and self.metric not in c.late
        ]


@dataclass(frozen=True, slots=True)
class Ancestors:
    """The checkpoints that training was resumed from, as long as a descendant is live."""

    def __str__(self) -> str:
        return "ancestors"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the ancestors."""
        return [c for c in candidates if c.ancestor]


@dataclass(frozen=True, slots=True)
class Where:
    """The checkpoints for which a condition in SQL over columns and metrics holds."""

    condition: str

    def __post_init__(self) -> None:
        try:
            conditions.check(conditions.parse(self.condition))
        except InvalidCondition as error:
            raise InvalidPolicy([str(error).rstrip(".")]) from error

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it mentions."""
        return conditions.parse(self.condition).metrics

    def __str__(self) -> str:
        return f"where {self.condition}"

    def kept(self, candidates: Sequence[Candidate], now: float) -> Iterable[Candidate]:
        """Return the checkpoints for which the catalog found that it holds."""
        return [c for c in candidates if self.condition in c.matches]


@dataclass(frozen=True, slots=True)
class AtMost:
    """A limit in bytes: of the kept checkpoints the lowest ranked go until the rest fits."""

    size_bytes: int

    def __post_init__(self) -> None:
        _refuse(_at_least(0, size_bytes=self.size_bytes))

    def __str__(self) -> str:
        return f"at most {units.size(self.size_bytes)}"


Clause = Rule | AtMost
"""Part of a policy: a rule or a limit."""


def find_ranking_metrics(rules: Iterable[Clause]) -> tuple[str, ...]:
    """Return the metrics that rules rank by, each once."""
    ranking = (rule for rule in rules if isinstance(rule, Best) and rule.count)
    return tuple(dict.fromkeys(rule.metric for rule in ranking if rule.metric is not None))


def with_metric(rule: Rule, metric: str | None, mode: Mode | None) -> Rule:
    """Return a rule with this metric, if it is ``best K`` without one."""
    if isinstance(rule, Best) and rule.metric is None and metric is not None:
        return replace(rule, metric=metric, mode=mode)
    return rule


def _of_every(period: int) -> str:
    return "" if period == 1 else f" of every {period} steps"


def _at_least(least: int, **named: object) -> list[str]:
    return [
        f"{name} must be at least {least}, not {value!r}"
        for name, value in named.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < least
    ]


def _named(**texts: str) -> list[str]:
    return [f"{name} must not be empty" for name, text in texts.items() if not text.strip()]


def _positive(**named: float) -> list[str]:
    return [
        f"{name} must be more than 0, not {value!r}"
        for name, value in named.items()
        if not 0 < value < float("inf")
    ]


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise InvalidPolicy(faults)
