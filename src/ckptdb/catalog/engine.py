"""Opening a catalog: from what a person names to connections that are safe to use.

Everything that differs between SQLite and PostgreSQL is in the two `_Dialect` classes at the
end. Alembic is imported inside the one function that migrates, because a version check needs
only a SELECT and Alembic costs as much time to import as everything else together.
"""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import threading
import time
import weakref
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import quote_from_bytes

from sqlalchemy import URL, Connection, Engine, create_engine, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from ckptdb.catalog.schema import (
    APPLICATION_ID,
    HEAD,
    REVISIONS,
    VERSION_TABLE,
    create_all,
    version,
)
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogForeign,
    CatalogLocked,
    CatalogMissing,
    CatalogOutdated,
    CatalogReadOnly,
    CatalogTooNew,
    CatalogUnusable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER: Final = ".ckptdb"
FILE: Final = "catalog.db"


# --- where --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Location:
    """Where a catalog is; ``str()`` of it is what to show a person.

    Attributes:
        url: SQLAlchemy URL.
        file: The SQLite file, None for any other database.
        base: What stored relative paths are relative to: the root, when the file is
            ``<root>/.ckptdb/catalog.db``. None when every path is stored absolute.
    """

    # Not in the repr: it may hold a password.
    url: str = field(repr=False)
    file: Path | None
    base: Path | None

    def __str__(self) -> str:
        if self.file is not None:
            return str(self.file)
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def in_memory(self) -> bool:
        """Whether it is a SQLite database that lives and dies with its `Database`."""
        return self.file is None and self.url.startswith("sqlite")


def locate(choice: str | os.PathLike[str]) -> Location:
    """Return where a choice of catalog leads; looks only at directories, creates nothing.

    Paths are made absolute by name alone: symbolic links are not resolved.

    Args:
        choice: A SQLAlchemy URL, a database file, or a directory, which stands for
            ``<directory>/.ckptdb/catalog.db``.

    Raises:
        CatalogUnusable: The URL is malformed, its driver is not installed, or the directory
            that the file would be in does not exist.
    """
    name = os.fspath(choice)
    if isinstance(choice, str) and "://" in choice:
        return _locate_url(choice)
    if not name or "\0" in name:
        raise CatalogUnusable(repr(name), "it is neither a path nor a database URL")
    # Path.absolute() would keep "..", and no run would seem to be below the root.
    path = Path(os.path.abspath(name))
    if name.endswith("/") or path.is_dir():
        path = path / FOLDER / FILE
    return _locate_file(path)


def _locate_file(file: Path) -> Location:
    # Our own folder is made on creation, any other one is the caller's.
    own = file.parent.name == FOLDER
    must_exist = file.parent.parent if own else file.parent
    if not must_exist.is_dir():
        raise CatalogUnusable(str(file), f"there is no directory {must_exist}")
    base = file.parent.parent if own and file.name == FILE else None
    return Location(url=f"sqlite:///{file}", file=file, base=base)


def _locate_url(choice: str) -> Location:
    try:
        url = make_url(choice)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        # Shown without the rest, which may hold a password in an unexpected place.
        shown = choice.partition("://")[0] + "://..."
        raise CatalogUnusable(shown, "it is not a valid database URL") from error
    shown = url.render_as_string(hide_password=True)
    if backend == "postgresql":
        return _locate_postgres(url)
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise CatalogUnusable(shown, "only SQLite and PostgreSQL are supported")
    if url.query:
        raise CatalogUnusable(shown, "options after '?' are not supported for SQLite")
    if url.database in {None, "", ":memory:"}:
        return Location(url="sqlite://", file=None, base=None)
    return _locate_file(Path(os.path.abspath(str(url.database))))


def _locate_postgres(url: URL) -> Location:
    shown = url.render_as_string(hide_password=True)
    if url.drivername not in {"postgresql", "postgresql+psycopg"}:
        raise CatalogUnusable(shown, "for PostgreSQL only the driver psycopg is supported")
    try:
        # Named, because what stands for "postgresql" alone differs between SQLAlchemy versions.
        url = url.set(drivername="postgresql+psycopg")
        url.get_dialect().import_dbapi()
    except ImportError as error:
        raise CatalogUnusable(shown, "its driver is missing; `pip install psycopg`") from error
    return Location(url=url.render_as_string(hide_password=False), file=None, base=None)


