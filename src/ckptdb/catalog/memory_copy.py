"""Copies of a catalog in the memory of this process."""

from __future__ import annotations

from ckptdb.catalog.engine import Database


def find_memory_copy(database: Database) -> Database | None:
    """Return a copy in memory, of this process alone; None of a database that cannot be copied."""
    copy = Database.in_memory(database.location.base)
    try:
        with database.read() as source, copy.read() as target:
            if database.dialect.copy_to(source, target):
                return copy
    except BaseException:
        copy.close()
        raise
    copy.close()
    return None
