from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine.base import RootTransaction

from ckptdb.catalog import schema
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import Location, locate
from ckptdb.catalog.memory_copy import find_memory_copy
from ckptdb.catalog.revisions import script_location
from ckptdb.catalog.set_aside import set_aside
from ckptdb.core.fork import FileConnection
from ckptdb.core.threads import Task
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogForeign,
    CatalogLocked,
    CatalogMissing,
    CatalogReadOnly,
    CatalogTooNew,
    CatalogUnusable,
)

INSERT = text("INSERT INTO runs (uuid, name, directory) VALUES (:uuid, 'n', 'd')")


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return locate(tmp_path)


@pytest.fixture
def database(location: Location) -> Iterator[Database]:
    with closing(Database.open(location, create=True, durable=False)) as database:
        yield database


def add(database: Database, uuid: str, **options: float) -> None:
    with database.write(**options) as connection:
        connection.execute(INSERT, {"uuid": uuid})


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(text("SELECT COUNT(*) FROM runs")).scalar_one()


def created(location: Location) -> Path:
    Database.open(location, create=True, durable=False).close()
    assert location.file is not None
    return location.file


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run code that prints "ready" and then waits for its standard input to close."""
    code = textwrap.dedent(code) + "\nprint('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", "import sqlite3, sys\n" + code, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def in_fork(what: Callable[[], object], *, user: int | None = None) -> None:
    """Do it in a forked child, as another user if asked for; fail with what it says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "done"
        try:
            # A child that hangs on an inherited lock shall not hang the test.
            signal.alarm(30)
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            what()
        except BaseException as error:  # noqa: BLE001 - told to the parent.
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == "done"


# --- where ----------------------------------------------------------------------------------


def test_a_directory_stands_for_the_catalog_in_it(tmp_path: Path):
    file = tmp_path / ".ckptdb" / "catalog.db"
    assert locate(tmp_path) == Location(f"sqlite:///{file}", file, tmp_path)
    assert str(locate(tmp_path)) == str(file)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_name_has_no_base(tmp_path: Path):
    assert locate(tmp_path / "x.db") == Location(
        f"sqlite:///{tmp_path / 'x.db'}", tmp_path / "x.db", None
    )


def test_a_url_of_a_file_is_the_same_as_its_path(tmp_path: Path):
    file = tmp_path / ".ckptdb" / "catalog.db"
    assert locate(f"sqlite:///{file}") == locate(str(file)) == locate(tmp_path)


def test_a_relative_choice_becomes_absolute_but_symlinks_stay(tmp_path: Path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert locate("link").base == tmp_path / "link"
    assert locate("real/../link").base == tmp_path / "link"
    assert locate("sqlite:///x.db").file == tmp_path / "x.db"


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("", "neither a path nor a database URL"),
        ("a\0b", "neither a path nor a database URL"),
        ("nowhere/x.db", "there is no directory"),
        ("nowhere/", "there is no directory"),
        ("://", "not a valid database URL"),
        ("sqlite:///x.db?mode=ro", "options after"),
        ("postgresql://me:secret@h:notaport/d", "not a valid database URL"),
        ("postgresql+pg8000://me:secret@h/d", "only the driver psycopg"),
        ("mysql://me:secret@h/d", "only SQLite and PostgreSQL"),
        ("sqlite+aiosqlite:///x.db", "only SQLite and PostgreSQL"),
    ],
)
def test_a_choice_that_cannot_be_is_one_clear_sentence(tmp_path, monkeypatch, choice, why):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CatalogUnusable, match=why) as caught:
        locate(choice)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_is_never_shown(monkeypatch):
    monkeypatch.setattr("sqlalchemy.URL.get_dialect", lambda _: FakeDialect())
    location = locate("postgresql://me:secret@h/d")
    assert "secret" in location.url
    assert "secret" not in str(location) + repr(location)


class FakeDialect:
    """What a driver that is not installed would be found through."""

    def import_dbapi(self) -> None:
        pass


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(CatalogUnusable, match=r"pip install 'ckptdb\[postgres\]'") as caught:
        locate("postgresql://me:secret@h/d")
    assert "secret" not in str(caught.value)