# --- opening and using ----------------------------------------------------------------------


class Database:
    """An open catalog: transactions, each on a connection of its own.

    Every error of SQLAlchemy and of the driver leaves `read` and `write` as a `CatalogError`.
    Usable from several threads, and from a forked child, which gets connections of its own
    (unless it was forked while one was in use: then the file is unusable for it).
    Do not nest `read` and `write` in one thread: the inner one waits for the outer.
    """

    location: Location

    def __init__(self, location: Location, dialect: _Dialect, timeout_seconds: float) -> None:
        """Only `open`, `in_memory` and `unchecked` make one."""
        self.location = location
        self._dialect = dialect
        self._timeout_seconds = timeout_seconds
        self._writer = dialect.engine()
        self._reader = dialect.reader(self._writer)
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock() if location.in_memory else None
        _DATABASES.add(self)

    @classmethod
    def open(
        cls,
        location: Location,
        *,
        create: bool = False,
        upgrade: bool = False,
        durable: bool = True,
        timeout_seconds: float = 5.0,
    ) -> Self:
        """Open a catalog and check that it is ours, whole enough to read and of this revision.

        Args:
            location: From `locate`.
            create: Make it when it does not exist; safe when several processes do so at once.
            upgrade: Bring an older revision to this one, keeping a copy beside the file.
            durable: False leaves it to the operating system when a transaction reaches the disk.
            timeout_seconds: How long to wait for other processes, unless a call says otherwise.

        Raises:
            CatalogMissing: There is none and ``create`` is false.
            CatalogOutdated: It is older and ``upgrade`` is false.
            CatalogTooNew: A newer version of ckptdb made it.
            CatalogForeign: It is the database of another application.
            CatalogBroken: It is damaged or no database.
            CatalogLocked: Another process kept it locked.
            CatalogUnusable: Anything else, e.g. permissions.
        """
        if location.in_memory:
            return cls.in_memory(location.base)
        if create and location.file is not None:
            _make_folder(location.file)
        elif location.file is not None and not _exists(location.file):
            raise CatalogMissing(location.file)
        database = cls.unchecked(
            location, create=create, durable=durable, timeout_seconds=timeout_seconds
        )
        try:
            database._settle(create=create, upgrade=upgrade)  # noqa: SLF001 - it is its own.
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def in_memory(cls, base: Path | None = None) -> Self:
        """Return an empty catalog of this process alone; its users take turns."""
        location = Location(url="sqlite://", file=None, base=base)
        database = cls(location, _Sqlite(None, create=True, durable=False), 5.0)
        with database.write() as connection:
            create_all(connection)
        return database

    @classmethod
    def unchecked(
        cls,
        location: Location,
        *,
        create: bool = False,
        durable: bool = True,
        timeout_seconds: float = 5.0,
    ) -> Self:
        """Open whatever is there, of any revision: for migrations, which come before checks."""
        dialect: _Dialect
        if location.file is None:
            dialect = _Postgres(location, durable=durable, timeout_seconds=timeout_seconds)
        else:
            _exists(location.file)
            dialect = _Sqlite(location.file, create=create, durable=durable)
        return cls(location, dialect, timeout_seconds)

    @contextmanager
    def write(self, *, timeout_seconds: float | None = None) -> Iterator[Connection]:
        """Enter the one writing transaction: committed on exit, rolled back on an error.

        Args:
            timeout_seconds: Bounds the waits for other processes, at the beginning and at the
                commit, together.

        Raises:
            CatalogLocked: Another process kept it locked for that long.
            CatalogBroken: The file is damaged.
            CatalogReadOnly: It cannot be written here.
            CatalogMissing: The file is gone.
            CatalogUnusable: Anything else: full disk, I/O error, a value no database accepts.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        with self._session(self._writer, timeout) as connection, connection.begin():
            deadline = time.monotonic() + timeout
            self._dialect.lock(connection, timeout)
            yield connection
            self._dialect.before_commit(connection, deadline)

    @contextmanager
    def read(self, *, timeout_seconds: float | None = None) -> Iterator[Connection]:
        """Enter a connection for single SELECTs; there is no transaction around them.

        Fetch each result whole before leaving: an open cursor blocks every writer. Raises
        what `write` does.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        with self._session(self._reader, timeout) as connection:
            yield connection

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._writer.dialect.name

    def explain(self, error: Exception) -> CatalogError:
        """Return the error of ours for one of the driver, for statements made elsewhere."""
        return self._dialect.explain(_origin(error), self.location)

    def replaced(self) -> bool:
        """Whether the file at the path is gone or no longer the one that was opened."""
        if self.location.file is None:
            return False
        return self._identity is not None and _identity(self.location.file) != self._identity

    def revision(self) -> str | None:
        """Return the schema's revision, None for an empty database.

        Raises:
            CatalogForeign: It is the database of another application.
            CatalogBroken: It is damaged, no database, or has lost its revision.
        """
        with self.read() as connection:
            return self._revision(connection)

    def integrity(self) -> str:
        """Check every page and index; return ``ok`` or the first things that are wrong."""
        try:
            with self.read() as connection:
                return "; ".join(self._dialect.integrity(connection))
        except CatalogBroken as error:
            return str(_origin(error))

    def close(self) -> None:
        """Close the connections; those in use close when they come back."""
        with self._translated():
            self._writer.dispose()

    @contextmanager
    def _session(self, engine: Engine, timeout_seconds: float) -> Iterator[Connection]:
        file = self.location.file
        with self._translated(), self._turn(timeout_seconds), in_use(file):
            # A new connection waits too, for it reads the schema.
            self._dialect.patience.seconds = timeout_seconds
            with engine.connect() as connection:
                self._dialect.wait_at_most(connection, timeout_seconds)
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _TRANSLATED as error:
            raise self._dialect.explain(_origin(error), self.location) from error

    def _turn(self, timeout_seconds: float) -> AbstractContextManager[None]:
        return nullcontext() if self._lock is None else self._locked(self._lock, timeout_seconds)

    @contextmanager
    def _locked(self, lock: threading.Lock, timeout_seconds: float) -> Iterator[None]:
        # The lock is handed in, because a child forked within has another one when it leaves.
        if not lock.acquire(timeout=max(timeout_seconds, 0)):
            raise CatalogLocked(str(self.location))
        try:
            yield
        finally:
            lock.release()

    def _settle(self, *, create: bool, upgrade: bool) -> None:
        revision = self.revision()
        if self.location.file is not None:
            self._identity = _identity(self.location.file)
        self._dialect.opened()
        if revision is None and not create:
            raise CatalogMissing(str(self.location))
        if revision is None:
            revision = self._create()
        if revision not in REVISIONS:
            raise CatalogTooNew(str(self.location), revision)
        if revision == HEAD:
            return
        if not upgrade:
            raise CatalogOutdated(str(self.location), revision)
        self.upgrade()

    def _create(self) -> str:
        with self.write() as connection:
            # Another process may have been faster; looking again inside settles it.
            revision = self._revision(connection)
            if revision is None:
                create_all(connection)
            return revision or HEAD

    def _revision(self, connection: Connection) -> str | None:
        owner, tables = self._dialect.contents(connection)
        if owner not in {0, APPLICATION_ID} or (tables and VERSION_TABLE not in tables):
            raise CatalogForeign(str(self.location))
        if not tables:
            return None
        row = connection.execute(select(version.c.version_num)).first()
        if row is None:
            raise CatalogBroken(str(self.location), "it does not say its revision")
        return str(row[0])

    def upgrade(self) -> tuple[str, str, Path | None]:
        """Bring an older schema to this one; see `upgrade`."""
        with self.write() as connection:
            revision = self._revision(connection)
            if revision is None:
                raise CatalogMissing(str(self.location))
            if revision not in REVISIONS:
                raise CatalogTooNew(str(self.location), revision)
            if revision == HEAD:
                return revision, HEAD, None
            # Inside the transaction: nobody else can write between the copy and the change.
            copy = self._dialect.keep_copy(revision)
            _migrate(connection)
        return revision, HEAD, copy

    def _after_fork(self) -> None:
        if self._lock is not None:
            # The thread that held it does not exist in the child.
            self._lock = threading.Lock()
            return
        _INHERITED.append(self._writer.pool)
        self._writer.dispose(close=False)


