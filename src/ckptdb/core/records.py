"""Records: runs, checkpoints, their annotations and their history.

Times are ISO-8601 strings in UTC with milliseconds, e.g. ``2026-11-22T16:01:24.123Z``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from ckptdb.core.jsonable import NOT_IN_JSON, JsonRecord
from ckptdb.core.metrics import Metric, metrics_of
from ckptdb.core.ranking import Mode, RankedBy

Status = Literal["tmp", "final", "deleted"]
STATUSES: tuple[Status, ...] = get_args(Status)

DeletedKind = Literal[
    "retention", "manual", "replaced", "discarded", "vanished", "displaced", "unknown"
]
"""How a checkpoint went: by a rule, by hand, because its step was saved again, as an unfinished
save, without ckptdb, with its run when another one took that directory, or in a way that could not
be recorded (the disk was full)."""

ProblemKind = Literal["unreadable", "damaged", "corrupt"]
"""What sort of problem a checkpoint has: its metadata cannot be read; a file is missing or has
another size; a file has its size, but not the content of its checksum."""
PROBLEM_KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)


def is_derived(checkpoint_uuid: str) -> bool:
    """Tell whether a uuid was derived from metadata, because no manifest holds a random one."""
    return checkpoint_uuid[14:15] == "5"  # the version of the uuid; random ones are 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: one directory of checkpoints.

    Attributes:
        uuid: Identity; survives `mv`, a copy made with `cp -r` gets another.
        directory: Absolute path.
        created_at: None for a run that ckptdb has never written to.
        higher_is_better: Direction of ``metric_name``.
        forked_from: uuid of the run that this one was copied from.
        config: The newest checkpoint's config.yaml; empty when no checkpoint has one, None when
            it was not read.
    """

    JSON_KEYS: ClassVar = {"run": "name", "uuid": "uuid", "directory": "directory"}

    uuid: str
    name: str
    directory: Path
    created_at: str | None = None
    metric_name: str | None = None
    higher_is_better: bool = False
    forked_from: str | None = None
    config: Mapping[str, Any] | None = None

    @property
    def mode(self) -> Mode:
        """Direction of the run's own metric."""
        return "max" if self.higher_is_better else "min"

    @property
    def ranked_by(self) -> RankedBy:
        """The run's own metric and its direction."""
        return RankedBy() if self.metric_name is None else RankedBy(self.metric_name, self.mode)


@dataclass(frozen=True, slots=True)
class CheckpointProblem:
    """Why a checkpoint cannot be trusted: the kind for code, the text for people."""

    kind: ProblemKind
    text: str

    @property
    def is_damage(self) -> bool:
        """Whether its files are damaged, which its metadata alone does not show."""
        return self.kind in ("damaged", "corrupt")


def is_trusted(status: str, *, has_problem: bool, is_rejected: bool) -> bool:
    """Return whether a checkpoint is ranked and counted; in SQL `catalog.trust` says the same."""
    return status == "final" and not has_problem and not is_rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(JsonRecord):
    """A checkpoint, live or deleted.

    Attributes:
        run: Name of its run; ``run_uuid`` is the run's identity.
        path: Absolute path of the directory; of a deleted checkpoint, the former one.
        size_bytes: Sum over all files, None while they are being written.
        parent: uuid of the checkpoint that training continued from.
        deleted_reason: Reason of the deletion, in words; ``deleted_kind`` is for code.
        problem: Why it cannot be trusted, in words, or None; ``problem_kind`` is for code. Such a
            checkpoint is kept and reported, but is neither best nor latest and does not count for
            retention.
        rejected: Why a person rejected it, or None. A rejected checkpoint is treated like one with
            a problem.
        info: training_info.json, with non-finite numbers as strings.
        metrics: Finite values by name, None for a number that is not finite.
        late: The entries of ``metrics`` that were reported after the save.
        fingerprint: Times, sizes and inodes of its metadata when they were read; None when they
            were too young to be compared later.
    """

    run_uuid: str
    run: str
    uuid: str
    step: int
    path: Path
    status: Status
    created_at: str
    finalized_at: str | None = None
    deleted_at: str | None = None
    deleted_reason: str | None = None
    deleted_kind: DeletedKind | None = None
    size_bytes: int | None = None
    file_count: int | None = None
    parent: str | None = None
    pinned: bool = False
    notes: str | None = None
    tags: tuple[str, ...] = ()
    problem: str | None = None
    problem_kind: ProblemKind | None = None
    rejected: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    late: Mapping[str, Metric] = field(default_factory=dict)
    fingerprint: str | None = field(default=None, repr=False, compare=False, metadata=NOT_IN_JSON)

    @property
    def is_doubted(self) -> bool:
        """Whether something speaks against it: a problem, or somebody who has rejected it.

        Such a checkpoint is never ranked, be it live or gone.
        """
        return self.problem is not None or self.rejected is not None

    @property
    def is_trusted(self) -> bool:
        """Whether it is published and nothing speaks against it: what is ranked and counted."""
        return is_trusted(
            self.status,
            has_problem=self.problem is not None,
            is_rejected=self.rejected is not None,
        )

    def ended(self, kind: DeletedKind, reason: str, at: str) -> Self:
        """Return the record of the checkpoint once it is gone."""
        return replace(
            self, status="deleted", deleted_at=at, deleted_reason=reason, deleted_kind=kind
        )

    def find_problem(self) -> CheckpointProblem | None:
        """Return why it cannot be trusted, with its kind."""
        if self.problem is None:
            return None
        return CheckpointProblem(self.problem_kind or "unreadable", self.problem)

    def find_damage(self) -> CheckpointProblem | None:
        """Return the problem if files are damaged, which the metadata alone does not show."""
        problem = self.find_problem()
        return problem if problem and problem.is_damage else None

    def with_problem(self, problem: CheckpointProblem | None) -> Self:
        """Return the record with another problem, or with none."""
        if problem is None:
            return replace(self, problem=None, problem_kind=None)
        return replace(self, problem=problem.text, problem_kind=problem.kind)

    def as_of(self, at: str) -> Self:
        """Return the record with the metrics that were known at a time.

        Of a metric that was reported repeatedly, only the value of the save and the last late
        value are recorded.
        """
        late = {name: metric for name, metric in self.late.items() if metric.reported_at <= at}
        if len(late) == len(self.late):
            return self
        hidden = self.late.keys() - late.keys()
        known = {name: value for name, value in self.metrics.items() if name not in hidden}
        own = {name: value for name, value in metrics_of(self.info).items() if name in hidden}
        return replace(self, metrics=known | own, late=late)


