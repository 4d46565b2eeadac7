"""Everything recorded of one run, as reconcile compares it with the disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Executable,
    Row,
    and_,
    bindparam,
    case,
    literal_column,
    null,
    or_,
    select,
    union_all,
)

from ckptdb.catalog.clauses import (
    DELETED,
    FINAL,
    IS_RANKED,
    LATE,
    NOT_DELETED,
    OF_RUN,
    PUBLISHED_AT,
    TMP,
    any_of,
    chunks,
)
from ckptdb.catalog.reader import CatalogReader, iterate
from ckptdb.catalog.schema import checkpoints, metrics, resumes, tags
from ckptdb.catalog.stored_checkpoints import PARENT_UUID, WHOLE, load
from ckptdb.core.metrics import TRAINING_INFO, Metric
from ckptdb.core.recorded import IndexedRun, RecordedEnd, RecordedRun
from ckptdb.core.records import Annotations, Checkpoint, CheckpointProblem, Resumption

_Marks = tuple[bool, str | None, str | None]
"""Whether a checkpoint is pinned, its notes, and why it was rejected."""

_COMPARED = (
    checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.status, checkpoints.c.fingerprint,
    checkpoints.c.problem, checkpoints.c.problem_kind,
)  # fmt: skip

_NO_HISTORY = (null(), null(), null(), null(), null(), null(), null())

# One by one, because each has an index that deleted history is not in.
LIVE = union_all(
    select(*_COMPARED, *_NO_HISTORY).where(OF_RUN, FINAL),
    select(*_COMPARED, *_NO_HISTORY).where(OF_RUN, TMP),
)

HISTORY = select(
    *_COMPARED, checkpoints.c.deleted_at, checkpoints.c.deleted_kind,
    checkpoints.c.deleted_reason, checkpoints.c.pinned, checkpoints.c.notes, checkpoints.c.rejected,
    case((DELETED, PARENT_UUID)),
).where(OF_RUN)  # fmt: skip

# Late metrics; tags, without a value; and resumptions: host, process and time.
ADDED = union_all(
    select(
        literal_column("'metric'").label("kind"), checkpoints.c.uuid, metrics.c.name,
        metrics.c.value, metrics.c.source, metrics.c.reported_at,
    )
    .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
    .where(metrics.c.run_id == bindparam("run_id"), LATE),
    select(
        literal_column("'tag'"), checkpoints.c.uuid, tags.c.name, null(), null(), tags.c.created_at
    )
    .join_from(checkpoints, tags)
    .where(OF_RUN),
    select(
        literal_column("'resumed'"), checkpoints.c.uuid, resumes.c.host, resumes.c.pid, null(),
        resumes.c.resumed_at,
    )
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(resumes.c.run_id == bindparam("run_id")),
)  # fmt: skip

LIVE_AT_STEPS = WHOLE.where(OF_RUN, NOT_DELETED, checkpoints.c.step.in_(any_of("steps")))

GONE_BY_UUID = WHOLE.where(OF_RUN, DELETED, checkpoints.c.uuid.in_(any_of("uuids")))

# Values that the rows of metrics and resumptions copy from their checkpoint and that differ.
INCONSISTENT = union_all(
    select(checkpoints.c.uuid, checkpoints.c.step)
    .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
    .where(
        OF_RUN,
        or_(
            metrics.c.run_id != checkpoints.c.run_id,
            metrics.c.step != checkpoints.c.step,
            metrics.c.live != IS_RANKED,
            and_(metrics.c.source == TRAINING_INFO, metrics.c.reported_at != PUBLISHED_AT),
        ),
    ),
    select(checkpoints.c.uuid, checkpoints.c.step)
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(OF_RUN, resumes.c.run_id != checkpoints.c.run_id),
)


class RecordedQueries:
    """Queries of reconcile."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def run(self, indexed: IndexedRun | None, *, history: bool) -> RecordedRun:
        """Return everything that the index records of a run.

        Args:
            indexed: The run's row; None for a run that the index does not have.
            history: Also deleted checkpoints and annotations; needed when the journal has grown.
        """
        if indexed is None:
            return RecordedRun(indexed=None)
        of_run = {"run_id": indexed.id}
        finals: dict[int, tuple[str, str | None]] = {}
        problems: dict[str, CheckpointProblem] = {}
        tmps: dict[str, int] = {}
        gone: dict[str, RecordedEnd] = {}
        marks: dict[str, _Marks] = {}
        with (
            self._reader.database.read() as connection,
            # In one statement, so that no checkpoint is both live and gone.
            iterate(connection, HISTORY if history else LIVE, of_run) as rows,
        ):
            for (
                step, uuid, status, fingerprint, problem, problem_kind,
                at, kind, why, pinned, notes, rejected, parent,
            ) in rows:  # fmt: skip
                if type(step) is not int:
                    raise self._reader.broken("a step that is no number")
                if status == "final":
                    finals[step] = (uuid, fingerprint)
                    if problem is not None:
                        problems[uuid] = CheckpointProblem(problem_kind, problem)
                elif status == "tmp":
                    tmps[uuid] = step
                # A damaged index may return deleted rows for a query of live ones.
                elif history and status == "deleted":
                    gone[uuid] = RecordedEnd(at, kind, why, parent)
                if pinned or notes is not None or rejected is not None:
                    marks[uuid] = (bool(pinned), notes, rejected)
            added = connection.execute(ADDED, of_run).all() if history else []
        if not all(isinstance(row[3], int | float | None) for row in added):
            raise self._reader.broken("a number that is none")
        return RecordedRun(
            indexed=indexed,
            finals=finals,
            problems=problems,
            tmps=tmps,
            gone=gone,
            annotations=_annotations(marks, added),
        )

    def records(
        self, run_id: int, *, steps: Collection[int], gone: Collection[str]
    ) -> dict[str, Checkpoint]:
        """Return whole records of a run by uuid, with their paths as stored.

        Args:
            run_id: The run.
            steps: Steps of live checkpoints.
            gone: The uuids of deleted ones.
        """
        wanted: list[tuple[Executable, dict[str, Any]]] = [
            *((LIVE_AT_STEPS, {"run_id": run_id, "steps": chunk}) for chunk in chunks(steps)),
            *((GONE_BY_UUID, {"run_id": run_id, "uuids": chunk}) for chunk in chunks(gone)),
        ]
        if not wanted:
            return {}
        with self._reader.database.read() as connection:
            return {
                checkpoint.uuid: checkpoint
                for statement, parameters in wanted
                for _, checkpoint in load(
                    self._reader, connection, statement, parameters, as_stored=True
                )
            }

    def inconsistent(self, run_id: int) -> dict[str, int]:
        """Return the step by uuid of the checkpoints in `RecordedRun.inconsistent`."""
        rows = self._reader.rows(INCONSISTENT, {"run_id": run_id})
        return {row.uuid: row.step for row in rows}


def _annotations(marks: Mapping[str, _Marks], added: Sequence[Row[Any]]) -> dict[str, Annotations]:
    names: dict[str, list[tuple[str, str]]] = {}
    values: dict[str, list[Metric]] = {}
    resumed: dict[str, list[Resumption]] = {}
    for kind, uuid, name, value, source, at in map(tuple, added):
        if kind == "tag":
            names.setdefault(uuid, []).append((name, at))
        elif kind == "metric":
            values.setdefault(uuid, []).append(Metric(name, value, source, at))
        else:
            resumed.setdefault(uuid, []).append(Resumption(at, name, int(value)))
    return {
        uuid: Annotations(
            pinned,
            notes,
            tuple(sorted(names.get(uuid, ()))),
            tuple(sorted(values.get(uuid, ()), key=lambda m: m.name)),
            rejected,
            tuple(sorted(resumed.get(uuid, ()))),
        )
        for uuid in {*marks, *names, *values, *resumed}
        for pinned, notes, rejected in (marks.get(uuid, (False, None, None)),)
    }
