from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.support import requirements

from ckptdb.catalog import query as user_query
from ckptdb.catalog import sandbox, views
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.query import run as query
from ckptdb.catalog.relations import describe
from ckptdb.errors import (
    CatalogBroken,
    CatalogLocked,
    ParameterMissing,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    QueryTooLarge,
)

FOREVER = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT COUNT(*) FROM t"


@pytest.fixture(params=["file", "memory"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "memory":
        opened = Database.in_memory(tmp_path)
    else:
        opened = Database.open(locate(tmp_path), create=True, durable=False)
    with closing(opened) as database:
        with database.write() as connection:
            for number, name in enumerate(["a", "b", "c"], 1):
                insert = text(
                    "INSERT INTO runs (id, uuid, name, directory, config)"
                    " VALUES (:id, :name, :name, :name, '[1, 2]')"
                )
                connection.execute(insert, {"id": number, "name": name})
        yield database


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.open(locate(tmp_path), create=True, durable=False)) as database:
        yield database


def dump(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.connection.dbapi_connection.iterdump())


# --- answering ------------------------------------------------------------------------------


def test_an_answer_has_columns_and_rows(database: Database):
    found = query(database, "SELECT name, id FROM runs WHERE id > :least ORDER BY id", {"least": 1})
    assert found.columns == ("name", "id")
    assert found.rows == (("b", 2), ("c", 3))
    assert not found.truncated


@pytest.mark.parametrize(
    "sql",
    [
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "VALUES (1)",
        "SELECT * FROM leaderboard",
        "SELECT * FROM run_summary WHERE run = 'a'",
        "SELECT value FROM runs, json_each(config)",
        "SELECT json_extract(config, '$[0]') FROM runs",
        "SELECT name, ROW_NUMBER() OVER (ORDER BY name) FROM runs;",
        "SELECT name FROM sqlite_master",
        "SELECT * FROM pragma_table_info('runs')",
        "PRAGMA table_info(runs)",
        "PRAGMA user_version",
        "EXPLAIN QUERY PLAN SELECT * FROM runs",
        "-- a comment\nSELECT 1",
    ],
)
def test_whatever_only_reads_is_answered(database: Database, sql: str):
    assert query(database, sql).columns


@pytest.mark.parametrize(
    ("limit", "rows", "truncated"), [(2, 2, True), (3, 3, False), (0, 0, True), (None, 3, False)]
)
def test_an_answer_ends_at_the_limit_and_says_so(database, limit, rows, truncated):
    found = query(database, "SELECT * FROM runs", limit=limit)
    assert (len(found), found.truncated) == (rows, truncated)


def test_paths_become_absolute(database: Database, tmp_path: Path):
    sql = "SELECT abspath('a/step_1'), abspath('/x'), abspath(NULL), abspath(3)"
    assert query(database, sql).rows == ((f"{tmp_path}/a/step_1", "/x", None, 3),)


def test_without_a_root_paths_stay_what_they_are(tmp_path: Path):
    opened = Database.open(locate(tmp_path / "x.db"), create=True, durable=False)
    with closing(opened) as database:
        assert query(database, "SELECT abspath('/r/step_1')").rows == (("/r/step_1",),)


def test_text_that_is_no_utf8_is_still_shown(database: Database):
    assert query(database, "SELECT CAST(x'41ff' AS TEXT)").rows == (("A\ufffd",),)


# --- refusing -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("INSERT INTO runs (uuid, name, directory) VALUES ('x', 'x', 'x')", "insert into runs"),
        (
            "INSERT INTO runs (uuid, name, directory) VALUES ('x', 'x', 'x') RETURNING id",
            "insert into runs",
        ),
        ("UPDATE runs SET name = 'x'", "update runs"),
        ("DELETE FROM runs", "delete from runs"),
        ("WITH x AS (SELECT 1) DELETE FROM runs", "delete from runs"),
        ("REPLACE INTO runs (id) VALUES (1)", "insert into runs"),
        ("CREATE TABLE x (a)", "change the schema"),
        ("CREATE TEMP TABLE x (a)", "change the schema"),
        ("CREATE TEMP VIEW x AS SELECT 1", "change the schema"),
        ("CREATE INDEX x ON runs (uuid)", "change the schema"),
        ("CREATE VIRTUAL TABLE x USING fts5(a)", "change the schema"),
        ("CREATE TRIGGER x AFTER INSERT ON runs BEGIN SELECT 1; END", "change the schema"),
        ("DROP VIEW leaderboard", "change the schema"),
        ("DROP TABLE runs", "change the schema"),
        ("ALTER TABLE runs ADD COLUMN x", "change the schema"),
        ("ATTACH '{0}/x.db' AS x", "open another file"),
        ("DETACH main", "detach"),
        ("VACUUM", "open another file"),
        ("VACUUM INTO '{0}/x.db'", "open another file"),
        ("REINDEX", "rebuild an index"),
        ("ANALYZE", "change the schema"),
        ("BEGIN", "transaction"),
        ("COMMIT", "transaction"),
        ("SAVEPOINT x", "savepoint"),
        ("PRAGMA user_version = 3", "PRAGMA user_version"),
        ("PRAGMA journal_mode = wal", "PRAGMA journal_mode"),
        ("PRAGMA query_only = OFF", "PRAGMA query_only"),
        ("PRAGMA writable_schema = 1", "PRAGMA writable_schema"),
        ("PRAGMA wal_checkpoint", "PRAGMA wal_checkpoint"),
        ("SELECT load_extension('x')", "load_extension"),
        ("EXPLAIN DELETE FROM runs", "delete from runs"),
        ("SELECT 1; DELETE FROM runs", "more than one statement"),
        ("SELECT 1; SELECT 2", "more than one statement"),
    ],
)
def test_whatever_could_write_is_refused_and_says_why(database, tmp_path, sql, why):
    before = dump(database)
    with pytest.raises(QueryRefused, match=why):
        query(database, sql.format(tmp_path))
    assert dump(database) == before
    assert not (tmp_path / "x.db").exists()


