"""Engine: an open catalog, with safe connections and a schema whose revision is known.

`dialects` has the differences between SQLite and PostgreSQL, `revisions` the checks of the schema.
"""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sqlalchemy import select

from ckptdb.catalog import files, revisions
from ckptdb.catalog.background_check import BackgroundCheck
from ckptdb.catalog.dialects import Dialect, Postgres
from ckptdb.catalog.files import (
    exists,
    identity_of,
    make_folder,
)
from ckptdb.catalog.location import Location
from ckptdb.catalog.schema import (
    HEAD,
    REVISIONS,
    create_all,
    version,
)
from ckptdb.catalog.session import TRANSLATED, ConnectionUse, IdleConnections, origin
from ckptdb.catalog.sqlite import Sqlite
from ckptdb.core import fork
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogMissing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine


_REVISION: Final = select(version.c.version_num)
WORK_SECONDS: Final = 600.0
"""How long the statements of one question or transaction may take together. One to a million
checkpoints takes some seconds; what takes this long has been made to."""
_CHECKING_SECONDS: Final = 600.0
_CHECKED_BYTES_A_SECOND: Final = 1 << 20
"""A check reads every page, from a disk that may be slow, and takes so much longer."""


class Database:
    """An open catalog: transactions, each on a connection of its own.

    Every error of SQLAlchemy and of the driver leaves `read` and `write` as a `CatalogError`.
    Usable from several threads, and from a forked child, which gets connections of its own
    (unless it was forked while one was in use: then the file is unusable for it).
    Do not nest `read` and `write` in one thread: the inner one waits for the outer.
    """

    location: Location

    def __init__(
        self,
        location: Location,
        dialect: Dialect,
        timeout_seconds: float,
        work_seconds: float = WORK_SECONDS,
    ) -> None:
        """Only `open`, `in_memory` and `unchecked` make one."""
        self.location = location
        self.dialect = dialect
        self._timeout_seconds = timeout_seconds
        self._work_seconds = work_seconds
        self._is_settled = False
        self._rest(dialect.engine())
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock() if location.in_memory else None
        self._background = BackgroundCheck()
        self._complete = False
        fork.AFTER_FORK.add(self)

    @classmethod
    def open(
        cls,
        location: Location,
        *,
        create: bool = False,
        upgrade: bool = False,
        durable: bool = True,
        timeout_seconds: float = 5.0,
        work_seconds: float = WORK_SECONDS,
    ) -> Self:
        """Open a catalog and check that it is ours, whole enough to read and of this revision.

        Args:
            location: From `locate`.
            create: Make it when it does not exist; safe when several processes do so at once.
            upgrade: Bring an older revision to this one, keeping a copy beside the file.
            durable: False leaves it to the operating system when a transaction reaches the disk.
            timeout_seconds: How long to wait for other processes, unless a call says otherwise.
            work_seconds: How long the statements of one `read` or `write` may take.

        Raises:
            CatalogMissing: There is none and ``create`` is false.
            CatalogOutdated: It is older and ``upgrade`` is false.
            CatalogTooNew: A newer version of ckptdb made it.
            CatalogForeign: It is the database of another application.
            CatalogBroken: It is damaged or no database.
            CatalogTampered: It holds a trigger, or something else that could run by itself.
            CatalogLocked: Another process kept it locked.
            CatalogUnusable: Anything else, e.g. permissions.
        """
        if location.in_memory:
            return cls.in_memory(location.base)
        if not create and location.file is not None and not exists(location.file):
            raise CatalogMissing(location.file)
        database = cls.unchecked(
            location,
            create=create,
            durable=durable,
            timeout_seconds=timeout_seconds,
            work_seconds=work_seconds,
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
        database = cls(location, Sqlite(None, create=True, durable=False), 5.0)
        with database.write() as connection:
            create_all(connection, Sqlite.view_dialect)
        return database

    @classmethod
    def unchecked(
        cls,
        location: Location,
        *,
        create: bool = False,
        durable: bool = True,
        timeout_seconds: float = 5.0,
        work_seconds: float = WORK_SECONDS,
    ) -> Self:
        """Open whatever is there, of any revision: for migrations, which come before checks."""
        dialect: Dialect
        if location.file is None:
            dialect = Postgres(location, durable=durable, timeout_seconds=timeout_seconds)
        else:
            if create:
                make_folder(location.file)
            dialect = Sqlite(location.file, create=create, durable=durable)
        return cls(location, dialect, timeout_seconds, work_seconds)

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
        self.ensure_sound()
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        session = self._session(self._writers, timeout, only_read=False)
        with session as connection, self.dialect.transaction(connection, timeout):
            if self._is_settled and self.dialect.may_have_changed(connection, is_locked=True):
                self._ensure_ours(connection)
            yield connection

    def read(self, *, timeout_seconds: float | None = None) -> AbstractContextManager[Connection]:
        """Enter a connection for single SELECTs; there is no transaction around them.

        Fetch each result whole before leaving: an open cursor blocks every writer. Raises
        what `write` does.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        check = self._check_reading if self._is_settled else None
        return self._session(self._readers, timeout, check=check)

    def _check_reading(self, connection: Connection) -> None:
        if self.dialect.may_have_changed(connection, is_locked=False):
            self._ensure_ours(connection)

    def _ensure_ours(self, connection: Connection) -> None:
        """Make sure that the schema is the one that this version makes, whoever changed it."""
        revision = revisions.find(connection, self.dialect, self.location)
        if revision is None:
            raise CatalogMissing(str(self.location))
        revisions.refuse_other(self.location, revision)

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._writers.engine.dialect.name

    def explain(self, error: Exception) -> CatalogError:
        """Return the error of ours for one of the driver, for statements made elsewhere."""
        return self.dialect.explain(origin(error), self.location)

    def replaced(self) -> bool:
        """Whether the file at the path is gone or no longer the one that was opened."""
        if self.location.file is None:
            return False
        return self._identity is not None and identity_of(self.location.file) != self._identity

    def is_complete(self) -> bool:
        """Whether the catalog has seen every run of its tree since it was made.

        A save that finds no catalog begins one, which then knows that run alone.
        """
        if not self._complete:  # once true, it stays so as long as the file does
            with self.read() as connection:
                self._complete = self.dialect.is_complete(connection)
        return self._complete

    def set_complete(self) -> None:
        """Remember that it has; only after the whole tree was looked at."""
        if not self.is_complete():
            with self.write() as connection:
                self.dialect.set_complete(connection)

    def revision(self) -> str | None:
        """Return the schema's revision, None for an empty database.

        Raises:
            CatalogForeign: It is the database of another application.
            CatalogBroken: It is damaged, no database, or has lost its revision.
        """
        with self.read() as connection:
            return revisions.find(connection, self.dialect, self.location)

    def integrity(self, *, quick: bool = False) -> str:
        """Check every page; return ``ok`` or the first things that are wrong.

        Args:
            quick: Do not look up every row in every index, which takes five times as long.
        """
        work = _CHECKING_SECONDS + files.size_on_disk(self.location.file) / _CHECKED_BYTES_A_SECOND
        session = self._session(
            self._readers, self._timeout_seconds, work_seconds=max(work, self._work_seconds)
        )
        try:
            with session as connection:
                return "; ".join(self.dialect.integrity(connection, quick=quick))
        except CatalogBroken as error:
            return str(origin(error))

    @contextmanager
    def checked(self, *, quick: bool) -> Iterator[None]:
        """Check every page behind what already reads; no `write` begins before that has ended.

        Args:
            quick: As of `integrity`.

        Raises:
            CatalogBroken: Something is wrong, which whatever else has failed may be due to.
        """
        with self._background.run(partial(self._raise_if_broken, quick=quick)):
            yield

    def ensure_sound(self) -> None:
        """Wait for the check that is under way, if there is one.

        What has been read meanwhile counts for nothing before: no answer, no file may rest on it.

        Raises:
            CatalogBroken: It has found something wrong.
        """
        self._background.wait()

    def _raise_if_broken(self, *, quick: bool) -> None:
        found = self.integrity(quick=quick)
        if found != "ok":
            raise CatalogBroken(str(self.location), found)

    def close(self) -> None:
        """Close the connections; those in use close when they come back."""
        readers, writers = self._readers, self._writers
        self._rest(writers.engine)
        try:
            readers.close()
            writers.close()
            for engine in {readers.engine, writers.engine}:
                engine.dispose()
        except TRANSLATED as error:
            raise self.explain(error) from error

    def _rest(self, engine: Engine) -> None:
        reader = self.dialect.reader(engine)
        self._writers = IdleConnections(engine)
        # Where one engine does both, a reader finds in memory what a writer has left there.
        self._readers = self._writers if reader is engine else IdleConnections(reader)

    def _session(
        self,
        rest: IdleConnections,
        seconds: float,
        *,
        work_seconds: float | None = None,
        only_read: bool = True,
        check: Callable[[Connection], None] | None = None,
    ) -> ConnectionUse:
        return ConnectionUse(
            self.location,
            self.dialect,
            rest,
            lock=self._lock,
            seconds=seconds,
            work_seconds=self._work_seconds if work_seconds is None else work_seconds,
            only_read=only_read,
            check=check,
        )

    def _settle(self, *, create: bool, upgrade: bool) -> None:
        revision = self.revision()
        if self.location.file is not None:
            self._identity = identity_of(self.location.file)
        self.dialect.opened()
        if revision is None and not create:
            raise CatalogMissing(str(self.location))
        if revision is None:
            revision = self._create()
        if revision in REVISIONS and revision != HEAD and upgrade:
            with self.write() as connection:
                revisions.upgrade(connection, self.dialect, self.location)
        else:
            revisions.refuse_other(self.location, revision)
        self._is_settled = True

    def _create(self) -> str:
        with self.write() as connection:
            # Another process may have been faster; looking again inside settles it.
            revision = revisions.find(connection, self.dialect, self.location)
            if revision is None:
                create_all(connection, self.dialect.view_dialect)
                self.dialect.remember(connection)
            return revision or HEAD

    def after_fork(self) -> None:
        """Give the child connections of its own; called there by the fork itself."""
        self._background = BackgroundCheck()  # the thread of the other one does not exist there
        if self._lock is not None:
            # The thread that held it does not exist in the child.
            self._lock = threading.Lock()
            return
        pools = (self._readers.engine.pool, self._writers.engine.pool)
        fork.keep_for_ever((self._readers, self._writers, pools))
        for engine in {self._readers.engine, self._writers.engine}:
            engine.dispose(close=False)
        self._rest(self._writers.engine)


def upgrade(location: Location) -> tuple[str, str, Path | None]:
    """Bring a catalog of an older revision to this one, in one transaction.

    Returns:
        The revision before, the one after, and the copy that was kept beside the file, as
        ``catalog.db.<revision>.bak``; None when there was nothing to do.

    Raises:
        CatalogError: As `Database.open`; the catalog is then as it was.
    """
    if location.file is not None and not exists(location.file):
        raise CatalogMissing(location.file)
    with closing(Database.unchecked(location)) as database, database.write() as connection:
        return revisions.upgrade(connection, database.dialect, location)
