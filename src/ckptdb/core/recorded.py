"""Runs and checkpoints as the index records them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ckptdb.core.records import Annotations, Checkpoint, CheckpointProblem, DeletedKind, Run


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """A run's row in the index.

    Attributes:
        id: Of the row.
        stamp: The directory's stamp at the time of the last indexing.
        verified: False when a writer has advanced the stamp and no listing has confirmed it yet.
    """

    id: int
    run: Run
    stamp: str | None
    verified: bool


@dataclass(frozen=True, slots=True)
class Unranked:
    """Live, trusted checkpoints of a run that have no finite value of a metric, by step.

    Attributes:
        lacking: Steps of those that do not have it at all.
        not_finite: Steps of those whose value is NaN or infinite.
    """

    lacking: tuple[int, ...] = ()
    not_finite: tuple[int, ...] = ()


class RecordedEnd(NamedTuple):
    """How and when a checkpoint went, as the index has it, and the uuid of its parent."""

    at: str | None
    kind: DeletedKind | None
    reason: str | None
    parent: str | None

    @property
    def has_vanished(self) -> bool:
        """Whether ckptdb did not delete it: the index may then know the end before the journal."""
        return self.kind in ("vanished", "displaced")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """Everything that the index records of a run and reconcile compares with the disk.

    Attributes:
        indexed: The run's row; None for a run that the index does not have.
        finals: By step, uuid and fingerprint.
        problems: By uuid, of published checkpoints that have one.
        tmps: By uuid, the step.
        gone: By uuid, how a checkpoint went, and its parent.
        annotations: By uuid, only where there are any.
        records: By uuid, the whole record of each checkpoint that has to be compared.
        inconsistent: Steps, by uuid, of checkpoints whose metric or resumption rows contradict
            the checkpoint's own row: another run, step or time, or a wrong mark for ranking.
            Empty unless it was looked up.
    """

    indexed: IndexedRun | None
    finals: Mapping[int, tuple[str, str | None]] = field(default_factory=dict)
    problems: Mapping[str, CheckpointProblem] = field(default_factory=dict)
    tmps: Mapping[str, int] = field(default_factory=dict)
    gone: Mapping[str, RecordedEnd] = field(default_factory=dict)
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    records: Mapping[str, Checkpoint] = field(default_factory=dict)
    inconsistent: Mapping[str, int] = field(default_factory=dict)
