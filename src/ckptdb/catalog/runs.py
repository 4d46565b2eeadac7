"""Runs in the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, or_, select

from ckptdb.catalog import query
from ckptdb.catalog.clauses import AMONG, any_of, id_list, parameters
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import runs
from ckptdb.catalog.stored_paths import readable, storable
from ckptdb.core.ranking import Mode
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Run
from ckptdb.core.rows import Rows

ALL = select(runs).order_by(runs.c.name, runs.c.directory)

SOME = ALL.where(runs.c.id.in_(AMONG))

BY_UUID = select(runs).where(runs.c.uuid == bindparam("uuid"))

BY_DIRECTORY = select(runs).where(runs.c.directory == bindparam("at")).order_by(runs.c.id.desc())

# A person's name for a run, without reading every run with its configuration.
NAMED = ALL.where(or_(runs.c.directory.in_(any_of("places")), runs.c.name == bindparam("name")))

DIRECTORIES = select(runs.c.id, runs.c.directory).order_by(runs.c.id)

# Paths that may lead out of the root: few, if any.
DIRECTORIES_OUTSIDE = DIRECTORIES.where(
    or_(runs.c.directory.like("/%"), runs.c.directory.like("%..%"))
)

OWN_METRICS = (
    select(runs.c.metric_name, runs.c.higher_is_better)
    .where(runs.c.metric_name.is_not(None))
    .distinct()
)

OWN_METRICS_OF_SOME = OWN_METRICS.where(runs.c.id.in_(AMONG))

DELETE = delete(runs).where(runs.c.id == bindparam("row_id"))

_SUMMARY: Final = """
SELECT run, final, tmp, deleted, problems, bytes_on_disk, metric_name, best_value, best_step,
       latest_step, last_activity, directory, uuid
FROM run_summary {0} ORDER BY run, directory
"""


class RunQueries:
    """Queries about runs."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def list_all(self, *, among: Sequence[int] | None = None) -> tuple[IndexedRun, ...]:
        """Return every run, or those with certain ids, by name."""
        statement = ALL if among is None else SOME
        rows = self._reader.rows(statement, parameters(among=among))
        return tuple(self._indexed(row) for row in rows)

    def directories(self, *, perhaps_outside: bool = False) -> dict[int, Path]:
        """Return the last known directory of each run, by the run's id.

        Args:
            perhaps_outside: Only of those that may not be below the root.
        """
        rows = self._reader.rows(DIRECTORIES_OUTSIDE if perhaps_outside else DIRECTORIES)
        return {row.id: self._reader.absolute(row.directory) for row in rows}

    def find(self, uuid: str) -> IndexedRun | None:
        """Return the run with that uuid."""
        rows = self._reader.rows(BY_UUID, {"uuid": uuid})
        return self._indexed(rows[0]) if rows else None

    def find_at(self, directory: Path) -> IndexedRun | None:
        """Return the run that was last seen in that directory."""
        rows = self._reader.rows(BY_DIRECTORY, {"at": self._reader.paths.stored(directory)})
        return self._indexed(rows[0]) if rows else None

    def find_named(self, name: str, directories: Sequence[Path]) -> tuple[IndexedRun, ...]:
        """Return the runs with that name or in one of some directories, by name."""
        stored = [self._reader.paths.stored(directory) for directory in directories]
        rows = self._reader.rows(NAMED, {"name": storable(name), "places": stored})
        return tuple(self._indexed(row) for row in rows)

    def own_metrics(self, *, among: Sequence[int] | None = None) -> set[tuple[str, Mode]]:
        """Return the metrics that runs, all or some, are judged by, with their directions."""
        statement = OWN_METRICS if among is None else OWN_METRICS_OF_SOME
        rows = self._reader.rows(statement, parameters(among=among))
        return {(row.metric_name, "max" if row.higher_is_better else "min") for row in rows}

    def summary(self, *, among: Sequence[int] | None = None) -> Rows:
        """Return the rows of the view ``run_summary``, of all runs or of some."""
        chosen = "" if among is None else f"WHERE run_id IN ({id_list(among)})"
        return query.run(self._reader.database, _SUMMARY.format(chosen), limit=None)

    def delete(self, run_id: int) -> None:
        """Delete a run and everything recorded of it from the index."""
        with self._reader.database.write() as connection:
            connection.execute(DELETE, {"row_id": run_id})

    def _indexed(self, row: Row[Any]) -> IndexedRun:
        reader = self._reader
        if not (isinstance(row.uuid, str) and isinstance(row.directory, str)):
            raise reader.broken("a run without a name")
        run = Run(
            uuid=row.uuid,
            name=readable(row.name),
            directory=reader.absolute(row.directory),
            created_at=row.created_at,
            metric_name=row.metric_name,
            higher_is_better=bool(row.higher_is_better),
            forked_from=row.forked_from,
            config=None if row.config is None else reader.json(row.config),
        )
        return IndexedRun(row.id, run, row.stamp, bool(row.stamp_verified))
