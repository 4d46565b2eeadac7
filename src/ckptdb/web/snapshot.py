"""What the report and the page show: one reading of the catalog, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptdb.core.records import Run, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checkpoint that is drawn.

    Attributes:
        at: When it was saved.
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
class RunShown:
    """One run: its counts, and the points that are drawn of it.

    Attributes:
        label: Its name; with its directory when another one has the same.
        best: By the run's own metric and direction; the latest when it has no metric.
        points: By step, thinned; ``total`` says how many there are.
        not_finite: How many of those that could be the best have a value that is NaN or infinite.
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
    """How many checkpoints were saved in one stretch of time, and how many of them are kept."""

    since: str
    kept: int
    deleted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """One checkpoint that went, and why."""

    run: str
    step: int
    at: str | None
    reason: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that the page shows.

    Attributes:
        metric: The one that most runs are judged by, None when none is.
        metrics: All names among the points, that one first.
        saves_every_seconds: How long each of ``saves`` is.
        deletions: The newest; ``deleted`` says how many there are.
    """

    where: str
    made_at: str
    runs: tuple[RunShown, ...]
    metric: str | None
    metrics: tuple[str, ...]
    saves: tuple[Saves, ...]
    saves_every_seconds: int
    deletions: tuple[Deletion, ...]
    freed_bytes: int

    @property
    def final(self) -> int:
        """How many checkpoints are on disk."""
        return sum(run.final for run in self.runs)

    @property
    def tmp(self) -> int:
        """How many saves are unfinished: being written, or left by a crash."""
        return sum(run.tmp for run in self.runs)

    @property
    def deleted(self) -> int:
        """How many checkpoints have gone."""
        return sum(run.deleted for run in self.runs)

    @property
    def problems(self) -> int:
        """How many checkpoints on disk cannot be trusted."""
        return sum(run.problems for run in self.runs)

    @property
    def bytes_on_disk(self) -> int:
        """What those on disk take."""
        return sum(run.bytes_on_disk for run in self.runs)
