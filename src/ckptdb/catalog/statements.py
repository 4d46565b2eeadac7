"""The catalog's questions as SQL, built once.

Building a statement costs more than answering it, and SQLAlchemy remembers what it has compiled
by the object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    select,
    text,
    true,
    update,
)

from ckptdb.catalog.schema import checkpoints, metrics, runs
from ckptdb.records import Mode

_T = TypeVar("_T")
_CHUNK = 500
"""Rows per IN list; every engine takes that many parameters."""

# Literals, not parameters: only then does the planner use the partial indexes.
FINAL = text("checkpoints.status = 'final'")
TRUSTED = text("checkpoints.status = 'final' AND checkpoints.problem IS NULL")
NOT_DELETED = text("checkpoints.status <> 'deleted'")
DELETED = text("checkpoints.status = 'deleted'")
TMP = text("checkpoints.status = 'tmp'")
RANKED = text("metrics.live = 1 AND metrics.value IS NOT NULL")
BY_STATUS = {"final": FINAL, "tmp": TMP, "deleted": DELETED}

RUN_BY_UUID = select(runs).where(runs.c.uuid == bindparam("uuid"))

LATEST_STEP = (
    select(checkpoints.c.step)
    .where(checkpoints.c.run_id == bindparam("run_id"), TRUSTED)
    .order_by(checkpoints.c.step.desc())
    .limit(literal_column("1"))
)

COUNTS = select(
    select(func.count()).select_from(runs).scalar_subquery().label("runs"),
    select(func.count()).select_from(checkpoints).scalar_subquery().label("checkpoints"),
)

COUNT_LIVE = select(func.count()).where(checkpoints.c.run_id == bindparam("run_id"), TRUSTED)

STEPS_WITHOUT = (
    select(checkpoints.c.step)
    .where(checkpoints.c.run_id == bindparam("run_id"), TRUSTED)
    .where(
        ~exists().where(
            metrics.c.checkpoint_id == checkpoints.c.id,
            metrics.c.name == bindparam("name"),
            metrics.c.value.is_not(None),
        )
    )
    .order_by(checkpoints.c.step)
)

CANDIDATES = (
    select(
        checkpoints.c.step, checkpoints.c.uuid, checkpoints.c.pinned, checkpoints.c.size_bytes,
        metrics.c.value, metrics.c.source,
    )
    .outerjoin(
        metrics,
        and_(metrics.c.checkpoint_id == checkpoints.c.id, metrics.c.name == bindparam("name")),
    )
    .where(checkpoints.c.run_id == bindparam("run_id"), TRUSTED)
    .order_by(checkpoints.c.step)
)  # fmt: skip

UPDATE_CHECKPOINT = update(checkpoints).where(checkpoints.c.id == bindparam("row_id"))


def _best_step(mode: Mode) -> Select[Any]:
    value = metrics.c.value if mode == "min" else metrics.c.value.desc()
    return (
        select(metrics.c.step)
        .where(metrics.c.run_id == bindparam("run_id"), metrics.c.name == bindparam("name"))
        .where(RANKED)
        .order_by(value, metrics.c.step.desc())
        .limit(literal_column("1"))
    )


BEST_STEP = {"min": _best_step("min"), "max": _best_step("max")}


def ranking(mode: Mode, *, run_id: int | None) -> Select[Any]:
    """Select the ids of live checkpoints by a metric, best first, of one run or of all."""
    value = metrics.c.value if mode == "min" else metrics.c.value.desc()
    mine = true() if run_id is None else metrics.c.run_id == bindparam("run_id")
    return (
        select(metrics.c.checkpoint_id)
        .where(metrics.c.name == bindparam("name"), mine)
        .where(RANKED)
        .order_by(value, metrics.c.step.desc(), metrics.c.checkpoint_id.desc())
        .limit(bindparam("count"))
    )


def whole() -> Select[Any]:
    """Select checkpoints with what their record takes from other tables."""
    parents = checkpoints.alias("parents")
    return select(
        checkpoints,
        runs.c.name.label("run"),
        runs.c.uuid.label("run_uuid"),
        select(parents.c.uuid)
        .where(parents.c.id == checkpoints.c.parent_id)
        .scalar_subquery()
        .label("parent"),
    ).join_from(checkpoints, runs)


def chunks(items: Sequence[_T]) -> Iterator[list[_T]]:
    """Cut a sequence into pieces short enough for an IN list."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
