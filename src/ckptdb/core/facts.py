"""Facts of a journal, and its damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptdb.core.records import Annotations, Checkpoint

GONE = ("deleted", "replaced", "discarded", "vanished")


JOURNAL = "journal.jsonl"


MOST_BYTES = 4 * 1024**3
"""Largest part of a journal that is read, holes not counted: some million ends of checkpoints."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A line of the journal: an event of a checkpoint.

    Attributes:
        at: When (UTC).
        kind: ``deleted``, ``replaced``, ``discarded``, ``vanished``, ``reappeared``,
            ``metric``, ``tag``, ``untag``, ``pin``, ``unpin``, ``note``, ``rejected``,
            ``unrejected``, ``resumed``, ``evaluated`` or ``accepted`` (that it has vanished). Of
            the journal itself, without a uuid: ``contradicted`` by a catalog, and ``settled``.
        details: Values that the kind needs: ``reason`` and ``record``, ``name`` and ``value``, …
    """

    at: str
    kind: str
    uuid: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Damage:
    """Damage of a journal.

    Attributes:
        lines: Number of lines that cannot be read.
        gaps: Number of other places where lines are missing.
        is_too_large: True if it has more than `MOST_BYTES`.
    """

    lines: int
    gaps: int
    is_too_large: bool = False

    def __str__(self) -> str:
        """Write the part of a sentence that says so."""
        return " and ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.is_too_large:
            yield f"its {JOURNAL} is larger than {MOST_BYTES} bytes"
        if self.lines:
            yield f"{self.lines} line{'s' * (self.lines > 1)} of its journal cannot be read"
        if self.gaps:
            yield f"lines of its journal are missing at {self.gaps} place{'s' * (self.gaps > 1)}"


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a whole journal; the last line per uuid and key counts.

    Attributes:
        gone: Deleted checkpoints by uuid, with time and reason.
        annotations: Annotations by uuid; only of checkpoints that have any.
        lost: uuids of those of ``gone`` that were published and vanished, and nobody has accepted.
        keys: Keys that have a line, by uuid; lines that undo one included.
        damage: Damage of the journal, or None.
        contradicted: Contradiction by a catalog, in words, until it is settled.
        is_short: True if the journal was longer before.
        settled_bytes: Largest size of the journals that this one was rebuilt from.
    """

    gone: Mapping[str, Checkpoint]
    annotations: Mapping[str, Annotations]
    lost: frozenset[str] = frozenset()
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False)
    damage: Damage | None = None
    contradicted: str | None = None
    is_short: bool = False
    settled_bytes: int = 0
