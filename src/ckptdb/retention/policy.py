"""Policies: the retention settings of a run as rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import cast

from ckptdb.core.candidates import Wanted
from ckptdb.core.ranking import Mode
from ckptdb.errors import InvalidPolicy
from ckptdb.retention.grammar import parse_all
from ckptdb.retention.rules import (
    Ancestors,
    AtMost,
    Awaiting,
    Best,
    Clause,
    EverySteps,
    Latest,
    Rule,
    Tagged,
    Where,
    find_ranking_metrics,
    with_metric,
)


@dataclass(frozen=True)
class Policy:
    """Rules of a run; a checkpoint stays if any rule keeps it.

    The first three settings are those of NVIDIA NeMo-RL's checkpointing config, with the same
    meaning; `rules` contains them as rules.

    Attributes:
        keep_top_k: Of the steps divisible by ``save_period``, keep this many of the best by
            ``metric``, of the newest when there is no metric, or all when None.
        ft_keep_latest_k: Keep this many of the newest, whatever their step.
        metric: Metric for rules that rank and name none, and for a limit in bytes; None to rank
            by step.
        mode: Direction of ``metric``; None only without one.
        keep: Further rules, or texts of rules; and limits in bytes, of which the lowest counts.

    Raises:
        InvalidPolicy: Lists all faults of the policy.
    """

    save_period: int = 1
    keep_top_k: int | None = None
    ft_keep_latest_k: int | None = None
    metric: str | None = None
    mode: Mode | None = None
    keep: Sequence[Clause | str] = ()

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

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """All rules; a checkpoint that none of them keeps goes."""
        found: list[Rule] = []
        if self.keep_top_k is not None and self.metric is not None:
            found.append(Best(self.keep_top_k, self.metric, self.mode, self.save_period))
        elif self.keep_top_k is not None:
            found.append(Latest(self.keep_top_k, self.save_period))
        elif self.ft_keep_latest_k is not None:
            found.append(EverySteps(self.save_period))
        if self.ft_keep_latest_k is not None:
            found.append(Latest(self.ft_keep_latest_k))
        rules = (clause for clause in self._clauses if not isinstance(clause, AtMost))
        return (*found, *(with_metric(rule, self.metric, self.mode) for rule in rules))

    @cached_property
    def at_most(self) -> AtMost | None:
        """The limit in bytes for the kept checkpoints, None without one."""
        limits = [clause for clause in self._clauses if isinstance(clause, AtMost)]
        return min(limits, key=lambda limit: limit.size_bytes, default=None)

    @cached_property
    def has_limit(self) -> bool:
        """Whether any checkpoint can ever go."""
        return bool(self._clauses) or bool(self.rules)

    @cached_property
    def ranked_by(self) -> tuple[str, ...]:
        """Metrics that rank checkpoints."""
        found = dict.fromkeys(find_ranking_metrics(self.rules))
        if self.at_most is not None and self.metric is not None:
            found[self.metric] = None
        return tuple(found)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """Metrics that rank checkpoints or occur in conditions."""
        mentioned = (rule.metrics for rule in self.rules if isinstance(rule, Where))
        return tuple(dict.fromkeys([*self.ranked_by, *chain.from_iterable(mentioned)]))

    @cached_property
    def wanted(self) -> Wanted:
        """Facts about candidates that the rules ask for."""
        rules = self.rules
        awaited = [rule.metric for rule in rules if isinstance(rule, Awaiting)]
        own = [] if self.metric is None else [self.metric]
        return Wanted(
            metrics=tuple(dict.fromkeys([*own, *self.named, *awaited])),
            conditions=tuple(rule.condition for rule in rules if isinstance(rule, Where)),
            tags=any(isinstance(rule, Tagged) for rule in rules),
            ancestors=any(isinstance(rule, Ancestors) for rule in rules),
        )

    def keeps_all(self, count: float) -> bool:
        """Return whether all checkpoints stay as long as there are at most ``count``."""
        if self.at_most is not None:
            return False
        return not self.has_limit or any(_keeps_all(rule, count) for rule in self.rules)

    @property
    def _clauses(self) -> tuple[Clause, ...]:
        return cast("tuple[Clause, ...]", self.keep)  # parsed in __post_init__


def _keeps_all(rule: Rule, count: float) -> bool:
    if isinstance(rule, EverySteps):
        return rule.steps == 1
    return isinstance(rule, Best | Latest) and rule.period == 1 and rule.count >= count
