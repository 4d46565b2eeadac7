"""Writing to the catalog: the pieces that one transaction is made of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from ckptdb.catalog import driver
from ckptdb.catalog.statements import (
    CHECKPOINT_BY_UUID,
    CLEAR_METRICS,
    CORRECT_METRICS,
    CORRECT_RESUMES,
    DELETE_LATE_METRICS,
    DELETE_RESUMES,
    DELETE_RUN,
    DELETE_TAGS,
    END_ALL,
    INSERT_METRIC,
    INSERT_RESUME,
    INSERT_RUN,
    INSERT_TAG,
    KEEP_CONFIG_OF_STEP,
    KEEP_METRICS,
    LINK_PARENT,
    MOVE_PATHS,
    MOVE_STAMP,
    PUT_AT,
    PUT_CHECKPOINT,
    PUT_METRIC,
    RANK_METRICS,
    RUN_AS_PUT,
    RUNS_AT,
    SET_CONFIG_OF_STEP,
    UNLINK_PARENTS,
    UNRANK_ALL,
    UPDATE_CHECKPOINT,
    UPDATE_RUN,
    chunks,
)
from ckptdb.catalog.stored_paths import Paths, storable
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.records import Annotations, Checkpoint, Run
from ckptdb.errors import IndexStale

_NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Child:
    """A checkpoint that may have been stored before its parent; fingerprint as in its record."""

    uuid: str
    parent: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one transaction does to one run.

    Attributes:
        run: Inserted, or its columns updated; its uuid decides which row is meant.
        checkpoints: As they now are, live or gone. What people added to them is not touched.
        children: Stored before, to be linked to parents that may have come since.
        annotations: By uuid, everything people added.
        config: New configuration of the run, empty when it has none; None leaves it.
        config_step: The step it was saved with; it counts only if no live one is higher. Without a
            configuration: with which step the one that is stored came, if anybody knows.
        seen: The stamp that a listing has just shown to be what the index stands for.
        verified: Whether that listing was made late enough to be sure.
        moved: Stamp before and after changes of our own; kept only if the index knew the former.
        without_parent: uuids of those that have none, though the index says one.
        correct: Also store anew what metrics and resumptions repeat of their checkpoints.
    """

    run: Run
    checkpoints: Sequence[Checkpoint] = ()
    children: Sequence[Child] = ()
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_step: int | None = None
    seen: str | None = None
    verified: bool = True
    moved: tuple[str, str] | None = None
    without_parent: Sequence[str] = ()
    correct: bool = False


def apply(connection: Connection, paths: Paths, changes: Changes) -> int:
    """Make all changes of one run; return its id.

    Raises:
        IndexStale: The index has another live checkpoint where one is to be stored.
    """
    run_id = _put_run(connection, paths, changes.run)
    # What is gone goes first: it may hold the step of what has come.
    gone = [cp for cp in changes.checkpoints if cp.status == "deleted"]
    here = [cp for cp in changes.checkpoints if cp.status != "deleted"]
    for found in (gone, here):
        _put(connection, paths, run_id, found)
    _link(connection, run_id, [*_before_parents([*gone, *here]), *changes.children])
    for uuid, said in changes.annotations.items():
        _annotate(connection, run_id, uuid, said)
    for chunk in chunks(changes.without_parent):
        connection.execute(UNLINK_PARENTS, {"of_run": run_id, "uuids": chunk})
    if changes.correct:
        for statement in (CORRECT_METRICS, CORRECT_RESUMES):
            connection.execute(statement, {"of_run": run_id})
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
    found = driver.send(connection, RUN_AS_PUT, (run.uuid,)).fetchone()
    if found is not None:
        row_id, known = found[0], dict(zip(values, found[1:], strict=True))
    elif (taken := _taken_over(connection, values)) is not None:
        row_id, known = taken.id, {key: getattr(taken, key) for key in values}
    else:
        return _inserted_id(connection.execute(INSERT_RUN, values))
    changed = {key: value for key, value in values.items() if known[key] != value}
    if changed:
        connection.execute(UPDATE_RUN, {"row_id": row_id, **changed})
    if "directory" in changed:
        _end_others(connection, str(values["directory"]), row_id)
        _move_paths(connection, row_id, str(values["directory"]))
    return int(row_id)