def test_the_schema_cannot_be_rewritten(database: Database):
    before = dump(database)
    with pytest.raises(QueryFailed, match="may not be modified"):
        query(database, "UPDATE sqlite_master SET sql = 'x'")
    assert dump(database) == before


def test_the_catalog_can_be_written_after_a_refusal(database: Database):
    with pytest.raises(QueryRefused):
        query(database, "DELETE FROM runs")
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM runs WHERE id = 1")
        connection.exec_driver_sql("CREATE TEMP TABLE x (a)")
    assert query(database, "SELECT COUNT(*) FROM runs").rows == ((2,),)


# --- failing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "parameters", "why"),
    [
        ("SELEC 1", None, 'near "SELEC": syntax error'),
        ("SELECT * FROM nix", None, "no such table: nix"),
        ("SELECT nix FROM runs", None, "no such column: nix"),
        ("SELECT ?", {"a": 1}, "no name"),
        ("SELECT :a", {"a": [1]}, "not supported"),
        ("SELECT :a", {"a": 2**64}, "too large"),
        ("SELECT :a", {"a": "\ud800"}, "surrogates"),
        ("SELECT '\ud800'", None, "surrogates"),
        ("SELECT \0", None, "null character"),
        ("", None, "no question"),
        ("-- nothing", None, "no question"),
        ("SELECT zeroblob(1000000000)", None, "too big"),
        ("SELECT hex(zeroblob(16000000))", None, "too big"),
        ("SELECT 1" + " + 1" * 2000, None, "too large"),
    ],
)
def test_wrong_sql_fails_with_what_the_database_says(database, sql, parameters, why):
    with pytest.raises(QueryFailed, match=why) as caught:
        query(database, sql, parameters)
    assert str(caught.value).count("The query failed") == 1


@pytest.mark.parametrize("parameters", [None, {"b": 1}])
def test_a_parameter_without_a_value_is_named(database, parameters):
    with pytest.raises(ParameterMissing, match=r"^The query asks for :a;"):
        query(database, "SELECT :a, :b", parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        FOREVER,
        "SELECT randomblob(10000000) FROM sqlite_master a, sqlite_master b",
        (
            "SELECT COUNT(*) FROM sqlite_master a, sqlite_master b, sqlite_master c,"
            " sqlite_master d, sqlite_master e, sqlite_master f"
        ),
    ],
    ids=["recursion", "large values", "cross join"],
)
def test_a_query_ends_in_time(database: Database, sql: str):
    started = time.monotonic()
    with pytest.raises(QueryTimeout, match=r"0\.2 s"):
        query(database, sql, timeout_seconds=0.2)
    assert time.monotonic() - started < 3