def test_a_name_of_any_bytes_is_a_file(tmp_path: Path):
    file = tmp_path / os.fsdecode(b"50%?#\xff caf\xc3\xa9.db")
    with closing(Database.open(locate(file), create=True, durable=False)) as database:
        add(database, "a")
        assert count(database) == 1
    assert file.stat().st_size > 0


# --- opening --------------------------------------------------------------------------------


def test_opening_creates_nothing_unless_asked_to(location: Location, tmp_path: Path):
    with pytest.raises(CatalogMissing):
        Database.open(location)
    assert list(tmp_path.iterdir()) == []


def test_a_created_catalog_is_ours_and_at_the_head(database: Database):
    assert database.revision() == schema.HEAD
    assert database.integrity() == "ok"
    with database.read() as connection:
        owner = connection.exec_driver_sql("PRAGMA application_id").scalar()
    assert owner == schema.APPLICATION_ID


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
        ("synchronous", 2),
        ("busy_timeout", 5000),
    ],
)
def test_every_connection_is_prepared(location, pragma, value):
    with closing(Database.open(location, create=True)) as database:
        for enter in (database.read, database.write):
            with enter() as connection:
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_who_writes_truncates_the_journal_and_who_reads_cannot_write(database: Database):
    with database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "truncate"
    with pytest.raises(CatalogReadOnly), database.read() as connection:
        connection.execute(INSERT, {"uuid": "a"})


def test_without_durability_nothing_is_synced(database: Database):
    with database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 0


def test_a_file_without_a_byte_is_not_yet_a_catalog(tmp_path: Path):
    file = tmp_path / "x.db"
    file.touch()
    with pytest.raises(CatalogMissing):
        Database.open(locate(file))
    assert file.stat().st_size == 0
    with closing(Database.open(locate(file), create=True, durable=False)) as database:
        assert database.revision() == schema.HEAD


@pytest.mark.parametrize(
    "content",
    [b"hello, I am a text file\n" * 100, bytes(8192), b"SQLite format 3\0" + b"\xff" * 5000, b"x"],
    ids=["text", "NULs", "only the magic", "one byte"],
)
@pytest.mark.parametrize("create", [False, True])
def test_what_is_no_database_is_broken_and_left_alone(tmp_path, content, create):
    file = tmp_path / "x.db"
    file.write_bytes(content)
    with pytest.raises(CatalogBroken, match="ckptdb reconcile"):
        Database.open(locate(file), create=create, upgrade=True)
    assert file.read_bytes() == content