_TRANSLATED: Final = (SQLAlchemyError, sqlite3.Error, OverflowError, UnicodeEncodeError)
"""The last two: integers of 64 bits and more, and lone surrogates, raise when they are bound."""


def _origin(error: BaseException) -> BaseException:
    # What the driver said, below what SQLAlchemy and we put around it.
    if isinstance(error, CatalogError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


_SMALLEST_BYTES: Final = 512
"""A SQLite database has at least one page."""


def _exists(file: Path) -> bool:
    """Whether there is a file; one without a byte was never more than opened.

    Only looks from outside: closing a descriptor of ours on a database file would drop the
    locks that SQLite holds on it in this process.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error
    if stat.S_ISDIR(found.st_mode):
        raise CatalogUnusable(str(file), "it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise CatalogUnusable(str(file), "it is not a regular file")
    if 0 < found.st_size < _SMALLEST_BYTES:
        # SQLite takes it for an empty database and would write over it.
        raise CatalogBroken(str(file), "it is shorter than any database")
    return found.st_size > 0


def _make_folder(file: Path) -> None:
    if _exists(file) or file.parent.name != FOLDER:
        return
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error


# --- setting aside and upgrading ------------------------------------------------------------


def set_aside(location: Location) -> Path:
    """Rename a broken catalog, so that a new one can take its place; return where it went.

    Raises:
        CatalogMissing: There is nothing to rename.
        CatalogUnusable: It cannot be renamed, or is not a file of ours.
    """
    file = location.file
    if file is None:
        raise CatalogUnusable(str(location), "only a SQLite file can be set aside")
    target = _unused(file)
    try:
        # Leftover journals go first: beside a new database they would be played back into it.
        for suffix in ("-journal", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                file.with_name(file.name + suffix).rename(f"{target}{suffix}")
        return file.rename(target)
    except FileNotFoundError as error:
        raise CatalogMissing(file) from error
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error


def _unused(file: Path) -> Path:
    while True:
        now = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = file.with_name(f"{file.name}.broken-{now}")
        if not os.path.lexists(target):
            return target


def upgrade(location: Location) -> tuple[str, str, Path | None]:
    """Bring a catalog of an older revision to this one, in one transaction.

    Returns:
        The revision before, the one after, and the copy that was kept beside the file, as
        ``catalog.db.<revision>.bak``; None when there was nothing to do.

    Raises:
        CatalogError: As `Database.open`; the catalog is then as it was.
    """
    if location.file is not None and not _exists(location.file):
        raise CatalogMissing(location.file)
    with closing(Database.unchecked(location)) as database:
        return database.upgrade()


def script_location() -> Path:
    """Return the directory of the migrations: in the package, or beside src in a checkout."""
    here = Path(__file__).resolve()
    for directory in (here.parents[1] / "migrations", here.parents[3] / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise CatalogUnusable("migrations", "this installation came without them; reinstall ckptdb")


def _migrate(connection: Connection) -> None:
    from alembic import command  # 200 ms, and almost never needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


# --- fork -----------------------------------------------------------------------------------

_DATABASES: Final[weakref.WeakSet[Database]] = weakref.WeakSet()
_CONNECTIONS: Final[weakref.WeakSet[_FileConnection]] = weakref.WeakSet()

_INHERITED: Final[list[object]] = []
"""What a child may neither use nor close. Closing it would roll back the parent's
transaction, and collecting it would close it."""

_IN_USE: Final[dict[object, Path]] = {}
"""The files that connections of this process may hold locks on at this moment."""

_LOST: Final[set[Path]] = set()
"""The files that were in use at the fork that made this process. SQLite keeps a process's
locks in memory, and a child inherits that memory but no lock: it would read without one and
wait for ever to write."""


@contextmanager
def in_use(file: Path | None) -> Iterator[None]:
    """Mark a file as possibly locked by this process, for children forked meanwhile.

    Raises:
        CatalogUnusable: This process was itself forked while the file was in use.
    """
    if file is None:
        yield
        return
    if file in _LOST:
        why = "it was in use when this process was forked; use it in the parent"
        raise CatalogUnusable(str(file), why)
    mark = object()
    _IN_USE[mark] = file
    try:
        yield
    finally:
        _IN_USE.pop(mark, None)


class _FileConnection(sqlite3.Connection):
    """A connection to a file; in a child that inherited it, it no longer does anything."""

    inherited = False

    def commit(self) -> None:
        if self.inherited:
            raise sqlite3.ProgrammingError("the transaction belongs to the parent process")
        super().commit()

    def rollback(self) -> None:
        if not self.inherited:
            super().rollback()

    def close(self) -> None:
        if not self.inherited:
            super().close()


def _forget_inherited() -> None:
    _LOST.update(_IN_USE.values())
    _IN_USE.clear()
    for connection in list(_CONNECTIONS):
        connection.inherited = True
        _keep_for_ever(connection)
    for database in list(_DATABASES):
        database._after_fork()  # noqa: SLF001 - this is its other half.


def _keep_for_ever(connection: _FileConnection) -> None:
    # The interpreter empties even global lists when it ends, and would close what is in them.
    _INHERITED.append(connection)
    with suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


os.register_at_fork(after_in_child=_forget_inherited)


# --- where the databases differ -------------------------------------------------------------


class _Patience(threading.local):
    """How long a connection that this thread opens may wait."""

    seconds = 5.0


class _Dialect:
    """What `Database` asks of a kind of database."""

    def __init__(self) -> None:
        self.patience = _Patience()

    def engine(self) -> Engine:
        """Return the engine whose transactions write."""
        raise NotImplementedError

    def reader(self, writer: Engine) -> Engine:
        """Return the engine, on the same pool, whose statements stand alone."""
        raise NotImplementedError

    def wait_at_most(self, connection: Connection, seconds: float) -> None:
        """Bound how long the connection waits for locks of others."""

    def lock(self, connection: Connection, timeout_seconds: float) -> None:
        """Become the one writer, before the transaction has read anything."""

    def before_commit(self, connection: Connection, deadline: float) -> None:
        """Leave to the commit what is left of the time, as `time.monotonic` counts."""

    def opened(self) -> None:
        """From now on the database must be there: connect, but never make a new one."""

    def contents(self, connection: Connection) -> tuple[int, set[str]]:
        """Return the owner's application id (0: not said) and the names of all tables."""
        raise NotImplementedError

    def integrity(self, connection: Connection) -> list[str]:
        """Return ``["ok"]`` or what is wrong."""
        raise NotImplementedError

    def keep_copy(self, revision: str) -> Path | None:
        """Copy the database as committed, while a transaction of ours is open."""
        raise NotImplementedError

    def explain(self, error: BaseException, location: Location) -> CatalogError:
        """Return the error of ours for one of the driver."""
        raise NotImplementedError


class _Sqlite(_Dialect):
    """SQLite; with a rollback journal, which works on every file system and reads read-only."""

    def __init__(self, file: Path | None, *, create: bool, durable: bool) -> None:
        super().__init__()
        self._file = file
        self._mode = "rwc" if create else "rw"
        self._durable = durable

    def engine(self) -> Engine:
        if self._file is None:
            return create_engine("sqlite://", poolclass=StaticPool, creator=self._connect)
        # No limit on how many: a thread would wait for another one's slow query.
        return create_engine(
            "sqlite://",
            poolclass=QueuePool,
            pool_use_lifo=True,
            max_overflow=-1,
            creator=self._connect,
        )

    def reader(self, writer: Engine) -> Engine:
        # The driver's isolation_level is None: it sends no BEGIN that we do not send.
        return writer

    def _connect(self) -> sqlite3.Connection:
        raw: sqlite3.Connection
        # check_same_thread: the pool, or our lock, gives a connection to one thread at a time.
        if self._file is None:
            raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        else:
            raw = sqlite3.connect(
                sqlite_uri(self._file, mode=self._mode),
                uri=True,
                timeout=max(self.patience.seconds, 0),
                isolation_level=None,
                check_same_thread=False,
                factory=_FileConnection,
            )
            _CONNECTIONS.add(raw)
        try:
            self._prepare(raw)
        except BaseException:
            raw.close()
            raise
        return raw

    def _prepare(self, raw: sqlite3.Connection) -> None:
        raw.execute("PRAGMA foreign_keys = ON")
        # A view or trigger planted in the file shall call no function of ours.
        raw.execute("PRAGMA trusted_schema = OFF")
        # An I/O error or a truncation under a mapping is a signal that kills the process.
        raw.execute("PRAGMA mmap_size = 0")
        raw.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        with suppress(sqlite3.OperationalError):
            # Somebody made it WAL and it is in use, or it is read-only: as it is, then.
            raw.execute("PRAGMA busy_timeout = 0")
            raw.execute("PRAGMA journal_mode = TRUNCATE")

    def wait_at_most(self, connection: Connection, seconds: float) -> None:
        proxied = connection.connection
        milliseconds = math.ceil(max(seconds, 0) * 1000)
        if proxied.info.get("busy_timeout") != milliseconds:
            _raw(connection).execute(f"PRAGMA busy_timeout = {milliseconds}")
            proxied.info["busy_timeout"] = milliseconds

    def lock(self, connection: Connection, timeout_seconds: float) -> None:  # noqa: ARG002
        # A deferred transaction that turns to writing fails at once when another one writes,
        # whatever the timeout; this one waits.
        _raw(connection).execute("BEGIN IMMEDIATE")

    def before_commit(self, connection: Connection, deadline: float) -> None:
        # A commit waits for readers; it gets less time when the lock was long in coming.
        left = max(deadline - time.monotonic(), 0.05)
        if left < connection.connection.info["busy_timeout"] / 1000 - 0.05:
            self.wait_at_most(connection, left)

    def opened(self) -> None:
        self._mode = "rw"

    def contents(self, connection: Connection) -> tuple[int, set[str]]:
        owner = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        return int(owner), set(connection.exec_driver_sql(query).scalars())

    def integrity(self, connection: Connection) -> list[str]:
        lines = connection.exec_driver_sql("PRAGMA integrity_check(10)").scalars()
        return [str(line) for line in lines]

    def keep_copy(self, revision: str) -> Path | None:
        if self._file is None:
            return None
        copy = self._file.with_name(f"{self._file.name}.{revision}.bak")
        unfinished = copy.with_name(f"{copy.name}.{os.getpid()}")
        try:
            # Not shutil: closing any descriptor on the file drops SQLite's locks on it.
            with closing(sqlite3.connect(unfinished)) as target, closing(self._connect()) as source:
                source.backup(target)
            return unfinished.replace(copy)
        except OSError as error:
            raise CatalogUnusable(str(copy), error.strerror or str(error)) from error
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def explain(self, error: BaseException, location: Location) -> CatalogError:
        where, why = str(location), str(error)
        # The low byte is the kind of error, the rest is detail; errors of the driver itself,
        # e.g. a value it cannot bind, have no code.
        code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
        kind = code & 0xFF
        explained: CatalogError = CatalogUnusable(where, why)
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            explained = CatalogUnusable(where, "another process moved or replaced it meanwhile")
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
    if not file.exists():
        return CatalogMissing(file)
    if os.access(file, os.R_OK) and not os.access(file.parent, os.W_OK):
        # The file could be written, but not without a journal beside it.
        return CatalogReadOnly(str(file))
    return CatalogUnusable(str(file), why)


def _lacks_relation(why: str) -> bool:
    # Only statements of ours come here, so what is missing has been dropped.
    return why.startswith(("no such table", "no such column"))


def sqlite_uri(file: Path, *, mode: str) -> str:
    """Return the ``file:`` URI of a database, whatever bytes its name is made of."""
    return f"file:{quote_from_bytes(os.fsencode(file))}?mode={mode}"


def _raw(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


class _Postgres(_Dialect):
    """PostgreSQL; a lock of ours makes its writers take turns as those of SQLite do."""

    def __init__(self, location: Location, *, durable: bool, timeout_seconds: float) -> None:
        super().__init__()
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

    def lock(self, connection: Connection, timeout_seconds: float) -> None:
        milliseconds = math.ceil(max(timeout_seconds, 0.001) * 1000)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
        if not self._durable:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = OFF")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")

    def contents(self, connection: Connection) -> tuple[int, set[str]]:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        return 0, set(connection.exec_driver_sql(query).scalars())

    def integrity(self, connection: Connection) -> list[str]:
        connection.exec_driver_sql("SELECT 1")
        return ["ok"]

    def keep_copy(self, revision: str) -> Path | None:  # noqa: ARG002 - its own backups exist.
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
