"""What must be true: the operations of a training loop, and what each of them promises.

A checkpoint is known by its token: a word that no other save has, written into every file of
its payload and into its training_info.json. A ledger says what is acknowledged; an operation
that was interrupted leaves, for every fact on its own, what was before or what would be after.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

Operation = Literal["save", "replace", "discard", "prune", "reconcile", "async", "pin", "late"]
OPERATIONS: tuple[Operation, ...] = (
    "save", "replace", "discard", "prune", "reconcile", "async", "pin", "late",
)  # fmt: skip
METRIC = "loss"
SEEDS = {10: 0.5, 20: 0.1, 30: 0.9}
"""Steps and losses that every workload begins with; lower is better."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Operations in order, and the circumstances.

    Attributes:
        native: Names can be exchanged in one step; else the fallback of two renames is taken.
        many: The payload is a dozen files in folders, not one.
    """

    operations: tuple[Operation, ...]
    native: bool = True
    many: bool = False

    def __str__(self) -> str:
        ways = ("native" if self.native else "fallback", "many" if self.many else "small")
        return f"{'+'.join(self.operations)} ({', '.join(ways)})"


def workloads(lengths: Sequence[int] = (1, 2, 3)) -> list[Workload]:
    """Return every sequence of operations, in both modes, with both payloads."""
    return [
        Workload(operations, native, many)
        for length in lengths
        for operations in product(OPERATIONS, repeat=length)
        for native in (True, False)
        for many in (False, True)
    ]


def share(
    of: Sequence[Workload], rng: random.Random, one_in: int, shard: int, shards: int
) -> list[Workload]:
    """Return a sample of the workloads of one shard, one in eight of it with many files.

    With ``one_in`` 1 it is all of them, and all shards together are all there are.
    """
    mine = random.Random(0).sample(of, len(of))[shard::shards]
    if one_in == 1:
        return mine
    groups = [[w for w in mine if w.many is many] for many in (False, True)]
    count = -(-len(mine) // one_in)
    few = -(-count // 8)
    counts = (count - few, few)
    chosen = [
        workload
        for group, count in zip(groups, counts, strict=True)
        for workload in rng.sample(group, min(count, len(group)))
    ]
    rng.shuffle(chosen)  # for whoever stops when he has enough
    return chosen


def quota(count: int | None, shards: int) -> float:
    """Return how many points are enough for one of the shards."""
    return math.inf if count is None else -(-count // shards)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Facts that are acknowledged.

    Attributes:
        live: Token by step.
        gone: How it ended (``deleted``, ``replaced``, ``discarded``) by token.
        values: The metric by token, as saved.
        late: The metric by token, as reported later; it wins.
        pinned: Tokens.
        begun: How many saves were begun; names the next token.
    """

    live: Mapping[int, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    late: Mapping[str, float] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    begun: int = 0

    @property
    def next_step(self) -> int:
        """Where the next new checkpoint goes: behind all that ever were."""
        return 10 * (self.begun + 1)

    @property
    def newest(self) -> int:
        """The highest live step; there always is one."""
        return max(self.live)

    @property
    def oldest(self) -> int:
        """The lowest live step: it is what gets pinned and measured again."""
        return min(self.live)

    def token(self, step: int) -> str:
        """Return the token of the next save."""
        return f"token-{step}-{self.begun}"

    def loss(self, step: int) -> float:
        """Return the metric of the next save: between those of the seeds, never twice the same."""
        return SEEDS.get(step, 0.3 + self.begun / 100)

    def score(self, token: str) -> float:
        """Return what a checkpoint is ranked by."""
        return self.late.get(token, self.values[token])

    def saved(self, step: int) -> Ledger:
        """Return what holds after a save of a step."""
        token = self.token(step)
        old = self.live.get(step)
        return replace(
            self,
            live={**self.live, step: token},
            gone={**self.gone, old: "replaced"} if old else self.gone,
            values={**self.values, token: self.loss(step)},
            begun=self.begun + 1,
        )

    def after(self, operation: Operation) -> Ledger:
        """Return what holds when an operation has been acknowledged."""
        if operation in ("save", "async"):
            return self.saved(self.next_step)
        if operation == "replace":
            return self.saved(self.newest)
        if operation == "discard":
            return self.discarded()
        if operation == "prune":
            return self.pruned()
        token = self.live[self.oldest]
        pinned = self.pinned | {token} if operation == "pin" else self.pinned
        late = {**self.late, token: 0.01} if operation == "late" else self.late
        return replace(self, pinned=pinned, late=late)

    def discarded(self) -> Ledger:
        """Return what holds when a save has been begun and given up."""
        token = self.token(self.next_step)
        return replace(
            self,
            gone={**self.gone, token: "discarded"},
            values={**self.values, token: self.loss(self.next_step)},
            begun=self.begun + 1,
        )

    def pruned(self) -> Ledger:
        """Return what holds after keeping the best one, the latest, and what is pinned."""
        # Ties go to the higher step.
        best = min(self.live, key=lambda step: (self.score(self.live[step]), -step))
        kept = {best, self.newest} | {s for s, t in self.live.items() if t in self.pinned}
        gone = {token: "deleted" for step, token in self.live.items() if step not in kept}
        live = {step: token for step, token in self.live.items() if step in kept}
        return replace(self, live=live, gone={**self.gone, **gone})


def seeded() -> Ledger:
    """Return what holds when a workload begins."""
    ledger = Ledger()
    for step in SEEDS:
        ledger = ledger.saved(step)
    return ledger


def after_all(operations: Sequence[Operation]) -> Ledger:
    """Return what holds after the seeds and these operations."""
    ledger = seeded()
    for operation in operations:
        ledger = ledger.after(operation)
    return ledger
