"""Statements past SQLAlchemy: those of which preparing one takes it longer than SQLite answers.

They go to SQLite's driver as text, with their values in order; to PostgreSQL's as usual, where the
way there takes longer than either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Executable

_texts: Final[dict[Executable, tuple[str, tuple[str, ...], Mapping[str, object]]]] = {}
"""Of each statement that was asked: what it is in SQLite, its values in order, and those it has
itself. Statements are made once, when their module is imported."""


def send(
    connection: Connection,
    statement: str,
    values: tuple[object, ...] | Sequence[tuple[object, ...]],
) -> Any:
    """Send a text with ``?`` for each value, with the values of one row or of many."""
    if connection.dialect.paramstyle != "qmark":
        return connection.exec_driver_sql(statement.replace("?", "%s"), values)
    raw: Any = connection.connection.dbapi_connection
    return (raw.execute if isinstance(values, tuple) else raw.executemany)(statement, values)


def query(
    connection: Connection, statement: Executable, values: Mapping[str, object]
) -> Sequence[Sequence[Any]]:
    """Answer a SELECT of ours; no value of it may be a list.

    Args:
        connection: To the catalog.
        statement: One that lives as long as the process.
        values: By name, all that it has not itself.
    """
    if connection.dialect.paramstyle != "qmark":
        return connection.execute(statement, values).all()
    if statement not in _texts:
        compiled: Any = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
        _texts[statement] = str(compiled), tuple(compiled.positiontup), compiled.params
    text, order, own = _texts[statement]
    given = {**own, **values}
    rows: list[tuple[Any, ...]] = send(
        connection, text, tuple(given[name] for name in order)
    ).fetchall()
    return rows
