"""Rankings with more than a metric: a condition, a tie-break, deleted checkpoints, an earlier time.

The frequent questions, best and top-k of live checkpoints, are in `ranking`; the order is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    TextClause,
    and_,
    case,
    literal_column,
    null,
    or_,
    select,
    text,
)

from ckptdb.catalog import query
from ckptdb.catalog.clauses import DELETED, FINAL, RANKED, TRUSTED, UNDOUBTED, best_first
from ckptdb.catalog.dialects import OWN_VALUE
from ckptdb.catalog.engine import Database
from ckptdb.catalog.schema import checkpoints, metrics
from ckptdb.core.conditions import COLUMNS, Condition, explained
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.ranking import Mode
from ckptdb.errors import (
    InvalidCondition,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    QueryTooLarge,
)

By = tuple[str, Mode]
"""A metric, and whether low or high is better."""

TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The checkpoints that are ranked, and the metric that ranks them.

    Attributes:
        by: The metric; None for the highest step, which needs no tie.
        tie: A second metric that decides between equal values, before the step does. Checkpoints
            without it come after those that have it.
        run_id: Only checkpoints of this run.
        among: Only checkpoints of these runs.
        where: Only checkpoints for which this condition holds.
        ever: Deleted checkpoints, too.
        at: Only checkpoints that were published and not yet deleted at that time, with the values
            that had been reported by then.
    """

    by: By | None
    tie: By | None = None
    run_id: int | None = None
    among: Sequence[int] | None = None
    where: Condition | None = None
    ever: bool = False
    at: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but a metric, and perhaps runs, is given."""
        return self == Selection(by=self.by, run_id=self.run_id, among=self.among)

    @property
    def is_history(self) -> bool:
        """Whether a deleted checkpoint may be the answer."""
        return self.ever or self.at is not None


@dataclass(frozen=True, slots=True)
class Ranked:
    """The id of a checkpoint, with the finite values that it is ranked by."""

    id: int
    value: float | None
    tie: float | None


def ranked(
    database: Database, selection: Selection, count: int | None = None
) -> tuple[Ranked, ...]:
    """Return the checkpoints of a selection, best first; at most ``count``.

    Raises:
        InvalidCondition: The condition makes no sense to the database, or takes too long.
    """
    known = _known(selection, database.dialect_name)
    found = select(known.c.checkpoint_id, known.c.value, known.c.tie)
    if selection.by is not None:
        found = found.where(known.c.value.is_not(None))
    mode, tie_mode = (None if by is None else by[1] for by in (selection.by, selection.tie))
    found = found.order_by(*best_first(known, mode, tie_mode))
    if count is not None:
        found = found.limit(count)
    return tuple(Ranked(*row) for row in _answer(database, found, selection.where))


def matching(
    database: Database, run_id: int, condition: Condition, *, ever: bool = False
) -> frozenset[str]:
    """Return the uuids of a run's live, trusted checkpoints for which a condition holds.

    A metric that none of them has is no error; the caller knows what to say about that.

    Args:
        database: The catalog.
        run_id: The run.
        condition: What is demanded.
        ever: Also of what is gone.

    Raises:
        InvalidCondition: It makes no sense to the database, or takes too long.
    """
    demanded = Selection(by=None, run_id=run_id, where=condition, ever=ever)
    known = _known(demanded, database.dialect_name)
    found = select(known.c.uuid)
    return frozenset(uuid for (uuid,) in _answer(database, found, condition))


def pareto_front(points: Iterable[Ranked], tie_mode: Mode) -> tuple[Ranked, ...]:
    """Return the points that no other point beats in both value and tie; equal points stay.

    Args:
        points: Best first, as `ranked` returns them; without a tie they are left out.
        tie_mode: Whether low or high ties are better.
    """
    front: list[Ranked] = []
    best = math.inf
    for point in points:
        if not isinstance(point.tie, float):
            continue  # it has none, or the catalog is damaged
        # All before it are better in value, or as good and no worse in the tie.
        tie = point.tie if tie_mode == "min" else -point.tie
        equal = front and (front[-1].value, front[-1].tie) == (point.value, point.tie)
        if tie < best or equal:
            front.append(point)
            best = tie
    return tuple(front)


# --- the statement ----------------------------------------------------------------------


def _known(selection: Selection, dialect: str) -> Subquery:
    """Select the checkpoints to rank, with all columns that the condition or the order needs."""
    value, tie = (
        null() if by is None else _value(by[0], label, selection.at, dialect)
        for by, label in ((selection.by, "value"), (selection.tie, "tie"))
    )
    if selection.by is not None and not selection.is_history:
        # The ranking index, as for best and top-k, because it contains no history.
        value = metrics.c.value
        found = (
            select()
            .join_from(metrics, checkpoints, checkpoints.c.id == metrics.c.checkpoint_id)
            .where(metrics.c.name == selection.by[0], RANKED)
        )
        of_run = metrics.c.run_id
    else:
        found = select().select_from(checkpoints).where(*_state(selection))
        of_run = checkpoints.c.run_id
    if selection.run_id is not None:
        found = found.where(of_run == selection.run_id)
    if selection.among is not None:
        # In the text: there may be more runs than a statement can have parameters.
        found = found.where(of_run.in_([literal_column(str(int(i))) for i in selection.among]))
    mentioned = () if selection.where is None else selection.where.metrics
    return found.add_columns(
        checkpoints.c.id.label("checkpoint_id"),
        checkpoints.c.uuid,
        *(checkpoints.c[name] for name in COLUMNS),
        value.label("value"),
        tie.label("tie"),
        *(
            _value(name, f"m{number}", selection.at, dialect).label(f"m{number}")
            for number, name in enumerate(mentioned)
        ),
    ).subquery("known")


def _state(selection: Selection) -> Iterator[ColumnElement[bool] | TextClause]:
    """Yield the conditions that a checkpoint has to meet: published, and trusted.

    Problems and rejections count as they are now, also when an earlier time is asked for.
    """
    if not selection.is_history:
        yield TRUSTED
        return
    yield UNDOUBTED
    if selection.at is None:
        yield checkpoints.c.finalized_at.is_not(None)
    else:
        yield checkpoints.c.finalized_at <= selection.at
    if selection.ever or selection.at is None:
        yield or_(FINAL, DELETED)
    else:
        yield or_(FINAL, and_(DELETED, checkpoints.c.deleted_at > selection.at))


def _value(name: str, label: str, at: str | None, dialect: str) -> ColumnElement[Any]:
    """Look up a metric of a checkpoint, as it was known at a time, or as it is now."""
    found = metrics.alias(f"of_{label}")
    value: ColumnElement[Any] = found.c.value
    if at is not None:
        # A late value hides the one that came with the checkpoint, which counted before.
        own = OWN_VALUE[dialect].format(info="checkpoints.info", name=f"of_{label}.name")
        value = case(
            (found.c.reported_at <= at, found.c.value),
            (found.c.source != TRAINING_INFO, literal_column(f"({own})")),
        )
    return (
        select(value)
        .where(found.c.checkpoint_id == checkpoints.c.id, found.c.name == name)
        .correlate(checkpoints)
        .scalar_subquery()
    )


# --- the answer -------------------------------------------------------------------------


def _answer(
    database: Database, statement: Select[Any], condition: Condition | None
) -> Sequence[Sequence[Any]]:
    if condition is None:
        with database.read() as connection:
            return connection.execute(statement).all()
    strings = {f"string{number}": string for number, string in enumerate(condition.strings)}
    demanded = statement.where(text(f"({condition.sql})").bindparams(**strings)).compile()
    try:
        # The condition is the user's SQL, and runs confined like all of it.
        return query.run(
            database, str(demanded), demanded.params, limit=None, timeout_seconds=TIMEOUT_SECONDS
        ).rows
    except (QueryFailed, QueryRefused, QueryTimeout, QueryTooLarge) as error:
        raise InvalidCondition(condition.text, explained(error.why)) from error