LONG = "hex(zeroblob(4000000))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT instr({LONG}, hex(zeroblob(2000000)) || '1')",
        f"SELECT length(replace({LONG}, hex(zeroblob(2000000)) || '1', ''))",
        f"SELECT length(trim({LONG}, '123456789'))",
        f"SELECT length(ltrim({LONG}, {LONG} || '1')), length(rtrim({LONG}, {LONG}))",
        f"SELECT {LONG} LIKE '%' || hex(zeroblob(40)) || '1'",
    ],
)
def test_one_step_on_a_long_text_ends_in_time(database: Database, sql: str):
    started = time.monotonic()
    with suppress(QueryTimeout):
        query(database, sql, timeout_seconds=0.5)
    # Not how fast, but that it ends: by SQLite's own functions these take many minutes.
    assert time.monotonic() - started < 60


def test_what_no_pattern_or_set_may_be(database: Database):
    with pytest.raises(QueryFailed, match="too complex"):
        query(database, "SELECT 'x' LIKE hex(zeroblob(60))")
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 1001)))
    with pytest.raises(QueryFailed, match="too big"):
        query(database, "SELECT trim('x', :many)", {"many": many})
    with pytest.raises(QueryRefused, match="the function json_patch is not allowed"):
        query(database, "SELECT json_patch('{}', '{}')")


def test_a_replacement_stays_bounded(database: Database):
    sql = "SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000)))"
    with pytest.raises(QueryFailed, match="too big"):
        query(database, sql)


def test_an_answer_that_grows_too_large_is_refused(database: Database, monkeypatch):
    # Not cut: nobody has asked for a part of it.
    monkeypatch.setattr(user_query, "LARGEST_ANSWER_BYTES", 2 << 20)
    assert len(query(database, "SELECT zeroblob(400000) FROM sqlite_master LIMIT 5")) == 5
    with pytest.raises(QueryTooLarge, match="its answer is longer than 2 MiB"):
        query(database, "SELECT zeroblob(400000) FROM sqlite_master")


def test_a_growing_string_stays_bounded(database: Database):
    sql = "WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT s FROM t"
    with pytest.raises(QueryFailed, match="too big"):
        query(database, sql)


# --- around it ------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["SELECT * FROM runs", "SELECT * FROM nix", "DELETE FROM runs"])
def test_nothing_stays_open_when_it_returns(on_file: Database, sql: str):
    links = Path("/proc/self/fd")
    if not links.is_dir():
        requirements.skip(requirements.NO_OPEN_FILES)

    def opened() -> int:
        file = str(on_file.location.file)
        return sum(os.path.realpath(link) == file for link in links.iterdir())

    query(on_file, "SELECT 1")
    before = opened()
    with_errors = (QueryFailed, QueryRefused)
    try:
        query(on_file, sql, limit=1)
    except with_errors:
        assert sql != "SELECT * FROM runs"
    assert opened() == before
    with on_file.write(timeout_seconds=0.1) as connection:
        connection.exec_driver_sql("DELETE FROM runs")


def test_a_query_sees_a_catalog_in_memory_without_holding_it():
    with closing(Database.in_memory()) as database:
        with pytest.raises(QueryTimeout):
            query(database, FOREVER, timeout_seconds=0.05)
        with database.write(timeout_seconds=0.1) as connection:
            connection.exec_driver_sql("DELETE FROM runs")


def test_a_locked_catalog_is_not_the_querys_fault(on_file: Database, tmp_path: Path):
    impatient = Database.open(locate(tmp_path), timeout_seconds=0.1)
    raw = sqlite3.connect(on_file.location.file, isolation_level=None)
    with closing(impatient), closing(raw):
        raw.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogLocked):
            query(impatient, "SELECT 1 FROM runs")


def test_a_damaged_catalog_is_not_the_querys_fault(on_file: Database):
    on_file.close()
    with on_file.location.file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * (on_file.location.file.stat().st_size - 4096))
    with pytest.raises(CatalogBroken):
        query(on_file, "SELECT * FROM runs")


def test_a_description_names_every_table_and_view_with_its_columns(database: Database):
    found = {relation.name: relation for relation in describe(database)}
    assert set(found) == set(views.PURPOSES)
    assert all(relation.purpose for relation in found.values())
    assert {name for name in found if found[name].kind == "view"} == set(views.VIEWS)
    columns = {column.name: column.type for column in found["leaderboard"].columns}
    assert columns["step"] == "BIGINT"
    assert columns["rank"] == ""


# --- PostgreSQL -----------------------------------------------------------------------------


