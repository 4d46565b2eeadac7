"""Facts of a journal, and its damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptdb.core.records import Annotations, Checkpoint

GONE = ("deleted", "replaced", "discarded", "vanished")


JOURNAL = "journal.jsonl"


MOST_BYTES = 4 * 1024**3
"""What is read of a journal at most, holes not counted: the ends of some million checkpoints."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: something that happened to one checkpoint.

    Attributes:
        at: When (UTC).
        kind: ``deleted``, ``replaced``, ``discarded``, ``vanished``, ``reappeared``,
            ``metric``, ``tag``, ``untag``, ``pin``, ``unpin``, ``note``, ``rejected``,
            ``unrejected``, ``resumed``, ``evaluated`` or ``accepted`` (that it has vanished). Of
            the journal itself, without a uuid: ``contradicted`` by a catalog, and ``settled``.
        details: What the kind needs: ``reason`` and ``record``, ``name`` and ``value``, …
    """

    at: str
    kind: str
    uuid: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a journal.

    Attributes:
        lines: How many of its lines cannot be read.
        gaps: At how many other places lines are missing.
        is_too_large: Whether it has more than `MOST_BYTES`.
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
    """What a whole journal says, in the end.

    Attributes:
        gone: By uuid, the checkpoint as it was, with when and why it went.
        annotations: By uuid, what people added; only those that have any.
        lost: uuids of those of ``gone`` that were published and vanished, and nobody has accepted.
        keys: By uuid, which keys there are lines about, those that undo one included.
        damage: What of it cannot be read.
        contradicted: What a catalog knows that it does not, in words, as long as that stands.
        is_short: Whether one was longer before.
        settled_bytes: How long one was at most that this one has come from.
    """

    gone: Mapping[str, Checkpoint]
    annotations: Mapping[str, Annotations]
    lost: frozenset[str] = frozenset()
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False)
    damage: Damage | None = None
    contradicted: str | None = None
    is_short: bool = False
    settled_bytes: int = 0
