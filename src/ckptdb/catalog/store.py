"""Writing to the catalog: the pieces that one transaction is made of."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from ckptdb.catalog.paths import Paths, storable
from ckptdb.catalog.statements import (
    CHECKPOINT_BY_UUID,
    DELETE_LATE_METRICS,
    DELETE_OWN_METRICS,
    DELETE_RUN,
    DELETE_TAGS,
    END_ALL,
    INSERT_CHECKPOINT,
    INSERT_METRIC,
    INSERT_RUN,
    INSERT_TAG,
    LINK_PARENT,
    METRICS_LEFT,
    MOVE_PATHS,
    MOVE_STAMP,
    NEWEST_STEP,
    RANK,
    RUN_BY_UUID,
    RUNS_AT,
    STORED,
    UNRANK_ALL,
    UPDATE_CHECKPOINT,
    UPDATE_RUN,
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
        return _inserted_id(connection.execute(INSERT_RUN, values))
    changed = {key: value for key, value in values.items() if getattr(row, key) != value}
    if changed:
        connection.execute(UPDATE_RUN, {"row_id": row.id, **changed})
    if "directory" in changed:
        _move_paths(connection, row.id, row.directory, str(values["directory"]))
    return int(row.id)


def _put(connection: Connection, paths: Paths, run_id: int, found: Sequence[Checkpoint]) -> None:
    ids = _ids(connection, run_id, found)
    known = [cp for cp in found if cp.uuid in ids]
    new = [cp for cp in found if cp.uuid not in ids]
    late: set[tuple[int, str]] = set()
    if known:
        rows = [{"row_id": ids[cp.uuid], **_values(paths, cp)} for cp in known]
        connection.execute(UPDATE_CHECKPOINT, rows)
        late = _clear_metrics(connection, {ids[cp.uuid]: cp for cp in known})
    if new:
        rows = [{"run_id": run_id, "uuid": cp.uuid, **_values(paths, cp)} for cp in new]
        connection.execute(INSERT_CHECKPOINT, rows)
        ids |= _ids(connection, run_id, new)
    _put_metrics(connection, run_id, {ids[cp.uuid]: cp for cp in found}, late)


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


def _ids(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> dict[str, int]:
    """Return the row ids of those that are stored, by uuid."""
    new = {cp.step: cp.uuid for cp in found if cp.status == "final"}
    wanted = {"run_id": run_id, "uuids": [cp.uuid for cp in found], "steps": list(new)}
    rows = connection.execute(STORED, wanted).all()
    for row in rows:
        if row.status == "final" and new.get(row.step, row.uuid) != row.uuid:
            raise IndexStale(row.step)
    return {row.uuid: row.id for row in rows}


def _inserted_id(result: Any) -> int:
    return int(result.inserted_primary_key[0])


def _taken_over(connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
    """Settle what becomes of another run that the index has in the same directory."""
    rows = connection.execute(RUNS_AT, {"at": values["directory"]}).all()
    for row in reversed(rows):
        if row.uuid == values["forked_from"]:
            # The tree was copied, catalog included: this row was always about the copy.
            return row
        if row.created_at is None:
            # Never written to: all that is known of it is in this directory, under its new uuid.
            connection.execute(DELETE_RUN, {"row_id": row.id})
            continue
        connection.execute(END_ALL, {"of_run": row.id})
        connection.execute(UNRANK_ALL, {"of_run": row.id})
    return None


def _move_paths(connection: Connection, run_id: int, old: str, new: str) -> None:
    # A run that is its own root has the directory "." and paths without it.
    before, after = ("" if d == "." else f"{d}/" for d in (old, new))
    moved = {"of_run": run_id, "after": after, "begin": len(before) + 1}
    connection.execute(MOVE_PATHS, moved)


def _clear_metrics(connection: Connection, known: Mapping[int, Checkpoint]) -> set[tuple[int, str]]:
    """Delete what came with the checkpoints themselves; return what stays, by id and name."""
    connection.execute(DELETE_OWN_METRICS, {"ids": list(known)})
    rows = connection.execute(METRICS_LEFT, {"ids": list(known)})
    late = {(row.checkpoint_id, row.name) for row in rows}
    if late:
        ranked = [row_id for row_id, cp in known.items() if _is_live(cp)]
        connection.execute(RANK, {"ids": list(known), "ranked": ranked})
    return late


def _put_metrics(
    connection: Connection,
    run_id: int,
    found: Mapping[int, Checkpoint],
    late: Container[tuple[int, str]],
) -> None:
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
        connection.execute(INSERT_METRIC, rows)


def _is_live(checkpoint: Checkpoint) -> bool:
    return checkpoint.status == "final" and checkpoint.problem is None


def _link_parents(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
    children = [
        {"of_run": run_id, "parent": cp.parent, "child": cp.uuid} for cp in found if cp.parent
    ]
    if children:
        connection.execute(LINK_PARENT, children)


def _annotate(connection: Connection, run_id: int, uuid: str, found: Annotations) -> None:
    row = connection.execute(CHECKPOINT_BY_UUID, {"run_id": run_id, "uuid": uuid}).first()
    if row is None:
        return  # of a checkpoint that nobody knows: it may come back
    marks = {"row_id": row.id, "pinned": int(found.pinned), "notes": found.notes}
    connection.execute(UPDATE_CHECKPOINT, marks)
    connection.execute(DELETE_TAGS, {"row_id": row.id})
    if found.tags:
        named = [{"checkpoint_id": row.id, "name": n, "created_at": at} for n, at in found.tags]
        connection.execute(INSERT_TAG, named)
    names = [metric.name for metric in found.late]
    connection.execute(DELETE_LATE_METRICS, {"row_id": row.id, "names": names})
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
        connection.execute(INSERT_METRIC, late)


def _finish(connection: Connection, run_id: int, changes: Changes) -> None:
    changed: dict[str, Any] = {}
    if changes.config is not None and _is_newest(connection, run_id, changes.config_step):
        # Sorted, as a config.yaml is: what was passed and what is read back are one text.
        changed["config"] = json.dumps(changes.config, sort_keys=True) if changes.config else None
    elif any(checkpoint.status == "deleted" for checkpoint in changes.checkpoints):
        # It may have come from one of these; the next look at the directory finds it again.
        changed["config"] = None
    if changes.seen is not None:
        changed |= {"stamp": changes.seen, "stamp_verified": int(changes.verified)}
    if changed:
        connection.execute(UPDATE_RUN, {"row_id": run_id, **changed})
    if changes.seen is None and changes.moved is not None:
        before, after = changes.moved
        connection.execute(MOVE_STAMP, {"row_id": run_id, "before": before, "after": after})


def _is_newest(connection: Connection, run_id: int, step: int | None) -> bool:
    if step is None:
        return True
    return bool(connection.execute(NEWEST_STEP, {"run_id": run_id}).scalar() == step)
