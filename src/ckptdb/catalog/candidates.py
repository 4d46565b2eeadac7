"""Candidates of retention: a run's live checkpoints, with the facts that its rules need."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Integer, Select, bindparam, case, literal_column, select, union_all

from ckptdb.catalog import driver, selection
from ckptdb.catalog.clauses import LATE, OF_RUN, RANKED, RANKED_OF_RUN, TRUSTED, any_of
from ckptdb.catalog.lineage import ANCESTORS_OF_LIVE, RESUMPTIONS
from ckptdb.catalog.ranking import COUNT_RANKED
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, metrics, tags
from ckptdb.core import conditions
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.ranking import Mode

_COLUMNS = (
    checkpoints.c.id, checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.pinned,
    checkpoints.c.size_bytes, checkpoints.c.finalized_at,
)  # fmt: skip

OF_LIVE = select(*_COLUMNS).where(OF_RUN, TRUSTED).order_by(checkpoints.c.step)

_VALUES = select(metrics.c.checkpoint_id, metrics.c.name, metrics.c.value, metrics.c.source).where(
    metrics.c.run_id == bindparam("run_id"), metrics.c.name.in_(any_of("names"))
)

# Finite values, and values reported later, finite or not; each has an index. Some are both.
VALUES = union_all(_VALUES.where(RANKED), _VALUES.where(LATE, metrics.c.live == 1))

LIVE_TAGS = (
    select(tags.c.checkpoint_id, tags.c.name).join_from(checkpoints, tags).where(OF_RUN, TRUSTED)
)


def _below_best(mode: Mode) -> Select[Any]:
    value = metrics.c.value.desc() if mode == "min" else metrics.c.value
    # Counted in an index that holds nothing else, and then read from its worse end.
    ranked, best = COUNT_RANKED.scalar_subquery(), bindparam("best", type_=Integer)
    return (
        select(*_COLUMNS, metrics.c.value, metrics.c.source)
        .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
        .where(RANKED_OF_RUN)
        .order_by(value, metrics.c.step)
        .limit(case((ranked > best, ranked - best), else_=literal_column("0")))
    )


BELOW_BEST = {"min": _below_best("min"), "max": _below_best("max")}


@dataclass(slots=True)
class _Facts:
    """Finite values, names of late metrics and tags of one candidate."""

    values: dict[str, float] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)


class CandidateQueries:
    """Queries of retention."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def of_run(self, run_id: int, wanted: Wanted) -> tuple[Candidate, ...]:
        """Return a run's live, trusted checkpoints by step, with the facts that are wanted."""
        # Each condition on a connection of its own, in the sandbox: it is a person's SQL.
        matches = self.matching(run_id, wanted.conditions)
        of_run = {"run_id": run_id}
        with self._reader.database.read() as connection:
            rows = connection.execute(OF_LIVE, of_run).all()
            resumed = {row.uuid: row.resumed_at for row in connection.execute(RESUMPTIONS, of_run)}
            ancestors: Container[str] = ()
            if wanted.ancestors and resumed:
                ancestors = {uuid for (uuid,) in connection.execute(ANCESTORS_OF_LIVE, of_run)}
            facts: dict[int, _Facts] = {row.id: _Facts() for row in rows}
            unlisted = _Facts()  # of a checkpoint that came or went between two statements
            if wanted.metrics:
                given = {"run_id": run_id, "names": list(wanted.metrics)}
                for row_id, name, value, source in connection.execute(VALUES, given):
                    known = facts.get(row_id, unlisted)
                    if value is not None:
                        known.values[name] = value
                    if source != TRAINING_INFO:
                        known.late.add(name)
            if wanted.tags:
                for row_id, name in connection.execute(LIVE_TAGS, of_run):
                    facts.get(row_id, unlisted).tags.add(name)
        found = tuple(_candidate(row, facts[row.id]) for row in rows)
        if not matches and not resumed:
            return found
        return tuple(
            replace(
                candidate,
                matches=frozenset(
                    text for text, uuids in matches.items() if candidate.uuid in uuids
                ),
                resumed_at=resumed.get(candidate.uuid),
                ancestor=candidate.uuid in resumed and candidate.uuid in ancestors,
            )
            for candidate in found
        )

    def below_best(self, run_id: int, metric: str, mode: Mode, best: int) -> tuple[Candidate, ...]:
        """Return the checkpoints that rank below the ``best`` best of a run, the worst first."""
        given = {"run_id": run_id, "name": metric, "best": best}
        found = []
        with self._reader.database.read() as connection:
            for *row, value, source in driver.query(connection, BELOW_BEST[mode], given):
                late = set() if source == TRAINING_INFO else {metric}
                found.append(_candidate(row, _Facts({metric: value}, late)))
        return tuple(found)

    def matching(
        self, run_id: int, texts: Iterable[str], *, ever: bool = False
    ) -> dict[str, frozenset[str]]:
        """Return by condition the uuids of a run's trusted checkpoints for which it holds.

        Args:
            run_id: The run.
            texts: The conditions.
            ever: Also of deleted checkpoints.

        Raises:
            InvalidCondition: One makes no sense to the database, or takes too long.
        """
        return {
            text: selection.matching(
                self._reader.database, run_id, conditions.parse(text), ever=ever
            )
            for text in texts
        }


def _candidate(row: Sequence[Any], facts: _Facts) -> Candidate:
    _, step, uuid, pinned, size_bytes, finalized_at = row
    return Candidate(
        step,
        uuid,
        facts.values,
        bool(pinned),
        size_bytes,
        finalized_at,
        frozenset(facts.late),
        frozenset(facts.tags),
    )