def _put(connection: Connection, paths: Paths, run_id: int, found: Sequence[Checkpoint]) -> None:
    if not found:
        return
    try:
        driver.send(connection, PUT_CHECKPOINT, [_values(paths, run_id, cp) for cp in found])
    except (IntegrityError, sqlite3.IntegrityError) as error:
        if not _is_taken(error):
            raise
        raise IndexStale([cp.step for cp in found if cp.status == "final"]) from error
    by_uuid = {cp.uuid: cp for cp in found}
    for chunk in chunks(by_uuid):
        _put_metrics(connection, run_id, [by_uuid[uuid] for uuid in chunk])


def _put_metrics(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
    """Store what came with the checkpoints themselves; what came later stays, and hides it."""
    by_uuid = {cp.uuid: cp for cp in found}
    where = PUT_AT.format(",".join("?" * len(by_uuid)))
    at: dict[str, tuple[int, bool]] = {}
    own: dict[str, dict[str, float | None]] = {}
    late: dict[str, set[str]] = {}
    rows = driver.send(connection, where, (run_id, *by_uuid)).fetchall()
    for uuid, row_id, rejected, name, value, source in rows:
        at[uuid] = row_id, rejected
        if source == TRAINING_INFO:
            own.setdefault(uuid, {})[name] = value
        elif name is not None:
            late.setdefault(uuid, set()).add(name)
    cleared: list[tuple[object, ...]] = []
    kept: list[tuple[object, ...]] = []
    ranked: list[tuple[object, ...]] = []
    new: list[tuple[object, ...]] = []
    for uuid, (row_id, rejected) in at.items():
        cp = by_uuid[uuid]
        # What has been rejected stays so, whatever is stored of its files.
        live = _is_live(cp, rejected=rejected)
        moment = cp.finalized_at or cp.created_at
        hidden = late.get(uuid, _NONE).union(cp.late)
        said = {name: value for name, value in cp.metrics.items() if name not in hidden}
        known = own.get(uuid, {})
        if uuid in late:
            ranked.append((live, row_id))
        # To store five metrics anew takes longer than all else that a save stores.
        if known and said == known:
            kept.append((cp.step, moment, live, row_id, TRAINING_INFO))
            continue
        if known:
            cleared.append((row_id, TRAINING_INFO))
        new += [
            (row_id, run_id, cp.step, name, value, TRAINING_INFO, moment, live)
            for name, value in said.items()
        ]
    for statement, values in (
        (CLEAR_METRICS, cleared),
        (KEEP_METRICS, kept),
        (RANK_METRICS, ranked),
        (PUT_METRIC, new),
    ):
        if values:
            driver.send(connection, statement, values)


def _is_taken(error: Exception) -> bool:
    """Whether a row was refused because another one is published at its step."""
    said = str(error)
    # PostgreSQL names the index, SQLite its columns.
    return "uq_checkpoints_final" in said or "checkpoints.run_id, checkpoints.step" in said


def _values(paths: Paths, run_id: int, checkpoint: Checkpoint) -> tuple[object, ...]:
    parent = checkpoint.parent
    has_parent = int(parent is not None)
    return (
        run_id,
        checkpoint.uuid,
        checkpoint.step,
        paths.stored(checkpoint.path),
        checkpoint.created_at,
        checkpoint.finalized_at,
        checkpoint.size_bytes,
        checkpoint.file_count,
        checkpoint.status,
        checkpoint.deleted_at,
        checkpoint.deleted_reason,
        checkpoint.deleted_kind,
        None if checkpoint.problem is None else storable(checkpoint.problem),
        checkpoint.problem_kind,
        json.dumps(checkpoint.info),
        run_id,
        parent,
        has_parent,
        run_id,
        parent,
        # What is gone is never compared with a file again.
        None if checkpoint.status == "deleted" else checkpoint.fingerprint,
        has_parent,
    )


def _inserted_id(result: Any) -> int:
    return int(result.inserted_primary_key[0])


def _taken_over(connection: Connection, values: Mapping[str, Any]) -> Row[Any] | None:
    """Settle what becomes of another run that the index has in the same directory."""
    rows = connection.execute(RUNS_AT, {"at": values["directory"]}).all()
    # The tree was copied, catalog included: that row was always about the copy.
    taken = next((row for row in reversed(rows) if row.uuid == values["forked_from"]), None)
    for row in rows:
        if row is taken:
            continue
        if row.created_at is None:
            # Never written to: all that is known of it is in this directory, under its new uuid.
            connection.execute(DELETE_RUN, {"row_id": row.id})
        else:
            _end(connection, row.id)
    return taken


def _end_others(connection: Connection, directory: str, run_id: int) -> None:
    """Record that what the index has in a directory is gone from it, for another run has come."""
    for row in connection.execute(RUNS_AT, {"at": directory}).all():
        if row.id != run_id:
            _end(connection, row.id)


def _end(connection: Connection, run_id: int) -> None:
    connection.execute(END_ALL, {"of_run": run_id})
    connection.execute(UNRANK_ALL, {"of_run": run_id})


def _move_paths(connection: Connection, run_id: int, directory: str) -> None:
    # A run that is its own root has the directory "." and paths without it.
    after = "" if directory == "." else f"{directory}/"
    connection.execute(MOVE_PATHS, {"of_run": run_id, "after": after})


def _is_live(stored: Checkpoint | Row[Any], *, rejected: bool) -> int:
    # As `Checkpoint.is_trusted`, of what may be a row and is rejected by another.
    return int(stored.status == "final" and stored.problem is None and not rejected)


def _before_parents(found: Sequence[Checkpoint]) -> Iterator[Child]:
    """Return those that were put before their parents."""
    if len(found) < 2:  # noqa: PLR2004  # nothing to be before
        return
    place = {cp.uuid: number for number, cp in enumerate(found)}
    for number, cp in enumerate(found):
        if cp.parent and place.get(cp.parent, -1) > number:
            yield Child(cp.uuid, cp.parent, None if cp.status == "deleted" else cp.fingerprint)


def _link(connection: Connection, run_id: int, children: Sequence[Child]) -> None:
    rows = [
        (run_id, child.parent, child.fingerprint, run_id, child.uuid, run_id, child.parent)
        for child in children
    ]
    if rows:
        driver.send(connection, LINK_PARENT, rows)


def _annotate(connection: Connection, run_id: int, uuid: str, found: Annotations) -> None:
    row = connection.execute(CHECKPOINT_BY_UUID, {"run_id": run_id, "uuid": uuid}).first()
    if row is None:
        return  # of a checkpoint that nobody knows: it may come back
    marks = {
        "row_id": row.id,
        "pinned": int(found.pinned),
        "notes": found.notes,
        "rejected": found.rejected,
    }
    connection.execute(UPDATE_CHECKPOINT, marks)
    live = _is_live(row, rejected=found.rejected is not None)
    if (found.rejected is None) != (row.rejected is None):
        driver.send(connection, RANK_METRICS, (live, row.id))
    if row.resumed:
        connection.execute(DELETE_RESUMES, {"row_id": row.id})
    if found.resumptions:
        ids = {"checkpoint_id": row.id, "run_id": run_id}
        connection.execute(INSERT_RESUME, [ids | asdict(one) for one in found.resumptions])
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
            "live": live,
        }
        for metric in found.late
    ]
    if late:
        connection.execute(INSERT_METRIC, late)


def _finish(connection: Connection, run_id: int, changes: Changes) -> None:
    """Change the run's own row, with what has come of everything else."""
    assigned: list[str] = []
    values: list[object] = []
    if changes.config is not None:
        # Sorted, as a config.yaml is: what was passed and what is read back are one text.
        text = json.dumps(changes.config, sort_keys=True)
        step = changes.config_step
        assigned.append("config = ?" if step is None else SET_CONFIG_OF_STEP)
        values += [text] if step is None else [step, text]
    elif any(checkpoint.status == "deleted" for checkpoint in changes.checkpoints):
        # It may have come from one of these; the next look at the directory finds it again.
        assigned.append(KEEP_CONFIG_OF_STEP)
        values.append(changes.config_step)
    if changes.seen is not None:
        assigned.append("stamp = ?, stamp_verified = ?")
        values += [changes.seen, int(changes.verified)]
    elif changes.moved is not None:
        before, after = changes.moved
        assigned.append(MOVE_STAMP)
        values += [before, before, after]
    if assigned:
        sql = f"UPDATE runs SET {', '.join(assigned)} WHERE id = ?"  # noqa: S608  # texts of ours
        driver.send(connection, sql, (*values, run_id))
