"""Changes of annotations: marks, tags, late metrics and resumptions of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, bindparam, delete, exists, insert, or_, select, update

from ckptdb.catalog import driver
from ckptdb.catalog.checkpoint_changes import RANK_METRICS, is_live
from ckptdb.catalog.clauses import OF_RUN, any_of
from ckptdb.catalog.schema import checkpoints, metrics, resumes, tags
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.records import Annotations

CHECKPOINT_BY_UUID = select(
    checkpoints.c.id, checkpoints.c.step, checkpoints.c.status, checkpoints.c.problem,
    checkpoints.c.rejected,
    exists().where(resumes.c.checkpoint_id == checkpoints.c.id).label("resumed"),
).where(OF_RUN, checkpoints.c.uuid == bindparam("uuid"))  # fmt: skip

UPDATE_CHECKPOINT = update(checkpoints).where(checkpoints.c.id == bindparam("row_id"))

INSERT_METRIC = insert(metrics)

DELETE_LATE_METRICS = delete(metrics).where(
    metrics.c.checkpoint_id == bindparam("row_id"),
    or_(metrics.c.source != TRAINING_INFO, metrics.c.name.in_(any_of("names"))),
)

INSERT_TAG = insert(tags)

DELETE_TAGS = delete(tags).where(tags.c.checkpoint_id == bindparam("row_id"))

INSERT_RESUME = insert(resumes)

DELETE_RESUMES = delete(resumes).where(resumes.c.checkpoint_id == bindparam("row_id"))


def store_annotations(
    connection: Connection, run_id: int, uuid: str, annotations: Annotations
) -> None:
    """Replace all annotations of a checkpoint; an unknown checkpoint is skipped."""
    row = connection.execute(CHECKPOINT_BY_UUID, {"run_id": run_id, "uuid": uuid}).first()
    if row is None:
        return  # it may come back
    marks = {
        "row_id": row.id,
        "pinned": int(annotations.pinned),
        "notes": annotations.notes,
        "rejected": annotations.rejected,
    }
    connection.execute(UPDATE_CHECKPOINT, marks)
    live = is_live(row.status, row.problem, rejected=annotations.rejected is not None)
    if (annotations.rejected is None) != (row.rejected is None):
        driver.send(connection, RANK_METRICS, (live, row.id))
    if row.resumed:
        connection.execute(DELETE_RESUMES, {"row_id": row.id})
    ids = {"checkpoint_id": row.id, "run_id": run_id}
    if annotations.resumptions:
        resumptions = [ids | asdict(resumption) for resumption in annotations.resumptions]
        connection.execute(INSERT_RESUME, resumptions)
    connection.execute(DELETE_TAGS, {"row_id": row.id})
    if annotations.tags:
        new_tags = [
            {"checkpoint_id": row.id, "name": name, "created_at": at}
            for name, at in annotations.tags
        ]
        connection.execute(INSERT_TAG, new_tags)
    names = [metric.name for metric in annotations.late]
    connection.execute(DELETE_LATE_METRICS, {"row_id": row.id, "names": names})
    if annotations.late:
        late = [ids | {"step": row.step, "live": live} | asdict(one) for one in annotations.late]
        connection.execute(INSERT_METRIC, late)
