"""Stray rows: rows that belong to no run or checkpoint that exists.

Foreign keys hold only where the writing program has switched them on.
"""

from __future__ import annotations

from sqlalchemy import and_, delete, exists, func, select, update

from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.schema import checkpoints, metrics, resumes, runs, tags
from ckptdb.catalog.stored_checkpoints import PARENTS

# Rows of missing runs first, which take more with them.
STRAYS = (
    (checkpoints, ~exists().where(runs.c.id == checkpoints.c.run_id)),
    *(
        (table, ~exists().where(checkpoints.c.id == table.c.checkpoint_id))
        for table in (metrics, tags, resumes)
    ),
)

_MISSING_PARENT = and_(
    checkpoints.c.parent_id.is_not(None),
    checkpoints.c.parent_id.not_in(select(PARENTS.c.id)),
)

COUNT_MISSING_PARENTS = select(func.count()).select_from(checkpoints).where(_MISSING_PARENT)

UNLINK_MISSING_PARENTS = update(checkpoints).where(_MISSING_PARENT).values(parent_id=None)


class StrayRows:
    """Stray rows of a catalog."""

    def __init__(self, reader: CatalogReader) -> None:
        self._reader = reader

    def count(self) -> int:
        """Return how many stray rows there are, links to missing parents included."""
        counts = (select(func.count()).select_from(t).where(stray) for t, stray in STRAYS)
        return sum(self._reader.rows(count)[0][0] for count in (*counts, COUNT_MISSING_PARENTS))

    def remove(self) -> None:
        """Remove them, and the links to missing parents."""
        with self._reader.database.write() as connection:
            for table, stray in STRAYS:
                connection.execute(delete(table).where(stray))
            connection.execute(UNLINK_MISSING_PARENTS)