def test_a_truncated_catalog_is_broken(location: Location):
    file = created(location)
    os.truncate(file, file.stat().st_size // 2)

    def use() -> None:
        with closing(Database.open(location)) as database:
            assert database.integrity() != "ok"
            count(database)
            add(database, "a")

    with pytest.raises(CatalogBroken):
        use()


def test_a_damaged_page_is_found_by_the_integrity_check(location: Location):
    file = created(location)
    with file.open("r+b") as stream:
        stream.seek(4096 * 3)
        stream.write(b"\xff" * 4096)
    with closing(Database.open(location)) as database:
        assert database.integrity() != "ok"


# --- checked behind what already reads --------------------------------------------------


def damage_an_index(file: Path) -> None:
    """Break a page that no statement of these tests reads."""
    with closing(sqlite3.connect(file)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_tags_name'"
        (page,) = connection.execute(query).fetchone()
    with file.open("r+b") as stream:
        stream.seek(4096 * (page - 1))
        stream.write(b"\xff" * 4096)


def test_while_a_check_is_under_way_reading_goes_on_and_writing_waits(database, monkeypatch):
    ended, real = threading.Event(), Database.integrity
    monkeypatch.setattr(
        Database, "integrity", lambda self, **how: ended.wait(60) and real(self, **how)
    )
    with database.checked(quick=True):
        writer = threading.Thread(target=add, args=(database, "a"))
        writer.start()
        assert count(database) == 0
        writer.join(0.2)
        assert writer.is_alive()
        ended.set()
        writer.join(60)
        assert count(database) == 1
    add(database, "b")


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("can_start", [True, False], ids=["behind", "without threads"])
def test_a_check_that_finds_something_ends_all_that_rests_on_it(
    location, monkeypatch, quick, can_start
):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    def write(database: Database) -> None:
        add(database, "a")

    def fail(_) -> None:
        raise ValueError

    def interrupt(_) -> None:
        raise KeyboardInterrupt

    damage_an_index(created(location))
    if not can_start:
        monkeypatch.setattr(Task, "start", refuse)
    expected = {count: CatalogBroken, write: CatalogBroken, fail: CatalogBroken}
    with closing(Database.open(location)) as database:
        for act, error in (expected | {interrupt: KeyboardInterrupt}).items():
            with pytest.raises(error), database.checked(quick=quick):
                act(database)
        assert count(database) == 0


def test_a_check_that_cannot_be_made_is_an_error_too(database, monkeypatch):
    def fail(self, *, quick):
        raise CatalogLocked("x")

    monkeypatch.setattr(Database, "integrity", fail)
    with pytest.raises(CatalogLocked), database.checked(quick=True):
        count(database)


def test_a_child_waits_for_no_check_of_its_parent(database, monkeypatch):
    forked = threading.Event()
    monkeypatch.setattr(Database, "integrity", lambda *_, **__: forked.wait(60) and "ok")
    with database.checked(quick=True):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            database.ensure_sound()
            os._exit(7)
        forked.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_lost_table_is_a_broken_catalog(database: Database):
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE tags")
    with (
        pytest.raises(CatalogBroken, match="no such table: tags"),
        database.read() as connection,
    ):
        connection.exec_driver_sql("SELECT * FROM tags")


def test_a_catalog_without_a_revision_is_broken(location: Location):
    with closing(sqlite3.connect(created(location))) as raw, raw:
        raw.execute(f"DELETE FROM {schema.VERSION_TABLE}")
    with pytest.raises(CatalogBroken, match="revision"):
        Database.open(location)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_unusable(tmp_path: Path, make):
    make(tmp_path / "x.db")
    with pytest.raises(CatalogUnusable, match=r"directory|regular file"):
        Database.open(Location("sqlite:///x", tmp_path / "x.db", None), create=True)


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE users (id)", "PRAGMA application_id = 7", "CREATE VIEW runs AS SELECT 1"]
)
def test_the_database_of_another_application_is_left_alone(tmp_path, sql):
    file = tmp_path / "x.db"
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA user_version = 1")
        raw.execute(sql)
    before = file.read_bytes()
    with pytest.raises(CatalogForeign):
        Database.open(locate(file), create=True, upgrade=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_newer_catalog_is_left_alone(location: Location, upgrade):
    file = created(location)
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    before = file.read_bytes()
    with pytest.raises(CatalogTooNew, match="9999"):
        Database.open(location, create=True, upgrade=upgrade)
    assert file.read_bytes() == before


def test_a_restored_dump_is_still_ours(location: Location, tmp_path: Path):
    with (
        closing(sqlite3.connect(created(location))) as old,
        closing(sqlite3.connect(tmp_path / "new.db")) as new,
    ):
        new.executescript("\n".join(old.iterdump()))
    with closing(Database.open(locate(tmp_path / "new.db"))) as database:
        assert database.revision() == schema.HEAD


CREATE_AT_ONCE = """
import sys
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
for line in sys.stdin:
    database = Database.open(locate(line.strip()), create=True, timeout_seconds=60)
    with database.write(timeout_seconds=60) as connection:
        connection.exec_driver_sql(
            "INSERT INTO runs (uuid, name, directory) VALUES (hex(randomblob(8)), 'n', 'd')"
        )
    database.close()
    print("created", flush=True)
"""


@pytest.mark.slow
def test_eight_processes_may_create_one_catalog_at_once(tmp_path: Path):
    command = [sys.executable, "-c", CREATE_AT_ONCE]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for number in range(10):
        root = tmp_path / str(number)
        root.mkdir()
        for child in children:
            child.stdin.write(f"{root}\n")
            child.stdin.flush()
        assert [child.stdout.readline() for child in children] == ["created\n"] * 8
        with closing(Database.open(locate(root))) as database:
            assert count(database) == 8
            assert database.integrity() == "ok"
    for child in children:
        child.communicate()


# --- transactions ---------------------------------------------------------------------------


def test_a_transaction_happens_whole_or_not_at_all(database: Database):
    add(database, "a")

    def fail() -> None:
        with database.write() as connection:
            connection.execute(INSERT, {"uuid": "b"})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert count(database) == 1


def test_reading_opens_no_transaction(database: Database):
    with database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM runs").all()
        assert not connection.connection.dbapi_connection.in_transaction
        add(database, "a", timeout_seconds=0.1)
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM runs").scalar() == 1


def test_an_error_of_the_database_leaves_as_one_of_ours(database: Database):
    add(database, "a")
    with pytest.raises(CatalogUnusable, match="UNIQUE constraint failed") as caught:
        add(database, "a")
    assert caught.value.__cause__ is not None
    assert count(database) == 1


@pytest.mark.parametrize("value", [2**63, "\ud800", [1]])
def test_a_value_that_no_database_accepts_is_an_error_of_ours(database, value):
    with pytest.raises(CatalogUnusable):
        add(database, value)


def test_a_full_disk_is_an_error_of_ours_and_nothing_is_lost(database: Database):
    add(database, "a")
    with database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(CatalogUnusable, match="full"):
        add(database, "b" * 100_000)
    assert count(database) == 1


LOCK = """
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute(sys.argv[2])
raw.execute("SELECT * FROM sqlite_master").fetchone()
"""


def test_a_writer_gives_up_in_time_when_another_process_writes(database: Database):
    with another_process(LOCK, database.location.file, "BEGIN IMMEDIATE"):
        started = time.monotonic()
        with pytest.raises(CatalogLocked):
            add(database, "a", timeout_seconds=0.3)
        assert 0.25 < time.monotonic() - started < 2
        assert count(database) == 0
    add(database, "a")


def test_a_reader_gives_up_in_time_when_a_process_holds_everything(database: Database):
    with another_process(LOCK, database.location.file, "BEGIN EXCLUSIVE"):
        started = time.monotonic()
        with (
            pytest.raises(CatalogLocked),
            database.read(timeout_seconds=0.3) as connection,
        ):
            connection.exec_driver_sql("SELECT * FROM runs")
        assert 0.25 < time.monotonic() - started < 2
    assert count(database) == 0


def test_a_commit_that_waits_for_a_reader_gives_up_in_time(database: Database):
    with another_process(LOCK, database.location.file, "BEGIN"):
        started = time.monotonic()
        with pytest.raises(CatalogLocked):
            add(database, "a", timeout_seconds=0.3)
        assert time.monotonic() - started < 2
    assert count(database) == 0
    add(database, "a")


def test_opening_a_locked_catalog_says_so(database: Database):
    with another_process(LOCK, database.location.file, "BEGIN EXCLUSIVE"):
        started = time.monotonic()
        with pytest.raises(CatalogLocked):
            Database.open(database.location, timeout_seconds=0.3)
        assert 0.25 < time.monotonic() - started < 2


def test_a_new_connection_waits_no_longer_than_it_may(database: Database):
    with database.read(), another_process(LOCK, database.location.file, "BEGIN EXCLUSIVE"):
        started = time.monotonic()
        with pytest.raises(CatalogLocked):
            add(database, "a", timeout_seconds=0.3)
        assert 0.25 < time.monotonic() - started < 2


def test_what_a_killed_writer_left_is_undone(database: Database):
    add(database, "a")
    code = """
    raw = sqlite3.connect(sys.argv[1], isolation_level=None)
    raw.execute("PRAGMA journal_mode = TRUNCATE")
    raw.execute("PRAGMA cache_spill = 1"); raw.execute("PRAGMA cache_size = 1")
    raw.execute("BEGIN IMMEDIATE")
    for i in range(2000):
        raw.execute("INSERT INTO runs (uuid, name, directory) VALUES (?, 'n', 'd')", (str(i),))
    """
    with another_process(code, database.location.file) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    journal = Path(f"{database.location.file}-journal")
    assert journal.stat().st_size > 0
    assert count(database) == 1
    assert database.integrity() == "ok"


def test_threads_share_a_catalog(database: Database):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                add(database, f"{number}-{i}", timeout_seconds=60)
                count(database)
        except BaseException as error:  # noqa: BLE001 - looked at below.
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert count(database) == 80


# --- in memory ------------------------------------------------------------------------------


def test_a_catalog_in_memory_is_private_and_complete(tmp_path: Path):
    first, second = Database.in_memory(tmp_path), Database.in_memory()
    add(first, "a")
    assert (count(first), count(second)) == (1, 0)
    assert first.revision() == schema.HEAD
    assert first.location.base == tmp_path
    assert first.location.in_memory
    assert not first.replaced()
    first.close()
    second.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_memory_may_be_chosen_by_url(url: str):
    with closing(Database.open(locate(url))) as database:
        assert count(database) == 0


def test_threads_take_turns_in_memory():
    with closing(Database.in_memory()) as database:
        inside = threading.Event()
        leave = threading.Event()

        def hold() -> None:
            with database.write() as connection:
                connection.execute(INSERT, {"uuid": "a"})
                inside.set()
                leave.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        with pytest.raises(CatalogLocked), database.read(timeout_seconds=0.05):
            pass
        leave.set()
        thread.join()
        assert count(database) == 1


# --- fork -----------------------------------------------------------------------------------


def test_a_child_uses_connections_of_its_own(database: Database):
    add(database, "parent")
    in_fork(lambda: add(database, "child"))
    add(database, "parent again")
    assert count(database) == 3
    assert database.integrity() == "ok"


def test_a_child_cannot_end_the_transaction_of_its_parent(location: Location):
    database = Database.open(location, create=True)

    def leave() -> None:
        # What a child does that returns from inside the block, all the way out.
        with pytest.raises(CatalogError):
            block.__exit__(None, None, None)
        database.close()

    block = database.write()
    connection = block.__enter__()
    for i in range(500):
        connection.execute(INSERT, {"uuid": str(i)})
    in_fork(leave)
    block.__exit__(None, None, None)
    assert count(database) == 500
    assert database.integrity() == "ok"
    database.close()


FORK_AND_END = """
import os, sys
from pathlib import Path
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
database = Database.open(locate(sys.argv[1]))
journal = Path(f"{database.location.file}-journal")
with database.write() as connection:
    connection.exec_driver_sql("PRAGMA cache_size = 1")
    for i in range(500):
        connection.exec_driver_sql(
            "INSERT INTO runs (uuid, name, directory) VALUES (?, 'n', 'd')", (str(i),)
        )
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # Leaves the block, then ends the interpreter in good order.
    before = journal.stat().st_size
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert journal.stat().st_size == before > 0, (journal.stat().st_size, before)
database.close()
"""


@pytest.mark.slow
def test_a_child_that_ends_leaves_the_journal_of_its_parent_alone(database: Database):
    command = [sys.executable, "-c", FORK_AND_END, str(database.location.file)]
    subprocess.run(command, check=True)
    assert count(database) == 500
    assert database.integrity() == "ok"


def test_a_child_forked_while_the_file_is_in_use_is_told_so(database: Database):
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write() as connection:
            connection.execute(INSERT, {"uuid": "a"})
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()

    def use() -> None:
        with pytest.raises(CatalogUnusable, match="forked"):
            count(database)
        with pytest.raises(CatalogUnusable, match="forked"):
            Database.open(database.location)

    in_fork(use)
    leave.set()
    thread.join()
    in_fork(lambda: add(database, "child"))
    assert count(database) == 2
    assert database.integrity() == "ok"


def test_a_child_forked_while_a_thread_is_in_memory_does_not_wait_for_it():
    with closing(Database.in_memory()) as database:
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with database.read():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        in_fork(lambda: add(database, "child"))
        leave.set()
        thread.join()
        assert count(database) == 0


# --- read-only, moved, replaced -------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def for_everybody(tmp_path: Path) -> Iterator[int | None]:
    """A user whom permissions bind, and directories that he may enter."""
    if os.geteuid() != 0:
        yield None
        return
    # Left so: those above belong to other tests as well, which run at the same time.
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0:
            folder.chmod(folder.stat().st_mode | 0o055)
    yield NOBODY


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [(0o444, 0o555), (0o444, 0o755), (0o666, 0o555)],
    ids=["both", "file only", "folder only"],
)
def test_a_read_only_catalog_answers_and_says_that_it_cannot_be_written(
    location, for_everybody, file_mode, folder_mode
):
    file = created(location)
    Path(f"{file}-journal").unlink(missing_ok=True)
    file.chmod(file_mode)
    file.parent.chmod(folder_mode)

    def look() -> None:
        with closing(Database.open(location)) as database:
            assert count(database) == 0
            assert database.integrity() == "ok"
            with pytest.raises(CatalogReadOnly):
                add(database, "a")

    in_fork(look, user=for_everybody)
    file.parent.chmod(0o755)


def test_a_catalog_that_may_not_be_read_is_unusable(location, for_everybody):
    file = created(location)
    file.chmod(0)

    def look() -> None:
        with pytest.raises(CatalogUnusable, match="unable to open"):
            Database.open(location)

    in_fork(look, user=for_everybody)


def test_a_folder_that_cannot_be_made_is_unusable(tmp_path, for_everybody):
    tmp_path.chmod(0o555)

    def create() -> None:
        with pytest.raises(CatalogUnusable, match="Permission denied"):
            Database.open(locate(tmp_path), create=True)

    in_fork(create, user=for_everybody)
    tmp_path.chmod(0o755)


class Interrupting:
    """A value that raises what a signal's handler does, within the driver's call."""

    def __conform__(self, _):
        raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_interrupt_within_a_statement_stays_one(location, where):
    in_memory = where == "memory"
    opened = Database.in_memory() if in_memory else Database.open(location, create=True)
    with closing(opened) as database:
        with pytest.raises(KeyboardInterrupt), database.write() as connection:
            connection.exec_driver_sql("SELECT ?", (Interrupting(),))
        gc.collect()  # the error kept the statement, which keeps the lock
        if not in_memory:
            add(database, "a")
            assert count(database) == 1


def test_a_folder_that_cannot_be_written_is_read_only(location, for_everybody):
    folder = location.file.parent
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)

    def create() -> None:
        with pytest.raises(CatalogReadOnly):
            Database.open(location, create=True)

    in_fork(create, user=for_everybody)
    folder.chmod(0o755)


