"""Lineage of checkpoints: their ancestors, and the resumptions of training from them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Text,
    bindparam,
    cast,
    func,
    null,
    or_,
    select,
)

from ckptdb.catalog.clauses import FINAL, IS_RANKED, OF_RUN
from ckptdb.catalog.reader import CatalogReader, iterate
from ckptdb.catalog.schema import checkpoints, resumes
from ckptdb.core.records import Ancestor, LineMember, is_derived

RESUMPTIONS = (
    select(checkpoints.c.uuid, resumes.c.resumed_at)
    .join_from(resumes, checkpoints, checkpoints.c.id == resumes.c.checkpoint_id)
    .where(resumes.c.run_id == bindparam("run_id"))
    .order_by(resumes.c.resumed_at, resumes.c.checkpoint_id)
)


def _with_ancestors(first: Select[Any], *more: ColumnElement[Any]) -> Any:
    """Begin with the ids of some checkpoints; add those of all ancestors, each once.

    UNION, not UNION ALL: it visits a common ancestor once, and ends where the parents form a
    circle, as in manifests that were edited by hand. More columns may stand beside the id.
    """
    line = first.cte("line", recursive=True)
    parents = select(checkpoints.c.parent_id, *more).join_from(
        line, checkpoints, checkpoints.c.id == line.c.id
    )
    return line.union(parents.where(checkpoints.c.parent_id.is_not(None)))


_LINE = _with_ancestors(
    select(checkpoints.c.id.label("id"), cast(null(), Text).label("child_created_at")).where(
        OF_RUN, checkpoints.c.uuid == bindparam("uuid")
    ),
    checkpoints.c.created_at,
)

ANCESTORS = select(
    checkpoints.c.id, checkpoints.c.parent_id, checkpoints.c.uuid, checkpoints.c.step,
    checkpoints.c.status, checkpoints.c.created_at, checkpoints.c.finalized_at,
    checkpoints.c.deleted_at, checkpoints.c.deleted_reason, checkpoints.c.deleted_kind,
    select(func.max(resumes.c.resumed_at))
    .where(
        resumes.c.checkpoint_id == checkpoints.c.id,
        or_(
            _LINE.c.child_created_at.is_(None),
            resumes.c.resumed_at <= _LINE.c.child_created_at,
        ),
    )
    .scalar_subquery()
    .label("resumed_at"),
).join_from(_LINE, checkpoints, checkpoints.c.id == _LINE.c.id)  # fmt: skip

_ANCESTOR_IDS = _with_ancestors(
    select(checkpoints.c.parent_id.label("id")).where(
        OF_RUN, FINAL, checkpoints.c.parent_id.is_not(None)
    )
)

ANCESTORS_OF_LIVE = select(checkpoints.c.uuid).join_from(
    _ANCESTOR_IDS, checkpoints, checkpoints.c.id == _ANCESTOR_IDS.c.id
)

# Every published checkpoint, with the columns that decide which line of training it is on.
MEMBERS = select(
    checkpoints.c.id, checkpoints.c.uuid, checkpoints.c.step, checkpoints.c.parent_id,
    checkpoints.c.created_at, checkpoints.c.finalized_at, checkpoints.c.status,
    IS_RANKED, checkpoints.c.deleted_kind,
).where(OF_RUN, checkpoints.c.finalized_at.is_not(None))  # fmt: skip


class LineageQueries:
    """Queries about the lineage of checkpoints."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def resumptions(self, run_id: int) -> tuple[tuple[str, str], ...]:
        """Return, by time, the uuid of the checkpoint and the time of each resumption of a run."""
        rows = self._reader.rows(RESUMPTIONS, {"run_id": run_id})
        return tuple((row.uuid, row.resumed_at) for row in rows)

    def ancestors(self, run_id: int, uuid: str) -> tuple[Ancestor, ...]:
        """Return a checkpoint of a run and its ancestors, the nearest first."""
        found = self._reader.rows(ANCESTORS, {"run_id": run_id, "uuid": uuid})
        rows = {row.id: row for row in found}
        row = next((row for row in rows.values() if row.uuid == uuid), None)
        line = []
        while row is not None:
            line.append(_ancestor(row))
            # Taken out, so that a circle has an end.
            del rows[row.id]
            row = rows.get(row.parent_id)
        return tuple(line)

    def ancestors_of_live(self, run_id: int) -> frozenset[str]:
        """Return the uuids of the ancestors of a run's published checkpoints."""
        rows = self._reader.rows(ANCESTORS_OF_LIVE, {"run_id": run_id})
        return frozenset(row.uuid for row in rows)

    def members(self, run_id: int) -> tuple[LineMember, ...]:
        """Return every checkpoint of a run that was ever published, as members of lines."""
        with (
            self._reader.database.read() as connection,
            iterate(connection, MEMBERS, {"run_id": run_id}) as rows,
        ):
            return tuple(self._member(row) for row in rows)

    def _member(self, row: tuple[Any, ...]) -> LineMember:
        row_id, uuid, step, parent_id, created_at, finalized_at, status, trusted, kind = row
        if type(step) is not int or not isinstance(uuid, str):
            raise self._reader.broken("a step that is no number")
        is_live = status == "final"
        return LineMember(
            id=row_id,
            uuid=uuid,
            step=step,
            parent_id=parent_id,
            created_at=created_at,
            finalized_at=finalized_at,
            is_live=is_live,
            is_trusted=bool(trusted),
            has_manifest=not is_derived(uuid),
            is_replaced=status == "deleted" and kind == "replaced",
        )


def _ancestor(row: Row[Any]) -> Ancestor:
    return Ancestor(**{name: getattr(row, name) for name in Ancestor.__slots__})
