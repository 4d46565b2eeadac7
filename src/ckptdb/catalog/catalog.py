"""Catalog: every read and write of a record.

One method, one statement or one transaction. Nothing here looks at a checkpoint directory:
what is true is decided elsewhere, from the disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Executable, Row, delete, func, select

from ckptdb.catalog import (
    candidates,
    driver,
    selection,
    store,
)
from ckptdb.catalog.engine import Database
from ckptdb.catalog.statements import (
    ADDED,
    ANCESTORS_OF_LIVE,
    BELONGINGS,
    BEST_STEP,
    BY_ID,
    COUNT_LIVE,
    COUNT_RANKED,
    COUNT_UNLINKED,
    COUNTS,
    DELETE_RUN,
    EVER_FINITE_OF_RUN,
    GONE_BY_UUID,
    HAS_METRIC,
    HAS_METRIC_AMONG,
    HAS_METRIC_OF_RUN,
    HISTORY,
    LATEST_STEP,
    LINE,
    LINE_MEMBERS,
    LIVE,
    LIVE_AT_STEPS,
    METRIC_NAMES,
    METRIC_NAMES_AMONG,
    METRIC_NAMES_OF_RUN,
    MISTAKEN,
    NEWEST,
    NEWEST_AMONG,
    NEWEST_OF_RUN,
    NEWEST_STEPS,
    OWN_METRICS,
    OWN_METRICS_AMONG,
    PINNED_GONE,
    PLACES,
    PLACES_OUTSIDE,
    RESUMED,
    RUN_BY_UUID,
    RUNS,
    RUNS_AMONG,
    RUNS_AT,
    RUNS_CALLED,
    STRAYS,
    TOP_STEPS,
    UNLINK_STRAYS,
    UNRANKED,
    best_of_runs,
    chunks,
    listing,
    ranking,
)
from ckptdb.catalog.store import Changes
from ckptdb.catalog.stored_paths import Paths, readable, storable
from ckptdb.core import conditions
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.metrics import TRAINING_INFO, Metric
from ckptdb.core.ranking import Mode
from ckptdb.core.recorded import IndexedRun, RecordedEnd, RecordedRun, Unranked
from ckptdb.core.records import (
    STATUSES,
    Ancestor,
    Annotations,
    Checkpoint,
    CheckpointProblem,
    LineMember,
    Resumption,
    Run,
    Status,
    is_derived,
)
from ckptdb.core.text import is_storable
from ckptdb.errors import CatalogBroken

_Said = tuple[bool, str | None, str | None]
"""Whether a checkpoint is pinned, its notes, and why it was rejected."""
_Value = tuple[str, float | None, str, str]
"""A metric's name, value, source and when it was reported."""