def test_postgresql_answers_and_refuses_alike(postgres_url, tmp_path):
    with closing(Database.open(locate(postgres_url), create=True)) as database:
        assert query(database, "SELECT CAST(:a AS int) AS n", {"a": 1}).rows == ((1,),)
        assert query(database, "SELECT * FROM run_summary").rows == ()
        assert len(describe(database)) == len(views.PURPOSES)
        for sql in (
            "DELETE FROM runs", "SELECT 1; SELECT 2", "COMMIT; DELETE FROM runs",
            "WITH x AS (DELETE FROM runs RETURNING 1) SELECT * FROM x",
            f"COPY (SELECT 1) TO '{tmp_path / 'written'}'",
            f"/* /* */ SELECT */ COPY (SELECT 1) TO '{tmp_path / 'written'}'",
            f"-- SELECT\n(COPY (SELECT 1) TO '{tmp_path / 'written'}')",
        ):  # fmt: skip
            with pytest.raises((QueryRefused, QueryFailed)):
                query(database, sql)
        assert list(tmp_path.iterdir()) == []
        # What looks like a parameter in a text or a comment is none; one percent sign is one.
        sql = "SELECT ':a %', CAST(:a AS int), 7 % 4, (ARRAY[1, 2])[1:1] -- :b"
        assert query(database, sql, {"a": 1}).rows == ((":a %", 1, 3, [1]),)
        assert query(database, "SELECT '%'").rows == (("%",),)
        query(database, "SELECT pg_advisory_lock(42)")
        assert query(database, "SELECT * FROM pg_locks WHERE locktype = 'advisory'").rows == ()
        for sql in ("SELEC 1", "", "SELECT * FROM nix"):
            with pytest.raises(QueryFailed):
                query(database, sql)
        with pytest.raises(ParameterMissing, match="asks for :a;"):
            query(database, "SELECT :a")
        with pytest.raises(QueryTimeout):
            query(database, "SELECT pg_sleep(5)", timeout_seconds=0.1)


def test_postgresql_sends_no_more_of_an_answer_than_it_may_have(postgres_url, monkeypatch):
    monkeypatch.setattr(user_query, "LARGEST_ANSWER_BYTES", 2 << 20)
    with closing(Database.open(locate(postgres_url), create=True)) as database:
        long = "SELECT repeat('x', 100000) AS x FROM generate_series(1, 100000)"
        started = time.monotonic()
        with pytest.raises(QueryTooLarge, match="its answer is longer than 2 MiB"):
            query(database, long)
        assert time.monotonic() - started < 20  # all of it are ten gigabytes
        assert query(database, f"{long} LIMIT 3", limit=2).truncated
        assert query(database, "SELECT 1 AS a WHERE false").columns == ("a",)
        assert query(database, "SELECT 1").rows == ((1,),)


INTERRUPTED = """
import signal
from ckptdb.catalog.query import run as query
from ckptdb.catalog.engine import Database

# Whoever runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
database = Database.in_memory()
try:
    print("ready", flush=True)
    query(database, '''%s''', timeout_seconds=60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_is_not_taken_for_a_timeout():
    # Without coverage in it, whose lock an exception out of the blue would leave taken.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    command = [sys.executable, "-c", INTERRUPTED % FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted\n"


@pytest.mark.parametrize("action", [sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION])
def test_an_interrupt_is_not_taken_for_a_refusal(database: Database, monkeypatch, action: int):
    asked = sandbox.Authorizer.__call__

    def interrupted(authorizer, now, *about):
        if now == action:
            raise KeyboardInterrupt
        return asked(authorizer, now, *about)

    monkeypatch.setattr(sandbox.Authorizer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        query(database, "SELECT count(id) FROM runs")


DIES_WRITING = """
import os, signal, sqlite3, sys

writer = sqlite3.connect(sys.argv[1], isolation_level=None)
writer.execute("PRAGMA cache_size = 1")
writer.execute("BEGIN IMMEDIATE")
row = "INSERT INTO runs (uuid, name, directory) VALUES (?, hex(zeroblob(1000)), '.')"
writer.executemany(row, [(str(number),) for number in range(200)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_query_waits_for_what_a_dying_writer_left_to_be_undone(on_file: Database, monkeypatch):
    connected, deaths = user_query._QueryRun._connect, []

    def after_a_death(task):
        if not deaths:
            command = [sys.executable, "-c", DIES_WRITING, str(on_file.location.file)]
            deaths.append(subprocess.run(command, check=False).returncode)
        return connected(task)

    monkeypatch.setattr(user_query._QueryRun, "_connect", after_a_death)
    assert query(on_file, "SELECT COUNT(*) FROM runs").rows == ((0,),)
    assert deaths == [-signal.SIGKILL]
