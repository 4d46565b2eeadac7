"""Catalog: every read and write of a record.

One method, one statement or one transaction. Nothing here looks at a checkpoint directory:
what is true is decided elsewhere, from the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    update,
)

from ckptdb.catalog.engine import Database
from ckptdb.catalog.schema import checkpoints, metrics, runs, tags
from ckptdb.errors import IndexStale
from ckptdb.records import (
    TRAINING_INFO,
    Annotations,
    Checkpoint,
    Metric,
    Mode,
    Run,
    Status,
)

# Literals, not parameters: only then does the planner use the partial indexes.
_FINAL = text("checkpoints.status = 'final'")
_TRUSTED = text("checkpoints.status = 'final' AND checkpoints.problem IS NULL")
_NOT_DELETED = text("checkpoints.status <> 'deleted'")
_DELETED = text("checkpoints.status = 'deleted'")
_TMP = text("checkpoints.status = 'tmp'")
_RANKED = text("metrics.live = 1 AND metrics.value IS NOT NULL")
_BY_STATUS = {"final": _FINAL, "tmp": _TMP, "deleted": _DELETED}
_T = TypeVar("_T")
_CHUNK = 500
"""Rows per IN list; every engine takes that many parameters."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a run stands in the index.

    Attributes:
        stamp: What its directory looked like when it was last indexed.
        verified: False when a writer advanced the stamp and no listing confirmed it yet.
    """

    id: int
    run: Run
    stamp: str | None
    verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the index holds of one run, as far as reconciling needs it.

    Attributes:
        finals: By step, uuid and fingerprint.
        problems: By uuid, of published checkpoints that have one.
        tmps: By uuid, the step.
        gone: By uuid, when and why it went, and its parent.
        annotations: By uuid, only where there are any.
        contents: By uuid, the whole record of the live ones that have to be compared.
    """

    seen: Seen | None
    finals: Mapping[int, tuple[str, str | None]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    tmps: Mapping[str, int] = field(default_factory=dict)
    gone: Mapping[str, tuple[str | None, str | None, str | None]] = field(default_factory=dict)
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    contents: Mapping[str, Checkpoint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live checkpoint as retention sees it."""

    step: int
    uuid: str
    value: float | None
    pinned: bool
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one transaction does to one run.

    Attributes:
        run: Inserted, or its columns updated; its uuid decides which row is meant.
        checkpoints: As they now are, live or gone. What people added to them is not touched.
        annotations: By uuid, everything people added.
        config: New configuration of the run, empty for none; None leaves it.
        config_step: The step it was saved with; it counts only if no live one is higher.
        seen: The stamp that a listing has just shown to be what the index stands for.
        verified: Whether that listing was made late enough to be sure.
        moved: Stamp before and after changes of our own; kept only if the index knew the former.
    """

    run: Run
    checkpoints: Sequence[Checkpoint] = ()
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_step: int | None = None
    seen: str | None = None
    verified: bool = True
    moved: tuple[str, str] | None = None


class Catalog:
    """Runs and checkpoints in a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._base = database.location.base

    # --- runs ---------------------------------------------------------------------------

    def runs(self) -> tuple[Seen, ...]:
        """Return every run, by name."""
        statement = select(runs).order_by(runs.c.name, runs.c.directory)
        return tuple(self._seen(row) for row in self._rows(statement))

    def find_run(self, uuid: str) -> Seen | None:
        """Return the run with that uuid."""
        rows = self._rows(_RUN_BY_UUID, {"uuid": uuid})
        return self._seen(rows[0]) if rows else None

    def find_run_at(self, directory: Path) -> Seen | None:
        """Return the run last seen in that directory."""
        where = runs.c.directory == self._stored(directory)
        rows = self._rows(select(runs).where(where).order_by(runs.c.id.desc()))
        return self._seen(rows[0]) if rows else None

    def forget(self, run_id: int) -> None:
        """Drop a run and everything recorded of it from the index."""
        with self.database.write() as connection:
            connection.execute(delete(runs).where(runs.c.id == run_id))

    # --- questions ----------------------------------------------------------------------

    def find_best_step(self, run_id: int, metric: str, mode: Mode) -> int | None:
        """Return the step with the best finite value of a run; ties go to the higher step."""
        return self._number(_BEST_STEP[mode], {"run_id": run_id, "name": metric})

    def find_latest_step(self, run_id: int) -> int | None:
        """Return the highest step of a run's trusted checkpoints."""
        return self._number(_LATEST_STEP, {"run_id": run_id})

    def steps_without(self, run_id: int, metric: str) -> tuple[int, ...]:
        """Return the steps of live checkpoints that lack a finite value of a metric, ascending."""
        rows = self._rows(_STEPS_WITHOUT, {"run_id": run_id, "name": metric})
        return tuple(row.step for row in rows)

    def candidates(self, run_id: int, metric: str | None) -> tuple[Candidate, ...]:
        """Return a run's live, trusted checkpoints with their value of a metric, by step."""
        rows = self._rows(_CANDIDATES, {"run_id": run_id, "name": metric})
        return tuple(
            Candidate(row.step, row.uuid, row.value, bool(row.pinned), row.size_bytes)
            for row in rows
        )

    def count_live(self, run_id: int) -> int:
        """Return how many live, trusted checkpoints a run has."""
        return self._number(_COUNT_LIVE, {"run_id": run_id}) or 0

    def top(
        self, count: int, metric: str, mode: Mode, *, run_id: int | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return the live checkpoints with the best finite values, best first."""
        statement = _ranking(mode, run_id=run_id)
        parameters: dict[str, object] = {"name": metric, "count": count}
        if run_id is not None:
            parameters["run_id"] = run_id
        with self.database.read() as connection:
            ids = [row.checkpoint_id for row in connection.execute(statement, parameters)]
            found = {
                row_id: checkpoint
                for chunk in _chunks(ids)
                for row_id, checkpoint in self._load(
                    connection, _whole().where(checkpoints.c.id.in_(chunk))
                )
            }
        return tuple(found[row_id] for row_id in ids if row_id in found)

    def checkpoints(
        self,
        *,
        run_id: int | None = None,
        status: Status | None = None,
        steps: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return checkpoints by run and step; of one step, the live one last.

        Args:
            run_id: Only of this run.
            status: Only with this status.
            steps: Only at these steps.
            limit: At most so many, the newest steps.
        """
        statement = _whole().order_by(
            runs.c.name, checkpoints.c.run_id, checkpoints.c.step.desc(), checkpoints.c.id.desc()
        )
        if run_id is not None:
            statement = statement.where(checkpoints.c.run_id == run_id)
        if status is not None:
            statement = statement.where(_BY_STATUS[status])
        if steps is not None:
            statement = statement.where(checkpoints.c.step.in_(steps))
        if limit is not None:
            statement = statement.limit(limit)
        with self.database.read() as connection:
            found = [checkpoint for _, checkpoint in self._load(connection, statement)]
        order = {"deleted": 0, "tmp": 1, "final": 2}
        # Python's sort is stable: within a run the newest insertion stays last.
        found.reverse()
        found.sort(key=lambda cp: (cp.run, cp.run_uuid, cp.step, order[cp.status]))
        return tuple(found)

    def find_latest(self, run_id: int | None = None) -> Checkpoint | None:
        """Return the trusted checkpoint with the highest step, or the newest of all runs."""
        statement = _whole().where(_TRUSTED).limit(1)
        if run_id is None:
            statement = statement.order_by(checkpoints.c.finalized_at.desc())
        else:
            statement = statement.where(checkpoints.c.run_id == run_id)
            statement = statement.order_by(checkpoints.c.step.desc())
        with self.database.read() as connection:
            found = self._load(connection, statement)
        return found[0][1] if found else None

    def metric_names(self, run_id: int | None = None) -> tuple[str, ...]:
        """Return the names of all metrics ever seen, sorted."""
        statement = select(metrics.c.name).distinct().order_by(metrics.c.name)
        if run_id is not None:
            mine = select(checkpoints.c.id).where(checkpoints.c.run_id == run_id)
            statement = statement.where(metrics.c.checkpoint_id.in_(mine))
        return tuple(row.name for row in self._rows(statement))

    def pinned_gone(self, run_id: int) -> tuple[str, ...]:
        """Return the uuids of pinned checkpoints that are no longer published."""
        statement = (
            select(checkpoints.c.uuid)
            .where(checkpoints.c.run_id == run_id, checkpoints.c.pinned == 1)
            .where(_DELETED)
        )
        return tuple(row.uuid for row in self._rows(statement))

    def recorded(self, seen: Seen | None, *, history: bool) -> Recorded:
        """Return what the index holds of a run.

        Args:
            seen: From `find_run`; None for a run that the index does not know.
            history: Also what is gone, and annotations; needed when the journal has grown.
        """
        if seen is None:
            return Recorded(seen=None)
        where = checkpoints.c.run_id == seen.id
        columns = (
            checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.status,
            checkpoints.c.fingerprint, checkpoints.c.problem,
        )  # fmt: skip
        live = self._rows(select(*columns).where(where, _NOT_DELETED))
        finals = [row for row in live if row.status == "final"]
        return Recorded(
            seen=seen,
            finals={row.step: (row.uuid, row.fingerprint) for row in finals},
            problems={row.uuid: row.problem for row in finals if row.problem is not None},
            tmps={row.uuid: row.step for row in live if row.status == "tmp"},
            gone=self._gone(seen.id) if history else {},
            annotations=self._annotations(seen.id) if history else {},
        )

    # --- changes ------------------------------------------------------------------------

    def apply(self, changes: Changes, *, timeout_seconds: float | None = None) -> int:
        """Store changes of one run in one transaction; return the run's id.

        Raises:
            IndexStale: The index has another live checkpoint where one is to be stored.
        """
        with self.database.write(timeout_seconds=timeout_seconds) as connection:
            run_id = self._put_run(connection, changes.run)
            # What is gone goes first: it may hold the step of what has come.
            for chunk in _chunks([c for c in changes.checkpoints if c.status == "deleted"]):
                self._put(connection, run_id, chunk)
            for chunk in _chunks([c for c in changes.checkpoints if c.status != "deleted"]):
                _refuse_stale(connection, run_id, chunk)
                self._put(connection, run_id, chunk)
            _link_parents(connection, run_id, changes.checkpoints)
            for uuid, annotations in changes.annotations.items():
                _annotate(connection, run_id, uuid, annotations)
            _finish(connection, run_id, changes)
        return run_id

    # --- rows → records -----------------------------------------------------------------

    def _rows(
        self, statement: Select[Any], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        with self.database.read() as connection:
            return connection.execute(statement, parameters).all()

    def _number(self, statement: Select[Any], parameters: Mapping[str, Any]) -> int | None:
        with self.database.read() as connection:
            found = connection.execute(statement, parameters).scalar()
        return None if found is None else int(found)

    def _seen(self, row: Row[Any]) -> Seen:
        run = Run(
            uuid=row.uuid,
            name=row.name,
            directory=self._absolute(row.directory),
            created_at=row.created_at,
            metric_name=row.metric_name,
            higher_is_better=bool(row.higher_is_better),
            forked_from=row.forked_from,
            config=None if row.config is None else json.loads(row.config),
        )
        return Seen(row.id, run, row.stamp, bool(row.stamp_verified))

    def _load(self, connection: Connection, statement: Select[Any]) -> list[tuple[int, Checkpoint]]:
        rows = connection.execute(statement).all()
        ids = [row.id for row in rows]
        values = _grouped(connection, metrics, ids)
        marks = _grouped(connection, tags, ids)
        return [
            (row.id, self._checkpoint(row, values.get(row.id, ()), marks.get(row.id, ())))
            for row in rows
        ]

    def _checkpoint(
        self, row: Row[Any], values: Sequence[Row[Any]], marks: Sequence[Row[Any]]
    ) -> Checkpoint:
        late = {m.name: _metric(m) for m in values if m.source != TRAINING_INFO}
        return Checkpoint(
            run_uuid=row.run_uuid,
            run=row.run,
            uuid=row.uuid,
            step=row.step,
            path=self._absolute(row.path),
            status=row.status,
            created_at=row.created_at,
            finalized_at=row.finalized_at,
            deleted_at=row.deleted_at,
            deleted_reason=row.deleted_reason,
            size_bytes=row.size_bytes,
            file_count=row.file_count,
            parent=row.parent,
            pinned=bool(row.pinned),
            notes=row.notes,
            tags=tuple(mark.name for mark in marks),
            problem=row.problem,
            info=json.loads(row.info),
            metrics={m.name: m.value for m in values},
            late=late,
            fingerprint=row.fingerprint,
        )

    def _gone(self, run_id: int) -> dict[str, tuple[str | None, str | None, str | None]]:
        columns = (checkpoints.c.uuid, checkpoints.c.deleted_at, checkpoints.c.deleted_reason)
        parents = checkpoints.alias("parents")
        rows = self._rows(
            select(*columns, parents.c.uuid.label("parent"))
            .outerjoin(parents, parents.c.id == checkpoints.c.parent_id)
            .where(checkpoints.c.run_id == run_id, _DELETED)
        )
        return {row.uuid: (row.deleted_at, row.deleted_reason, row.parent) for row in rows}

    def _annotations(self, run_id: int) -> dict[str, Annotations]:
        mine = checkpoints.c.run_id == run_id
        marked = select(checkpoints.c.uuid, checkpoints.c.pinned, checkpoints.c.notes).where(
            mine, (checkpoints.c.pinned == 1) | checkpoints.c.notes.is_not(None)
        )
        tagged = select(checkpoints.c.uuid, tags).join_from(checkpoints, tags).where(mine)
        late = (
            select(checkpoints.c.uuid, metrics)
            .join_from(checkpoints, metrics)
            .where(mine, metrics.c.source != TRAINING_INFO)
        )
        pins = {row.uuid: (bool(row.pinned), row.notes) for row in self._rows(marked)}
        names: dict[str, list[tuple[str, str]]] = {}
        for row in self._rows(tagged):
            names.setdefault(row.uuid, []).append((row.name, row.created_at))
        values: dict[str, list[Metric]] = {}
        for row in self._rows(late):
            values.setdefault(row.uuid, []).append(_metric(row))
        return {
            uuid: Annotations(
                *pins.get(uuid, (False, None)),
                tuple(sorted(names.get(uuid, ()))),
                tuple(sorted(values.get(uuid, ()), key=lambda m: m.name)),
            )
            for uuid in {*pins, *names, *values}
        }

    # --- records → rows -----------------------------------------------------------------

    def _put_run(self, connection: Connection, run: Run) -> int:
        values = {
            "uuid": run.uuid,
            "name": _storable(run.name),
            "directory": self._stored(run.directory),
            "created_at": run.created_at,
            "metric_name": run.metric_name,
            "higher_is_better": int(run.higher_is_better),
            "forked_from": run.forked_from,
        }
        row = connection.execute(_RUN_BY_UUID, {"uuid": run.uuid}).first()
        if row is None:
            row = _taken_over(connection, values)
        if row is None:
            return _inserted_id(connection.execute(insert(runs), values))
        changed = {key: value for key, value in values.items() if getattr(row, key) != value}
        if changed:
            connection.execute(update(runs).where(runs.c.id == row.id), changed)
        if "directory" in changed:
            _move_paths(connection, row.id, row.directory, str(values["directory"]))
        return int(row.id)

    def _put(self, connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
        ids = _ids(connection, run_id, [checkpoint.uuid for checkpoint in found])
        known = [cp for cp in found if cp.uuid in ids]
        new = [cp for cp in found if cp.uuid not in ids]
        if known:
            rows = [{"row_id": ids[cp.uuid], **self._values(cp)} for cp in known]
            connection.execute(_UPDATE_CHECKPOINT, rows)
        if new:
            rows = [{"run_id": run_id, "uuid": cp.uuid, **self._values(cp)} for cp in new]
            connection.execute(insert(checkpoints), rows)
            ids |= _ids(connection, run_id, [checkpoint.uuid for checkpoint in new])
        _put_metrics(connection, run_id, {ids[cp.uuid]: cp for cp in found})

    def _values(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "step": checkpoint.step,
            "path": self._stored(checkpoint.path),
            "created_at": checkpoint.created_at,
            "finalized_at": checkpoint.finalized_at,
            "size_bytes": checkpoint.size_bytes,
            "file_count": checkpoint.file_count,
            "status": checkpoint.status,
            "deleted_at": checkpoint.deleted_at,
            "deleted_reason": checkpoint.deleted_reason,
            "problem": None if checkpoint.problem is None else _storable(checkpoint.problem),
            "info": json.dumps(checkpoint.info),
            "fingerprint": checkpoint.fingerprint,
        }

    # --- paths --------------------------------------------------------------------------

    def _stored(self, path: Path) -> str:
        if self._base is not None and path.is_relative_to(self._base):
            return _storable(path.relative_to(self._base).as_posix())
        return _storable(path.as_posix())

    def _absolute(self, stored: str) -> Path:
        path = PurePosixPath(stored.translate(_FROM_PRIVATE))
        return Path(path) if self._base is None else Path(self._base / path)


# Names on disk may hold bytes that are no UTF-8 (Python shows them as lone surrogates), which
# no database stores. A range of the private use area stands for them.
_TO_PRIVATE = {0xDC80 + i: 0xF780 + i for i in range(128)}
_FROM_PRIVATE = {private: surrogate for surrogate, private in _TO_PRIVATE.items()}


def _storable(name: str) -> str:
    return name.translate(_TO_PRIVATE)


# --- statements, built once -------------------------------------------------------------

_RUN_BY_UUID = select(runs).where(runs.c.uuid == bindparam("uuid"))

_LATEST_STEP = (
    select(checkpoints.c.step)
    .where(checkpoints.c.run_id == bindparam("run_id"), _TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(literal_column("1"))
)

_COUNT_LIVE = select(func.count()).where(checkpoints.c.run_id == bindparam("run_id"), _TRUSTED)

_STEPS_WITHOUT = (
    select(checkpoints.c.step)
    .where(checkpoints.c.run_id == bindparam("run_id"), _TRUSTED)
    .where(
        ~exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id,
            metrics.c.name == bindparam("name"),
            metrics.c.value.is_not(None),
        )
    )
    .order_by(checkpoints.c.step)
)

_CANDIDATES = (
    select(
        checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.pinned, checkpoints.c.size_bytes,
        metrics.c.value,
    )
    .outerjoin(
        metrics,
        and_(metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name")),
    )
    .where(checkpoints.c.run_id == bindparam("run_id"), _TRUSTED)
    .order_by(checkpoints.c.step)
)  # fmt: skip

_UPDATE_CHECKPOINT = update(checkpoints).where(checkpoints.c.id == bindparam("row_id"))


def _best_step(mode: Mode) -> Select[Any]:
    value = metrics.c.value if mode == "min" else metrics.c.value.desc()
    return (
        select(metrics.c.step)
        .where(metrics.c.run_id == bindparam("run_id"), metrics.c.name == bindparam("name"))
        .where(_RANKED)
        .order_by(value, metrics.c.step.desc())
        .limit(literal_column("1"))
    )


_BEST_STEP = {"min": _best_step("min"), "max": _best_step("max")}


def _ranking(mode: Mode, *, run_id: int | None) -> Select[Any]:
    value = metrics.c.value if mode == "min" else metrics.c.value.desc()
    mine = true() if run_id is None else metrics.c.run_id == bindparam("run_id")
    return (
        select(metrics.c.checkpoint_id)
        .where(metrics.c.name == bindparam("name"), mine)
        .where(_RANKED)
        .order_by(value, metrics.c.step.desc(), metrics.c.checkpoint_id.desc())
        .limit(bindparam("count"))
    )


def _whole() -> Select[Any]:
    parents = checkpoints.alias("parents")
    return select(
        checkpoints,
        runs.c.name.label("run"),
        runs.c.uuid.label("run_uuid"),
        select(parents.c.uuid)
        .where(parents.c.id == checkpoints.c.parent_id)
        .scalar_subquery()
        .label("parent"),
    ).join_from(checkpoints, runs)


# --- pieces of a transaction ------------------------------------------------------------


def _chunks(items: Sequence[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _grouped(connection: Connection, table: Any, ids: Sequence[int]) -> dict[int, list[Row[Any]]]:
    found: dict[int, list[Row[Any]]] = {}
    for chunk in _chunks(ids):
        statement = select(table).where(table.c.checkpoint_id.in_(chunk)).order_by(table.c.name)
        for row in connection.execute(statement):
            found.setdefault(row.checkpoint_id, []).append(row)
    return found


def _metric(row: Row[Any]) -> Metric:
    return Metric(row.name, row.value, row.source, row.reported_at)


def _ids(connection: Connection, run_id: int, uuids: Sequence[str]) -> dict[str, int]:
    columns = select(checkpoints.c.uuid, checkpoints.c.id)
    where = (checkpoints.c.run_id == run_id, checkpoints.c.uuid.in_(uuids))
    return {row.uuid: row.id for row in connection.execute(columns.where(*where))}


def _inserted_id(result: Any) -> int:
    return int(result.inserted_primary_key[0])


def _taken_over(connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
    """Settle what becomes of another run that the index has in the same directory."""
    where = runs.c.directory == values["directory"]
    for row in connection.execute(select(runs).where(where)).all():
        if row.uuid == values["forked_from"]:
            # The tree was copied, catalog included: this row was always about the copy.
            return row
        if row.created_at is None:
            # Never written to: all that is known of it is in this directory, under its new uuid.
            connection.execute(delete(runs).where(runs.c.id == row.id))
            continue
        ended = {
            "status": "deleted",
            "deleted_at": func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at),
            "deleted_reason": "vanished: another run took its directory",
        }
        mine = checkpoints.c.run_id == row.id
        connection.execute(update(checkpoints).where(mine, _NOT_DELETED).values(ended))
        connection.execute(update(metrics).where(metrics.c.run_id == row.id).values(live=0))
    return None


def _move_paths(connection: Connection, run_id: int, old: str, new: str) -> None:
    # A run that is its own root has the directory "." and paths without it.
    before, after = ("" if d == "." else f"{d}/" for d in (old, new))
    rest = func.substr(checkpoints.c.path, len(before) + 1)
    moved = bindparam("after", type_=Text) + rest
    statement = update(checkpoints).where(checkpoints.c.run_id == run_id).values(path=moved)
    connection.execute(statement, {"after": after})


def _refuse_stale(connection: Connection, run_id: int, found: Iterable[Checkpoint]) -> None:
    new = {cp.step: cp.uuid for cp in found if cp.status == "final"}
    columns = select(checkpoints.c.step, checkpoints.c.uuid)
    where = (checkpoints.c.run_id == run_id, checkpoints.c.step.in_(list(new)), _FINAL)
    for row in connection.execute(columns.where(*where)):
        if row.uuid != new[row.step]:
            raise IndexStale(row.step)


def _put_metrics(connection: Connection, run_id: int, found: Mapping[int, Checkpoint]) -> None:
    mine = metrics.c.checkpoint_id.in_(list(found))
    own = metrics.c.source == TRAINING_INFO
    connection.execute(delete(metrics).where(mine, own))
    kept = connection.execute(select(metrics).where(mine)).all()
    late = {(row.checkpoint_id, row.name) for row in kept}
    if late:
        live = [row_id for row_id, cp in found.items() if _is_live(cp)]
        flag = case((metrics.c.checkpoint_id.in_(live), 1), else_=0)
        connection.execute(update(metrics).where(mine).values(live=flag))
    rows = [
        {
            "checkpoint_id": row_id,
            "run_id": run_id,
            "step": checkpoint.step,
            "name": name,
            "value": value,
            "source": TRAINING_INFO,
            "reported_at": checkpoint.finalized_at or checkpoint.created_at,
            "live": int(_is_live(checkpoint)),
        }
        for row_id, checkpoint in found.items()
        for name, value in checkpoint.metrics.items()
        if (row_id, name) not in late and name not in checkpoint.late
    ]
    if rows:
        connection.execute(insert(metrics), rows)


def _is_live(checkpoint: Checkpoint) -> bool:
    return checkpoint.status == "final" and checkpoint.problem is None


def _link_parents(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
    children = [checkpoint for checkpoint in found if checkpoint.parent]
    if not children:
        return
    parents = checkpoints.alias("parents")
    parent_id = (
        select(parents.c.id)
        .where(parents.c.run_id == run_id, parents.c.uuid == bindparam("parent"))
        .scalar_subquery()
    )
    statement = (
        update(checkpoints)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.uuid == bindparam("child"))
        # Without its parent here, a child is read again until that has come, to be linked then.
        .values(
            parent_id=parent_id,
            fingerprint=case((parent_id.is_not(None), checkpoints.c.fingerprint)),
        )
    )
    connection.execute(statement, [{"parent": cp.parent, "child": cp.uuid} for cp in children])


def _annotate(connection: Connection, run_id: int, uuid: str, found: Annotations) -> None:
    where = (checkpoints.c.run_id == run_id, checkpoints.c.uuid == uuid)
    row = connection.execute(select(checkpoints).where(*where)).first()
    if row is None:
        return  # of a checkpoint that nobody knows: it may come back
    marks = {"pinned": int(found.pinned), "notes": found.notes}
    connection.execute(update(checkpoints).where(checkpoints.c.id == row.id), marks)
    connection.execute(delete(tags).where(tags.c.checkpoint_id == row.id))
    if found.tags:
        named = [{"checkpoint_id": row.id, "name": n, "created_at": at} for n, at in found.tags]
        connection.execute(insert(tags), named)
    mine = metrics.c.checkpoint_id == row.id
    reported = metrics.c.name.in_([metric.name for metric in found.late])
    outdated = (metrics.c.source != TRAINING_INFO) | reported
    connection.execute(delete(metrics).where(mine, outdated))
    late = [
        {
            "checkpoint_id": row.id,
            "run_id": run_id,
            "step": row.step,
            "name": metric.name,
            "value": metric.value,
            "source": metric.source,
            "reported_at": metric.reported_at,
            "live": int(row.status == "final" and row.problem is None),
        }
        for metric in found.late
    ]
    if late:
        connection.execute(insert(metrics), late)


def _finish(connection: Connection, run_id: int, changes: Changes) -> None:
    this = runs.c.id == run_id
    if changes.config is not None and _is_newest(connection, run_id, changes.config_step):
        # Sorted, as a config.yaml is: what was passed and what is read back are one text.
        config = json.dumps(changes.config, sort_keys=True) if changes.config else None
        connection.execute(update(runs).where(this).values(config=config))
    elif any(checkpoint.status == "deleted" for checkpoint in changes.checkpoints):
        # It may have come from one of these; the next look at the directory finds it again.
        connection.execute(update(runs).where(this).values(config=None))
    if changes.seen is not None:
        stamp = {"stamp": changes.seen, "stamp_verified": int(changes.verified)}
        connection.execute(update(runs).where(this).values(stamp))
    elif changes.moved is not None:
        before, after = changes.moved
        # Compare and set: a change by anybody else in between must stay visible.
        statement = update(runs).where(this, runs.c.stamp == before)
        connection.execute(statement.values(stamp=after, stamp_verified=0))


def _is_newest(connection: Connection, run_id: int, step: int | None) -> bool:
    if step is None:
        return True
    newest = select(func.max(checkpoints.c.step)).where(checkpoints.c.run_id == run_id, _FINAL)
    return bool(connection.execute(newest).scalar() == step)
