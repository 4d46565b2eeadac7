"""Results of deleting in a run, by rule or by hand: what went, what stayed, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdb.core.process import Life
from ckptdb.disk import names
from ckptdb.errors import NotDeleted
from ckptdb.retention import Decision, RetentionPlan, Standing, plan


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

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "path": str(self.path)}


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

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"path": str(self.path), "step": self.step, "life": self.life, "why": self.why}


@dataclass(frozen=True, slots=True)
class GcResult:
    """Result of deleting in one run, done or planned.

    Attributes:
        retention: Plan of the policy, or of a deletion by hand; empty when there was neither.
        leftovers: Unfinished saves, and bytes of checkpoints that were retired before.
        waiting: Checkpoints that were deleted before and can be undeleted; they still take bytes.
        trash_ttl_seconds: Time for which checkpoints that go now can be undeleted.
        failed: Checkpoints and leftovers that did not go, or have bytes left.
        spared: Unfinished saves that stay, because a process writes them or may do so.
    """

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

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "run": self.run,
            "plan": self.plan,
            "directory": str(self.directory),
            "applied": self.applied,
            "freed_bytes": self.freed_bytes,
            "trash_ttl_seconds": self.trash_ttl_seconds,
            "before": _standing(self.retention.before),
            "after": _standing(self.retention.after),
            "checkpoints": [
                {
                    "step": d.step,
                    "uuid": d.uuid,
                    "keep": d.keep,
                    "reason": d.reason,
                    "size_bytes": d.size_bytes,
                }
                for d in self.decisions
            ],
            "leftovers": [left.as_dict() for left in self.leftovers],
            "waiting": [left.as_dict() for left in self.waiting],
            "failed": [one.as_dict() for one in self.failed],
            "spared": [spared.as_dict() for spared in self.spared],
        }


def _is_of(failed: NotDeleted, one: Decision | CollectedLeftover) -> bool:
    if failed.left is None or failed.step != one.step:
        return False
    # A directory that is being deleted gets other names, which keep step and uuid.
    retired = names.find_trash(failed.left.name)
    if isinstance(one, Decision):
        return retired is None or retired[1] == one.uuid
    was = names.find_trash(one.path.name)
    return failed.left == one.path or was is None or was == retired


def _standing(standing: Standing | None) -> dict[str, Any] | None:
    return None if standing is None else standing.as_dict()
