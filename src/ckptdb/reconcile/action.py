"""Actions of reconciling: differences between disk and index. Pure: touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.observed import Leftover
from ckptdb.core.records import Annotations, Checkpoint
from ckptdb.reconcile.missing_facts import MissingFacts

ActionKind = Literal[
    # contradictions between index and journal, and damage of the journal
    "damaged journal",
    "contradicted",
    # changes that the index has to store
    "new run",
    "moved run",
    "changed run",
    "added",
    "changed",
    "vanished",
    "reappeared",
    "replaced",
    "deleted",
    "new tmp",
    "annotated",
    # leftovers of a crash on disk
    "complete tmp",
    "orphan old",
    "unfinished removal",
    # losses that only a person can resolve
    "lost",
    "unreadable",
    "damaged",
    # facts that are only reported
    "abandoned tmp",
    "live tmp",
    "blocked tmp",
    "not verifiable",
    "rejected",
    "duplicate",
    "foreign",
]

NOT_RANKED: Final = "; kept, not ranked"
"""End of the sentence about a checkpoint that cannot be trusted, behind the reason."""

OF_A_RUN: Final = frozenset({"new run", "moved run", "changed run"})
REPAIRS: Final = frozenset({"complete tmp", "orphan old", "unfinished removal"})
OF_THE_JOURNAL: Final = frozenset({"damaged journal", "contradicted"})
UNRESOLVED: Final = frozenset({"lost", "unreadable", "damaged"})
REPORTED: Final = frozenset(
    {
        "abandoned tmp", "live tmp", "blocked tmp", "not verifiable", "rejected", "duplicate",
        "foreign",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action(JsonRecord):
    """Difference between disk and index, and what applying does about it.

    Attributes:
        what: The same as a sentence for people.
        checkpoint: As it has to be in the index.
        leftover: The directory that a crash left.
        missing: Facts that the journal lacks and the index knows.
        is_lost: Whether what has vanished was a published checkpoint.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "kind": "kind", "step": "step", "what": "what", "drift": "is_drift",
    }  # fmt: skip

    kind: ActionKind
    what: str
    step: int | None = None
    checkpoint: Checkpoint | None = None
    uuid: str | None = None
    annotations: Annotations | None = None
    leftover: Path | Leftover | None = None
    missing: MissingFacts | None = None
    is_lost: bool = False

    @property
    def is_drift(self) -> bool:
        """Whether something is not as it should be; false for what is only reported."""
        return self.kind not in REPORTED

    @property
    def is_change(self) -> bool:
        """Whether applying would change something."""
        return self.is_drift and self.kind not in UNRESOLVED

    @property
    def is_unresolved(self) -> bool:
        """Whether only a person can resolve it; it is found again after every reconcile."""
        return self.kind in UNRESOLVED or self.is_lost

    def without_record(self) -> Action:
        """Return the difference without the record: a report may hold a hundred thousand."""
        if self.checkpoint is None:
            return self
        return Action(self.kind, self.what, self.step, uuid=self.uuid, is_lost=self.is_lost)
