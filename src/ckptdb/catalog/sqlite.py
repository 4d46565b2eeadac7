"""SQLite: how a catalog in a file, or in memory, is used safely and in time."""

from __future__ import annotations

import math
import operator
import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool

from ckptdb.catalog import definitions, files
from ckptdb.catalog.definitions import Definition
from ckptdb.catalog.dialects import Dialect, Patience
from ckptdb.catalog.files import READING
from ckptdb.catalog.location import Location
from ckptdb.catalog.view_dialects import SQLITE
from ckptdb.core import fork
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogLocked,
    CatalogMissing,
    CatalogReadOnly,
    CatalogUnusable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEPS: Final = 10_000
"""After how many steps of SQLite's machine a deadline is looked at: a millisecond, or less."""
_LONGEST_VALUE_BYTES: Final = 256 << 20
"""No text of a catalog is longer, in between included; those of ours are of some kilobytes."""

_UNFINISHED: Final = (
    "a process was killed while it wrote, which this user may not undo; whoever may write it does "
    "so with the next command"
)
_TOO_LONG: Final = (
    "a statement took too long and was stopped; `ckptdb db status` tells whether it is sound, and "
    "`ckptdb reconcile` rebuilds it when it is moved away"
)


_COMPILED: Final = {"compiled_cache": dict[Any, Any]()}
"""What SQLAlchemy has compiled, for all files of this process: that costs more than the answer.
As many entries as there are statements of ours."""


@cache
def _model() -> Engine:
    # What is compiled belongs to a dialect, which knows its library once it has been connected.
    engine = create_engine("sqlite://", poolclass=NullPool)
    engine.connect().close()
    return engine


