"""Changes of one run, stored in one transaction in the order that the rows need."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, case, select, update

from ckptdb.catalog import driver
from ckptdb.catalog.annotation_changes import store_annotations
from ckptdb.catalog.checkpoint_changes import (
    children_before_parents,
    link_to_parents,
    store_checkpoints,
    unlink_from_parents,
)
from ckptdb.catalog.clauses import IS_RANKED, PUBLISHED_AT
from ckptdb.catalog.run_changes import store_run
from ckptdb.catalog.schema import checkpoints, metrics, resumes
from ckptdb.catalog.stored_paths import Paths
from ckptdb.core.changes import Changes
from ckptdb.core.metrics import TRAINING_INFO


def _of_checkpoint(value: ColumnElement[Any], checkpoint_id: Any) -> Any:
    return select(value).where(checkpoints.c.id == checkpoint_id).scalar_subquery()


def _in_run(checkpoint_id: Any) -> Any:
    ids = select(checkpoints.c.id).where(checkpoints.c.run_id == bindparam("of_run"))
    return checkpoint_id.in_(ids)


REPAIR_METRICS = (
    update(metrics)
    .where(_in_run(metrics.c.checkpoint_id))
    .values(
        run_id=bindparam("of_run"),
        step=_of_checkpoint(checkpoints.c.step, metrics.c.checkpoint_id),
        live=_of_checkpoint(IS_RANKED, metrics.c.checkpoint_id),
        reported_at=case(
            (
                metrics.c.source == TRAINING_INFO,
                _of_checkpoint(PUBLISHED_AT, metrics.c.checkpoint_id),
            ),
            else_=metrics.c.reported_at,
        ),
    )
)

REPAIR_RESUMES = (
    update(resumes).where(_in_run(resumes.c.checkpoint_id)).values(run_id=bindparam("of_run"))
)

# Only as long as no live one has a higher step.
_NEWEST_STEP = "(SELECT MAX(step) FROM checkpoints WHERE run_id = runs.id AND status = 'final')"
SET_CONFIG_OF_STEP = f"config = CASE WHEN {_NEWEST_STEP} = ? THEN ? ELSE config END"
KEEP_CONFIG_OF_STEP = f"config = CASE WHEN config = '{{}}' OR {_NEWEST_STEP} = ? THEN config END"

# Compare and set: a change by another process in between must stay visible.
MOVE_STAMP = """
    stamp_verified = CASE WHEN stamp = ? THEN 0 ELSE stamp_verified END,
    stamp = CASE WHEN stamp = ? THEN ? ELSE stamp END
"""


def apply(connection: Connection, paths: Paths, changes: Changes) -> int:
    """Store all changes of one run; return its id.

    Raises:
        IndexStale: The index has another live checkpoint where one is to be stored.
    """
    run_id = store_run(connection, paths, changes.run)
    # Deleted ones first: one may have the step of one that has come.
    deleted = [cp for cp in changes.checkpoints if cp.status == "deleted"]
    present = [cp for cp in changes.checkpoints if cp.status != "deleted"]
    for found in (deleted, present):
        store_checkpoints(connection, paths, run_id, found)
    children = children_before_parents([*deleted, *present])
    link_to_parents(connection, run_id, [*children, *changes.children])
    for uuid, of_one in changes.annotations.items():
        store_annotations(connection, run_id, uuid, of_one)
    unlink_from_parents(connection, run_id, changes.without_parent)
    if changes.repair_copies:
        for statement in (REPAIR_METRICS, REPAIR_RESUMES):
            connection.execute(statement, {"of_run": run_id})
    _update_run(connection, run_id, changes)
    return run_id


def _update_run(connection: Connection, run_id: int, changes: Changes) -> None:
    """Update configuration and stamp in the run's row; last, for they depend on the others."""
    assigned: list[str] = []
    values: list[object] = []
    if changes.config is not None:
        # Sorted, as a config.yaml is: the config of a save and the one read back are one text.
        text = json.dumps(changes.config, sort_keys=True)
        step = changes.config_step
        assigned.append("config = ?" if step is None else SET_CONFIG_OF_STEP)
        values += [text] if step is None else [step, text]
    elif any(checkpoint.status == "deleted" for checkpoint in changes.checkpoints):
        # It may have come from one of these; the next look at the directory finds it again.
        assigned.append(KEEP_CONFIG_OF_STEP)
        values.append(changes.config_step)
    if changes.stamp is not None:
        assigned.append("stamp = ?, stamp_verified = ?")
        values += [changes.stamp, int(changes.stamp_verified)]
    elif changes.stamp_moved is not None:
        before, after = changes.stamp_moved
        assigned.append(MOVE_STAMP)
        values += [before, before, after]
    if assigned:
        sql = f"UPDATE runs SET {', '.join(assigned)} WHERE id = ?"  # noqa: S608  # texts of ours
        driver.send(connection, sql, (*values, run_id))
