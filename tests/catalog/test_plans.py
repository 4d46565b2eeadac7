"""What is asked most goes through its index at 100,000 checkpoints, nearly all of them history."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.plans import plans

from ckptdb.catalog import query as user_query
from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.selection import Selection, matching, ranked
from ckptdb.core.conditions import parse
from ckptdb.core.rows import Rows

RUNS, PER_RUN, LIVE = 20, 5_000, 50
AT = "2026-11-22T16:00:00.000Z"


def fill(raw):
    names = [("loss" if run % 2 else "reward", run % 2) for run in range(RUNS)]
    raw.executemany(
        "INSERT INTO runs (id, uuid, name, directory, metric_name, higher_is_better, config,"
        " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (r + 1, f"run-{r}", f"run {r}", f"r{r}", *own, config(r), f"{r:04}")
            for r, own in enumerate(names)
        ],
    )
    rows = [(r, k) for r in range(RUNS) for k in range(PER_RUN)]
    raw.executemany(
        "INSERT INTO checkpoints"
        " (id, run_id, uuid, step, path, created_at, finalized_at, status, deleted_at, size_bytes)"
        f" VALUES (?, ?, ?, ?, 'p', '{AT}', '{AT}', ?, ?, 1)",
        [
            (r * PER_RUN + k + 1, r + 1, f"{r}-{k}", k, *(("final", None) if is_live(k) else
                                                       ("deleted", AT)))
            for r, k in rows
        ],
    )  # fmt: skip
    raw.executemany(
        "INSERT INTO metrics (checkpoint_id, name, run_id, step, value, source, reported_at, live)"
        f" VALUES (?, ?, ?, ?, ?, 'training_info', '{AT}', ?)",
        [
            (r * PER_RUN + k + 1, name, r + 1, k, (k * 7919 % 1000) / 7, int(is_live(k)))
            for r, k in rows
            for name in ("loss", "reward")
        ],
    )


def config(number):
    return json.dumps({"optimizer": {f"p{key}": key % (number + 1) for key in range(20)}})


def is_live(number):
    return number % (PER_RUN // LIVE) == 0


@pytest.fixture(scope="module", params=["fresh", "analyzed"])
def catalog(request, tmp_path_factory):
    location = locate(tmp_path_factory.mktemp(request.param))
    Database.open(location, create=True, durable=False).close()
    with closing(sqlite3.connect(location.file)) as raw, raw:
        fill(raw)
    if request.param == "analyzed":
        with closing(sqlite3.connect(location.file)) as raw:
            raw.execute("ANALYZE")
    database = Database.open(location)
    yield Catalog(database)
    database.close()


BY_RUN = "ix_metrics_run_ranking (run_id=? AND name=? AND value>?)"
BY_METRIC = "ix_metrics_ranking (name=? AND value>?)"
FINALS = "uq_checkpoints_final (run_id=?)"
BY_STEP = "ix_checkpoints_run_id_step (run_id=?"
SORT = "USE TEMP B-TREE FOR ORDER BY"


def sql(text):
    def ask(catalog):
        with catalog.database.read() as connection:
            connection.exec_driver_sql(text).all()

    return ask


QUESTIONS = {
    "best, low": (lambda c: c.ranking.find_best_step(3, "loss", "min"), [BY_RUN], 200),
    "best, high": (lambda c: c.ranking.find_best_step(3, "loss", "max"), [BY_RUN], 100),
    "latest": (lambda c: c.ranking.find_latest_step(3), [FINALS], 100),
    "newest": (lambda c: c.checkpoints.newest(1, run_id=3), [FINALS], 300),
    "top of a run": (lambda c: c.ranking.top(10, "loss", "min", run_id=3), [BY_RUN], 4_000),
    "top of all": (lambda c: c.ranking.top(10, "loss", "max"), [BY_METRIC], 4_000),
    "best of every run": (
        lambda c: c.ranking.best_of_runs(), [BY_RUN, "latest USING INDEX"], 10_000
    ),
    "best by one metric": (lambda c: c.ranking.best_of_runs("loss", "min"), [BY_RUN], 10_000),
    "a metric of a run": (lambda c: c.metrics.find_unknown(["loss"], 3), [BY_RUN], 200),
    "a run by its name": (
        lambda c: c.runs.find_named("run 3", [Path("/run 3")]),
        ["ix_runs_name", "ix_runs_directory"],
        300,
    ),
    "leaderboard of a run": (
        sql("SELECT * FROM leaderboard WHERE run = 'run 3'"),
        ["ix_runs_name (name=?)", BY_RUN],
        12_000,
    ),
    "leader of a run": (
        sql("SELECT * FROM leaderboard WHERE run_id = 3 AND rank = 1"), [BY_RUN], 12_000
    ),
    "disk use of a run": (
        sql("SELECT * FROM disk_usage WHERE run = 'run 3'"),
        [FINALS, BY_RUN, "COVERING INDEX ix_checkpoints_deleted (run_id=? AND status=?)"],
        110_000,
    ),
    "the last saves of a run": (
        # By the id: of one name there may be several runs, whose steps would be sorted.
        sql("SELECT * FROM saves WHERE run_id = 3 ORDER BY step DESC LIMIT 100"),
        [BY_STEP],
        60_000,
    ),
    "the last history of a run": (
        sql("SELECT * FROM checkpoint_history WHERE run_id = 3 ORDER BY step DESC LIMIT 100"),
        [BY_STEP, "m USING PRIMARY KEY (checkpoint_id=?)"],
        30_000,
    ),
    "configuration of a run": (
        sql("SELECT * FROM config_values WHERE run = 'run 3'"), ["ix_runs_name (name=?)"], 2_000
    ),
    "configuration against the one before": (
        sql("SELECT * FROM config_changes WHERE run = 'run 3'"), ["ix_runs_name (name=?)"], 20_000
    ),
    "summary of a run": (
        # All that is deleted is counted, in the index alone.
        sql("SELECT * FROM run_summary WHERE run = 'run 3'"),
        [FINALS, BY_RUN, "COVERING INDEX ix_checkpoints_deleted (run_id=? AND status=?)"],
        50_000,
    ),
}  # fmt: skip
"""What is asked, the indexes it goes through, and how many instructions of SQLite that may take."""


def lines(found):
    return "\n".join(found.values()).splitlines()


asked = pytest.mark.parametrize(
    ("ask", "indexes", "most"), QUESTIONS.values(), ids=QUESTIONS.keys()
)


@pytest.mark.slow
@asked
def test_a_question_goes_through_its_index_and_never_through_history(catalog, ask, indexes, most):
    del most
    with plans(catalog) as found:
        ask(catalog)
    # The first one finds the rows; any other fetches what belongs to them.
    plan = next(iter(found.values()))
    assert [index for index in indexes if index not in plan] == []
    scanned = {line.split()[1] for line in lines(found) if line.startswith("SCAN")}
    assert scanned.isdisjoint({"checkpoints", "c", "latest", "metrics", "m", "tags"})
    # Sorted are only the few that a ranking has chosen, what is equal in value, and the
    # configurations of two runs.
    assert (SORT in plan) == any(few in plan for few in ("E best", "MULTI-INDEX OR", "SCAN g"))


@asked
def test_a_question_looks_at_no_more_than_it_answers_with(catalog, ask, indexes, most):
    del indexes
    assert 10 < instructions(catalog, ask) < most


def instructions(catalog, ask):
    ask(catalog)  # compiled, and the schema read
    done = 0

    def count():
        nonlocal done
        done += 1

    with catalog.database.read() as connection:
        raw = connection.connection.dbapi_connection
    raw.set_progress_handler(count, 1)
    ask(catalog)
    raw.set_progress_handler(None, 0)
    return done


SOME = {
    "top": (lambda c: c.ranking.top(10, "loss", "max", among=range(3, 13)), BY_METRIC, 5_000),
    "newest": (lambda c: c.checkpoints.newest(1, among=[3, 4]), FINALS, 5_000),
    "best of each": (lambda c: c.ranking.best_of_runs(among=[3, 4]), BY_RUN, 3_000),
    "a metric": (lambda c: c.metrics.find_unknown(["loss"], among=[3, 4]), BY_RUN, 1_000),
}


@pytest.mark.parametrize(("ask", "index", "most"), SOME.values(), ids=SOME.keys())
def test_a_question_about_some_runs_looks_at_these(catalog, ask, index, most):
    with plans(catalog) as found:
        ask(catalog)
    assert index in next(iter(found.values()))
    scanned = {line.split()[1] for line in lines(found) if line.startswith("SCAN")}
    assert scanned.isdisjoint({"checkpoints", "c", "latest", "metrics", "m", "tags"})
    assert 10 < instructions(catalog, ask) < most


def test_a_metric_that_is_live_anywhere_is_found_at_once(catalog):
    assert instructions(catalog, lambda c: c.metrics.find_unknown(["loss", "reward"])) < 200


WHERE = parse("reward < 100 AND step % 2 = 0")
DEMANDS = {
    "where": ({"where": WHERE}, BY_RUN),
    "tie": ({"tie": ("reward", "max")}, BY_RUN),
    "both, of all runs": ({"where": WHERE, "tie": ("reward", "max"), "run_id": None}, BY_METRIC),
    "where, by step": ({"by": None, "where": WHERE}, FINALS),
    "ever": ({"ever": True}, "SEARCH checkpoints USING INDEX"),
    "ever and where": ({"ever": True, "where": WHERE}, "SEARCH checkpoints USING INDEX"),
    "at a time": ({"at": AT}, "SEARCH checkpoints USING INDEX"),
    "at a time and where": ({"at": AT, "where": WHERE}, "SEARCH checkpoints USING INDEX"),
}


@pytest.mark.parametrize(("demanded", "index"), DEMANDS.values(), ids=DEMANDS.keys())
def test_what_demands_more_goes_through_indexes_too(catalog, monkeypatch, demanded, index):
    asked, query = [], user_query.run

    def note(database, sql, parameters, **options):
        asked.append((sql, parameters))
        return query(database, sql, parameters, **options)

    monkeypatch.setattr(user_query, "run", note)
    selection = Selection(**{"by": ("loss", "min"), "run_id": 3, **demanded})
    with plans(catalog) as found:
        assert ranked(catalog.database, selection, 3)
    found = {sql: plan for sql, plan in found.items() if "AS known" in sql}
    for sql, parameters in asked:
        rows = query(catalog.database, f"EXPLAIN QUERY PLAN {sql}", parameters)
        found[sql] = "\n".join(row[-1] for row in rows)
    (plan,) = found.values()
    for line in plan.splitlines():
        table = line.removeprefix("SEARCH ").split(" ", 1)[0]
        if line.startswith("SCAN"):
            assert line.split()[1] == "own"  # the numbers of one training_info
        elif table.startswith("of_"):
            assert line.endswith("PRIMARY KEY (checkpoint_id=? AND name=?)")
        elif table == "checkpoints":
            assert "(run_id=?" in line or "PRIMARY KEY (rowid=?)" in line
    assert index in plan


def test_a_condition_for_retention_goes_by_what_is_live(catalog, monkeypatch):
    asked = []
    monkeypatch.setattr(user_query, "run", lambda *given, **_: asked.append(given) or Rows((), ()))
    matching(catalog.database, 3, WHERE)
    monkeypatch.undo()
    ((database, sql, parameters),) = asked
    plan = [row[-1] for row in user_query.run(database, f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert plan[0].endswith(FINALS)
    assert not any(line.startswith("SCAN") for line in plan)


def test_the_whole_leaderboard_and_summary_go_by_run(catalog):
    for view in ("leaderboard", "run_summary", "disk_usage"):
        with plans(catalog) as found:
            sql(f"SELECT * FROM {view}")(catalog)
        (plan,) = found.values()
        assert BY_RUN in plan
        assert "SCAN m" not in plan
        assert "SCAN c" not in plan
