"""The user's own SQL: it can read everything, change nothing, and ends in time."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError

from ckptdb.catalog import functions
from ckptdb.catalog.dialects import sqlite_uri
from ckptdb.catalog.engine import Database
from ckptdb.catalog.fork import in_use
from ckptdb.catalog.phrasing import COMMANDS, QUESTIONS, first_word, for_driver
from ckptdb.catalog.pointing import Compile, excerpt, find_spots
from ckptdb.catalog.views import EXAMPLES, PURPOSES
from ckptdb.errors import CkptdbError, ParameterMissing, QueryFailed, QueryRefused, QueryTimeout
from ckptdb.records import Rows

_MIB: Final = 1 << 20

LONGEST_VALUE_BYTES: Final = 16 * _MIB
"""No string or blob may be longer, not even in between: ``zeroblob(1e9)`` is a typo."""

_LONG: Final = (str, bytes)

LARGEST_ANSWER_BYTES: Final = 256 * _MIB
"""Text and blobs of an answer are cut after this much, whatever the number of rows."""


_SUMMARY: Final = """
SELECT run, final, tmp, deleted, problems, bytes_on_disk, metric_name, best_value, best_step,
       latest_step, last_activity, directory, uuid
FROM run_summary {0} ORDER BY run, directory
"""


_CURVES: Final = """
SELECT c.run_id, c.step, COALESCE(c.finalized_at, c.created_at), m.value,
       CASE c.status WHEN 'final' THEN 1 ELSE 0 END, m.live
FROM runs r
JOIN checkpoints c ON c.run_id = r.id
JOIN metrics m ON m.checkpoint_id = c.id
WHERE m.name = :metric AND m.value IS NOT NULL {0}
ORDER BY c.run_id, c.step, c.id
"""


_MISSING: Final = re.compile(r"parameter (?::|missing: )(\w+)")
"""What SQLite and psycopg say of a parameter without a value."""


@dataclass(frozen=True, slots=True)
class Column:
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
    columns: tuple[Column, ...]
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
    found = tuple(Column(*pair) for pair in named)
    return Relation(name, kind, PURPOSES.get(name, ""), found, EXAMPLES.get(name, ""))


def query(
    database: Database,
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    limit: int | None = 100_000,
    timeout_seconds: float = 30.0,
) -> Rows:
    """Answer one SELECT (or WITH, VALUES, EXPLAIN, reading PRAGMA).

    On SQLite the function ``abspath(path)`` makes the paths of the tables absolute.

    Args:
        database: What to ask.
        sql: One statement; ``:name`` stands for a parameter.
        parameters: Values by name.
        limit: Rows after which the answer is cut; `Rows.truncated` then says so.
        timeout_seconds: Bounds the whole call.

    Raises:
        QueryRefused: It would write, attach a file, or is more than one statement.
        QueryFailed: It is wrong; the message is the database's own.
        ParameterMissing: It names a parameter that has no value.
        QueryTimeout: It ran for too long.
        CatalogError: The catalog itself cannot be read.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        # Through the ordinary connection first: it completes what a crashed writer left, which a
        # read-only one cannot, and says what is wrong with the catalog itself.
        database.revision()
        task = _Task(
            database,
            sql,
            dict(parameters or {}),
            limit=limit,
            timeout_seconds=timeout_seconds,
            deadline=deadline,
        )
        try:
            return task.on_sqlite() if database.dialect_name == "sqlite" else task.on_postgres()
        except _Unfinished as error:
            if time.monotonic() > deadline:
                raise QueryTimeout(timeout_seconds) from error


def summary(database: Database, run_ids: Sequence[int] | None) -> Rows:
    """Return what a list of runs shows, of all or of some."""
    chosen = "" if run_ids is None else f"WHERE run_id IN ({_listed(run_ids)})"
    return query(database, _SUMMARY.format(chosen), limit=None)


def curves(
    database: Database, metric: str, run_ids: Sequence[int] | None
) -> dict[int, tuple[tuple[Any, ...], ...]]:
    """Return a metric over each run that has it, as the entries of a `Curve`."""
    chosen = "" if run_ids is None else f"AND r.id IN ({_listed(run_ids)})"
    rows = query(database, _CURVES.format(chosen), {"metric": metric}, limit=None)
    found: dict[int, tuple[tuple[Any, ...], ...]] = {}
    for run_id, of_run in groupby(rows, key=itemgetter(0)):
        _, steps, moments, values, kept, ranked = zip(*of_run, strict=True)
        found[run_id] = (steps, moments, values, *(tuple(map(bool, of)) for of in (kept, ranked)))
    return found


def _listed(run_ids: Sequence[int]) -> str:
    return ", ".join(map(str, run_ids)) or "0"  # which is no run's


