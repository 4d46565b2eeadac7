"""Rankings of every day: best, top-k and latest among the live checkpoints.

Rankings with conditions, ties or history are in `selection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, case, exists, func, literal_column, select, text

from ckptdb.catalog import driver, trust
from ckptdb.catalog.clauses import (
    AMONG,
    OF_RUN,
    RANKED,
    RANKED_OF_RUN,
    TRUSTED,
    best_first,
    parameters,
)
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, metrics, runs
from ckptdb.catalog.stored_checkpoints import WHOLE, select_records
from ckptdb.core.ranking import Mode
from ckptdb.core.recorded import Unranked
from ckptdb.core.records import Checkpoint

LATEST_STEP = (
    select(checkpoints.c.step)
    .where(OF_RUN, TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(literal_column("1"))
)

NEWEST_STEPS = (
    select(checkpoints.c.step)
    .where(OF_RUN, TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(bindparam("count"))
)

COUNT_RANKED = select(func.count()).where(RANKED_OF_RUN)

# Checkpoints that lack a metric, and those that have it without a finite value.
UNRANKED = (
    select(
        checkpoints.c.step,
        exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name")
        ),
    )
    .where(OF_RUN, TRUSTED)
    .where(
        ~exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id,
            metrics.c.name == bindparam("name"),
            metrics.c.value.is_not(None),
        )
    )
    .order_by(checkpoints.c.step)
)


def _best_step(mode: Mode) -> Select[Any]:
    # The value first, at one end of the index, then the highest step with it at another: in one
    # ORDER BY the lowest of many equal values would cost a look at all of them.
    best = func.min(metrics.c.value) if mode == "min" else func.max(metrics.c.value)
    value = select(best).where(RANKED_OF_RUN).scalar_subquery()
    return (
        select(metrics.c.step)
        .where(RANKED_OF_RUN, metrics.c.value == value)
        .order_by(metrics.c.step.desc())
        .limit(literal_column("1"))
    )


def _top_steps(mode: Mode) -> Select[Any]:
    return (
        select(metrics.c.step)
        .where(RANKED_OF_RUN)
        .order_by(metrics.c.value if mode == "min" else metrics.c.value.desc())
        .order_by(metrics.c.step.desc())
        .limit(bindparam("count"))
    )


BEST_STEP = {"min": _best_step("min"), "max": _best_step("max")}

TOP_STEPS = {"min": _top_steps("min"), "max": _top_steps("max")}


@cache
def top(mode: Mode, *, of_run: bool = False, among: bool = False) -> Select[Any]:
    """Select whole live checkpoints by a metric, best first, of one run, of some or of all."""
    ranked = select(metrics.c.checkpoint_id, metrics.c.value, metrics.c.step).where(
        metrics.c.name == bindparam("name"), RANKED
    )
    if of_run:
        ranked = ranked.where(metrics.c.run_id == bindparam("run_id"))
    if among:
        ranked = ranked.where(metrics.c.run_id.in_(AMONG))
    # First the few that are requested, from the index alone; then their rows.
    best = ranked.order_by(*best_first(metrics, mode)).limit(bindparam("count")).subquery("best")
    return WHOLE.join(best, best.c.checkpoint_id == checkpoints.c.id).order_by(
        *best_first(best, mode)
    )


_LATEST = checkpoints.alias("latest")

_LATEST_ID = (
    select(_LATEST.c.id)
    .where(_LATEST.c.run_id == runs.c.id)
    .where(text(trust.trusted("latest")))
    .order_by(_LATEST.c.step.desc())
    .limit(literal_column("1"))
    .correlate(runs)
    .scalar_subquery()
)


@cache
def best_of_runs(mode: Mode | None, *, of_metric: bool, among: bool = False) -> Select[Any]:
    """Select whole the best live checkpoint of each run, by the run's name.

    By a given metric, or by the run's own; in a given direction, or in the run's own. Of a run
    without a metric the best is the latest.
    """
    name = bindparam("name") if of_metric else runs.c.metric_name

    def best(of_mode: Mode) -> Any:
        return (
            select(metrics.c.checkpoint_id)
            .where(metrics.c.run_id == runs.c.id, metrics.c.name == name, RANKED)
            .order_by(*best_first(metrics, of_mode))
            .limit(literal_column("1"))
            .correlate(runs)
            .scalar_subquery()
        )

    found = (
        best(mode) if mode else case((runs.c.higher_is_better == 1, best("max")), else_=best("min"))
    )
    if not of_metric:
        found = case((runs.c.metric_name.is_(None), _LATEST_ID), else_=found)
    selected = WHOLE.where(checkpoints.c.id == found).order_by(runs.c.name, runs.c.directory)
    return selected.where(runs.c.id.in_(AMONG)) if among else selected


class RankingQueries:
    """Rankings of live, trusted checkpoints."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def find_best_step(self, run_id: int, metric: str, mode: Mode) -> int | None:
        """Return the step with the best finite value of a run; ties go to the higher step."""
        return self._reader.number(BEST_STEP[mode], {"run_id": run_id, "name": metric})

    def top_steps(self, run_id: int, metric: str, mode: Mode, count: int) -> tuple[int, ...]:
        """Return the steps of a run with the best finite values, the best first."""
        given = {"run_id": run_id, "name": metric, "count": count}
        return self._reader.column(TOP_STEPS[mode], given)

    def find_latest_step(self, run_id: int) -> int | None:
        """Return the highest step of a run."""
        return self._reader.number(LATEST_STEP, {"run_id": run_id})

    def newest_steps(self, run_id: int, count: int) -> tuple[int, ...]:
        """Return the highest steps of a run, the highest first."""
        return self._reader.column(NEWEST_STEPS, {"run_id": run_id, "count": count})

    def top(
        self,
        count: int,
        metric: str,
        mode: Mode,
        *,
        run_id: int | None = None,
        among: Sequence[int] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the checkpoints with the best finite values, best first.

        Args:
            count: At most so many.
            metric: Name of the metric that ranks them.
            mode: Its direction.
            run_id: Only of this run.
            among: Only of these runs.
        """
        statement = top(mode, of_run=run_id is not None, among=among is not None)
        given = parameters(name=metric, count=count, run_id=run_id, among=among)
        return select_records(self._reader, statement, given)

    def best_of_runs(
        self,
        metric: str | None = None,
        mode: Mode | None = None,
        *,
        among: Sequence[int] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the best checkpoint of each run that has one, by the run's name.

        Args:
            metric: None for each run's own; of a run without one the best is the latest.
            mode: None for the direction that each run gives its own metric.
            among: Only of these runs.
        """
        statement = best_of_runs(mode, of_metric=metric is not None, among=among is not None)
        return select_records(self._reader, statement, parameters(name=metric, among=among))

    def count_ranked(self, run_id: int, metric: str) -> int:
        """Return how many checkpoints of a run have a finite value of a metric."""
        return self._reader.number(COUNT_RANKED, {"run_id": run_id, "name": metric}) or 0

    def unranked(self, run_id: int, metric: str) -> Unranked:
        """Return the checkpoints of a run that a metric does not rank, and why."""
        with self._reader.database.read() as connection:
            rows = driver.query(connection, UNRANKED, {"run_id": run_id, "name": metric})
        return Unranked(
            tuple(step for step, has_metric in rows if not has_metric),
            tuple(step for step, has_metric in rows if has_metric),
        )
