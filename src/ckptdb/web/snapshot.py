"""Snapshot of the catalog for the report and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptdb.core.records import Run, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A checkpoint as a point of the drawings.

    Attributes:
        at: Time of its save.
        metrics: Finite values by name.
    """

    step: int
    status: Status
    at: str
    path: Path
    size_bytes: int | None
    metrics: Mapping[str, float]
    reason: str | None = None
    problem: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSnapshot:
    """A run: its counts, and the points that are drawn.

    Attributes:
        label: Its name; with its directory when another one has the same.
        best: By the run's own metric and direction; the latest when it has no metric.
        points: By step, downsampled; ``total`` is the number of all checkpoints.
        not_finite: Number of trusted checkpoints whose value is NaN or infinite.
    """

    run: Run
    label: str
    final: int
    tmp: int
    deleted: int
    problems: int
    bytes_on_disk: int
    last_activity: str | None
    best: Point | None
    latest: Point | None
    points: tuple[Point, ...]
    total: int
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Saves:
    """Number of checkpoints that were saved in a period, by whether they are kept."""

    since: str
    kept: int
    deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedCheckpoint:
    """A deleted checkpoint, and the reason."""

    run: str
    step: int
    at: str | None
    reason: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that the page shows.

    Attributes:
        metric: The own metric of most runs; None when no run has one.
        metrics: All names among the points, that one first.
        saves_every_seconds: Length of each period of ``saves``.
        deletions: The newest; ``deleted`` is the number of all.
    """

    where: str
    made_at: str
    runs: tuple[RunSnapshot, ...]
    metric: str | None
    metrics: tuple[str, ...]
    saves: tuple[Saves, ...]
    saves_every_seconds: int
    deletions: tuple[DeletedCheckpoint, ...]
    freed_bytes: int

    @property
    def final(self) -> int:
        """Number of checkpoints on disk."""
        return sum(run.final for run in self.runs)

    @property
    def tmp(self) -> int:
        """Number of unfinished saves: being written, or left by a crash."""
        return sum(run.tmp for run in self.runs)

    @property
    def deleted(self) -> int:
        """Number of deleted checkpoints."""
        return sum(run.deleted for run in self.runs)

    @property
    def problems(self) -> int:
        """Number of checkpoints on disk that cannot be trusted."""
        return sum(run.problems for run in self.runs)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the checkpoints on disk."""
        return sum(run.bytes_on_disk for run in self.runs)
