"""Opening a catalog: connections that are safe to use, at a schema that is known.

What differs between SQLite and PostgreSQL is in `dialects`. Alembic is imported inside the one
function that migrates, because a version check needs only a SELECT and Alembic costs as much
time to import as everything else together.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sqlalchemy import select

from ckptdb.catalog import files
from ckptdb.catalog.definitions import Definition, find_intruder, fingerprint
from ckptdb.catalog.dialects import Dialect, Postgres
from ckptdb.catalog.files import (
    BESIDE,
    JOURNAL,
    exists,
    identity_of,
    make_folder,
    names_super_journal,
)
from ckptdb.catalog.location import Location
from ckptdb.catalog.schema import (
    APPLICATION_ID,
    FINGERPRINT,
    HEAD,
    REVISIONS,
    VERSION_TABLE,
    create_all,
    version,
)
from ckptdb.catalog.session import TRANSLATED, ConnectionUse, IdleConnections, origin
from ckptdb.catalog.sqlite import Sqlite
from ckptdb.core import fork
from ckptdb.core.threads import Task
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogForeign,
    CatalogMissing,
    CatalogOutdated,
    CatalogTampered,
    CatalogTooNew,
    CatalogUnusable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
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
        self._dialect = dialect
        self._timeout_seconds = timeout_seconds
        self._work_seconds = work_seconds
        self._is_settled = False
        self._rest(dialect.engine())
        self._identity: tuple[int, int] | None = None
        self._lock = threading.Lock() if location.in_memory else None
        self._check: Task | None = None
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
            create_all(connection, Sqlite.spelling)
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
        with session as connection, self._dialect.transaction(connection, timeout):
            if self._is_settled and self._dialect.may_have_changed(connection, is_locked=True):
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
        if self._dialect.may_have_changed(connection, is_locked=False):
            self._ensure_ours(connection)

    def _ensure_ours(self, connection: Connection) -> None:
        """Make sure that the schema is the one that this version makes, whoever changed it."""
        revision = self._revision(connection)
        if revision is None:
            raise CatalogMissing(str(self.location))
        self._refuse_other_revision(revision)

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._writers.engine.dialect.name

    def explain(self, error: Exception) -> CatalogError:
        """Return the error of ours for one of the driver, for statements made elsewhere."""
        return self._dialect.explain(origin(error), self.location)

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
                self._complete = self._dialect.is_complete(connection)
        return self._complete

    def set_complete(self) -> None:
        """Remember that it has; only after the whole tree was looked at."""
        if not self.is_complete():
            with self.write() as connection:
                self._dialect.set_complete(connection)

    def find_copy(self) -> Self | None:
        """Return a copy in memory, of this process alone; None of a database that has none."""
        copy = type(self).in_memory(self.location.base)
        try:
            with self.read() as source, copy.read() as target:
                if self._dialect.copy_to(source, target):
                    return copy
        except BaseException:
            copy.close()
            raise
        copy.close()
        return None

    def revision(self) -> str | None:
        """Return the schema's revision, None for an empty database.

        Raises:
            CatalogForeign: It is the database of another application.
            CatalogBroken: It is damaged, no database, or has lost its revision.
        """
        with self.read() as connection:
            return self._revision(connection)

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
                return "; ".join(self._dialect.integrity(connection, quick=quick))
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
        self._check = task = Task(partial(self._raise_if_broken, quick=quick))
        try:
            try:
                task.start()
            except RuntimeError:
                task.run()  # there can be no more threads
            try:
                yield
            except Exception:
                _await(task)
                raise
            _await(task)
        finally:
            self._check = None
            task.give_up()  # interrupted at the wrong moment, it was not even started
            task.wait()

    def ensure_sound(self) -> None:
        """Wait for the check that is under way, if there is one.

        What has been read meanwhile counts for nothing before: no answer, no file may rest on it.

        Raises:
            CatalogBroken: It has found something wrong.
        """
        if self._check is not None:
            _await(self._check)

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
        reader = self._dialect.reader(engine)
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
            self._dialect,
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
        self._dialect.opened()
        if revision is None and not create:
            raise CatalogMissing(str(self.location))
        if revision is None:
            revision = self._create()
        if revision in REVISIONS and revision != HEAD and upgrade:
            self.upgrade()
        else:
            self._refuse_other_revision(revision)
        self._is_settled = True

    def _refuse_other_revision(self, revision: str) -> None:
        if revision not in REVISIONS:
            raise CatalogTooNew(str(self.location), revision)
        if revision != HEAD:
            raise CatalogOutdated(str(self.location), revision)

    def _create(self) -> str:
        with self.write() as connection:
            # Another process may have been faster; looking again inside settles it.
            revision = self._revision(connection)
            if revision is None:
                create_all(connection, self._dialect.spelling)
                self._dialect.remember(connection)
            return revision or HEAD

    def _revision(self, connection: Connection) -> str | None:
        """Return the revision of a schema that holds nothing but what that revision makes."""
        owner, found = self._dialect.contents(connection)
        relations = {one.name: one for one in found if one.kind in ("table", "view")}
        if owner not in {0, APPLICATION_ID} or (relations and VERSION_TABLE not in relations):
            raise CatalogForeign(str(self.location))
        if not found:
            return None
        if self.location.file is not None:
            # Before it is asked for the revision: that may be what hangs.
            self._refuse_intruder([relations[VERSION_TABLE]], HEAD)
        row = connection.execute(_REVISION).first()
        if row is None:
            raise CatalogBroken(str(self.location), "it does not say its revision")
        revision = str(row[0])
        if self.location.file is not None and revision in REVISIONS:
            self._refuse_intruder(found, revision)
        self._dialect.remember(connection)
        return revision

    def _refuse_intruder(self, found: Sequence[Definition], revision: str) -> None:
        if revision == HEAD and fingerprint(found) == FINGERPRINT:
            return
        intruder = find_intruder(found, _made_by(revision))
        if intruder is not None:
            raise CatalogTampered(str(self.location), intruder)

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
            _migrate(connection, "head")
            self._dialect.remember(connection)
        return revision, HEAD, copy

    def after_fork(self) -> None:
        """Give the child connections of its own; called there by the fork itself."""
        self._check = None  # its thread does not exist there, and would be waited for for ever
        if self._lock is not None:
            # The thread that held it does not exist in the child.
            self._lock = threading.Lock()
            return
        pools = (self._readers.engine.pool, self._writers.engine.pool)
        fork.keep_for_ever((self._readers, self._writers, pools))
        for engine in {self._readers.engine, self._writers.engine}:
            engine.dispose(close=False)
        self._rest(self._writers.engine)


def _await(check: Task) -> None:
    check.wait()
    if check.error is not None:
        raise check.error


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
        for suffix in BESIDE:
            # One that makes SQLite remove a file does so whoever opens what was set aside.
            kept = ".refused" if suffix == JOURNAL and names_super_journal(file) else suffix
            with suppress(FileNotFoundError):
                file.with_name(file.name + suffix).rename(f"{target}{kept}")
        aside = file.rename(target)
    except FileNotFoundError as error:
        raise CatalogMissing(file) from error
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error
    files.replace_empty(file, aside)
    return aside


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
    if location.file is not None and not exists(location.file):
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


@cache
def _made_by(revision: str) -> Mapping[str, Definition]:
    """Return by name what a revision makes on SQLite."""
    dialect = Sqlite(None, create=True, durable=False)
    memory = dialect.engine()
    try:
        with memory.connect() as connection:
            if revision == HEAD:
                create_all(connection, dialect.spelling)
            else:
                _migrate(connection, revision)
            return {one.name: one for one in dialect.contents(connection)[1]}
    finally:
        memory.dispose()


def _migrate(connection: Connection, revision: str) -> None:
    from alembic import command  # 200 ms, and almost never needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
