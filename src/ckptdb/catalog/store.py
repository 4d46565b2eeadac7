"""Writing to the catalog: the pieces that one transaction is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Text, bindparam, case, delete, func, insert, select, update

from ckptdb.catalog.paths import Paths, storable
from ckptdb.catalog.schema import checkpoints, metrics, runs, tags
from ckptdb.catalog.statements import (
    FINAL,
    NOT_DELETED,
    RUN_BY_UUID,
    UPDATE_CHECKPOINT,
    chunks,
)
from ckptdb.errors import IndexStale
from ckptdb.records import TRAINING_INFO, Annotations, Checkpoint, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one transaction does to one run.

    Attributes:
        run: Inserted, or its columns updated; its uuid decides which row is meant.
        checkpoints: As they now are, live or gone. What people added to them is not touched.
        annotations: By uuid, everything people added.
        config: New configuration of the run, empty for none; None leaves it.
        config_step: The step it was saved with; it counts only if no live one is higher.
        seen: The stamp that a listing has just shown to be what the index stands for.
        verified: Whether that listing was made late enough to be sure.
        moved: Stamp before and after changes of our own; kept only if the index knew the former.
    """

    run: Run
    checkpoints: Sequence[Checkpoint] = ()
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_step: int | None = None
    seen: str | None = None
    verified: bool = True
    moved: tuple[str, str] | None = None


def apply(connection: Connection, paths: Paths, changes: Changes) -> int:
    """Make all changes of one run; return its id.

    Raises:
        IndexStale: The index has another live checkpoint where one is to be stored.
    """
    run_id = _put_run(connection, paths, changes.run)
    # What is gone goes first: it may hold the step of what has come.
    for chunk in chunks([c for c in changes.checkpoints if c.status == "deleted"]):
        _put(connection, paths, run_id, chunk)
    for chunk in chunks([c for c in changes.checkpoints if c.status != "deleted"]):
        _refuse_stale(connection, run_id, chunk)
        _put(connection, paths, run_id, chunk)
    _link_parents(connection, run_id, changes.checkpoints)
    for uuid, found in changes.annotations.items():
        _annotate(connection, run_id, uuid, found)
    _finish(connection, run_id, changes)
    return run_id


def _put_run(connection: Connection, paths: Paths, run: Run) -> int:
    values = {
        "uuid": run.uuid,
        "name": storable(run.name),
        "directory": paths.stored(run.directory),
        "created_at": run.created_at,
        "metric_name": run.metric_name,
        "higher_is_better": int(run.higher_is_better),
        "forked_from": run.forked_from,
    }
    row = connection.execute(RUN_BY_UUID, {"uuid": run.uuid}).first()
    if row is None:
        row = _taken_over(connection, values)
    if row is None:
        return _inserted_id(connection.execute(insert(runs), values))
    changed = {key: value for key, value in values.items() if getattr(row, key) != value}
    if changed:
        connection.execute(update(runs).where(runs.c.id == row.id), changed)
    if "directory" in changed:
        _move_paths(connection, row.id, row.directory, str(values["directory"]))
    return int(row.id)


def _put(connection: Connection, paths: Paths, run_id: int, found: Sequence[Checkpoint]) -> None:
    ids = _ids(connection, run_id, [checkpoint.uuid for checkpoint in found])
    known = [cp for cp in found if cp.uuid in ids]
    new = [cp for cp in found if cp.uuid not in ids]
    if known:
        rows = [{"row_id": ids[cp.uuid], **_values(paths, cp)} for cp in known]
        connection.execute(UPDATE_CHECKPOINT, rows)
    if new:
        rows = [{"run_id": run_id, "uuid": cp.uuid, **_values(paths, cp)} for cp in new]
        connection.execute(insert(checkpoints), rows)
        ids |= _ids(connection, run_id, [checkpoint.uuid for checkpoint in new])
    _put_metrics(connection, run_id, {ids[cp.uuid]: cp for cp in found})


