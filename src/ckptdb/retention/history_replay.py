"""Replay of a run's history under other rules, as if they had been in use from the first save on.

The recorded history is replayed save by save. Every checkpoint appears when it was published, a
late metric when it was reported, and the rules are applied after each save, as a manager does. A
checkpoint with an earlier time than its parent, because a clock was set back in between, appears
right after the parent. Facts without a recorded time count from the beginning: pins, tags, results
of conditions in SQL, and rejections and problems, whose checkpoints rules neither rank nor count
nor delete.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptdb.core.candidates import Candidate
from ckptdb.core.jsonable import JsonRecord
from ckptdb.core.ranking import rank_key
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import seconds
from ckptdb.retention.decision import decide
from ckptdb.retention.policy import Policy


@dataclass(frozen=True, slots=True)
class Lost:
    """A checkpoint that the rules would have deleted, and that is better than all that are left.

    Attributes:
        value: Value of the metric that the policy ranks by, as known today.
        after_step: Step of the save after which it would have gone.
    """

    step: int
    uuid: str
    value: float
    after_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replay(JsonRecord):
    """Result of a replay.

    Attributes:
        saved: How many checkpoints were published.
        kept: The steps that would be left.
        end_bytes: What these take.
        peak_bytes: Most bytes on disk at any time, the newest save included.
        peak_step: The save at which it did.
        recorded_peak_bytes: What it did hold at most, as far as that is recorded.
        best_ever: The best step of all; None when the policy ranks by nothing.
        lost: What is better than the best that would be left, the best first.
    """

    run: str
    saved: int = 0
    kept: tuple[int, ...] = ()
    end_bytes: int = 0
    peak_bytes: int = 0
    peak_step: int | None = None
    recorded_peak_bytes: int = 0
    best_ever: int | None = None
    lost: tuple[Lost, ...] = ()


def replay(
    run: str,
    history: Sequence[Checkpoint],
    policy: Policy,
    *,
    matches: Mapping[str, Container[str]] | None = None,
    ancestors: frozenset[str] = frozenset(),
) -> Replay:
    """Go through a run's history with a policy.

    Args:
        run: Its name.
        history: Every checkpoint that it ever had, live or gone.
        policy: The rules.
        matches: By condition of the policy, the uuids of those for which it holds.
        ancestors: The uuids of those that the rule of that name keeps.
    """
    saves, came = _in_order([cp for cp in history if cp.finalized_at is not None])
    course = _Course(policy)
    for checkpoint in saves:
        matching = [text for text, uuids in (matches or {}).items() if checkpoint.uuid in uuids]
        is_ancestor = checkpoint.uuid in ancestors
        course.save(checkpoint, matching, is_ancestor=is_ancestor, at=came[checkpoint.uuid])
    kept = sorted(course.list_on_disk(), key=lambda candidate: candidate.step)
    ranked = _ranked(saves, policy)
    return Replay(
        run=run,
        saved=len(saves),
        kept=tuple(candidate.step for candidate in kept),
        end_bytes=_bytes(kept),
        peak_bytes=course.peak_bytes,
        peak_step=course.peak_step,
        recorded_peak_bytes=_recorded_peak(saves),
        best_ever=ranked[0].step if ranked else None,
        lost=_lost(ranked, course, policy),
    )


def _in_order(saves: Sequence[Checkpoint]) -> tuple[list[Checkpoint], dict[str, str]]:
    """Return saves as they came, and by uuid when that was: none before what it went on from."""
    by_uuid = {cp.uuid: cp for cp in saves}
    came: dict[str, str] = {}
    place: dict[str, int] = {}
    for checkpoint in saves:
        line = {checkpoint.uuid: checkpoint}
        parent = by_uuid.get(checkpoint.parent or "")
        # One that comes twice was made by other hands.
        while parent and parent.uuid not in came and parent.uuid not in line:
            line[parent.uuid] = parent
            parent = by_uuid.get(parent.parent or "")
        for one in reversed(line.values()):
            known = came.get(one.parent or "", "")
            came[one.uuid] = max(one.finalized_at or "", known, key=_seconds)
            place[one.uuid] = place.get(one.parent or "", -1) + 1
    in_order = sorted(saves, key=lambda cp: (_seconds(came[cp.uuid]), place[cp.uuid], cp.step))
    return in_order, came


class _Course:
    """State of a run during a replay."""

    def __init__(self, policy: Policy) -> None:
        self.live: dict[int, Candidate] = {}
        # Checkpoints that rules neither rank nor count nor delete.
        self.doubted: dict[int, Candidate] = {}
        self.gone: dict[str, tuple[int, str]] = {}
        self.peak_bytes = 0
        self.peak_step: int | None = None
        self._policy = policy
        self._records: dict[str, Checkpoint] = {}

    def save(
        self, checkpoint: Checkpoint, matches: Iterable[str], *, is_ancestor: bool, at: str
    ) -> None:
        self._records[checkpoint.uuid] = checkpoint
        self.live.pop(checkpoint.step, None)
        self.doubted.pop(checkpoint.step, None)
        of_kind = self.doubted if checkpoint.is_doubted else self.live
        of_kind[checkpoint.step] = Candidate(
            checkpoint.step,
            checkpoint.uuid,
            {},
            checkpoint.pinned,
            checkpoint.size_bytes,
            checkpoint.finalized_at,
            tags=frozenset(checkpoint.tags),
            matches=frozenset(matches),
            ancestor=is_ancestor,
        )
        self._hear(at)
        on_disk = _bytes(self.list_on_disk())
        if on_disk > self.peak_bytes:
            self.peak_bytes, self.peak_step = on_disk, checkpoint.step
        for decision in decide(list(self.live.values()), self._policy, now=_seconds(at)):
            if not decision.keep:
                del self.live[decision.step]
                self.gone[decision.uuid] = (checkpoint.step, decision.reason)

    def list_on_disk(self) -> list[Candidate]:
        """Return the checkpoints that are on disk."""
        return [*self.live.values(), *self.doubted.values()]

    def _hear(self, at: str) -> None:
        """Give each checkpoint the values that are known by now."""
        for step, candidate in self.live.items():
            record = self._records[candidate.uuid].as_of(at)
            if candidate.values and record.late.keys() == candidate.late:
                continue
            finite = {name: value for name, value in record.metrics.items() if value is not None}
            self.live[step] = replace(candidate, values=finite, late=frozenset(record.late))


def _ranked(saves: Sequence[Checkpoint], policy: Policy) -> list[Checkpoint]:
    metric, mode = policy.metric, policy.mode
    if metric is None or mode is None:
        return []
    valued = [cp for cp in saves if cp.metrics.get(metric) is not None and not cp.is_doubted]
    return sorted(valued, key=lambda cp: rank_key(cp.metrics[metric], cp.step, mode))


def _lost(ranked: Sequence[Checkpoint], course: _Course, policy: Policy) -> tuple[Lost, ...]:
    metric = policy.metric or ""
    left = {candidate.uuid for candidate in course.live.values()}
    best = next((cp.metrics[metric] for cp in ranked if cp.uuid in left), None)
    found = []
    for checkpoint in ranked:
        value = checkpoint.metrics[metric]
        if value is None or value == best:
            break
        # A save that another one of its step has replaced was not thrown away by a rule.
        if checkpoint.uuid in course.gone:
            after_step, reason = course.gone[checkpoint.uuid]
            found.append(Lost(checkpoint.step, checkpoint.uuid, value, after_step, reason))
    return tuple(found)


def _recorded_peak(saves: Sequence[Checkpoint]) -> int:
    changes = [(_seconds(cp.finalized_at), 0, cp.size_bytes or 0) for cp in saves]
    changes += [
        (_seconds(cp.deleted_at), 1, -(cp.size_bytes or 0)) for cp in saves if cp.deleted_at
    ]
    on_disk = peak = 0
    for _, _, change in sorted(changes):
        on_disk += change
        peak = max(peak, on_disk)
    return peak


def _bytes(candidates: Any) -> int:
    return sum(candidate.size_bytes or 0 for candidate in candidates)


def _seconds(at: str | None) -> float:
    return seconds(at) or 0.0  # what has no time counts from the beginning