@dataclass(frozen=True, slots=True, order=True)
class Resumption:
    """A resumption: when, and by which process, training continued from a checkpoint."""

    resumed_at: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor(JsonRecord):
    """A checkpoint that another one descends from, directly or not.

    Attributes:
        resumed_at: The last time training was resumed from it and produced the next checkpoint of
            the line; for the first one of the line, the last time at all. None when never.
    """

    uuid: str
    step: int
    status: Status
    created_at: str
    finalized_at: str | None
    resumed_at: str | None
    deleted_at: str | None
    deleted_reason: str | None
    deleted_kind: DeletedKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMember:
    """The facts of a checkpoint, live or deleted, that tell its line of training.

    Attributes:
        id: Row id.
        parent_id: Row id of the checkpoint that training continued from, when known.
        is_trusted: Live, without a problem, and not rejected.
        has_manifest: Whether ckptdb saved it; checkpoints of other tools do not record a parent.
        is_replaced: Whether it is deleted because its step was saved again.
    """

    id: int
    uuid: str
    step: int
    parent_id: int | None
    created_at: str
    finalized_at: str | None
    is_live: bool
    is_trusted: bool
    has_manifest: bool
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class Annotations:
    """Facts added to a checkpoint after its save; rebuilt from the journal."""

    pinned: bool = False
    notes: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """(tag, created_at), sorted by tag."""
    late: tuple[Metric, ...] = ()
    """Sorted by name."""
    rejected: str | None = None
    resumptions: tuple[Resumption, ...] = ()
    """Sorted by time."""


NO_ANNOTATIONS = Annotations()


Trouble = Literal["save", "discard", "prune", "catalog", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure in the background, where no caller can receive an exception.

    Attributes:
        what: ``"save"``: a background save failed; ``"discard"``: the remains of a failed save
            could not be removed; ``"prune"``: old checkpoints could not be removed;
            ``"catalog"``: the catalog cannot be used now, training continues without it;
            ``"checkpoint"``: a checkpoint was found that cannot be trusted.
        where: The directory of the checkpoint, or else of the run.
    """

    what: Trouble
    where: Path
    error: BaseException


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over the steps of a run, deleted checkpoints included; one entry per checkpoint.

    Attributes:
        mode: Direction of the metric, None when neither the run nor the caller names it.
        times: When each checkpoint was published, or else begun.
        values: Finite values; checkpoints without the metric are left out.
        kept: Whether the checkpoint still exists.
        ranked: Whether the checkpoint also is trusted, so that it can be the best or the latest.
    """

    run: str
    run_uuid: str
    mode: Mode | None
    steps: tuple[int, ...]
    times: tuple[str, ...]
    values: tuple[float, ...]
    kept: tuple[bool, ...]
    ranked: tuple[bool, ...]
