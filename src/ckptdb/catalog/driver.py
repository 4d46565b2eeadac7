"""Statements sent past SQLAlchemy, which takes longer to prepare them than SQLite to answer.

The best and the latest checkpoint of a run take 45 µs this way and 72 µs through SQLAlchemy's
`execute`, measured from the manager's methods; what a save writes has many rows, and is text also
because SQLAlchemy has ON CONFLICT only in the words of one database. SQLite's driver gets the text
with its values in order; PostgreSQL's gets it as usual, for the way there takes longer than either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Executable

_compiled: Final[dict[Executable, tuple[str, tuple[str, ...], Mapping[str, object]]]] = {}
"""By statement: its text for SQLite, the names of its values in order, and its own values.
Statements are built once, when their module is imported."""


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
    """Return the rows of a SELECT of this package; no value may be a list.

    Args:
        connection: To the catalog.
        statement: Built when its module was imported.
        values: By name, all that the statement does not have itself.
    """
    if connection.dialect.paramstyle != "qmark":
        return connection.execute(statement, values).all()
    if statement not in _compiled:
        compiled: Any = statement.compile(dialect=connection.dialect)  # type: ignore[attr-defined]
        _compiled[statement] = str(compiled), tuple(compiled.positiontup), compiled.params
    text, order, own = _compiled[statement]
    given = {**own, **values}
    rows: list[tuple[Any, ...]] = send(
        connection, text, tuple(given[name] for name in order)
    ).fetchall()
    return rows