class _Unfinished(Exception):
    """Since it was last looked at, a writer has died in the middle of a transaction."""


def _complaint(raw: sqlite3.Connection, sql: str) -> str | None:
    """Return what SQLite says about a query that it only compiles."""
    explained = sql.lstrip().upper().startswith("EXPLAIN")
    try:
        raw.execute(sql if explained else f"EXPLAIN {sql}").close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        return str(error)
    return None


def _code(error: Exception) -> int:
    return (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF


class _Task:
    """One query under way."""

    def __init__(
        self,
        database: Database,
        sql: str,
        parameters: dict[str, object],
        *,
        limit: int | None,
        timeout_seconds: float,
        deadline: float,
    ) -> None:
        self._database = database
        self._sql = sql
        self._parameters = parameters
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._deadline = deadline
        self._authorizer = Authorizer()

    # --- SQLite

    def on_sqlite(self) -> Rows:
        # A connection of its own: whatever the query does to it ends with it.
        with in_use(self._database.location.file), closing(self._connect()) as raw:
            confine(raw, self._database.location.base, self._authorizer)
            # Asked every hundred steps of SQLite's machine: a few microseconds, unless a step
            # calls a function on something huge.
            raw.set_progress_handler(self._late, 100)
            try:
                with closing(raw.execute(self._sql, self._parameters)) as cursor:
                    return self._collect(cursor)
            except CkptdbError:
                raise
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                if self._lost_something(error):
                    raise KeyboardInterrupt from error
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise _Unfinished from error
                raise self._explain(error, raw) from error
            except MemoryError as error:
                raise QueryFailed("a value in it is too large for the memory") from error

    def _connect(self) -> sqlite3.Connection:
        file = self._database.location.file
        if file is not None:
            uri = sqlite_uri(file, mode="ro")
            return sqlite3.connect(uri, uri=True, timeout=min(self._timeout_seconds, 5.0))
        # A copy: the original stays free for the training loop while the query runs.
        copy = sqlite3.connect(":memory:")
        with self._database.read() as connection:
            original: Any = connection.connection.dbapi_connection
            original.backup(copy)
        return copy

    def _lost_something(self, error: Exception) -> bool:
        """Whether a signal's handler raised while SQLite asked us something.

        SQLite takes that for a no and loses what was raised: Ctrl-C, or something as final.
        """
        stopped = _code(error) == sqlite3.SQLITE_INTERRUPT and not self._late()
        # Of a function it says so in words alone.
        denied = _code(error) == sqlite3.SQLITE_AUTH or str(error).startswith("not authorized")
        return stopped or (denied and self._authorizer.refusal is None)

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _explain(self, error: Exception, raw: sqlite3.Connection) -> CkptdbError:
        if self._authorizer.refusal is not None:
            return QueryRefused(self._authorizer.refusal)
        why = str(error)
        if "one statement at a time" in why:
            return QueryRefused("it holds more than one statement")
        code = _code(error)
        if code == sqlite3.SQLITE_INTERRUPT:
            return QueryTimeout(self._timeout_seconds)
        if code == sqlite3.SQLITE_READONLY:
            return QueryRefused("it would write")
        if code in NOT_ITS_FAULT:
            return self._database.explain(error)
        return self._failed(why, partial(_complaint, raw))

    # --- PostgreSQL

    def on_postgres(self) -> Rows:
        word = first_word(self._sql)
        if word in COMMANDS:
            raise QueryRefused(f"it is a {word.upper()}")
        # What is no command either may be mistyped: PostgreSQL says how, and does nothing.
        sql = self._sql if word in QUESTIONS else f"EXPLAIN {self._sql}"
        # Never none, or the driver would take two percent signs for two.
        parameters = {"": None, **self._parameters}
        with self._database.read() as connection:
            try:
                with _read_only(connection, self._timeout_seconds):
                    result = connection.exec_driver_sql(for_driver(sql), parameters)
                    with closing(result):
                        if word not in QUESTIONS:
                            raise QueryRefused(f"it begins with {word!r}")
                        return self._collect(result.cursor)
            except SQLAlchemyError as error:
                raise self._explain_postgres(error) from error

    def _explain_postgres(self, error: SQLAlchemyError) -> CkptdbError:
        origin: BaseException = getattr(error, "orig", None) or error
        state = getattr(origin, "sqlstate", None)
        why = str(origin).partition("\n")[0]
        if state == "57014":  # query_canceled
            return QueryTimeout(self._timeout_seconds)
        if state == "25006":  # read_only_sql_transaction
            return QueryRefused(why)
        if "multiple commands" in why:
            return QueryRefused("it holds more than one statement")
        return self._failed(why)

    # --- both

    def _failed(self, why: str, compiles: Compile | None = None) -> CkptdbError:
        if (missing := _MISSING.search(why)) is not None:
            return ParameterMissing(missing[1])
        spots = find_spots(self._sql, why, compiles)
        where = f"line {spots[0].line}, column {spots[0].column}" if len(spots) == 1 else ""
        return QueryFailed(why.rstrip("."), where=where, excerpt=excerpt(self._sql, spots))

    def _collect(self, cursor: Any) -> Rows:
        if cursor is None or cursor.description is None:
            raise QueryFailed("there is no question in it")
        columns = tuple(str(column[0]) for column in cursor.description)
        rows: list[tuple[Any, ...]] = []
        room = LARGEST_ANSWER_BYTES
        for row in iter(cursor.fetchone, None):
            if self._late():
                raise QueryTimeout(self._timeout_seconds)
            if room <= 0 or (self._limit is not None and len(rows) >= self._limit):
                return Rows(columns, tuple(rows), truncated=True)
            rows.append(tuple(row))
            # A loop: a generator and a union of types for each of very many rows take as long
            # as SQLite does.
            for value in row:
                if isinstance(value, _LONG):
                    room -= len(value)
        return Rows(columns, tuple(rows))


# --- what SQLite may do ---------------------------------------------------------------------


class Authorizer:
    """What SQLite asks before a statement does anything; it remembers what it first refused."""

    def __init__(self) -> None:
        self.refusal: str | None = None

    def __call__(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Answer SQLITE_OK to what only reads."""
        if action in _READING or (action == sqlite3.SQLITE_FUNCTION and second not in _UNSAFE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and _only_tells(str(first).lower(), second):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            # What SQLite asks when json_each() is first used. A true UPDATE of it comes no
            # further: "table sqlite_master may not be modified".
            return sqlite3.SQLITE_OK
        if self.refusal is None:
            self.refusal = _refusal(action, first, second)
        return sqlite3.SQLITE_DENY


def confine(raw: sqlite3.Connection, base: Path | None, authorizer: Authorizer) -> None:
    """Leave to a connection nothing but reading the catalog that it was opened on.

    Args:
        raw: Best opened with ``mode=ro``, too.
        base: What ``abspath(path)`` prepends.
        authorizer: Of its own: it remembers.
    """
    raw.text_factory = lambda found: found.decode(errors="replace")
    functions.define(raw, base, LONGEST_VALUE_BYTES)
    # Or no view could call these. What else a view may call, the authorizer decides.
    raw.execute("PRAGMA trusted_schema = ON")
    raw.execute("PRAGMA mmap_size = 0")
    raw.execute("PRAGMA query_only = ON")
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
    # A pattern takes its length times that of the text, within a single step.
    raw.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
    raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    raw.set_authorizer(authorizer)


_READING: Final = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}

# The last one compares every key with every other one, within a single step.
_UNSAFE: Final = {"load_extension", "fts3_tokenizer", "json_patch"}

NOT_ITS_FAULT: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
}
"""What SQLite says when a query is fine and its catalog is not."""

_PRAGMAS_WITH_ARGUMENT: Final = {
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_list",
    "table_xinfo",
}

_PRAGMAS: Final = _PRAGMAS_WITH_ARGUMENT | {
    "application_id",
    "collation_list",
    "compile_options",
    "database_list",
    "encoding",
    "freelist_count",
    "function_list",
    "journal_mode",
    "page_count",
    "page_size",
    "pragma_list",
    "schema_version",
    "user_version",
}

_REFUSALS: Final = {
    sqlite3.SQLITE_INSERT: "it would insert into {0}",
    sqlite3.SQLITE_UPDATE: "it would update {0}",
    sqlite3.SQLITE_DELETE: "it would delete from {0}",
    sqlite3.SQLITE_ATTACH: "it would open another file",
    sqlite3.SQLITE_DETACH: "it would detach a database",
    sqlite3.SQLITE_PRAGMA: "PRAGMA {0} is not one that only reads",
    sqlite3.SQLITE_TRANSACTION: "it would begin or end a transaction",
    sqlite3.SQLITE_SAVEPOINT: "it would set a savepoint",
    sqlite3.SQLITE_ANALYZE: "it would collect statistics",
    sqlite3.SQLITE_REINDEX: "it would rebuild an index",
    sqlite3.SQLITE_FUNCTION: "the function {1} is not allowed",
}


def _only_tells(pragma: str, argument: str | None) -> bool:
    return pragma in (_PRAGMAS if argument is None else _PRAGMAS_WITH_ARGUMENT)


def _refusal(action: int, first: str | None, second: str | None) -> str:
    if first is not None and first.startswith(("sqlite_master", "sqlite_temp_master")):
        return "it would change the schema"
    return _REFUSALS.get(action, "it would change the schema").format(first, second)


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
