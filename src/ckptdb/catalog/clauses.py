"""Clauses that several statements share: checkpoints that count, their runs, their order.

Statements are built once, when their module is imported: building one costs more than answering
it, and SQLAlchemy remembers what it has compiled by the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    and_,
    bindparam,
    case,
    cast,
    func,
    text,
)

from ckptdb.catalog import trust
from ckptdb.catalog.schema import checkpoints, metrics
from ckptdb.core.ranking import Mode

_T = TypeVar("_T")
_CHUNK = 500
"""Values per IN list; every engine takes that many parameters."""

# Literals, not parameters: only then does the planner use the partial indexes.
FINAL = text("checkpoints.status = 'final'")
TRUSTED = text(trust.trusted("checkpoints"))
UNDOUBTED = text(trust.undoubted("checkpoints"))
NOT_DELETED = text("checkpoints.status <> 'deleted'")
DELETED = text("checkpoints.status = 'deleted'")
TMP = text("checkpoints.status = 'tmp'")
LATE = text("metrics.source <> 'training_info'")
RANKED = text(trust.ranked("metrics"))

AMONG = bindparam("among", type_=Integer, expanding=True, literal_execute=True)
"""Ids of runs, written into the text: there may be more than a statement can have parameters."""

OF_RUN = checkpoints.c.run_id == bindparam("run_id")
OF_RUNS = checkpoints.c.run_id.in_(AMONG)

RANKED_OF_RUN = and_(
    metrics.c.run_id == bindparam("run_id"), metrics.c.name == bindparam("name"), RANKED
)

# Values that the rows of metrics and resumptions copy from their checkpoint.
IS_RANKED = cast(case((TRUSTED, 1), else_=0), Integer)
PUBLISHED_AT = func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at)


def any_of(name: str) -> Any:
    """Return the parameter for the values of an IN list, any number of them."""
    return bindparam(name, expanding=True)


def best_first(
    ranked: FromClause, mode: Mode | None, tie_mode: Mode | None = None
) -> tuple[ColumnElement[Any], ...]:
    """Order by ``value``, then by ``tie`` where there is one, as `rank_key` does.

    Args:
        ranked: Has these columns, ``step`` and ``checkpoint_id``.
        mode: None to order by step alone.
        tie_mode: None for no tie.
    """
    tie = () if tie_mode is None else (ranked.c.tie.is_(None), _directed(ranked.c.tie, tie_mode))
    value = () if mode is None else (_directed(ranked.c.value, mode), *tie)
    return *value, ranked.c.step.desc(), ranked.c.checkpoint_id.desc()


def _directed(value: ColumnElement[Any], mode: Mode) -> ColumnElement[Any]:
    return value if mode == "min" else value.desc()


def for_scope(
    run_id: int | None,
    among: Sequence[int] | None,
    *,
    one: Executable,
    some: Executable,
    every: Executable,
) -> Executable:
    """Return the statement for one run, for some, or for all."""
    if run_id is not None:
        return one
    return every if among is None else some


def parameters(**values: object) -> dict[str, object]:
    """Return the parameters that have a value."""
    return {name: value for name, value in values.items() if value is not None}


def id_list(ids: Iterable[int]) -> str:
    """Return ids of rows as the text of an IN list; of none, an id that no row has."""
    return ", ".join(map(str, ids)) or "0"


def chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut values into pieces short enough for an IN list."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
