"""Connections of one catalog: idle ones, and the use of one for a query or a transaction."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ckptdb.core import fork
from ckptdb.errors import CatalogError, CatalogLocked

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import TracebackType

    from sqlalchemy import Connection, Engine

    from ckptdb.catalog.dialects import Dialect
    from ckptdb.catalog.location import Location

TRANSLATED: Final = (SQLAlchemyError, sqlite3.Error, OverflowError, UnicodeError)
"""The last two: integers of 64 bits and more, and lone surrogates, raise when they are bound;
so does reading text, or an error message about a schema, whose bits have flipped."""


class IdleConnections:
    """The connections of an engine that are not in use.

    Given back to the pool between two questions, each would be reset and looked up again, which
    takes as long as the question.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._connections: list[Connection] = []
        self._closed = False

    def take(self) -> Connection:
        """Return a connection, new or not, for one thread at a time."""
        try:
            return self._connections.pop()
        except IndexError:
            return self.engine.connect()

    def give(self, connection: Connection) -> None:
        """Put one back."""
        if self._closed:
            connection.close()
        else:
            self._connections.append(connection)

    def close(self) -> None:
        """Close them; those in use close when they come back."""
        self._closed = True
        while self._connections:
            self._connections.pop().close()


class ConnectionUse:
    """Enter a connection.

    Every error of SQLAlchemy and of the driver leaves it as a `CatalogError`.

    Args:
        rest: Where it comes from.
        lock: Lets one user in at a time.
        seconds: Bounds each wait for others.
        work_seconds: Bounds what its statements may take together.
        only_read: Whether it is to read.
        check: Called with the connection before the first statement.
    """

    def __init__(
        self,
        location: Location,
        dialect: Dialect,
        rest: IdleConnections,
        *,
        lock: threading.Lock | None,
        seconds: float,
        work_seconds: float,
        only_read: bool,
        check: Callable[[Connection], None] | None = None,
    ) -> None:
        self._location = location
        self._dialect = dialect
        self._rest = rest
        self._lock = lock
        self._seconds = seconds
        self._work_seconds = work_seconds
        self._only_read = only_read
        self._check = check
        self._connection: Connection | None = None
        self._use: object = None

    def __enter__(self) -> Connection:
        if self._lock is not None and not self._lock.acquire(timeout=max(self._seconds, 0)):
            raise CatalogLocked(str(self._location))
        try:
            self._use = fork.begin_use(self._location.file)
            # A new connection waits too, for it reads the schema.
            self._dialect.patience.seconds = self._seconds
            self._connection = self._rest.take()
            self._dialect.wait_at_most(self._connection, self._seconds)
            self._dialect.begin(
                self._connection, work_seconds=self._work_seconds, only_read=self._only_read
            )
            if self._check is not None:
                self._check(self._connection)
        except BaseException as error:
            self._end(well=False)
            self._translate(error)
            raise
        return self._connection

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(well=error is None)
        if error is not None:
            self._translate(error)

    def _end(self, *, well: bool) -> None:
        try:
            if self._connection is None:
                return
            if well:
                self._rest.give(self._connection)
            else:
                self._connection.close()
        finally:
            fork.end_use(self._use)
            if self._lock is not None:
                self._lock.release()

    def _translate(self, error: BaseException) -> None:
        if isinstance(error, TRANSLATED):
            raise self._dialect.explain(origin(error), self._location) from error
        # What SQLAlchemy makes of an interrupt in the middle of its commit.
        if isinstance(error, AssertionError) and isinstance(
            error.__context__, KeyboardInterrupt | SystemExit
        ):
            raise error.__context__ from None


def origin(error: BaseException) -> BaseException:
    """Return the driver's own error, from inside those of SQLAlchemy and ckptdb."""
    if isinstance(error, CatalogError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error
