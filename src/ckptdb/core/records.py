"""What the rooms hand to each other: runs, checkpoints, metrics, and how they rank.

Times are ISO-8601 strings in UTC with milliseconds, e.g. ``2026-11-22T16:01:24.123Z``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

Status = Literal["tmp", "final", "deleted"]
Mode = Literal["min", "max"]
STATUSES: tuple[Status, ...] = get_args(Status)
MODES: tuple[Mode, ...] = get_args(Mode)

TRAINING_INFO = "training_info"
"""The source of every metric that came with the checkpoint itself."""

REPLACED = "replaced by a new save"
"""How the reason begins why a checkpoint is gone whose step was saved again."""


def is_derived(checkpoint_uuid: str) -> bool:
    """Tell whether a checkpoint has no uuid of its own: one that others saved, or a renamed one."""
    return checkpoint_uuid[14:15] == "5"  # the version: ours are random


def utc(timestamp: float) -> str:
    """Write a POSIX timestamp (seconds) the way every file and table of ckptdb does."""
    return in_utc(datetime.fromtimestamp(timestamp, tz=UTC))


def seconds(at: str | None) -> float | None:
    """Return a recorded time as a POSIX timestamp; None for what other hands may write."""
    try:
        return datetime.fromisoformat(at or "").timestamp()
    except (ValueError, TypeError):
        return None


def in_utc(moment: datetime) -> str:
    """Write a datetime, which must be in UTC, like `utc`."""
    return f"{moment.isoformat(timespec='milliseconds')[:-6]}Z"


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


@dataclass(frozen=True, slots=True)
class RankedBy:
    """What tells the best checkpoints of a run: a metric and its direction; None for the step."""

    metric: str | None = None
    mode: Mode | None = None

    def __str__(self) -> str:
        if self.metric is None:
            return "no metric (the newest are the best)"
        return f"{self.metric!r} ({'higher' if self.mode == 'max' else 'lower'} is better)"


@dataclass(frozen=True, slots=True)
class Metric:
    """A value reported after the checkpoint was saved.

    Attributes:
        value: Finite, or None when what was reported is not.
        source: Who measured it, e.g. ``"lm-eval"``.
    """

    name: str
    value: float | None
    source: str
    reported_at: str


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


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to an ad hoc query: column names and the rows as tuples."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False
    """True when the row limit cut the answer."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return each row as a mapping from column to value; the second ``x`` is ``x_2``."""
        names: Sequence[str] = self.columns
        if len(set(names)) < len(names):
            from ckptdb.core import frames

            names = frames.unique_names(names)
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: whole numbers stay whole, NULLs or not.

        Raises:
            LibraryMissing: pandas is not installed; likewise for the other two.
        """
        from ckptdb.core import frames

        return frames.to_pandas(self.columns, self.rows)

    def to_polars(self) -> Any:
        """Return a polars DataFrame; values of several kinds in a column become text."""
        from ckptdb.core import frames

        return frames.to_polars(self.columns, self.rows)

    def to_arrow(self) -> Any:
        """Return a pyarrow Table; values of several kinds in a column become text."""
        from ckptdb.core import frames

        return frames.to_arrow(self.columns, self.rows)


def rank_key(
    value: float | None,
    step: int,
    mode: Mode,
    *,
    tie: float | None = None,
    tie_mode: Mode = "min",
) -> tuple[bool, float, bool, float, int]:
    """Sort key of the one ranking: smallest first is best first.

    Only finite values rank; without one a checkpoint comes last, newest first. Equal values
    go to the better tie, if there is one, and then to the higher step.
    """
    return (*_value_key(value, mode), *_value_key(tie, tie_mode), -step)


def _value_key(value: float | None, mode: Mode) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return (True, 0.0)
    return (False, value if mode == "min" else -value)


def metrics_of(info: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a training_info by name: finite values, None for NaN and infinity.

    A bool, a string or null is not a metric, and neither is anything nested. Integers too
    large for a float count as not finite.
    """
    found: dict[str, float | None] = {}
    for name, value in info.items():
        if type(value) is float and name.isascii() and "\0" not in name and math.isfinite(value):
            found[name] = value  # nearly all of them
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_storable(name):
            continue
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        found[name] = number if math.isfinite(number) else None
    return found


def is_storable(text: str) -> bool:
    """Tell whether a database accepts a text; a lone surrogate may stand in JSON, but not there."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in text
