"""Changes of a run's row: inserted, updated, moved, or ended by another run in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Text,
    bindparam,
    case,
    cast,
    func,
    insert,
    update,
)

from ckptdb.catalog import driver, runs
from ckptdb.catalog.clauses import NOT_DELETED, TMP
from ckptdb.catalog.schema import checkpoints, metrics
from ckptdb.catalog.schema import runs as run_table
from ckptdb.catalog.stored_paths import Paths, storable
from ckptdb.core.records import Run

# The columns that a change may have to update.
FIND = """
    SELECT id, uuid, name, directory, created_at, metric_name, higher_is_better, forked_from
    FROM runs WHERE uuid = ?
"""

INSERT = insert(run_table)

# No parameter may have the name of a column that is set: hence `row_id` and `of_run`.
UPDATE = update(run_table).where(run_table.c.id == bindparam("row_id"))

END_CHECKPOINTS = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"), NOT_DELETED)
    .values(
        status="deleted",
        deleted_at=func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at),
        deleted_reason="vanished: another run took its directory",
        deleted_kind="displaced",
    )
)

END_RANKING = update(metrics).where(metrics.c.run_id == bindparam("of_run")).values(live=0)

# As a directory and a step make it: the stored path may be anything.
MOVE_PATHS = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"))
    .values(
        path=bindparam("after", type_=Text)
        + case((TMP, "tmp_step_"), else_="step_")
        + cast(checkpoints.c.step, Text)
    )
)


def store_run(connection: Connection, paths: Paths, run: Run) -> int:
    """Insert or update a run; return its id."""
    values = {
        "uuid": run.uuid,
        "name": storable(run.name),
        "directory": paths.stored(run.directory),
        "created_at": run.created_at,
        "metric_name": run.metric_name,
        "higher_is_better": int(run.higher_is_better),
        "forked_from": run.forked_from,
    }
    found = driver.send(connection, FIND, (run.uuid,)).fetchone()
    if found is not None:
        row_id, known = found[0], dict(zip(values, found[1:], strict=True))
    elif (original := _end_or_take_over(connection, values)) is not None:
        row_id, known = original.id, {key: getattr(original, key) for key in values}
    else:
        inserted: Any = connection.execute(INSERT, values)
        return int(inserted.inserted_primary_key[0])
    changed = {key: value for key, value in values.items() if known[key] != value}
    if changed:
        connection.execute(UPDATE, {"row_id": row_id, **changed})
    if "directory" in changed:
        _end_others(connection, str(values["directory"]), row_id)
        _move_paths(connection, row_id, str(values["directory"]))
    return int(row_id)


def _end_or_take_over(connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
    """End the other runs that the index has in a directory; return the row of a run's original.

    When a tree was copied, catalog included, the row of the original has always been about
    the copy: the new run takes it over.
    """
    rows = connection.execute(runs.BY_DIRECTORY, {"at": values["directory"]}).all()
    original = next((row for row in reversed(rows) if row.uuid == values["forked_from"]), None)
    for row in rows:
        if row is original:
            continue
        if row.created_at is None:
            # Never written to: all that is known of it is in this directory, under its new uuid.
            connection.execute(runs.DELETE, {"row_id": row.id})
        else:
            _end(connection, row.id)
    return original


def _end_others(connection: Connection, directory: str, run_id: int) -> None:
    """Record that the other runs of a directory are gone from it."""
    for row in connection.execute(runs.BY_DIRECTORY, {"at": directory}).all():
        if row.id != run_id:
            _end(connection, row.id)


def _end(connection: Connection, run_id: int) -> None:
    connection.execute(END_CHECKPOINTS, {"of_run": run_id})
    connection.execute(END_RANKING, {"of_run": run_id})


def _move_paths(connection: Connection, run_id: int, directory: str) -> None:
    # A run that is its own root has the directory "." and paths without it.
    after = "" if directory == "." else f"{directory}/"
    connection.execute(MOVE_PATHS, {"of_run": run_id, "after": after})
