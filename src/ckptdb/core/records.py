"""What the rooms hand to each other: runs, checkpoints, metrics, and how they rank.

Times are ISO-8601 strings in UTC with milliseconds, e.g. ``2026-11-22T16:01:24.123Z``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from ckptdb.core.metrics import Metric, metrics_of
from ckptdb.core.ranking import Mode, RankedBy

Status = Literal["tmp", "final", "deleted"]
STATUSES: tuple[Status, ...] = get_args(Status)


REPLACED = "replaced by a new save"
"""How the reason begins why a checkpoint is gone whose step was saved again."""


def is_derived(checkpoint_uuid: str) -> bool:
    """Tell whether a checkpoint has no uuid of its own: one that others saved, or a renamed one."""
    return checkpoint_uuid[14:15] == "5"  # the version: ours are random


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: one directory of checkpoints.

    Attributes:
        uuid: Identity; survives `mv`, a copy made with `cp -r` gets another.
        directory: Absolute path.
        created_at: None for a run that ckptdb has never written to.
        higher_is_better: Direction of ``metric_name``.
        forked_from: uuid of the run that this one was copied from.
        config: The newest checkpoint's config.yaml; empty when none has one, None when that has
            not been looked for.
    """

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint, live or gone.

    Attributes:
        run: Name of its run; ``run_uuid`` is the run's identity.
        path: Absolute path of the directory; where it was, when deleted.
        size_bytes: Sum over its files, None while it is being written.
        parent: uuid of the checkpoint that training continued from.
        problem: Why it cannot be trusted, or None. Such a checkpoint is kept and reported,
            but is neither best nor latest and does not count for retention.
        rejected: Why somebody has put it aside, or None; it then counts as one with a problem.
        info: training_info.json, with non-finite numbers as strings.
        metrics: Finite values by name, None for a number that is not finite.
        late: Those of ``metrics`` that were reported after the save.
        fingerprint: What its files looked like when they were read, None when too fresh to tell.
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
    size_bytes: int | None = None
    file_count: int | None = None
    parent: str | None = None
    pinned: bool = False
    notes: str | None = None
    tags: tuple[str, ...] = ()
    problem: str | None = None
    rejected: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    late: Mapping[str, Metric] = field(default_factory=dict)
    fingerprint: str | None = field(default=None, repr=False, compare=False)

    @property
    def is_doubted(self) -> bool:
        """Whether something speaks against it: a problem, or somebody who has rejected it.

        Such a checkpoint is never ranked, be it live or gone.
        """
        return self.problem is not None or self.rejected is not None

    @property
    def is_trusted(self) -> bool:
        """Whether it is published and nothing speaks against it: what is ranked and counted."""
        return self.status == "final" and not self.is_doubted

    def as_of(self, at: str) -> Self:
        """Return the record with the metrics that were known at a moment.

        Of a value that was reported more than once, only the first, if it came with the
        checkpoint, and the last are known.
        """
        late = {name: metric for name, metric in self.late.items() if metric.reported_at <= at}
        if len(late) == len(self.late):
            return self
        hidden = self.late.keys() - late.keys()
        known = {name: value for name, value in self.metrics.items() if name not in hidden}
        own = {name: value for name, value in metrics_of(self.info).items() if name in hidden}
        return replace(self, metrics=known | own, late=late)

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON: its field names, paths as strings."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "fingerprint"}
        shown["path"] = str(self.path)
        shown["tags"] = list(self.tags)
        shown["late"] = {
            name: {"value": m.value, "source": m.source, "reported_at": m.reported_at}
            for name, m in self.late.items()
        }
        return shown


@dataclass(frozen=True, slots=True, order=True)
class Resumption:
    """That training began to continue from a checkpoint: when, and which process."""

    resumed_at: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A checkpoint in the line that another one descends from.

    Attributes:
        resumed_at: When training was last resumed from it, as far as that led to the next of the
            line; of the first, at all. None when it never was.
    """

    uuid: str
    step: int
    status: Status
    created_at: str
    finalized_at: str | None
    resumed_at: str | None
    deleted_at: str | None
    deleted_reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the record for JSON: its field names."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMember:
    """A checkpoint, live or gone, as far as it tells which line of training it is on.

    Attributes:
        id: Of its row.
        parent_id: Row of the checkpoint that training continued from, when that is known.
        is_trusted: Live, without a problem, and not rejected.
        has_manifest: Saved by ckptdb; what others have saved does not say what it came of.
        is_replaced: It is gone because its step was saved again.
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
    """What came to a checkpoint after it was saved; rebuilt from the journal."""

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
    """Something that went wrong where nobody waits for an error.

    Attributes:
        what: ``"save"``: one in the background failed; ``"discard"``: what is left of one could
            not be put away; ``"prune"``: old checkpoints could not be removed; ``"catalog"``: it
            cannot be used now, training goes on without it; ``"checkpoint"``: one was found that
            cannot be trusted.
        where: The directory of the checkpoint, or else of the run.
    """

    what: Trouble
    where: Path
    error: BaseException


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over a run, by step, deleted checkpoints included; one entry each.

    Attributes:
        mode: Direction of the metric, None when neither the run nor the caller says it.
        moments: When each was published, else begun.
        values: Finite ones; what lacks the metric is left out.
        kept: Whether the checkpoint is still there.
        ranked: Whether it can be the best or the latest, too: whole, and not rejected.
    """

    run: str
    run_uuid: str
    mode: Mode | None
    steps: tuple[int, ...]
    moments: tuple[str, ...]
    values: tuple[float, ...]
    kept: tuple[bool, ...]
    ranked: tuple[bool, ...]
