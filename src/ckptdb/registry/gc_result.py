"""Results of deleting in a run, by rule or by hand: what went, what stayed, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.process import Life
from ckptdb.disk import names
from ckptdb.errors import NotDeleted
from ckptdb.retention import Decision, RetentionPlan, plan


@dataclass(frozen=True, slots=True)
class CollectedLeftover:
    """A leftover of a crash or deletion in a run, for `gc` to remove.

    Attributes:
        kind: ``"unfinished save"`` or ``"retired"``; ``"can be undeleted"`` for one that stays yet.
    """

    path: Path
    step: int
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SparedSave:
    """An unfinished save that `gc` leaves alone.

    Attributes:
        life: State of its writer: ``"alive"`` or ``"unknown"``.
        why: The reason as a sentence, with what happens to it later.
    """

    path: Path
    step: int
    life: Life
    why: str


@dataclass(frozen=True, slots=True)
class GcResult(JsonRecord):
    """Result of deleting in one run, done or planned.

    Attributes:
        retention: Plan of the policy, or of a deletion by hand; empty when there was neither.
        leftovers: Unfinished saves, and bytes of checkpoints that were retired before.
        waiting: Checkpoints that were deleted before and can be undeleted; they still take bytes.
        trash_ttl_seconds: Time for which checkpoints that go now can be undeleted.
        failed: Checkpoints and leftovers that did not go, or have bytes left.
        spared: Unfinished saves that stay, because a process writes them or may do so.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "run": "run",
        "plan": "plan",
        "directory": "directory",
        "applied": "applied",
        "freed_bytes": "freed_bytes",
        "trash_ttl_seconds": "trash_ttl_seconds",
        "before": "retention.before",
        "after": "retention.after",
        "checkpoints": "decisions",
        "leftovers": "leftovers",
        "waiting": "waiting",
        "failed": "failed",
        "spared": "spared",
    }

    run: str
    directory: Path
    retention: RetentionPlan
    leftovers: tuple[CollectedLeftover, ...]
    applied: bool
    waiting: tuple[CollectedLeftover, ...] = ()
    trash_ttl_seconds: float = 0.0
    failed: tuple[NotDeleted, ...] = ()
    spared: tuple[SparedSave, ...] = ()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Decisions about the checkpoints that were judged, with their reasons."""
        return self.retention.decisions

    @property
    def freed_bytes(self) -> int:
        """Sum of the bytes that are freed on the disk."""
        # Bytes that are left after a failure are not counted as freed.
        gone = () if self.trash_ttl_seconds else self.retention.gone
        now = sum(decision.size_bytes or 0 for decision in gone if not self.is_left(decision))
        return now + sum(left.size_bytes for left in self.leftovers if not self.is_left(left))

    @property
    def went(self) -> tuple[int, ...]:
        """Steps of the checkpoints that were retired."""
        return tuple(decision.step for decision in self.retention.gone) if self.applied else ()

    def count_removed(self) -> int:
        """Return the number of leftovers that were removed."""
        return sum(not self.is_left(left) for left in self.leftovers) if self.applied else 0

    def is_left(self, one: Decision | CollectedLeftover) -> bool:
        """Return whether bytes of a checkpoint or leftover are still there after a failure."""
        return any(_is_of(failed, one) for failed in self.failed)

    @property
    def plan(self) -> str:
        """Identifier of the plan: it changes as soon as the plan would do anything else."""
        lines = [str(self.directory)]
        lines += [f"{d.uuid} {'keep' if d.keep else 'gone'} {d.size_bytes}" for d in self.decisions]
        lines += [f"{left.path} {left.size_bytes}" for left in self.leftovers]
        return plan.fingerprint(lines)


def _is_of(failed: NotDeleted, one: Decision | CollectedLeftover) -> bool:
    if failed.left is None or failed.step != one.step:
        return False
    # A directory that is being deleted gets other names, which keep step and uuid.
    retired = names.find_trash(failed.left.name)
    if isinstance(one, Decision):
        return retired is None or retired[1] == one.uuid
    was = names.find_trash(one.path.name)
    return failed.left == one.path or was is None or was == retired