def _values(paths: Paths, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "step": checkpoint.step,
        "path": paths.stored(checkpoint.path),
        "created_at": checkpoint.created_at,
        "finalized_at": checkpoint.finalized_at,
        "size_bytes": checkpoint.size_bytes,
        "file_count": checkpoint.file_count,
        "status": checkpoint.status,
        "deleted_at": checkpoint.deleted_at,
        "deleted_reason": checkpoint.deleted_reason,
        "problem": None if checkpoint.problem is None else storable(checkpoint.problem),
        "info": json.dumps(checkpoint.info),
        "fingerprint": checkpoint.fingerprint,
    }


def _ids(connection: Connection, run_id: int, uuids: Sequence[str]) -> dict[str, int]:
    columns = select(checkpoints.c.uuid, checkpoints.c.id)
    where = (checkpoints.c.run_id == run_id, checkpoints.c.uuid.in_(uuids))
    return {row.uuid: row.id for row in connection.execute(columns.where(*where))}


def _inserted_id(result: Any) -> int:
    return int(result.inserted_primary_key[0])


def _taken_over(connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
    """Settle what becomes of another run that the index has in the same directory."""
    where = runs.c.directory == values["directory"]
    for row in connection.execute(select(runs).where(where)).all():
        if row.uuid == values["forked_from"]:
            # The tree was copied, catalog included: this row was always about the copy.
            return row
        if row.created_at is None:
            # Never written to: all that is known of it is in this directory, under its new uuid.
            connection.execute(delete(runs).where(runs.c.id == row.id))
            continue
        ended = {
            "status": "deleted",
            "deleted_at": func.coalesce(checkpoints.c.finalized_at, checkpoints.c.created_at),
            "deleted_reason": "vanished: another run took its directory",
        }
        mine = checkpoints.c.run_id == row.id
        connection.execute(update(checkpoints).where(mine, NOT_DELETED).values(ended))
        connection.execute(update(metrics).where(metrics.c.run_id == row.id).values(live=0))
    return None


def _move_paths(connection: Connection, run_id: int, old: str, new: str) -> None:
    # A run that is its own root has the directory "." and paths without it.
    before, after = ("" if d == "." else f"{d}/" for d in (old, new))
    rest = func.substr(checkpoints.c.path, len(before) + 1)
    moved = bindparam("after", type_=Text) + rest
    statement = update(checkpoints).where(checkpoints.c.run_id == run_id).values(path=moved)
    connection.execute(statement, {"after": after})


def _refuse_stale(connection: Connection, run_id: int, found: Iterable[Checkpoint]) -> None:
    new = {cp.step: cp.uuid for cp in found if cp.status == "final"}
    columns = select(checkpoints.c.step, checkpoints.c.uuid)
    where = (checkpoints.c.run_id == run_id, checkpoints.c.step.in_(list(new)), FINAL)
    for row in connection.execute(columns.where(*where)):
        if row.uuid != new[row.step]:
            raise IndexStale(row.step)


def _put_metrics(connection: Connection, run_id: int, found: Mapping[int, Checkpoint]) -> None:
    mine = metrics.c.checkpoint_id.in_(list(found))
    own = metrics.c.source == TRAINING_INFO
    connection.execute(delete(metrics).where(mine, own))
    kept = connection.execute(select(metrics).where(mine)).all()
    late = {(row.checkpoint_id, row.name) for row in kept}
    if late:
        live = [row_id for row_id, cp in found.items() if _is_live(cp)]
        flag = case((metrics.c.checkpoint_id.in_(live), 1), else_=0)
        connection.execute(update(metrics).where(mine).values(live=flag))
    rows = [
        {
            "checkpoint_id": row_id,
            "run_id": run_id,
            "step": checkpoint.step,
            "name": name,
            "value": value,
            "source": TRAINING_INFO,
            "reported_at": checkpoint.finalized_at or checkpoint.created_at,
            "live": int(_is_live(checkpoint)),
        }
        for row_id, checkpoint in found.items()
        for name, value in checkpoint.metrics.items()
        if (row_id, name) not in late and name not in checkpoint.late
    ]
    if rows:
        connection.execute(insert(metrics), rows)


def _is_live(checkpoint: Checkpoint) -> bool:
    return checkpoint.status == "final" and checkpoint.problem is None


def _link_parents(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
    children = [checkpoint for checkpoint in found if checkpoint.parent]
    if not children:
        return
    parents = checkpoints.alias("parents")
    parent_id = (
        select(parents.c.id)
        .where(parents.c.run_id == run_id, parents.c.uuid == bindparam("parent"))
        .scalar_subquery()
    )
    statement = (
        update(checkpoints)
        .where(checkpoints.c.run_id == run_id, checkpoints.c.uuid == bindparam("child"))
        # Without its parent here, a child is read again until that has come, to be linked then.
        .values(
            parent_id=parent_id,
            fingerprint=case((parent_id.is_not(None), checkpoints.c.fingerprint)),
        )
    )
    connection.execute(statement, [{"parent": cp.parent, "child": cp.uuid} for cp in children])


def _annotate(connection: Connection, run_id: int, uuid: str, found: Annotations) -> None:
    where = (checkpoints.c.run_id == run_id, checkpoints.c.uuid == uuid)
    row = connection.execute(select(checkpoints).where(*where)).first()
    if row is None:
        return  # of a checkpoint that nobody knows: it may come back
    marks = {"pinned": int(found.pinned), "notes": found.notes}
    connection.execute(update(checkpoints).where(checkpoints.c.id == row.id), marks)
    connection.execute(delete(tags).where(tags.c.checkpoint_id == row.id))
    if found.tags:
        named = [{"checkpoint_id": row.id, "name": n, "created_at": at} for n, at in found.tags]
        connection.execute(insert(tags), named)
    mine = metrics.c.checkpoint_id == row.id
    reported = metrics.c.name.in_([metric.name for metric in found.late])
    outdated = (metrics.c.source != TRAINING_INFO) | reported
    connection.execute(delete(metrics).where(mine, outdated))
    late = [
        {
            "checkpoint_id": row.id,
            "run_id": run_id,
            "step": row.step,
            "name": metric.name,
            "value": metric.value,
            "source": metric.source,
            "reported_at": metric.reported_at,
            "live": int(row.status == "final" and row.problem is None),
        }
        for metric in found.late
    ]
    if late:
        connection.execute(insert(metrics), late)


def _finish(connection: Connection, run_id: int, changes: Changes) -> None:
    this = runs.c.id == run_id
    if changes.config is not None and _is_newest(connection, run_id, changes.config_step):
        # Sorted, as a config.yaml is: what was passed and what is read back are one text.
        config = json.dumps(changes.config, sort_keys=True) if changes.config else None
        connection.execute(update(runs).where(this).values(config=config))
    elif any(checkpoint.status == "deleted" for checkpoint in changes.checkpoints):
        # It may have come from one of these; the next look at the directory finds it again.
        connection.execute(update(runs).where(this).values(config=None))
    if changes.seen is not None:
        stamp = {"stamp": changes.seen, "stamp_verified": int(changes.verified)}
        connection.execute(update(runs).where(this).values(stamp))
    elif changes.moved is not None:
        before, after = changes.moved
        # Compare and set: a change by anybody else in between must stay visible.
        statement = update(runs).where(this, runs.c.stamp == before)
        connection.execute(statement.values(stamp=after, stamp_verified=0))


def _is_newest(connection: Connection, run_id: int, step: int | None) -> bool:
    if step is None:
        return True
    newest = select(func.max(checkpoints.c.step)).where(checkpoints.c.run_id == run_id, FINAL)
    return bool(connection.execute(newest).scalar() == step)
