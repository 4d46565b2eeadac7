"""Whole records of checkpoints: their columns, and how rows become records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Executable, Row, null, select, union_all

from ckptdb.catalog.clauses import any_of, chunks
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, metrics, runs, tags
from ckptdb.catalog.stored_paths import readable
from ckptdb.core.metrics import TRAINING_INFO, Metric
from ckptdb.core.records import STATUSES, Checkpoint

_MetricRow = tuple[str, float | None, str, str]
"""Name, value, source and time of a metric; not yet a record, because a listing has very many."""

PARENTS = checkpoints.alias("parents")

PARENT_UUID = (
    select(PARENTS.c.uuid).where(PARENTS.c.id == checkpoints.c.parent_id).scalar_subquery()
)

WHOLE = select(
    checkpoints,
    runs.c.name.label("run"),
    runs.c.uuid.label("run_uuid"),
    runs.c.directory.label("run_directory"),
    PARENT_UUID.label("parent"),
).join_from(checkpoints, runs)

# Metrics and, without a source, tags.
BELONGINGS = union_all(
    select(
        metrics.c.checkpoint_id, metrics.c.name, metrics.c.value, metrics.c.source,
        metrics.c.reported_at,
    ).where(metrics.c.checkpoint_id.in_(any_of("ids"))),
    select(tags.c.checkpoint_id, tags.c.name, null(), null(), tags.c.created_at).where(
        tags.c.checkpoint_id.in_(any_of("ids"))
    ),
).order_by("name")  # fmt: skip


def select_records(
    reader: CatalogReader, statement: Executable, parameters: Mapping[str, Any]
) -> tuple[Checkpoint, ...]:
    """Return the records that a statement selects, as `load` does."""
    with reader.database.read() as connection:
        return tuple(cp for _, cp in load(reader, connection, statement, parameters))


def load(
    reader: CatalogReader,
    connection: Connection,
    statement: Executable,
    parameters: Mapping[str, Any],
    *,
    as_stored: bool = False,
) -> list[tuple[int, Checkpoint]]:
    """Return records with the ids of their rows.

    Args:
        reader: Of the catalog.
        connection: To it.
        statement: Selects the columns of `WHOLE`.
        parameters: Of the statement.
        as_stored: With the path that is stored, to be compared; else with the one that run and
            step make, for a stored one may lead anywhere.
    """
    rows = connection.execute(statement, parameters).all()
    values: dict[int, list[_MetricRow]] = {}
    names: dict[int, list[str]] = {}
    for chunk in chunks([row.id for row in rows]):
        # Fetched at once and taken apart by position: each checkpoint has many.
        found = connection.execute(BELONGINGS, {"ids": chunk}).all()
        for row_id, name, value, source, at in found:
            if source is None:
                names.setdefault(row_id, []).append(name)
            else:
                values.setdefault(row_id, []).append((name, value, source, at))
    return [
        (
            row.id,
            _record(
                reader,
                row,
                row.path if as_stored else _path(row),
                values.get(row.id, ()),
                tuple(names.get(row.id, ())),
            ),
        )
        for row in rows
    ]


def _record(
    reader: CatalogReader,
    row: Row[Any],
    path: object,
    values: Sequence[_MetricRow],
    tag_names: tuple[str, ...],
) -> Checkpoint:
    if not (isinstance(row.step, int) and isinstance(path, str)):
        raise reader.broken("a step that is no number")
    if row.status not in STATUSES:
        raise reader.broken(f"the status {row.status!r}")
    return Checkpoint(
        run_uuid=row.run_uuid,
        run=readable(row.run),
        uuid=row.uuid,
        step=row.step,
        path=reader.absolute(path),
        status=row.status,
        created_at=row.created_at,
        finalized_at=row.finalized_at,
        deleted_at=row.deleted_at,
        deleted_reason=row.deleted_reason,
        deleted_kind=row.deleted_kind,
        size_bytes=row.size_bytes,
        file_count=row.file_count,
        parent=row.parent,
        pinned=bool(row.pinned),
        notes=row.notes,
        tags=tag_names,
        problem=row.problem,
        problem_kind=row.problem_kind,
        rejected=row.rejected,
        info=reader.json(row.info),
        metrics={name: value for name, value, _, _ in values},
        late={row[0]: Metric(*row) for row in values if row[2] != TRAINING_INFO},
        fingerprint=row.fingerprint,
    )


def _path(row: Row[Any]) -> str:
    prefix = "tmp_" if row.status == "tmp" else ""
    return f"{row.run_directory}/{prefix}step_{row.step}"
