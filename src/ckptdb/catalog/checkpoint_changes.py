"""Changes of checkpoints: their rows, their own metrics and the links to their parents.

Statements for many rows go to the driver as text, with ``?`` for each value: taking a row apart
costs SQLAlchemy more than storing it costs SQLite. RETURNING would need SQLite 3.35.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, update
from sqlalchemy.exc import IntegrityError

from ckptdb.catalog import driver
from ckptdb.catalog.clauses import any_of, chunks
from ckptdb.catalog.schema import checkpoints
from ckptdb.catalog.stored_paths import Paths, storable
from ckptdb.core.changes import Child
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.records import Checkpoint, is_trusted
from ckptdb.errors import IndexStale

_NONE: Final[frozenset[str]] = frozenset()

# A row for each uuid, inserted or updated; annotations are left as they are. The order of the
# values is that of `_values`. As long as its parent is missing, a child has no fingerprint, so that
# it is read again and linked later; a child that names no parent keeps the one it has.
STORE_CHECKPOINT = """
    INSERT INTO checkpoints (
        run_id, uuid, step, path, created_at, finalized_at, size_bytes, file_count, status,
        deleted_at, deleted_reason, deleted_kind, problem, problem_kind, info,
        parent_id,
        fingerprint
    ) VALUES (
        ?, ?, ?, ?, ?, ?, ?, ?, ?,
        ?, ?, ?, ?, ?, ?,
        (SELECT id FROM checkpoints WHERE run_id = ? AND uuid = ?),
        CASE WHEN ? = 0 OR EXISTS (SELECT 1 FROM checkpoints WHERE run_id = ? AND uuid = ?)
            THEN ? END
    )
    ON CONFLICT (run_id, uuid) DO UPDATE SET
        step = excluded.step, path = excluded.path, created_at = excluded.created_at,
        finalized_at = excluded.finalized_at, size_bytes = excluded.size_bytes,
        file_count = excluded.file_count, status = excluded.status,
        deleted_at = excluded.deleted_at, deleted_reason = excluded.deleted_reason,
        deleted_kind = excluded.deleted_kind,
        problem = excluded.problem, problem_kind = excluded.problem_kind,
        info = excluded.info, fingerprint = excluded.fingerprint,
        parent_id = CASE WHEN ? = 0 THEN checkpoints.parent_id ELSE excluded.parent_id END
"""

# Id, rejection and each metric of stored checkpoints; one row for a checkpoint without metrics.
STORED_METRICS = """
    SELECT checkpoints.uuid, checkpoints.id, checkpoints.rejected IS NOT NULL,
        metrics.name, metrics.value, metrics.source
    FROM checkpoints LEFT JOIN metrics ON metrics.checkpoint_id = checkpoints.id
    WHERE checkpoints.run_id = ? AND checkpoints.uuid IN ({})
"""

CLEAR_METRICS = "DELETE FROM metrics WHERE checkpoint_id = ? AND source = ?"

KEEP_METRICS = """
    UPDATE metrics SET step = ?, reported_at = ?, live = ? WHERE checkpoint_id = ? AND source = ?