class Sqlite(Dialect):
    """SQLite; with a rollback journal, which works on every file system and reads read-only."""

    view_dialect = SQLITE

    def __init__(self, file: Path | None, *, create: bool, durable: bool) -> None:
        self.patience = Patience()
        self._file = file
        self._mode = "rwc" if create else "rw"
        self._durable = durable
        self._seen: tuple[int | None, files.FileState | None] = None, None

    def engine(self) -> Engine:
        if self._file is None:
            connect: Any = self._connect_memory
            return self._engine(StaticPool(connect, dialect=_model().dialect))
        return self._engine(self._pool(lambda: self._connect(self._mode)))

    def reader(self, writer: Engine) -> Engine:
        # The driver's isolation_level is None: it sends no BEGIN that we do not send.
        if self._file is None:
            return writer
        # What is opened so plays back no journal, whatever it says.
        return self._engine(self._pool(lambda: self._connect(READING)))

    def _pool(self, connect: Any) -> Pool:
        # No limit on how many: a thread would wait for another one's slow query.
        return QueuePool(connect, use_lifo=True, max_overflow=-1, dialect=_model().dialect)

    def _engine(self, pool: Pool) -> Engine:
        model = _model()
        return Engine(pool, model.dialect, model.url, execution_options=_COMPILED)

    def _connect_memory(self) -> sqlite3.Connection:
        raw = sqlite3.connect(
            ":memory:",
            isolation_level=None,
            check_same_thread=False,
            factory=fork.TimedConnection,
        )
        _limit(raw)
        self._prepare(raw)
        return raw

    def _connect(self, mode: str) -> sqlite3.Connection:
        assert self._file is not None  # noqa: S101  # the callers know
        raw = files.connect(
            self._file,
            mode=mode,
            timeout_seconds=self.patience.seconds,
            factory=fork.FileConnection,
            isolation_level=None,
            # The pool, or our lock, gives a connection to one thread at a time.
            check_same_thread=False,
        )
        fork.CONNECTIONS.add(raw)
        try:
            _limit(raw)
            self._prepare(raw)
            if mode != READING:
                self._prepare_writing(raw)
        except BaseException:
            raw.close()
            raise
        return raw

    def _prepare(self, raw: sqlite3.Connection) -> None:
        # Nothing here reads the file: it may hold half a transaction, which `begin` sees to.
        raw.execute("PRAGMA foreign_keys = ON")
        # A view or trigger planted in the file shall call no function of ours.
        raw.execute("PRAGMA trusted_schema = OFF")
        # An I/O error or a truncation under a mapping is a signal that kills the process.
        raw.execute("PRAGMA mmap_size = 0")
        # Pages that contradict themselves are found before they are believed.
        raw.execute("PRAGMA cell_size_check = ON")

    def _prepare_writing(self, raw: sqlite3.Connection) -> None:
        raw.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        with suppress(sqlite3.OperationalError):
            # Somebody made it WAL and it is in use, or it is read-only: as it is, then.
            raw.execute("PRAGMA busy_timeout = 0")
            # PERSIST commits a quarter faster, but makes every reader open the journal.
            raw.execute("PRAGMA journal_mode = TRUNCATE")

    def begin(self, connection: Connection, *, work_seconds: float, only_read: bool) -> None:
        raw = _raw(connection)
        raw.ends[0] = time.monotonic() + work_seconds
        if self._file is not None and files.look_beside(self._file) and only_read:
            self._undo_unfinished(self._file, raw)

    def _undo_unfinished(self, file: Path, raw: sqlite3.Connection) -> None:
        """Undo what a writer has left that died in the middle of a transaction."""
        look = "SELECT 1 FROM sqlite_master LIMIT 1"
        try:
            raw.execute(look).fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            if not files.may_undo(file):
                raise
            with closing(self._connect("rw")) as writer:
                writer.execute(look).fetchone()

    def wait_at_most(self, connection: Connection, seconds: float) -> None:
        proxied = connection.connection
        # By tenths of a second: what a save waited last time changes it by less.
        milliseconds = math.ceil(max(seconds, 0) * 10) * 100
        if proxied.info.get("busy_timeout") != milliseconds:
            _raw(connection).execute(f"PRAGMA busy_timeout = {milliseconds}")
            proxied.info["busy_timeout"] = milliseconds

    @contextmanager
    def transaction(self, connection: Connection, seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        # By the driver itself: for SQLAlchemy every statement stands alone.
        raw = _raw(connection)
        try:
            # A deferred transaction that turns to writing fails at once when another one writes,
            # whatever the timeout; this one waits.
            raw.execute("BEGIN IMMEDIATE")
            yield
            # A commit waits for readers; it gets less time when the lock was long in coming.
            left = max(deadline - time.monotonic(), 0.05)
            if left < connection.connection.info["busy_timeout"] / 1000 - 0.05:
                self.wait_at_most(connection, left)
            raw.commit()
            self._follow(connection)
        except BaseException:
            # What is interrupted within a statement, SQLAlchemy has closed already; to say so
            # would hide the interrupt.
            with suppress(sqlite3.ProgrammingError):
                raw.rollback()
            raise

    def _follow(self, connection: Connection) -> None:
        """Remember what the file looks like after a transaction that began with a known schema."""
        version = connection.connection.info.get("schema_version")
        if version is not None and self._file is not None:
            self._seen = version, files.look_at(self._file)

    def opened(self) -> None:
        self._mode = "rw"

    def contents(self, connection: Connection) -> tuple[int, tuple[Definition, ...]]:
        raw = _raw(connection)
        # Not by SELECT: a table of the file might have the name of that function.
        owner = raw.execute("PRAGMA application_id").fetchone()[0]
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT ?"
        rows = raw.execute(query, (definitions.MOST + 1,)).fetchall()
        return int(owner), tuple(
            Definition(str(kind), str(name), str(table), None if sql is None else str(sql))
            for kind, name, table, sql in rows
        )

    def may_have_changed(self, connection: Connection, *, is_locked: bool) -> bool:
        if self._file is None:
            return False
        known = connection.connection.info.get("schema_version")
        look = None if is_locked else files.look_at(self._file)
        if look is not None and self._seen == (known, look):
            return False  # nobody but us has written since, as far as can be seen from outside
        if known != _schema_version(connection):
            return True
        if look is not None:
            self._seen = known, look
        return False

    def remember(self, connection: Connection) -> None:
        if self._file is not None:
            connection.connection.info["schema_version"] = _schema_version(connection)

    # In the file's header: made with it, replaced with it, and no column that files must rebuild.
    def is_complete(self, connection: Connection) -> bool:
        return bool(_raw(connection).execute("PRAGMA user_version").fetchone()[0])

    def set_complete(self, connection: Connection) -> None:
        _raw(connection).execute("PRAGMA user_version = 1")

    def copy_to(self, source: Connection, target: Connection) -> bool:
        raw = _raw(source)
        # With a lock of ours, which is waited for only so long: the copying waits for ever.
        raw.execute("BEGIN")
        try:
            raw.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            raw.backup(_raw(target))
        finally:
            raw.rollback()
        return True

    def integrity(self, connection: Connection, *, quick: bool) -> list[str]:
        check = "quick_check" if quick else "integrity_check"
        lines = connection.exec_driver_sql(f"PRAGMA {check}(10)").scalars()
        return [str(line) for line in lines]

    def keep_copy(self, revision: str) -> Path | None:
        if self._file is None:
            return None
        copy = self._file.with_name(f"{self._file.name}.{revision}.bak")
        try:
            with closing(self._connect(READING)) as source:
                return files.copy(source, self._file, copy)
        except OSError as error:
            raise CatalogUnusable(str(copy), error.strerror or str(error)) from error

    def explain(self, error: BaseException, location: Location) -> CatalogError:
        where, why = str(location), str(error)
        # The low byte is the kind of error, the rest is detail; errors of the driver itself,
        # e.g. a value it cannot bind, have no code.
        code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
        kind = code & 0xFF
        explained: CatalogError = CatalogUnusable(where, why)
        if isinstance(error, UnicodeDecodeError) or why.startswith("Could not decode"):
            return CatalogBroken(where, "it holds text that is none")
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            explained = CatalogUnusable(where, "another process moved or replaced it meanwhile")
        elif code == sqlite3.SQLITE_READONLY_ROLLBACK:
            explained = CatalogReadOnly(where, _UNFINISHED)
        elif kind == sqlite3.SQLITE_INTERRUPT:
            explained = CatalogUnusable(where, _TOO_LONG)
        elif kind in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or _lacks_relation(why):
            explained = CatalogBroken(where, why)
        elif kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            explained = CatalogLocked(where)
        elif kind == sqlite3.SQLITE_READONLY:
            explained = CatalogReadOnly(where)
        elif kind == sqlite3.SQLITE_CANTOPEN and self._file is not None:
            explained = _explain_cantopen(self._file, why)
        return explained


def _explain_cantopen(file: Path, why: str) -> CatalogError:
    is_there, may_write = file.exists(), os.access(file.parent, os.W_OK)
    if not is_there and (may_write or not file.parent.is_dir()):
        return CatalogMissing(file)
    if not may_write and (not is_there or os.access(file, os.R_OK)):
        # None can be made there, and none be written without a journal beside it.
        return CatalogReadOnly(str(file))
    return CatalogUnusable(str(file), why)


def _lacks_relation(why: str) -> bool:
    # Only statements of ours come here, so what is missing has been dropped.
    return why.startswith(("no such table", "no such column"))


def _limit(raw: fork.TimedConnection) -> None:
    """Let the statements of a connection end in time, and its values be of a size."""
    raw.ends = [math.inf]
    # No code of Python, in which a signal could be handled: what that raises, SQLite takes for
    # "stop" and loses.
    now: Iterator[Any] = iter(time.monotonic, None)
    ends: Iterator[Any] = iter(partial(operator.getitem, raw.ends, 0), None)
    raw.set_progress_handler(map(operator.gt, now, ends).__next__, _STEPS)
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE_BYTES)


def _schema_version(connection: Connection) -> int:
    return int(_raw(connection).execute("PRAGMA schema_version").fetchone()[0])


def _raw(connection: Connection) -> fork.TimedConnection:
    return cast("fork.TimedConnection", connection.connection.dbapi_connection)