def test_a_replaced_file_is_noticed(database: Database, tmp_path: Path):
    file = database.location.file
    assert not database.replaced()
    add(database, "a")
    assert not database.replaced()
    file.rename(tmp_path / "elsewhere")
    assert database.replaced()
    file.touch()
    assert database.replaced()


def test_nothing_is_written_through_a_moved_file(database: Database, tmp_path: Path):
    add(database, "a")
    database.location.file.rename(tmp_path / "elsewhere.db")
    with pytest.raises(CatalogUnusable, match="moved or replaced"):
        add(database, "b")


def test_a_deleted_file_is_not_silently_made_anew(database: Database):
    database.close()
    database.location.file.unlink()
    with pytest.raises(CatalogMissing):
        count(database)
    assert not database.location.file.exists()


def test_setting_aside_moves_the_file_with_its_journals(location: Location):
    file = created(location)
    for suffix in ("-journal", "-wal"):
        Path(f"{file}{suffix}").write_text(suffix)
    target = set_aside(location)
    assert target.name.startswith("catalog.db.broken-2")
    assert target.stat().st_size > 0
    assert Path(f"{target}-wal").read_text() == "-wal"
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(
        [file.name, target.name, f"{target.name}-journal", f"{target.name}-wal"]
    )
    assert file.stat().st_size == 0, "kept for the mode of the one to come"


