"""What a question and a save may cost, counted: transactions, listings, rows read, query plans.

What the second question about a settled run costs is in test_looking.py.
"""

import gc
import os
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager

import pytest
from tests.support.counting import counted
from tests.support.reading import make_manager
from tests.support.statements import sent
from tests.support.trees import settle

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.core import fork
from ckptdb.core.changes import Changes
from ckptdb.core.records import Checkpoint, Run
from ckptdb.training import followed_run

AT = "2026-01-01T00:00:00.000Z"
ROWS = 100_000


@contextmanager
def told():
    """Collect what SQLite is told by every connection to a catalog that is open."""
    found = []
    gc.collect()  # closed ones of other tests
    connections = list(fork.CONNECTIONS)
    for connection in connections:
        connection.set_trace_callback(found.append)
    try:
        yield found
    finally:
        for connection in connections:
            connection.set_trace_callback(None)


def verbs(statements):
    """Count statements by what they begin with."""
    return Counter(statement.split()[0] for statement in statements)


def listings(files, run):
    return [what for what in files if what in (f"os.scandir {run}", f"os.listdir {run}")]


def save(manager, step, loss):
    with manager.save(step, {"val:loss": loss}) as folder:
        (folder / "weights.bin").write_bytes(b"w")


# --- transactions and listings ------------------------------------------------------------------


