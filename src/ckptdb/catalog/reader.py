"""Answers of a catalog: rows, columns and numbers of a SELECT, and values as they were stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Executable, Row

from ckptdb.catalog import driver
from ckptdb.catalog.engine import Database
from ckptdb.catalog.stored_paths import Paths
from ckptdb.errors import CatalogBroken


class CatalogReader:
    """SELECTs of a catalog, each on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.paths = Paths(database.location.base)

    def rows(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Row[Any]]:
        """Return all rows."""
        with self.database.read() as connection:
            return connection.execute(statement, parameters).all()

    def column(self, statement: Executable, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the first column of all rows; no parameter may be a list."""
        with self.database.read() as connection:
            return tuple(row[0] for row in driver.query(connection, statement, parameters))

    def number(self, statement: Executable, parameters: Mapping[str, Any]) -> int | None:
        """Return the first column of the first row; no parameter may be a list."""
        found = self.column(statement, parameters)
        return int(found[0]) if found and found[0] is not None else None

    # --- values as they were stored; SQLite has no checksums: flipped bits come back as others

    def absolute(self, stored: str) -> Path:
        """Return a stored path as an absolute one.

        Raises:
            CatalogBroken: No path looks like that.
        """
        if "\0" in stored:
            raise self.broken("a path that none can be")
        return self.paths.absolute(stored)

    def json(self, text: str) -> dict[str, Any]:
        """Return the object that a text holds.

        Raises:
            CatalogBroken: It holds none.
        """
        try:
            content = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.broken("JSON that is none") from error
        if not isinstance(content, dict):
            raise self.broken("JSON of another kind")
        return content

    def broken(self, what: str) -> CatalogBroken:
        """Return the error for a value that ckptdb never stores."""
        return CatalogBroken(str(self.database.location), f"it holds {what}")


@contextmanager
def iterate(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any]
) -> Iterator[Iterable[tuple[Any, ...]]]:
    """Enter the rows of a SELECT as the driver has them: there may be a hundred thousand."""
    with closing(connection.execute(statement, parameters)) as result:
        yield cast("Iterable[tuple[Any, ...]]", cast("CursorResult[Any]", result).cursor)
