"""What a stranger has planted in a catalog never runs: the schema is ours, or refused."""

import os
import shutil
import signal
import sqlite3
import threading
import time
import warnings
from contextlib import closing, contextmanager

import pytest
from alembic import command
from alembic.config import Config
from tests.support import requirements

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog import engine, revisions, schema
from ckptdb.catalog.definitions import Definition, find_intruder, fingerprint
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.sqlite import Sqlite
from ckptdb.errors import CatalogTampered, CatalogUnusable

LOSS = "val:loss"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"
AT = "2026-01-01T00:00:00.000Z"


@pytest.fixture(autouse=True)
def _in_time():
    """Let nothing here hang."""

    def fail(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def save(run, step=1, loss=0.5, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager:
        manager.resume()
        with manager.save(step, {LOSS: loss}) as folder:
            (folder / "model.bin").write_bytes(b"m")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A root with a run of two checkpoints, to be copied."""
    root = tmp_path_factory.mktemp("model") / "results"
    root.mkdir()
    Registry.init(root)[0].close()
    save(root / "run", 1, 0.5)
    save(root / "run", 2, 0.4)
    return root


@pytest.fixture
def root(model, tmp_path):
    shutil.copytree(model, tmp_path / "results")
    with Registry.open(tmp_path / "results") as registry:
        registry.reconcile()
    return tmp_path / "results"


def catalog_of(root):
    return root / ".ckptdb" / "catalog.db"


def plant(root, sql):
    with closing(sqlite3.connect(catalog_of(root))) as raw:
        raw.executescript(sql)


def as_written(name, sql):
    """Return what puts another definition in the place of one that SQLite would not change."""
    quoted = sql.replace("'", "''")
    return f"""
        PRAGMA writable_schema = ON;
        UPDATE sqlite_master SET sql = '{quoted}' WHERE name = '{name}';
        PRAGMA writable_schema = OFF;
    """


@contextmanager
def told():
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(one.message) for one in caught]


SLOW = ENDLESS.format("i")
HOSTILE = {
    "a trigger on what a save inserts": (
        f"CREATE TRIGGER t AFTER INSERT ON checkpoints BEGIN SELECT count(*) FROM ({SLOW}); END",
        "the trigger 't' on 'checkpoints'",
    ),
    "a trigger on what a question heals": (
        f"CREATE TRIGGER t BEFORE UPDATE ON runs BEGIN SELECT count(*) FROM ({SLOW}); END",
        "the trigger 't' on 'runs'",
    ),
    "a trigger that a deletion fires": (
        "CREATE TRIGGER t AFTER UPDATE ON checkpoints BEGIN DELETE FROM tags; END",
        "the trigger 't' on 'checkpoints'",
    ),
    "a trigger on a table of somebody's": (
        f"""CREATE TABLE notes (run_id REFERENCES runs(id) ON DELETE CASCADE);
        CREATE TRIGGER t AFTER DELETE ON notes BEGIN SELECT count(*) FROM ({SLOW}); END""",
        "the trigger 't' on 'notes'",
    ),
    "a trigger on a view": (
        "CREATE TRIGGER t INSTEAD OF INSERT ON leaderboard BEGIN SELECT 1; END",
        "the trigger 't' on 'leaderboard'",
    ),
    "a view in the place of a table": (
        f"DROP TABLE tags; CREATE VIEW tags AS {ENDLESS.format('i AS checkpoint_id, i AS name')}",
        "the view 'tags' in a form of its own",
    ),
    "a view in the place of the revision": (
        f"""ALTER TABLE ckptdb_version RENAME TO kept;
        CREATE VIEW ckptdb_version AS {ENDLESS.format("i AS version_num")}""",
        "the view 'ckptdb_version' in a form of its own",
    ),
    "a view of ours that asks something else": (
        f"DROP VIEW run_summary; CREATE VIEW run_summary AS {ENDLESS.format('i AS run')}",
        "the view 'run_summary' in a form of its own",
    ),
    "a column that is computed": (
        "ALTER TABLE runs ADD COLUMN more AS (hex(zeroblob(100000000)))",
        "the table 'runs' in a form of its own",
    ),
    "a default that is computed": (
        as_written(
            "tags", "CREATE TABLE tags (checkpoint_id, name, created_at, x DEFAULT (1 + 1))"
        ),
        "the table 'tags' in a form of its own",
    ),
    "a check": (
        as_written(
            "tags", "CREATE TABLE tags (checkpoint_id, name, created_at CHECK (zeroblob(9)))"
        ),
        "the table 'tags' in a form of its own",
    ),
    "an index of an expression": (
        "CREATE INDEX i ON runs (hex(name))",
        "the index 'i' on runs, which computes something",
    ),
    "an index under a condition": (
        "CREATE INDEX i ON runs (name) WHERE length(name) > 3",
        "the index 'i' on runs, which computes something",
    ),
    "an index under a pattern": (
        "CREATE INDEX i ON runs (name) WHERE name LIKE '%a%b'",
        "the index 'i' on runs, which computes something",
    ),
    "an index that forbids": (
        "CREATE UNIQUE INDEX i ON metrics (value)",
        "the index 'i' on metrics, which forbids rows",
    ),
    "an index of ours that is another": (
        "DROP INDEX ix_runs_name; CREATE INDEX ix_runs_name ON runs (hex(name))",
        "the index 'ix_runs_name' in a form of its own",
    ),
    "a table with the name of a function": (
        f"CREATE VIEW json_each AS {ENDLESS.format('i AS key, i AS value')}",
        "the view 'json_each', which has the name of a function",
    ),
    "a table with the name of a pragma": (
        f"CREATE VIEW pragma_application_id AS {ENDLESS.format('i AS application_id')}",
        "the view 'pragma_application_id', which has the name of a function",
    ),
    "a virtual table": (
        "CREATE VIRTUAL TABLE found USING fts5(text)",
        "the table 'found'",
    ),
    "a table that computes": (
        "CREATE TABLE mine (a, b AS (hex(zeroblob(a))))",
        "the table 'mine', which computes something",
    ),
    "more tables than anybody has": (
        "".join(f"CREATE TABLE t{number} (a);" for number in range(1001)),
        "more than 1000 tables and indexes",
    ),
}


def plant_or_skip(root, sql):
    try:
        plant(root, sql)
    except sqlite3.OperationalError as error:
        requirements.skip(requirements.OLD_SQLITE, str(error))


@pytest.mark.slow
@pytest.mark.parametrize(("sql", "what"), HOSTILE.values(), ids=HOSTILE)
def test_what_was_planted_never_runs_and_reconcile_sets_it_aside(root, sql, what):
    plant_or_skip(root, sql)
    with Registry.open(root) as registry:
        for ask in (registry.runs, registry.best, lambda: registry.query("SELECT * FROM runs")):
            with pytest.raises(CatalogTampered) as caught:
                ask()
            assert f"it holds {what}, which ckptdb never puts there" in str(caught.value)
            assert "`ckptdb reconcile` sets it aside" in str(caught.value)
        assert what in registry.status().integrity
    with told() as texts:
        save(root / "run", 3, 0.3)
    assert len([text for text in texts if what in text]) == 1, texts
    assert (root / "run" / "step_3").is_dir()
    with Registry.open(root) as registry:
        aside = registry.reconcile().set_aside
        assert aside is not None
        assert not registry.reconcile().has_drift
        assert registry.best().step == 3
    with closing(sqlite3.connect(aside)) as raw:  # nothing of it is lost
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] >= 30


HARMLESS = {
    "a table": "CREATE TABLE notes (step INTEGER PRIMARY KEY, text TEXT DEFAULT 'none')",
    "a table whose name is quoted": 'CREATE TABLE "My notes" ("The step" INTEGER)',
    "a table that refers to ours": (
        "CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id INTEGER"
        " REFERENCES runs(id) ON DELETE CASCADE, at TEXT DEFAULT (datetime('now')))"
    ),
    "an index": "CREATE INDEX mine ON checkpoints (created_at DESC, size_bytes)",
    "an index under a plain condition": "CREATE INDEX mine ON runs (name) WHERE created_at IS NULL",
    "a view": "CREATE VIEW mine AS SELECT name, hex(name) FROM runs",
    "statistics": "ANALYZE",
    "ours, written otherwise": (
        'DROP INDEX ix_runs_name; CREATE INDEX\n  "ix_runs_name" ON [runs](/* that */ `name` )'
    ),
    "an index of ours that is gone": "DROP INDEX ix_runs_name",
    "a view of ours that is gone": "DROP VIEW lineage",
}


@pytest.mark.parametrize("sql", HARMLESS.values(), ids=HARMLESS)
def test_what_people_add_and_nothing_runs_by_itself_stays(root, sql):
    plant(root, sql)
    before = Database.open(locate(root))
    with told() as texts:
        save(root / "run", 3, 0.3)
        with Registry.open(root) as registry:
            assert registry.best().step == 3
            assert registry.reconcile().set_aside is None
            registry.forget("run")
    assert texts == []
    with before.read() as connection:
        kept = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    with closing(sqlite3.connect(catalog_of(root))) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (kept,)
    before.close()


@pytest.mark.parametrize("entrance", ["read", "write"])
@pytest.mark.parametrize(
    "name", ["a trigger on what a save inserts", "a view in the place of a table"]
)
def test_what_is_planted_while_the_catalog_is_open_is_noticed(root, name, entrance):
    sql, what = HOSTILE[name]
    with closing(Database.open(locate(root))) as database:
        for _ in range(2):
            with database.read():
                pass
            with database.write():
                pass
        plant(root, sql)
        for _ in range(2):
            with (
                pytest.raises(CatalogTampered, match=what.split()[2]),
                getattr(database, entrance)(),
            ):
                pass
        plant(root, "DROP TRIGGER IF EXISTS t")
        if name.startswith("a trigger"):
            with getattr(database, entrance)():
                pass


def test_a_manager_that_is_open_is_not_hung_by_what_is_planted_then(root):
    with CheckpointManager({"checkpoint_dir": root / "run"}) as manager:
        with manager.save(3, {LOSS: 0.3}):
            pass
        plant(root, HOSTILE["a trigger on what a save inserts"][0])
        with told() as texts, manager.save(4, {LOSS: 0.2}):
            pass
        assert manager.get_latest_checkpoint_path() == str(root / "run" / "step_4")
    with Registry.open(root) as registry, pytest.raises(CatalogTampered):
        registry.best()
    assert len([text for text in texts if "never puts there" in text]) == 1, texts


def test_an_older_catalog_is_looked_at_before_it_is_upgraded(root):
    file = catalog_of(root)
    with closing(Database.unchecked(locate(file))) as database, database.write() as connection:
        _downgrade(connection, "0001")
    plant(root, HOSTILE["a trigger that a deletion fires"][0])
    before = file.read_bytes()
    with pytest.raises(CatalogTampered, match="the trigger 't'"):
        Database.open(locate(root), upgrade=True)
    with pytest.raises(CatalogTampered, match="the trigger 't'"):
        engine.upgrade(locate(root))
    assert file.read_bytes() == before
    plant(root, "DROP TRIGGER t")
    assert engine.upgrade(locate(root))[:2] == ("0001", schema.HEAD)


def _downgrade(connection, revision):
    config = Config()
    config.set_main_option("script_location", str(revisions.script_location()))
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def test_a_catalog_that_a_person_named_is_set_aside_likewise(root, tmp_path):
    file = tmp_path / "named.db"
    with Registry.open(root / "run", catalog=file) as registry:
        registry.reconcile(root / "run")
    with closing(sqlite3.connect(file)) as raw:
        raw.executescript(HOSTILE["a trigger on what a save inserts"][0])
    with Registry.open(root / "run", catalog=file) as registry:
        aside = registry.reconcile(root / "run").set_aside
        assert aside is not None
        assert registry.best().step == 2
    assert aside.exists()


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("entrance", ["read", "write"])
def test_no_statement_runs_for_ever(root, entrance):
    with closing(Database.open(locate(root), work_seconds=0.2)) as database:
        started = time.monotonic()
        with (
            pytest.raises(CatalogUnusable, match="took too long and was stopped"),
            getattr(database, entrance)() as connection,
        ):
            connection.exec_driver_sql(f"SELECT count(*) FROM ({SLOW})").all()
        assert time.monotonic() - started < 10
        with getattr(database, entrance)() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar_one() == 1


def test_in_memory_no_statement_runs_for_ever_either():
    with closing(Database.in_memory()) as database:
        database._work_seconds = 0.2
        with pytest.raises(CatalogUnusable, match="took too long"), database.read() as connection:
            connection.exec_driver_sql(f"SELECT count(*) FROM ({SLOW})").all()


def test_an_interrupt_is_never_taken_for_the_end_of_the_time(root):
    """What a signal's handler raises within a callback of Python, SQLite loses."""

    def interrupt(*_):
        raise KeyboardInterrupt

    def ask(database):
        with database.read() as connection:
            for _ in range(1000):
                connection.exec_driver_sql(f"SELECT count(*) FROM ({SLOW} LIMIT 1000000)").all()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with closing(Database.open(locate(root))) as database:
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                ask(database)
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_check_of_a_large_catalog_has_longer(root, monkeypatch):
    seconds = []
    begin = Sqlite.begin

    def note(self, connection, *, work_seconds, only_read):
        seconds.append(work_seconds)
        begin(self, connection, work_seconds=work_seconds, only_read=only_read)

    monkeypatch.setattr(Sqlite, "begin", note)
    monkeypatch.setattr("ckptdb.catalog.files.size_on_disk", lambda _: 1 << 40)
    with closing(Database.open(locate(root))) as database:
        seconds.clear()
        assert database.integrity() == "ok"
    assert seconds
    assert min(seconds) > 1e6


# --- the pure part ------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_what_is_created():
    made = revisions.made_by(schema.HEAD)
    assert fingerprint(made.values()) == schema.FINGERPRINT, "set schema.FINGERPRINT to this"


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_each_revision_is_as_its_migrations_make_it(revision):
    made = revisions.made_by(revision)
    assert find_intruder(list(made.values()), made) is None
    assert {"runs", "checkpoints", "metrics", "tags", "ckptdb_version"} <= made.keys()


@pytest.mark.parametrize(
    ("one", "is_refused"),
    [
        (Definition("table", "a", "a", "CREATE TABLE a (x)"), False),
        (Definition("table", "a", "a", "CREATE TABLE b (x)"), True),
        (Definition("table", "a", "a", "CREATE VIEW a AS SELECT 1"), True),
        (Definition("table", "a", "a", "CREATE TRIGGER a AFTER INSERT ON runs BEGIN END"), True),
        (Definition("view", "a", "a", "CREATE TABLE a (x)"), True),
        (Definition("view", "A", "A", "CREATE VIEW a AS SELECT 1"), False),
        (Definition("table", "a", "a", None), True),
        (Definition("index", "a", "runs", None), True),
        (Definition("index", "sqlite_autoindex_runs_1", "runs", None), False),
        (Definition("index", "a", "runs", "CREATE TABLE a (x)"), True),
        (Definition("table", "a", "a", "CREATE TABLE a (REFERENCES r ON DELETE SET NULL)"), False),
        (Definition("table", "a", "", "CREATE TABLE a (REFERENCES r ON DELETE SET DEFAULT)"), True),
        (Definition("table", "a", "a", "CREATE TABLE a (x CHECK (x > 1))"), True),
        (Definition("table", "sqlite_stat1", "s", "CREATE TABLE sqlite_stat1(tbl)"), False),
        (Definition("something", "a", "a", "CREATE TABLE a (x)"), True),
        (Definition("table", "RUNS", "RUNS", "CREATE TABLE RUNS (x)"), True),
        (Definition("trigger", "a", "runs", "CREATE TABLE a (x)"), True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else value.sql or value.name,
)  # fmt: skip
def test_what_is_added_is_judged_by_what_its_text_makes(one, is_refused):
    assert (find_intruder([one], revisions.made_by(schema.HEAD)) is not None) == is_refused
