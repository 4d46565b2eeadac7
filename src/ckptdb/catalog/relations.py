"""Relations of the catalog: the tables and views that a query can name, with their purposes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import inspect

from ckptdb.catalog.engine import Database
from ckptdb.catalog.views import EXAMPLES, PURPOSES


@dataclass(frozen=True, slots=True)
class SchemaColumn:
    """A column of a table or view; the type is empty where a view computes it."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A table or view that a query can name, and what it is for.

    Attributes:
        example: A question to it; ``:run`` and ``:other`` are names of runs.
    """

    name: str
    kind: Literal["table", "view"]
    purpose: str
    columns: tuple[SchemaColumn, ...]
    example: str


def describe(database: Database) -> tuple[Relation, ...]:
    """Return every table, then every view, with its columns."""
    with database.read() as connection:
        inspector = inspect(connection)
        tables = [_relation(inspector, name, "table") for name in inspector.get_table_names()]
        views = [_relation(inspector, name, "view") for name in inspector.get_view_names()]
    return (*tables, *views)


def _relation(inspector: Any, name: str, kind: Literal["table", "view"]) -> Relation:
    columns = inspector.get_columns(name)
    types = ("" if str(column["type"]) == "NULL" else str(column["type"]) for column in columns)
    named = zip((str(column["name"]) for column in columns), types, strict=True)
    found = tuple(SchemaColumn(*pair) for pair in named)
    return Relation(name, kind, PURPOSES.get(name, ""), found, EXAMPLES.get(name, ""))