class Catalog:
    """Runs and checkpoints in a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._paths = Paths(database.location.base)

    # --- runs ---------------------------------------------------------------------------

    def runs(self, *, among: Sequence[int] | None = None) -> tuple[IndexedRun, ...]:
        """Return every run, or those with certain ids, by name."""
        statement = RUNS if among is None else RUNS_AMONG
        return tuple(self._seen(row) for row in self._rows(statement, _given(among=among)))

    def places(self, *, perhaps_outside: bool = False) -> dict[int, Path]:
        """Return where each run was seen last, by its id.

        Args:
            perhaps_outside: Only of those that may not be below the root.
        """
        statement = PLACES_OUTSIDE if perhaps_outside else PLACES
        return {row.id: self._absolute(row.directory) for row in self._rows(statement)}

    def find_run(self, uuid: str) -> IndexedRun | None:
        """Return the run with that uuid."""
        rows = self._rows(RUN_BY_UUID, {"uuid": uuid})
        return self._seen(rows[0]) if rows else None

    def find_run_at(self, directory: Path) -> IndexedRun | None:
        """Return the run last seen in that directory."""
        rows = self._rows(RUNS_AT, {"at": self._paths.stored(directory)})
        return self._seen(rows[0]) if rows else None

    def find_runs_called(self, name: str, directories: Sequence[Path]) -> tuple[IndexedRun, ...]:
        """Return the runs with that name or in one of some directories, by name."""
        stored = [self._paths.stored(directory) for directory in directories]
        called = {"name": storable(name), "places": stored}
        return tuple(self._seen(row) for row in self._rows(RUNS_CALLED, called))

    def own_metrics(self, *, among: Sequence[int] | None = None) -> set[tuple[str, Mode]]:
        """Return the metrics that runs, all or some, are judged by, with their directions."""
        statement = OWN_METRICS if among is None else OWN_METRICS_AMONG
        rows = self._rows(statement, _given(among=among))
        return {(row.metric_name, "max" if row.higher_is_better else "min") for row in rows}

    def forget(self, run_id: int) -> None:
        """Drop a run and everything recorded of it from the index."""
        with self.database.write() as connection:
            connection.execute(DELETE_RUN, {"row_id": run_id})

    # --- questions ----------------------------------------------------------------------

    def find_best_step(self, run_id: int, metric: str, mode: Mode) -> int | None:
        """Return the step with the best finite value of a run; ties go to the higher step."""
        return self._number(BEST_STEP[mode], {"run_id": run_id, "name": metric})

    def top_steps(self, run_id: int, metric: str, mode: Mode, count: int) -> tuple[int, ...]:
        """Return the steps of a run with the best finite values, the best first."""
        asked = {"run_id": run_id, "name": metric, "count": count}
        return self._column(TOP_STEPS[mode], asked)

    def find_latest_step(self, run_id: int) -> int | None:
        """Return the highest step of a run's trusted checkpoints."""
        return self._number(LATEST_STEP, {"run_id": run_id})

    def steps_without(self, run_id: int, metric: str) -> tuple[int, ...]:
        """Return the steps of live checkpoints that lack a finite value of a metric, ascending."""
        found = self.find_unranked(run_id, metric)
        return tuple(sorted((*found.lacking, *found.not_finite)))

    def find_unranked(self, run_id: int, metric: str) -> Unranked:
        """Return which live checkpoints of a run are not ranked by a metric, and why."""
        with self.database.read() as connection:
            asked = {"run_id": run_id, "name": metric}
            rows = [(row[0], row[1]) for row in driver.ask(connection, UNRANKED, asked)]
        return Unranked(
            tuple(step for step, has_it in rows if not has_it),
            tuple(step for step, has_it in rows if has_it),
        )

    def was_ever_finite(self, run_id: int, metric: str) -> bool:
        """Tell whether a checkpoint of a run, be it gone, ever had a finite value of a metric."""
        return self._is_so(EVER_FINITE_OF_RUN, {"run_id": run_id, "name": metric})

    def candidates(self, run_id: int, wanted: Wanted) -> tuple[Candidate, ...]:
        """Return a run's live, trusted checkpoints by step, as retention sees them."""
        # Each on a connection of its own, confined: it is somebody else's SQL.
        matches = self.matching(run_id, wanted.conditions)
        with self.database.read() as connection:
            return candidates.find(connection, run_id, wanted, matches)

    def matching(
        self, run_id: int, texts: Iterable[str], *, ever: bool = False
    ) -> dict[str, frozenset[str]]:
        """Return by condition the uuids of a run's trusted checkpoints for which it holds.

        Args:
            run_id: The run.
            texts: The conditions.
            ever: Also of what is gone.

        Raises:
            InvalidCondition: One makes no sense to the database, or takes too long.
        """
        return {
            text: selection.matching(self.database, run_id, conditions.parse(text), ever=ever)
            for text in texts
        }

    def count_ranked(self, run_id: int, metric: str) -> int:
        """Return how many live, trusted checkpoints of a run have a finite value of a metric."""
        return self._number(COUNT_RANKED, {"run_id": run_id, "name": metric}) or 0

    def below(self, run_id: int, metric: str, mode: Mode, best: int) -> tuple[Candidate, ...]:
        """Return what of a run ranks below its ``best`` best checkpoints, the worst first."""
        with self.database.read() as connection:
            return candidates.find_below(connection, run_id, metric, mode, best)

    def newest_steps(self, run_id: int, count: int) -> tuple[int, ...]:
        """Return the highest steps of a run's trusted checkpoints, the highest first."""
        return self._column(NEWEST_STEPS, {"run_id": run_id, "count": count})

    def counts(self) -> tuple[int, int]:
        """Return how many runs and how many checkpoints there are, gone ones included."""
        with self.database.read() as connection:
            row = connection.execute(COUNTS).one()
        return int(row.runs), int(row.checkpoints)

    def count_live(self, run_id: int) -> int:
        """Return how many live, trusted checkpoints a run has."""
        return self._number(COUNT_LIVE, {"run_id": run_id}) or 0

    def top(
        self,
        count: int,
        metric: str,
        mode: Mode,
        *,
        run_id: int | None = None,
        among: Sequence[int] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the live checkpoints with the best finite values, best first.

        Args:
            count: At most so many.
            metric: What they are ranked by.
            mode: Its direction.
            run_id: Only of this run.
            among: Only of these runs.
        """
        statement = ranking(mode, of_run=run_id is not None, among=among is not None)
        parameters = _given(name=metric, count=count, run_id=run_id, among=among)
        with self.database.read() as connection:
            found = self._load(connection, statement, parameters)
        return tuple(checkpoint for _, checkpoint in found)

    def chosen(self, ids: Sequence[int]) -> dict[int, Checkpoint]:
        """Return whole records by the ids of their rows, in that order, of those that exist."""
        with self.database.read() as connection:
            found = {
                row_id: checkpoint
                for chunk in chunks(ids)
                for row_id, checkpoint in self._load(connection, BY_ID, {"ids": chunk})
            }
        return {row_id: found[row_id] for row_id in ids if row_id in found}

    def best_of_runs(
        self,
        metric: str | None = None,
        mode: Mode | None = None,
        *,
        among: Sequence[int] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the best live checkpoint of each run that has one, by the run's name.

        Args:
            metric: None for each run's own; of a run without one the best is the latest.
            mode: None for the direction that each run gives its own metric.
            among: Only of these runs.
        """
        statement = best_of_runs(mode, of_metric=metric is not None, among=among is not None)
        with self.database.read() as connection:
            found = self._load(connection, statement, _given(name=metric, among=among))
        return tuple(checkpoint for _, checkpoint in found)

    def checkpoints(
        self,
        *,
        run_id: int | None = None,
        among: Sequence[int] | None = None,
        status: Status | None = None,
        steps: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return checkpoints by run and step; of one step, the live one last.

        Args:
            run_id: Only of this run.
            among: Only of these runs.
            status: Only with this status.
            steps: Only at these steps.
            limit: At most so many, the newest steps.
        """
        statement = listing(
            status,
            of_run=run_id is not None,
            among=among is not None,
            at_steps=steps is not None,
            limited=limit is not None,
        )
        parameters = _given(run_id=run_id, among=among, steps=steps, count=limit)
        with self.database.read() as connection:
            found = [cp for _, cp in self._load(connection, statement, parameters)]
        order = {"deleted": 0, "tmp": 1, "final": 2}
        # Python's sort is stable: within a run the newest insertion stays last.
        found.reverse()
        found.sort(key=lambda cp: (cp.run, cp.run_uuid, cp.step, order[cp.status]))
        return tuple(found)

    def newest(
        self, count: int, *, run_id: int | None = None, among: Sequence[int] | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return a run's trusted checkpoints with the highest steps, or the newest of runs."""
        statement = _of(run_id, among, NEWEST_OF_RUN, NEWEST_AMONG, NEWEST)
        asked = _given(run_id=run_id, among=among, count=count)
        with self.database.read() as connection:
            found = self._load(connection, statement, asked)
        return tuple(checkpoint for _, checkpoint in found)

    def metric_names(
        self, run_id: int | None = None, *, among: Sequence[int] | None = None
    ) -> tuple[str, ...]:
        """Return the names of all metrics ever seen, of one run, some or all, sorted."""
        statement = _of(run_id, among, METRIC_NAMES_OF_RUN, METRIC_NAMES_AMONG, METRIC_NAMES)
        found = self._rows(statement, _given(run_id=run_id, among=among))
        # A damaged catalog may hold a name of any type.
        return tuple(row.name for row in found if isinstance(row.name, str))

    def find_unknown_metric(
        self,
        names: Iterable[str],
        run_id: int | None = None,
        *,
        among: Sequence[int] | None = None,
    ) -> str | None:
        """Return the first metric that no checkpoint, of one run, some or all, has ever had."""
        statement = _of(run_id, among, HAS_METRIC_OF_RUN, HAS_METRIC_AMONG, HAS_METRIC)
        for name in names:
            asked = _given(name=name, run_id=run_id, among=among)
            if not (is_storable(name) and self._is_so(statement, asked)):
                return name
        return None

    def pinned_gone(self, run_id: int) -> tuple[str, ...]:
        """Return the uuids of pinned checkpoints that are no longer published."""
        return self._column(PINNED_GONE, {"run_id": run_id})

    # --- lineage ------------------------------------------------------------------------

    def resumed(self, run_id: int) -> tuple[tuple[str, str], ...]:
        """Return uuid and time of each time that training continued from a checkpoint, by time."""
        return tuple((row.uuid, row.resumed_at) for row in self._rows(RESUMED, {"run_id": run_id}))

    def lineage(self, run_id: int, uuid: str) -> tuple[Ancestor, ...]:
        """Return a checkpoint of a run and its ancestors, the nearest first."""
        rows = {row.id: row for row in self._rows(LINE, {"run_id": run_id, "uuid": uuid})}
        row = next((row for row in rows.values() if row.uuid == uuid), None)
        line = []
        while row is not None:
            line.append(_ancestor(row))
            # Taken out, so that a circle has an end.
            del rows[row.id]
            row = rows.get(row.parent_id)
        return tuple(line)

    def ancestors_of_live(self, run_id: int) -> frozenset[str]:
        """Return the uuids of what the published checkpoints of a run descend from."""
        return frozenset(row.uuid for row in self._rows(ANCESTORS_OF_LIVE, {"run_id": run_id}))

    def line_members(self, run_id: int) -> tuple[LineMember, ...]:
        """Return every checkpoint of a run that was ever published, as members of lines."""
        with (
            self.database.read() as connection,
            _tuples(connection, LINE_MEMBERS, {"run_id": run_id}) as rows,
        ):
            return tuple(self._line_member(row) for row in rows)

    # --- reconciling --------------------------------------------------------------------

    def recorded(self, seen: IndexedRun | None, *, history: bool) -> RecordedRun:
        """Return what the index holds of a run.

        Args:
            seen: From `find_run`; None for a run that the index does not know.
            history: Also what is gone, and annotations; needed when the journal has grown.
        """
        if seen is None:
            return RecordedRun(indexed=None)
        of_run = {"run_id": seen.id}
        finals: dict[int, tuple[str, str | None]] = {}
        problems: dict[str, CheckpointProblem] = {}
        tmps: dict[str, int] = {}
        gone: dict[str, RecordedEnd] = {}
        said: dict[str, _Said] = {}
        with (
            self.database.read() as connection,
            # In one statement, so that nothing is both live and gone.
            _tuples(connection, HISTORY if history else LIVE, of_run) as rows,
        ):
            for (
                step, uuid, status, fingerprint, problem, problem_kind,
                at, kind, why, pinned, notes, rejected, parent,
            ) in rows:  # fmt: skip
                if type(step) is not int:
                    raise self._broken("a step that is no number")
                if status == "final":
                    finals[step] = (uuid, fingerprint)
                    if problem is not None:
                        problems[uuid] = CheckpointProblem(problem_kind, problem)
                elif status == "tmp":
                    tmps[uuid] = step
                # A damaged index may name what is gone where only live rows were asked for.
                elif history and status == "deleted":
                    gone[uuid] = RecordedEnd(at, kind, why, parent)
                if pinned or notes is not None or rejected is not None:
                    said[uuid] = (bool(pinned), notes, rejected)
            added = connection.execute(ADDED, of_run).all() if history else []
        if not all(
            isinstance(value, int | float | None) for _, _, _, value, _, _ in map(tuple, added)
        ):
            raise self._broken("a number that is none")
        return RecordedRun(
            indexed=seen,
            finals=finals,
            problems=problems,
            tmps=tmps,
            gone=gone,
            annotations=_annotations(said, added),
        )

    def find_inconsistent(self, run_id: int) -> dict[str, int]:
        """Return uuid and step of what `RecordedRun.inconsistent`."""
        return {row.uuid: row.step for row in self._rows(MISTAKEN, {"run_id": run_id})}

    def contents(
        self, run_id: int, *, steps: Collection[int], gone: Collection[str]
    ) -> dict[str, Checkpoint]:
        """Return whole records of a run by uuid: those live at some steps, and some that went."""
        wanted: list[tuple[Executable, dict[str, Any]]] = [
            *((LIVE_AT_STEPS, {"run_id": run_id, "steps": chunk}) for chunk in chunks(steps)),
            *((GONE_BY_UUID, {"run_id": run_id, "uuids": chunk}) for chunk in chunks(gone)),
        ]
        if not wanted:
            return {}
        with self.database.read() as connection:
            return {
                checkpoint.uuid: checkpoint
                for statement, parameters in wanted
                for _, checkpoint in self._load(connection, statement, parameters, as_stored=True)
            }

    def count_strays(self) -> int:
        """Return how many rows belong to no run or checkpoint that there is."""
        counts = (select(func.count()).select_from(t).where(stray) for t, stray in STRAYS)
        return sum(self._rows(count)[0][0] for count in (*counts, COUNT_UNLINKED))

    # --- changes ------------------------------------------------------------------------

    def remove_strays(self) -> None:
        """Remove the rows that belong to no run or checkpoint that there is."""
        with self.database.write() as connection:
            for table, stray in STRAYS:
                connection.execute(delete(table).where(stray))
            connection.execute(UNLINK_STRAYS)

    def apply(self, changes: Changes, *, timeout_seconds: float | None = None) -> int:
        """Store changes of one run in one transaction; return the run's id.

        Raises:
            IndexStale: The index has another live checkpoint where one is to be stored.
        """
        with self.database.write(timeout_seconds=timeout_seconds) as connection:
            return store.apply(connection, self._paths, changes)

    # --- rows → records -----------------------------------------------------------------

    def _rows(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        with self.database.read() as connection:
            return connection.execute(statement, parameters).all()

    def _is_so(self, statement: Executable, parameters: Mapping[str, Any]) -> bool:
        if "among" in parameters:  # which SQLAlchemy writes into the text
            return bool(self._rows(statement, parameters)[0][0])
        return bool(self._number(statement, parameters))

    def _number(self, statement: Executable, parameters: Mapping[str, Any]) -> int | None:
        found = self._column(statement, parameters)
        return int(found[0]) if found and found[0] is not None else None

    def _column(self, statement: Executable, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        with self.database.read() as connection:
            return tuple(row[0] for row in driver.ask(connection, statement, parameters))

    def _seen(self, row: Row[Any]) -> IndexedRun:
        if not (isinstance(row.uuid, str) and isinstance(row.directory, str)):
            raise self._broken("a run without a name")
        run = Run(
            uuid=row.uuid,
            name=readable(row.name),
            directory=self._absolute(row.directory),
            created_at=row.created_at,
            metric_name=row.metric_name,
            higher_is_better=bool(row.higher_is_better),
            forked_from=row.forked_from,
            config=None if row.config is None else self._json(row.config),
        )
        return IndexedRun(row.id, run, row.stamp, bool(row.stamp_verified))

    def _load(
        self,
        connection: Connection,
        statement: Executable,
        parameters: Mapping[str, Any],
        *,
        as_stored: bool = False,
    ) -> list[tuple[int, Checkpoint]]:
        """Return records by the ids of their rows.

        Args:
            connection: To the catalog.
            statement: Selects them.
            parameters: Of the statement.
            as_stored: With the path that is stored, to be compared; else with the one that run and
                step make, for a stored one may lead anywhere.
        """
        rows = connection.execute(statement, parameters).all()
        values: dict[int, list[_Value]] = {}
        marks: dict[int, list[str]] = {}
        for chunk in chunks([row.id for row in rows]):
            # Fetched at once and taken apart by position: there are many a checkpoint.
            found = connection.execute(BELONGINGS, {"ids": chunk}).all()
            for row_id, name, value, source, at in found:
                if source is None:
                    marks.setdefault(row_id, []).append(name)
                else:
                    values.setdefault(row_id, []).append((name, value, source, at))
        return [
            (
                row.id,
                self._checkpoint(
                    row,
                    row.path if as_stored else _path(row),
                    values.get(row.id, ()),
                    marks.get(row.id, ()),
                ),
            )
            for row in rows
        ]

    def _checkpoint(
        self, row: Row[Any], path: object, values: Sequence[_Value], marks: Sequence[str]
    ) -> Checkpoint:
        if not (isinstance(row.step, int) and isinstance(path, str)):
            raise self._broken("a step that is no number")
        if row.status not in STATUSES:
            raise self._broken(f"the status {row.status!r}")
        return Checkpoint(
            run_uuid=row.run_uuid,
            run=readable(row.run),
            uuid=row.uuid,
            step=row.step,
            path=self._absolute(path),
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
            tags=tuple(marks),
            problem=row.problem,
            problem_kind=row.problem_kind,
            rejected=row.rejected,
            info=self._json(row.info),
            metrics={name: value for name, value, _, _ in values},
            late={value[0]: Metric(*value) for value in values if value[2] != TRAINING_INFO},
            fingerprint=row.fingerprint,
        )

    def _line_member(self, row: tuple[Any, ...]) -> LineMember:
        row_id, uuid, step, parent_id, created_at, finalized_at, status, doubted, kind = row
        if type(step) is not int or not isinstance(uuid, str):
            raise self._broken("a step that is no number")
        is_live = status == "final"
        return LineMember(
            id=row_id,
            uuid=uuid,
            step=step,
            parent_id=parent_id,
            created_at=created_at,
            finalized_at=finalized_at,
            is_live=is_live,
            is_trusted=is_live and not doubted,
            has_manifest=not is_derived(uuid),
            is_replaced=status == "deleted" and kind == "replaced",
        )

    def _json(self, text: str) -> dict[str, Any]:
        # SQLite has no checksums: flipped bits come back as text of another kind.
        try:
            content = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._broken("JSON that is none") from error
        if not isinstance(content, dict):
            raise self._broken("JSON of another kind")
        return content

    def _absolute(self, stored: str) -> Path:
        if "\0" in stored:
            raise self._broken("a path that none can be")
        return self._paths.absolute(stored)

    def _broken(self, what: str) -> CatalogBroken:
        return CatalogBroken(str(self.database.location), f"it holds {what}")


def _path(row: Row[Any]) -> str:
    prefix = "tmp_" if row.status == "tmp" else ""
    return f"{row.run_directory}/{prefix}step_{row.step}"


def _ancestor(row: Row[Any]) -> Ancestor:
    return Ancestor(**{name: getattr(row, name) for name in Ancestor.__slots__})


def _of(
    run_id: int | None,
    among: Sequence[int] | None,
    one: Executable,
    some: Executable,
    every: Executable,
) -> Executable:
    """Return the statement for one run, for some, or for all."""
    if run_id is not None:
        return one
    return every if among is None else some


def _given(**parameters: object) -> dict[str, object]:
    return {name: value for name, value in parameters.items() if value is not None}


@contextmanager
def _tuples(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any]
) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Give rows as the driver has them, one by one: there may be a hundred thousand."""
    with closing(connection.execute(statement, parameters)) as result:
        yield cast("Iterable[tuple[Any, ...]]", cast("CursorResult[Any]", result).cursor)


def _annotations(said: Mapping[str, _Said], added: Sequence[Row[Any]]) -> dict[str, Annotations]:
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
        for uuid in {*said, *names, *values, *resumed}
        for pinned, notes, rejected in (said.get(uuid, (False, None, None)),)
    }
