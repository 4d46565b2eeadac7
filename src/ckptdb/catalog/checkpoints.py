"""Checkpoints in the catalog, as whole records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Select, bindparam, func, select

from ckptdb.catalog.clauses import (
    DELETED,
    FINAL,
    OF_RUN,
    OF_RUNS,
    TMP,
    TRUSTED,
    any_of,
    chunks,
    for_scope,
    parameters,
)
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, runs
from ckptdb.catalog.stored_checkpoints import WHOLE, load, select_records
from ckptdb.core.records import Checkpoint, Status

_BY_STATUS: Final = {"final": FINAL, "tmp": TMP, "deleted": DELETED}

BY_ID = WHOLE.where(checkpoints.c.id.in_(any_of("ids")))

NEWEST = WHOLE.where(TRUSTED).order_by(checkpoints.c.finalized_at.desc()).limit(bindparam("count"))

# First the few ids that are requested, then their rows: all of these runs may have to be sorted.
_NEWEST_IDS = (
    select(checkpoints.c.id)
    .where(OF_RUNS, TRUSTED)
    .order_by(checkpoints.c.finalized_at.desc())
    .limit(bindparam("count"))
)

NEWEST_OF_SOME = WHOLE.where(checkpoints.c.id.in_(_NEWEST_IDS)).order_by(
    checkpoints.c.finalized_at.desc()
)

NEWEST_OF_RUN = (
    WHOLE.where(OF_RUN, TRUSTED).order_by(checkpoints.c.step.desc()).limit(bindparam("count"))
)

COUNT_LIVE = select(func.count()).where(OF_RUN, TRUSTED)

COUNTS = select(
    select(func.count()).select_from(runs).scalar_subquery().label("runs"),
    select(func.count()).select_from(checkpoints).scalar_subquery().label("checkpoints"),
)

PINNED_GONE = select(checkpoints.c.uuid).where(OF_RUN, checkpoints.c.pinned == 1, DELETED)


@cache
def listing(
    status: Status | None, *, of_run: bool, at_steps: bool, limited: bool, among: bool = False
) -> Select[Any]:
    """Select whole checkpoints, the newest of each run first."""
    found = WHOLE.order_by(
        runs.c.name, checkpoints.c.run_id, checkpoints.c.step.desc(), checkpoints.c.id.desc()
    )
    if of_run:
        found = found.where(OF_RUN)
    if among:
        found = found.where(OF_RUNS)
    if status is not None:
        found = found.where(_BY_STATUS[status])
    if at_steps:
        found = found.where(checkpoints.c.step.in_(any_of("steps")))
    return found.limit(bindparam("count")) if limited else found


class CheckpointQueries:
    """Queries about checkpoints."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def list_all(
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
        given = parameters(run_id=run_id, among=among, steps=steps, count=limit)
        order = {"deleted": 0, "tmp": 1, "final": 2}
        # Python's sort is stable: within a run the newest insertion stays last.
        found = reversed(select_records(self._reader, statement, given))
        return tuple(sorted(found, key=lambda cp: (cp.run, cp.run_uuid, cp.step, order[cp.status])))

    def by_id(self, ids: Sequence[int]) -> dict[int, Checkpoint]:
        """Return records by row id, in the given order; ids without a row are left out."""
        with self._reader.database.read() as connection:
            found = {
                row_id: checkpoint
                for chunk in chunks(ids)
                for row_id, checkpoint in load(self._reader, connection, BY_ID, {"ids": chunk})
            }
        return {row_id: found[row_id] for row_id in ids if row_id in found}

    def newest(
        self, count: int, *, run_id: int | None = None, among: Sequence[int] | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return a run's trusted checkpoints with the highest steps, or the newest of runs."""
        statement = for_scope(run_id, among, one=NEWEST_OF_RUN, some=NEWEST_OF_SOME, every=NEWEST)
        given = parameters(run_id=run_id, among=among, count=count)
        return select_records(self._reader, statement, given)

    def count_live(self, run_id: int) -> int:
        """Return how many live, trusted checkpoints a run has."""
        return self._reader.number(COUNT_LIVE, {"run_id": run_id}) or 0

    def counts(self) -> tuple[int, int]:
        """Return how many runs and how many checkpoints there are, deleted ones included."""
        row = self._reader.rows(COUNTS)[0]
        return int(row.runs), int(row.checkpoints)

    def pinned_gone(self, run_id: int) -> tuple[str, ...]:
        """Return the uuids of pinned checkpoints that were deleted."""
        return self._reader.column(PINNED_GONE, {"run_id": run_id})
