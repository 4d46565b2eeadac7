"""Queries of people: their own SQL reads everything, changes nothing and ends in time."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from ckptdb.catalog import files
from ckptdb.catalog.bounded_query import (
    BoundedQuery,
    EmptyQuery,
    Failed,
    Late,
    Outcome,
    Sink,
    TooLarge,
    answer,
    code_of,
    collect,
    is_late,
)
from ckptdb.catalog.engine import Database
from ckptdb.catalog.error_position import Spot, excerpt, find_spots
from ckptdb.catalog.postgres_parameters import (
    COMMANDS,
    QUESTIONS,
    first_word,
    for_driver,
)
from ckptdb.catalog.sandbox import NOT_ITS_FAULT
from ckptdb.catalog.spool import Spool
from ckptdb.catalog.worker import Place, Workers
from ckptdb.core.fork import in_use
from ckptdb.core.rows import Rows
from ckptdb.errors import (
    CkptdbError,
    ParameterMissing,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    QueryTooLarge,
)

LARGEST_ANSWER_BYTES: Final = 256 << 20
"""No answer may be longer, whatever the number of its rows."""

_LONGEST_WAIT_SECONDS: Final = 5.0
"""For whoever has locked the catalog."""


_MISSING: Final = re.compile(r"parameter (?::|missing: )(\w+)")
"""What SQLite and psycopg say of a parameter without a value."""


def run(
    database: Database,
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    limit: int | None = 100_000,
    timeout_seconds: float = 30.0,
    workers: Workers | None = None,
) -> Rows:
    """Answer one SELECT (or WITH, VALUES, EXPLAIN, reading PRAGMA).

    On SQLite the function ``abspath(path)`` makes the paths of the tables absolute. Without workers
    it runs in this process, whose other connections no limit on memory may hurt: what a value, an
    answer and its time may be is limited, but not what SQLite holds in between.

    Args:
        database: The catalog.
        sql: One statement; ``:name`` stands for a parameter.
        parameters: Values by name.
        limit: Rows after which the answer is cut; `Rows.truncated` then says so.
        timeout_seconds: Bounds the whole call.
        workers: Answer it in processes of their own; for SQL that is not ours.

    Raises:
        QueryRefused: It would write, attach a file, or is more than one statement.
        QueryFailed: It is wrong; the message is the database's own.
        ParameterMissing: It names a parameter that has no value.
        QueryTimeout: It ran for too long.
        QueryTooLarge: It, or its answer, is larger than it may be.
        CatalogError: The catalog itself cannot be read.
    """
    task = _QueryRun(database, sql, parameters, limit, timeout_seconds)
    rows: list[tuple[Any, ...]] = []
    outcome = task.run(rows.clear, rows.extend, workers)
    return Rows(outcome.columns, tuple(rows), truncated=outcome.truncated)


@contextmanager
def run_apart(
    database: Database,
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    limit: int | None,
    timeout_seconds: float,
    workers: Workers,
) -> Iterator[Spool]:
    """Answer like `run`, by workers; enter the answer, which may be larger than memory.

    The answer is in a temporary file: nothing is open in the catalog while it is read.

    Raises:
        CkptdbError: As `run` does.
    """
    task = _QueryRun(database, sql, parameters, limit, timeout_seconds)
    with Spool() as spool:
        outcome = task.run(spool.clear, spool.add, workers)
        spool.finish(outcome)
        yield spool


class _QueryRun:
    """One query under way."""

    def __init__(
        self,
        database: Database,
        sql: str,
        parameters: Mapping[str, object] | None,
        limit: int | None,
        timeout_seconds: float,
    ) -> None:
        self._database = database
        self._sql = sql
        self._parameters = dict(parameters or {})
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds

    def run(self, clear: Callable[[], None], sink: Sink, workers: Workers | None) -> Outcome:
        """Answer it.

        Args:
            clear: Called before the sink gets the first row, and before it gets it again.
            sink: Gets the rows.
            workers: Do it, unless it is a matter of PostgreSQL.
        """
        while True:
            # Through the ordinary connection first: it completes what a crashed writer left, which
            # a read-only one cannot, and says what is wrong with the catalog itself.
            self._database.revision()
            clear()
            try:
                if self._database.dialect_name != "sqlite":
                    return self._on_postgres(sink)
                return self._on_sqlite(sink) if workers is None else self._apart(sink, workers)
            except Failed as failed:
                code = getattr(failed.error, "sqlite_errorcode", None)
                if code != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise self._explain(failed) from failed.error
                # Since it was last looked at, a writer has died in the middle of a transaction.
                if self._is_late():
                    raise QueryTimeout(self._timeout_seconds) from failed.error

    def _question(self) -> BoundedQuery:
        return BoundedQuery(
            sql=self._sql,
            parameters=self._parameters,
            limit=self._limit,
            largest_bytes=LARGEST_ANSWER_BYTES,
            timeout_seconds=max(self._deadline - time.monotonic(), 0),
        )

    def _is_late(self) -> bool:
        return is_late(self._deadline)

    # --- SQLite

    def _on_sqlite(self, sink: Sink) -> Outcome:
        # A connection of its own: whatever the query does to it ends with it.
        base = self._database.location.base
        with in_use(self._database.location.file), closing(self._connect()) as raw:
            return answer(raw, base, self._question(), sink)

    def _connect(self) -> sqlite3.Connection:
        file = self._database.location.file
        if file is not None:
            return files.connect(
                file,
                mode=files.READING,
                timeout_seconds=self._patience_seconds(),
                factory=sqlite3.Connection,
            )
        # A copy: the original stays free for the training loop while the query runs.
        copy = sqlite3.connect(":memory:")
        self._copy_to(copy)
        return copy

    def _copy_to(self, copy: sqlite3.Connection) -> None:
        with self._database.read() as connection:
            original: Any = connection.connection.dbapi_connection
            original.backup(copy)

    def _patience_seconds(self) -> float:
        return min(self._timeout_seconds, _LONGEST_WAIT_SECONDS)

    def _apart(self, sink: Sink, workers: Workers) -> Outcome:
        with ExitStack() as stack:
            file = self._database.location.file
            if file is None:
                folder = stack.enter_context(TemporaryDirectory(prefix="ckptdb-"))
                file = Path(folder, "copy.db")
                with closing(sqlite3.connect(file)) as copy:
                    self._copy_to(copy)
            place = Place(
                uri=files.find_uri(file, mode=files.READING),
                base=self._database.location.base,
                patience_seconds=self._patience_seconds(),
            )
            return workers.query(place, self._question(), sink)

    # --- PostgreSQL

    def _on_postgres(self, sink: Sink) -> Outcome:
        word = first_word(self._sql)
        if word in COMMANDS:
            raise QueryRefused(f"it is a {word.upper()}")
        # An unknown first word may be mistyped: PostgreSQL explains the mistake, and does nothing.
        sql = self._sql if word in QUESTIONS else f"EXPLAIN {self._sql}"
        # Never none, or the driver would take two percent signs for two.
        parameters = {"": None, **self._parameters}
        with self._database.read() as connection:
            raw: Any = connection.connection.dbapi_connection
            try:
                with (
                    _read_only(connection, self._timeout_seconds),
                    closing(raw.cursor()) as cursor,
                    closing(_streamed(cursor, for_driver(sql), parameters)) as rows,
                ):
                    if word not in QUESTIONS:
                        next(rows, None)
                        raise QueryRefused(f"it begins with {word!r}")
                    return collect(cursor, rows, self._question(), self._is_late, sink)
            except (SQLAlchemyError, connection.dialect.loaded_dbapi.Error) as error:
                raise self._explain_postgres(error) from error
            except (EmptyQuery, TooLarge, Late) as error:
                raise Failed(error) from error

    def _explain_postgres(self, error: Exception) -> CkptdbError:
        cause: BaseException = getattr(error, "orig", None) or error
        state = getattr(cause, "sqlstate", None)
        why = str(cause).partition("\n")[0]
        if state == "57014":  # query_canceled
            return QueryTimeout(self._timeout_seconds)
        if state == "25006":  # read_only_sql_transaction
            return QueryRefused(why)
        if "multiple commands" in why:
            return QueryRefused("it holds more than one statement")
        return self._failed(why, find_spots(self._sql, why))

    # --- both

    def _explain(self, failed: Failed) -> CkptdbError:
        error = failed.error
        if failed.refusal is not None:
            return QueryRefused(failed.refusal)
        if isinstance(error, Late):
            return QueryTimeout(self._timeout_seconds)
        if isinstance(error, TooLarge):
            return QueryTooLarge(str(error))
        if isinstance(error, EmptyQuery):
            return QueryFailed("there is no question in it")
        if code_of(error) in NOT_ITS_FAULT:
            return self._database.explain(error)
        return self._failed(str(error), failed.spots)

    def _failed(self, why: str, spots: tuple[Spot, ...]) -> CkptdbError:
        if (missing := _MISSING.search(why)) is not None:
            return ParameterMissing(missing[1])
        where = f"line {spots[0].line}, column {spots[0].column}" if len(spots) == 1 else ""
        return QueryFailed(why.rstrip("."), where=where, excerpt=excerpt(self._sql, spots))


# --- what PostgreSQL may do -----------------------------------------------------------------


@contextmanager
def _read_only(connection: Connection, timeout_seconds: float) -> Iterator[None]:
    raw: Any = connection.connection.dbapi_connection
    usual = raw.prepare_threshold
    # Prepared at once: the only way of sending that takes no second statement along, which
    # could end the read-only transaction.
    raw.prepare_threshold = 0
    connection.exec_driver_sql("BEGIN READ ONLY")
    try:
        milliseconds = max(int(timeout_seconds * 1000), 1)
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
        yield
    finally:
        raw.prepare_threshold = usual
        connection.exec_driver_sql("ROLLBACK")
        # The only thing that a query takes and no rollback gives back.
        connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")


def _streamed(
    cursor: Any, sql: str, parameters: Mapping[str, object]
) -> Generator[Any, None, None]:
    # One row after the other: the driver would else have all of them at once.
    with closing(cursor.stream(sql, parameters)) as rows:
        yield from rows
    if cursor.description is None:
        cursor.execute(sql, parameters)  # the names of columns come with rows, and there were none
