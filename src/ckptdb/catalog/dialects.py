"""Dialects: the differences between the databases. PostgreSQL is here, SQLite in `sqlite`."""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Connection, Engine, create_engine

from ckptdb.catalog.definitions import Definition
from ckptdb.catalog.location import Location
from ckptdb.catalog.schema import APPLICATION_ID
from ckptdb.catalog.view_dialects import POSTGRES, ViewDialect
from ckptdb.errors import CatalogError, CatalogLocked, CatalogReadOnly, CatalogUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator


class Patience(threading.local):
    """Time that a connection opened by this thread may wait for others."""

    seconds = 5.0


class Dialect(Protocol):
    """The operations of `Database` that differ between databases."""

    patience: Patience
    view_dialect: ViewDialect

    def engine(self) -> Engine:
        """Return the engine whose transactions write."""

    def reader(self, writer: Engine) -> Engine:
        """Return the engine, on the same pool, whose statements stand alone."""

    def begin(self, connection: Connection, *, work_seconds: float, only_read: bool) -> None:
        """Begin a session: see that nothing dangerous lies in wait, and bound what it may take.

        Args:
            connection: Which has sent nothing yet in this session.
            work_seconds: For all its statements together, after which they fail.
            only_read: Whether it is to read.
        """
        return

    def wait_at_most(self, connection: Connection, seconds: float) -> None:
        """Bound how long the connection waits for locks of others."""
        return

    def transaction(self, connection: Connection, seconds: float) -> AbstractContextManager[None]:
        """Enter the one writing transaction, which has the lock before it has read anything.

        Args:
            connection: In a session.
            seconds: For all waits at its beginning and at its commit together.
        """

    def opened(self) -> None:
        """From now on the database must be there: connect, but never make a new one."""
        return

    def contents(self, connection: Connection) -> tuple[int, tuple[Definition, ...]]:
        """Return the owner's application id (0: none) and what the schema holds."""

    def may_have_changed(self, connection: Connection, *, is_locked: bool) -> bool:
        """Return whether the schema may have changed since `remember` was called.

        Args:
            connection: In a session.
            is_locked: Whether a transaction of ours keeps it as it is.
        """
        return False

    def remember(self, connection: Connection) -> None:
        """Remember that the schema was looked at just now."""
        return

    def is_complete(self, connection: Connection) -> bool:
        """Return whether `set_complete` was called since the database was made."""

    def set_complete(self, connection: Connection) -> None:
        """Remember, in a transaction, that the catalog has seen every run it is to know."""

    def copy_to(self, source: Connection, target: Connection) -> bool:
        """Copy the whole database into another one of this kind; False where that is impossible."""

    def integrity(self, connection: Connection, *, quick: bool) -> list[str]:
        """Return ``["ok"]`` or what is wrong; ``quick``: without comparing indexes with tables."""

    def keep_copy(self, revision: str) -> Path | None:
        """Copy the database as committed, while a transaction of ours is open."""

    def explain(self, error: BaseException, location: Location) -> CatalogError:
        """Return the error of ours for one of the driver."""


OWN_VALUE: Final = {
    "sqlite": """
        SELECT CAST(own.value AS REAL) FROM json_each({info}) AS own
        WHERE own.key = {name} AND own.type IN ('integer', 'real')
          AND CAST(own.value AS REAL) > -9e999 AND CAST(own.value AS REAL) < 9e999
    """,
    "postgresql": """
        SELECT CASE WHEN abs(CAST(CAST(own.value AS text) AS numeric)) <= 1.7976931348623157e308
               THEN CAST(CAST(own.value AS text) AS double precision) END
        FROM json_each(CAST({info} AS json)) AS own
        WHERE own.key = {name} AND json_typeof(own.value) = 'number'
    """,
}
"""By dialect, the finite number that a training_info has under a name."""


class Postgres(Dialect):
    """PostgreSQL; a lock of ours makes its writers take turns as those of SQLite do."""

    view_dialect = POSTGRES

    def __init__(self, location: Location, *, durable: bool, timeout_seconds: float) -> None:
        self.patience = Patience()
        self._location = location
        self._durable = durable
        self._connect_seconds = max(math.ceil(timeout_seconds), 2)

    def engine(self) -> Engine:
        return create_engine(
            self._location.url,
            max_overflow=-1,
            connect_args={"connect_timeout": self._connect_seconds},
        )

    def reader(self, writer: Engine) -> Engine:
        return writer.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def transaction(self, connection: Connection, seconds: float) -> Iterator[None]:
        milliseconds = math.ceil(max(seconds, 0.001) * 1000)
        with connection.begin():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
            if not self._durable:
                connection.exec_driver_sql("SET LOCAL synchronous_commit = OFF")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
            yield

    def contents(self, connection: Connection) -> tuple[int, tuple[Definition, ...]]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        names = connection.exec_driver_sql(query).scalars()
        return 0, tuple(Definition("table", name, name, None) for name in names)

    # It has no tree of its own that it could have seen the whole of.
    def is_complete(self, connection: Connection) -> bool:
        return True

    def set_complete(self, connection: Connection) -> None:
        return

    def copy_to(self, source: Connection, target: Connection) -> bool:
        return False

    def integrity(self, connection: Connection, *, quick: bool) -> list[str]:
        connection.exec_driver_sql("SELECT 1")
        return ["ok"]

    def keep_copy(self, revision: str) -> Path | None:
        return None

    def explain(self, error: BaseException, location: Location) -> CatalogError:
        where = str(location)
        state: Any = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        why = " ".join(str(error).split())
        if state == "55P03":  # lock_not_available
            return CatalogLocked(where)
        if state == "25006":  # read_only_sql_transaction
            return CatalogReadOnly(where)
        return CatalogUnusable(where, why)