def test_a_save_has_at_most_two_transactions(tmp_path):
    with make_manager(tmp_path / "run") as manager:
        save(manager, 1, 0.5)
        with told() as found:
            save(manager, 2, 0.4)
    assert (verbs(found)["BEGIN"], verbs(found)["COMMIT"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [2, 20])
def test_with_its_pruning_a_save_has_at_most_three_however_many_go(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(followed_run, "LISTING_SHARE", 0)
    with make_manager(tmp_path / "run") as manager:
        for step in range(1, kept + 1):
            save(manager, step, 1 / step)
    settle(tmp_path)
    with make_manager(tmp_path / "run", keep_top_k=1) as manager:
        manager.get_best_checkpoint_path()
        with told() as found:
            save(manager, 100, 0.001)
    assert [path.name for path in (tmp_path / "run").glob("step_*")] == ["step_100"]
    assert (verbs(found)["BEGIN"], verbs(found)["COMMIT"]) == (3, 3)


def test_a_save_that_prunes_one_sends_few_statements(tmp_path, monkeypatch):
    monkeypatch.setattr(followed_run, "LISTING_SHARE", 0)  # however slow the machine is
    with make_manager(tmp_path / "run", keep_top_k=2) as manager:
        for step in range(1, 8):
            save(manager, step, 1 / step)
        with told() as found:
            save(manager, 8, 0.01)
    # In each transaction the run, the checkpoint, its metrics and the stamp; two to choose.
    most = Counter(BEGIN=3, SELECT=8, INSERT=4, UPDATE=5, COMMIT=3, PRAGMA=4)
    assert verbs(found) <= most, found


def test_a_save_that_no_limit_binds_lists_nothing(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with make_manager(run, keep_top_k=1_000_000) as manager:
        save(manager, 1, 0.5)
        with counted(monkeypatch) as (files, _, _):
            save(manager, 2, 0.4)
    assert files
    assert listings(files, run) == []


def test_right_after_a_save_a_question_is_one_listing_more(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with make_manager(run) as manager:
        for step in (1, 2, 3):
            save(manager, step, 1 / step)
        with counted(monkeypatch) as (files, statements, _):
            assert manager.get_best_checkpoint_path() == str(run / "step_3")
        assert len(listings(files, run)) == 1
        assert {statement.split()[0] for statement in statements} == {"SELECT"}
        settle(tmp_path)
        manager.get_best_checkpoint_path()
        with counted(monkeypatch) as (files, statements, stamps):
            assert manager.get_best_checkpoint_path() == str(run / "step_3")
        assert (files, len(statements), len(stamps)) == ([], 1, 1)


@contextmanager
def asked_for_space(monkeypatch):
    """Count how often a file system is asked for its free space."""
    asked, real = [], os.statvfs
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: asked.append(path) or real(path))
        yield asked


def test_a_save_asks_for_free_space_once_and_never_the_index(tmp_path, monkeypatch):
    """But for a manager's first save, which asks the index what earlier ones have taken."""
    run = tmp_path / "run"
    with make_manager(run) as manager, asked_for_space(monkeypatch) as asked:
        save(manager, 1, 0.5)
        assert asked == [], "nothing is known of a new run"
        save(manager, 2, 0.4)
        assert asked == [run]
    with make_manager(run) as manager:
        manager.get_best_checkpoint_path()  # opens the catalog
        with counted(monkeypatch) as (files, statements, _):
            assert manager._recent.largest_bytes
        assert len(statements) == 3, "the run, its newest, what belongs to them"
        assert listings(files, run) == []
    with make_manager(run, check_space=False) as manager, asked_for_space(monkeypatch) as asked:
        save(manager, 3, 0.3)
        assert asked == []


def test_asking_whether_to_save_costs_no_file_and_no_statement(tmp_path, monkeypatch):
    with make_manager(tmp_path / "run", checkpoint_must_save_by="01:00:00:00") as manager:
        manager.should_save(1)
        with counted(monkeypatch) as (files, statements, stamps):
            assert manager.should_save(2) == "period"
            assert not manager.should_stop
    assert (files, statements, stamps) == ([], [], [])


# --- plans and rows -----------------------------------------------------------------------------


def fill(folder, rows):
    """Return a catalog of ten runs with that many checkpoints, a tenth of them alive."""
    catalog = Catalog(Database.open(locate(folder), create=True, durable=False))
    for number in range(10):
        name = f"run-{number}"
        run = Run(uuid=name, name=name, directory=folder / name, created_at=AT, metric_name="loss")
        catalog.apply(Changes(run=run, checkpoints=[make(run, step) for step in range(1, 101)]))
    with closing(sqlite3.connect(catalog.database.location.file)) as raw, raw:
        for copy in range(1, rows // 1000):
            for table in ("checkpoints", "metrics"):
                raw.execute(again(raw, table), {"n": copy})
        counts = "SELECT count(*), count(*) FILTER (WHERE status = 'final') FROM checkpoints"
        assert raw.execute(counts).fetchone() == (rows, rows // 10)
    return catalog


def make(run, step):
    alive = step % 10 == 0
    metrics = {"loss": 1 / step, "acc": step / 1000}
    return Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=f"{run.uuid}-{step}",
        step=step,
        path=run.directory / f"step_{step}",
        status="final" if alive else "deleted",
        created_at=AT,
        finalized_at=AT,
        deleted_at=None if alive else AT,
        deleted_reason=None if alive else "not among the best",
        info=metrics,
        metrics=metrics,
    )


def again(raw, table):
    """Return the statement that stores the first thousand checkpoints once more, as others."""
    other = {
        "id": "id + 1000 * :n",
        "checkpoint_id": "checkpoint_id + 1000 * :n",
        "step": "step + 100 * :n",
        "uuid": "uuid || '-' || :n",
        "value": "value + 1e-7 * :n",
    }
    names = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
    key = "id" if "id" in names else "checkpoint_id"
    values = ", ".join(other.get(name, name) for name in names)
    return f"INSERT INTO {table} SELECT {values} FROM {table} WHERE {key} <= 1000"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    catalog = fill(tmp_path_factory.mktemp("many"), ROWS)
    with closing(catalog.database):
        yield catalog


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    catalog = fill(tmp_path_factory.mktemp("few"), 1000)
    with closing(catalog.database):
        yield catalog


def select(sql):
    def ask(catalog):
        with catalog.database.read() as connection:
            return connection.exec_driver_sql(sql).all()

    return ask


QUESTIONS = {
    "best": (
        lambda catalog: catalog.ranking.find_best_step(5, "loss", "min"),
        "COVERING INDEX ix_metrics_run_ranking (run_id=? AND name=?",
    ),
    "worst": (
        lambda catalog: catalog.ranking.find_best_step(5, "loss", "max"),
        "COVERING INDEX ix_metrics_run_ranking (run_id=? AND name=?",
    ),
    "latest": (
        lambda catalog: catalog.ranking.find_latest_step(5),
        "uq_checkpoints_final (run_id=?",
    ),
    "top of all": (
        lambda catalog: catalog.ranking.top(10, "acc", "max"),
        "COVERING INDEX ix_metrics_ranking (name=?",
    ),
    "top of a run": (
        lambda catalog: catalog.ranking.top(10, "acc", "max", run_id=5),
        "COVERING INDEX ix_metrics_run_ranking (run_id=? AND name=?",
    ),
    "summary of a run": (
        select("SELECT best_step, best_value, latest_step FROM run_summary WHERE run = 'run-4'"),
        "uq_checkpoints_final (run_id=?",
    ),
    "leaderboard": (
        select("SELECT * FROM leaderboard WHERE run = 'run-4'"),
        "ix_metrics_run_ranking (run_id=? AND name=?",
    ),
}
GROWS = {"leaderboard"}
"""It shows every live checkpoint."""


@contextmanager
def watched(catalog):
    """Collect the statements and how many instructions SQLite has needed for all of them."""
    steps = [0]

    def count():
        steps[0] += 1
        return 0

    with catalog.database.read() as connection:
        raw = connection.connection.dbapi_connection
    raw.set_progress_handler(count, 1)
    try:
        with sent() as statements:
            yield statements, steps
    finally:
        raw.set_progress_handler(None, 1)


def plans(catalog, statements):
    with catalog.database.read() as connection:
        raw = connection.connection.dbapi_connection
        return "\n".join(
            str(row[-1])
            for statement, parameters in statements
            for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        )


@pytest.mark.slow
@pytest.mark.parametrize(("ask", "index"), QUESTIONS.values(), ids=QUESTIONS)
def test_at_100_000_rows_a_question_goes_through_its_index(many, ask, index):
    with watched(many) as (statements, _):
        assert ask(many)
    plan = plans(many, statements)
    assert index in plan
    assert not [line for line in plan.splitlines() if line.startswith(("SCAN c", "SCAN m"))], plan


@pytest.mark.parametrize("what", QUESTIONS)
def test_at_100_000_rows_a_question_reads_no_more_than_at_1_000(few, many, what):
    ask, _ = QUESTIONS[what]
    cost = {}
    for catalog, name in ((few, "few"), (many, "many")):
        ask(catalog)  # what is prepared once is not counted
        with watched(catalog) as (_, steps):
            assert ask(catalog)
        cost[name] = steps[0]
    assert cost["few"] > 0
    if what not in GROWS:
        assert cost["many"] <= 1.2 * cost["few"]
    else:
        # Ten live checkpoints of a run against a thousand; never the nine thousand that are gone.
        assert cost["many"] <= 110 * cost["few"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_of_many_that_are_equal_is_found_without_reading_them(tmp_path, mode):
    catalog = fill(tmp_path, 10_000)
    with catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE metrics SET value = 0.5")
    with closing(catalog.database):
        with watched(catalog) as (_, steps):
            assert catalog.ranking.find_best_step(5, "loss", mode) == 1000
        assert steps[0] < 100