def test_setting_aside_never_overwrites(location: Location):
    aside = set()
    for _ in range(20):
        created(location)
        aside.add(set_aside(location))
    assert len(aside) == 20


def test_there_must_be_something_to_set_aside(location: Location):
    with pytest.raises(CatalogMissing):
        set_aside(location)
    with pytest.raises(CatalogUnusable):
        set_aside(locate("sqlite://"))


def test_a_catalog_is_rebuilt_after_it_was_set_aside(tmp_path: Path):
    file = tmp_path / "x.db"
    file.write_text("not a database")
    set_aside(locate(file))
    with closing(Database.open(locate(file), create=True, durable=False)) as database:
        assert database.revision() == schema.HEAD


# --- parts ----------------------------------------------------------------------------------


def test_the_migrations_are_found():
    assert (script_location() / "env.py").is_file()


def test_importing_the_engine_does_not_import_alembic():
    code = "import sys, ckptdb.catalog.engine; assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- PostgreSQL -----------------------------------------------------------------------------


def test_the_same_catalog_works_on_postgresql(postgres_url):
    location = locate(postgres_url)
    with pytest.raises(CatalogMissing):
        Database.open(location)
    with closing(Database.open(location, create=True)) as database:
        add(database, "a")
        in_fork(lambda: add(database, "child"))
        assert count(database) == 2
        assert database.integrity() == "ok"
        with database.write(), pytest.raises(CatalogLocked):
            add(database, "b", timeout_seconds=0.1)
        with pytest.raises(CatalogUnusable, match="duplicate key"):
            add(database, "a")
        with closing(Database.open(location)) as again:
            assert again.revision() == schema.HEAD


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_in_the_middle_of_a_commit_stays_one(database: Database, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FileConnection, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(database, "lost")
    assert count(database) == 0
    add(database, "kept")
    assert count(database) == 1


def test_an_interrupt_stays_one_where_sqlalchemy_commits(postgres_url, monkeypatch):
    with closing(Database.open(locate(postgres_url), create=True)) as database:
        with monkeypatch.context() as patch:
            patch.setattr(RootTransaction, "_do_commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                add(database, "lost")
        add(database, "kept")
        assert count(database) == 1


# --- complete or not ----------------------------------------------------------------------------


def test_a_new_catalog_is_not_complete_until_that_is_said(location: Location):
    created(location)
    with closing(Database.open(location)) as database:
        assert not database.is_complete()
        database.set_complete()
        assert database.is_complete()
    with closing(Database.open(location)) as database:
        assert database.is_complete()
    assert location.file
    location.file.unlink()
    with closing(Database.open(location, create=True)) as database:
        assert not database.is_complete()


def test_a_copy_in_memory_changes_without_the_catalog(location: Location):
    created(location)
    with closing(Database.open(location)) as database:
        copy = find_memory_copy(database)
        assert copy
        with copy.write() as connection:
            connection.execute(schema.runs.insert().values(uuid="u", name="n", directory="d"))
        with copy.read() as connection:
            assert connection.execute(schema.runs.select()).all()
        copy.close()
        with database.read() as connection:
            assert not connection.execute(schema.runs.select()).all()


def test_copying_waits_for_a_writer_no_longer_than_anything_else(location: Location):
    file = created(location)
    with closing(Database.open(location, timeout_seconds=0.1)) as database:
        with closing(sqlite3.connect(file, isolation_level=None)) as raw:
            raw.execute("BEGIN EXCLUSIVE")
            with pytest.raises(CatalogLocked):
                find_memory_copy(database)
        assert find_memory_copy(database)
