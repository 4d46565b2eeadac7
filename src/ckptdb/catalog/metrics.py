"""Metrics in the catalog: their names, and their values over a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import bindparam, exists, or_, select

from ckptdb.catalog import query
from ckptdb.catalog.clauses import (
    AMONG,
    OF_RUN,
    OF_RUNS,
    RANKED,
    RANKED_OF_RUN,
    for_scope,
    id_list,
    parameters,
)
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, metrics
from ckptdb.core.text import is_storable

NAMES = select(metrics.c.name).distinct().order_by(metrics.c.name)

NAMES_OF_RUN = NAMES.where(metrics.c.checkpoint_id.in_(select(checkpoints.c.id).where(OF_RUN)))

NAMES_OF_SOME = NAMES.where(metrics.c.checkpoint_id.in_(select(checkpoints.c.id).where(OF_RUNS)))

_NAMED = (metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name"))

EVER_FINITE_OF_RUN = select(exists().where(*_NAMED).where(OF_RUN, metrics.c.value.is_not(None)))

# First in the index that finds it at once, if it is there at all.
EXISTS = select(
    or_(
        exists().where(metrics.c.name == bindparam("name"), RANKED),
        exists().where(metrics.c.name == bindparam("name")),
    )
)

EXISTS_IN_RUN = select(or_(exists().where(RANKED_OF_RUN), exists().where(*_NAMED).where(OF_RUN)))

EXISTS_IN_SOME = select(
    or_(
        exists().where(metrics.c.run_id.in_(AMONG), metrics.c.name == bindparam("name"), RANKED),
        exists().where(*_NAMED).where(OF_RUNS),
    )
)

_CURVES: Final = """
SELECT c.run_id, c.step, COALESCE(c.finalized_at, c.created_at), m.value,
       CASE c.status WHEN 'final' THEN 1 ELSE 0 END, m.live
FROM runs r
JOIN checkpoints c ON c.run_id = r.id
JOIN metrics m ON m.checkpoint_id = c.id
WHERE m.name = :metric AND m.value IS NOT NULL {0}
ORDER BY c.run_id, c.step, c.id
"""


class MetricQueries:
    """Queries about metrics."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def names(
        self, run_id: int | None = None, *, among: Sequence[int] | None = None
    ) -> tuple[str, ...]:
        """Return the names of all metrics ever seen, of one run, some or all, sorted."""
        statement = for_scope(run_id, among, one=NAMES_OF_RUN, some=NAMES_OF_SOME, every=NAMES)
        found = self._reader.rows(statement, parameters(run_id=run_id, among=among))
        # A damaged catalog may hold a name of any type.
        return tuple(row.name for row in found if isinstance(row.name, str))

    def find_unknown(
        self,
        names: Iterable[str],
        run_id: int | None = None,
        *,
        among: Sequence[int] | None = None,
    ) -> str | None:
        """Return the first metric that no checkpoint, of one run, some or all, has ever had."""
        statement = for_scope(run_id, among, one=EXISTS_IN_RUN, some=EXISTS_IN_SOME, every=EXISTS)
        for name in names:
            given = parameters(name=name, run_id=run_id, among=among)
            if not (is_storable(name) and self._reader.rows(statement, given)[0][0]):
                return name
        return None

    def was_ever_finite(self, run_id: int, metric: str) -> bool:
        """Return whether a checkpoint of a run, even a deleted one, had a finite value of it."""
        return bool(self._reader.number(EVER_FINITE_OF_RUN, {"run_id": run_id, "name": metric}))

    def curves(
        self, metric: str, *, among: Sequence[int] | None = None
    ) -> dict[int, tuple[tuple[Any, ...], ...]]:
        """Return a metric over each run that has it, as the entries of a `Curve`, by run id."""
        chosen = "" if among is None else f"AND r.id IN ({id_list(among)})"
        sql, given = _CURVES.format(chosen), {"metric": metric}
        rows = query.run(self._reader.database, sql, given, limit=None)
        found: dict[int, tuple[tuple[Any, ...], ...]] = {}
        for run_id, of_run in groupby(rows, key=itemgetter(0)):
            _, steps, times, values, is_live, ranked = zip(*of_run, strict=True)
            marks = (tuple(map(bool, column)) for column in (is_live, ranked))
            found[run_id] = (steps, times, values, *marks)
        return found