"""

RANK_METRICS = "UPDATE metrics SET live = ? WHERE checkpoint_id = ?"

# A late value hides the one that came with the checkpoint.
STORE_METRIC = """
    INSERT INTO metrics (
        checkpoint_id, run_id, step, name, value, source, reported_at, live
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (checkpoint_id, name) DO NOTHING
"""

# For a child that was stored before its parent.
LINK_PARENT = """
    UPDATE checkpoints
    SET parent_id = (SELECT id FROM checkpoints WHERE run_id = ? AND uuid = ?), fingerprint = ?
    WHERE run_id = ? AND uuid = ?
        AND EXISTS (SELECT 1 FROM checkpoints WHERE run_id = ? AND uuid = ?)
"""

UNLINK_PARENTS = (
    update(checkpoints)
    .where(checkpoints.c.run_id == bindparam("of_run"), checkpoints.c.uuid.in_(any_of("uuids")))
    .values(parent_id=None)
)


def store_checkpoints(
    connection: Connection, paths: Paths, run_id: int, found: Sequence[Checkpoint]
) -> None:
    """Insert or update checkpoints of a run, with their own metrics.

    Raises:
        IndexStale: The index has another live checkpoint at one of their steps.
    """
    if not found:
        return
    try:
        driver.send(connection, STORE_CHECKPOINT, [_values(paths, run_id, cp) for cp in found])
    except (IntegrityError, sqlite3.IntegrityError) as error:
        if not _is_step_taken(error):
            raise
        raise IndexStale([cp.step for cp in found if cp.status == "final"]) from error
    by_uuid = {cp.uuid: cp for cp in found}
    for chunk in chunks(by_uuid):
        _store_metrics(connection, run_id, [by_uuid[uuid] for uuid in chunk])


def _store_metrics(connection: Connection, run_id: int, found: Sequence[Checkpoint]) -> None:
    """Store the metrics of training_info; late values stay, and hide those of the same name."""
    by_uuid = {cp.uuid: cp for cp in found}
    query = STORED_METRICS.format(",".join("?" * len(by_uuid)))
    ids: dict[str, tuple[int, bool]] = {}
    own: dict[str, dict[str, float | None]] = {}
    late: dict[str, set[str]] = {}
    rows = driver.send(connection, query, (run_id, *by_uuid)).fetchall()
    for uuid, row_id, rejected, name, value, source in rows:
        ids[uuid] = row_id, rejected
        if source == TRAINING_INFO:
            own.setdefault(uuid, {})[name] = value
        elif name is not None:
            late.setdefault(uuid, set()).add(name)
    cleared: list[tuple[object, ...]] = []
    kept: list[tuple[object, ...]] = []
    ranked: list[tuple[object, ...]] = []
    new: list[tuple[object, ...]] = []
    for uuid, (row_id, rejected) in ids.items():
        cp = by_uuid[uuid]
        # A rejected checkpoint stays so, whatever is stored of its files.
        live = is_live(cp.status, cp.problem, rejected=rejected)
        published_at = cp.finalized_at or cp.created_at
        hidden = late.get(uuid, _NONE).union(cp.late)
        values = {name: value for name, value in cp.metrics.items() if name not in hidden}
        known = own.get(uuid, {})
        if uuid in late:
            ranked.append((live, row_id))
        # To store five metrics anew takes longer than everything else that a save stores.
        if known and values == known:
            kept.append((cp.step, published_at, live, row_id, TRAINING_INFO))
            continue
        if known:
            cleared.append((row_id, TRAINING_INFO))
        new += [
            (row_id, run_id, cp.step, name, value, TRAINING_INFO, published_at, live)
            for name, value in values.items()
        ]
    for statement, to_send in (
        (CLEAR_METRICS, cleared),
        (KEEP_METRICS, kept),
        (RANK_METRICS, ranked),
        (STORE_METRIC, new),
    ):
        if to_send:
            driver.send(connection, statement, to_send)


def is_live(status: str, problem: str | None, *, rejected: bool) -> int:
    """Return the value of ``metrics.live``: 1 for a checkpoint that is trusted, else 0."""
    return int(is_trusted(status, has_problem=problem is not None, is_rejected=rejected))


def _is_step_taken(error: Exception) -> bool:
    """Return whether a row was refused because another one is published at its step."""
    message = str(error)
    # PostgreSQL names the index, SQLite its columns.
    return "uq_checkpoints_final" in message or "checkpoints.run_id, checkpoints.step" in message


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
        # A deleted checkpoint is never compared with a file again.
        None if checkpoint.status == "deleted" else checkpoint.fingerprint,
        has_parent,
    )


def children_before_parents(found: Sequence[Checkpoint]) -> Iterator[Child]:
    """Return those that were stored before their parents."""
    if len(found) < 2:  # noqa: PLR2004  # nothing to be before
        return
    position = {cp.uuid: number for number, cp in enumerate(found)}
    for number, cp in enumerate(found):
        if cp.parent and position.get(cp.parent, -1) > number:
            yield Child(cp.uuid, cp.parent, None if cp.status == "deleted" else cp.fingerprint)


def link_to_parents(connection: Connection, run_id: int, children: Sequence[Child]) -> None:
    """Link children to those of their parents that the index has."""
    rows = [
        (run_id, child.parent, child.fingerprint, run_id, child.uuid, run_id, child.parent)
        for child in children
    ]
    if rows:
        driver.send(connection, LINK_PARENT, rows)


def unlink_from_parents(connection: Connection, run_id: int, uuids: Sequence[str]) -> None:
    """Remove the links of checkpoints to their parents."""
    for chunk in chunks(uuids):
        connection.execute(UNLINK_PARENTS, {"of_run": run_id, "uuids": chunk})
