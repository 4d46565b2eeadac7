"""Checkpoints as retention sees them, and which facts its rules ask for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live, trusted checkpoint as retention sees it.

    Attributes:
        values: By metric, of those that were asked for, what is finite.
        late: Metrics whose value was reported after the save, be it finite or not; what
            training_info.json says of them does not count.
        tags: When they were asked for.
        matches: Of the conditions that were asked for, those that hold.
        resumed_at: When training was last resumed from it.
        ancestor: Whether training was resumed from it and something of what came of that is
            live, when it was asked for.
    """

    step: int
    uuid: str
    values: Mapping[str, float]
    pinned: bool = False
    size_bytes: int | None = None
    finalized_at: str | None = None
    late: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    matches: frozenset[str] = frozenset()
    resumed_at: str | None = None
    ancestor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What has to be known of candidates besides their rows.

    Attributes:
        metrics: Whose values.
        conditions: In SQL, to be tried on each.
        tags: Whether their tags.
        ancestors: Whether what they are to others.
    """

    metrics: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    tags: bool = False
    ancestors: bool = False
