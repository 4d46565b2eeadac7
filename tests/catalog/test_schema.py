from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from ckptdb.catalog import schema, views
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate


@pytest.fixture
def database(tmp_path: Path):
    database = Database.open(locate(tmp_path), create=True, durable=False)
    yield database
    database.close()


def add_run(database: Database, name: str, *, higher_is_better: int = 0) -> int:
    values = {"uuid": f"uuid of {name}", "name": name, "directory": name, "metric_name": "loss"}
    with database.write() as connection:
        insert = schema.runs.insert().values(**values, higher_is_better=higher_is_better)
        return connection.execute(insert).inserted_primary_key.id


def add_checkpoint(
    database: Database,
    run_id: int,
    step: int,
    status: str = "final",
    loss: float | None = None,
    **more: object,
) -> int:
    day = f"2026-11-{step:02d}T00:00:00.000Z"
    values: dict[str, object] = {
        "run_id": run_id,
        "uuid": f"{run_id}-{step}-{status}",
        "step": step,
        "path": f"{run_id}/step_{step}",
        "status": status,
        "created_at": day,
        "finalized_at": None if status == "tmp" else day,
        "deleted_at": day if status == "deleted" else None,
        "size_bytes": 100,
    }
    values |= more
    live = int(status == "final" and values.get("problem") is None)
    with database.write() as connection:
        added = connection.execute(schema.checkpoints.insert().values(**values))
        checkpoint_id = added.inserted_primary_key.id
        metric = {"name": "loss", "run_id": run_id, "step": step, "value": loss, "live": live}
        insert = schema.metrics.insert().values(
            checkpoint_id=checkpoint_id, source="training_info", reported_at=day, **metric
        )
        connection.execute(insert)
    return checkpoint_id


def rows(database: Database, sql: str) -> list[tuple[object, ...]]:
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def plan(database: Database, sql: str) -> str:
    return "\n".join(str(row[-1]) for row in rows(database, f"EXPLAIN QUERY PLAN {sql}"))


# --- constraints ----------------------------------------------------------------------------


def test_every_constraint_and_index_has_a_name():
    for table in schema.metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


def test_every_table_and_view_has_a_purpose():
    assert set(views.PURPOSES) == {
        *schema.metadata.tables,
        *views.VIEWS,
        schema.VERSION_TABLE,
    }


def test_a_run_has_at_most_one_final_checkpoint_of_a_step():
    with Database.in_memory().write() as connection:
        raw = connection.connection.dbapi_connection
        raw.execute("INSERT INTO runs (id, uuid, name, directory) VALUES (1, 'u', 'n', 'd')")
        insert = (
            "INSERT INTO checkpoints (run_id, uuid, step, path, created_at, status)"
            " VALUES (1, ?, 1, 'p', 't', ?)"
        )
        raw.execute(insert, ("a", "final"))
        raw.execute(insert, ("b", "deleted"))
        raw.execute(insert, ("c", "tmp"))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            raw.execute(insert, ("d", "final"))


@pytest.mark.parametrize(
    "update",
    [
        "UPDATE checkpoints SET status = 'lost'",
        "UPDATE checkpoints SET pinned = 2",
        "UPDATE runs SET higher_is_better = -1",
        "UPDATE metrics SET live = 7",
        "UPDATE checkpoints SET run_id = 99",
    ],
)
def test_values_outside_the_vocabulary_are_rejected(database: Database, update: str):
    run_id = add_run(database, "a")
    add_checkpoint(database, run_id, 1, loss=0.5)
    with database.write() as connection:
        raw = connection.connection.dbapi_connection
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute(update)


def test_deleting_a_run_deletes_all_that_belongs_to_it(database: Database):
    run_id = add_run(database, "a")
    first = add_checkpoint(database, run_id, 1, loss=0.5)
    add_checkpoint(database, run_id, 2, loss=0.4, parent_id=first)
    with database.write() as connection:
        tag = {"checkpoint_id": first, "name": "rc", "created_at": "now"}
        connection.execute(schema.tags.insert().values(tag))
        connection.execute(schema.runs.delete())
    for table in schema.metadata.tables:
        assert rows(database, f"SELECT * FROM {table}") == []


def test_deleting_a_parent_leaves_the_child(database: Database):
    run_id = add_run(database, "a")
    first = add_checkpoint(database, run_id, 1)
    add_checkpoint(database, run_id, 2, parent_id=first)
    with database.write() as connection:
        connection.execute(schema.checkpoints.delete().where(schema.checkpoints.c.id == first))
    assert rows(database, "SELECT step, parent_id FROM checkpoints") == [(2, None)]


def test_every_foreign_key_is_indexed():
    for table in schema.metadata.tables.values():
        indexed = {next(iter(index.columns)).name for index in table.indexes}
        indexed.add(next(iter(table.primary_key.columns)).name)
        for key in table.foreign_keys:
            assert key.parent.name in indexed, f"{table.name}.{key.parent.name}"


# --- plans ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (
            (
                "SELECT step FROM checkpoints WHERE run_id = 1 AND status = 'final'"
                " AND problem IS NULL ORDER BY step DESC LIMIT 1"
            ),
            "uq_checkpoints_final",
        ),
        (
            (
                "SELECT checkpoint_id FROM metrics WHERE name = 'loss' AND live = 1"
                " AND value IS NOT NULL ORDER BY value, step DESC LIMIT 1"
            ),
            "COVERING INDEX ix_metrics_ranking",
        ),
        (
            (
                "SELECT checkpoint_id FROM metrics WHERE run_id = 1 AND name = 'loss' AND live = 1"
                " AND value IS NOT NULL ORDER BY value DESC, step DESC LIMIT 1"
            ),
            "COVERING INDEX ix_metrics_run_ranking (run_id=? AND name=?",
        ),
        ("SELECT * FROM checkpoints WHERE run_id = 1 ORDER BY step", "ix_checkpoints_run_id_step"),
        ("SELECT * FROM leaderboard WHERE run = 'a'", "ix_runs_name (name=?)"),
        ("SELECT * FROM leaderboard WHERE run_id = 1", "ix_metrics_run_ranking (run_id=?"),
        ("SELECT * FROM leaderboard", "ix_metrics_run_ranking (run_id=? AND name=?"),
        ("SELECT * FROM run_summary WHERE run = 'a'", "ix_checkpoints_deleted (run_id=?"),
        ("SELECT * FROM metric_history WHERE run = 'a' AND name = 'x'", "(checkpoint_id=? AND"),
        ("SELECT * FROM deletions WHERE run = 'a'", "ix_checkpoints_deleted (run_id=?"),
        ("SELECT * FROM lineage WHERE run = 'a'", "ix_checkpoints_run_id_step (run_id=?"),
        (
            (
                "WITH RECURSIVE line AS (SELECT * FROM lineage WHERE run = 'a' AND step = 5"
                " UNION SELECT p.* FROM line JOIN lineage p ON p.checkpoint_id = line.parent_id)"
                " SELECT step FROM line"
            ),
            "SEARCH c USING INTEGER PRIMARY KEY (rowid=?)",
        ),
    ],
)
def test_a_common_question_is_answered_through_its_index(database, sql, index):
    found = plan(database, sql)
    assert index in found
    assert "SCAN c" not in found
    assert "SCAN m" not in found


# --- views ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("higher_is_better", "order"), [(0, [4, 2, 1, 3]), (1, [3, 4, 2, 1])], ids=["min", "max"]
)
def test_the_leaderboard_ranks_live_values_and_gives_ties_to_the_higher_step(
    database, higher_is_better, order
):
    run_id = add_run(database, "a", higher_is_better=higher_is_better)
    for step, loss in [(1, 0.2), (2, 0.2), (3, 0.9), (4, 0.2), (5, None)]:
        add_checkpoint(database, run_id, step, loss=loss)
    add_checkpoint(database, run_id, 6, "deleted", loss=0.0)
    add_checkpoint(database, run_id, 7, "tmp", loss=0.0)
    add_checkpoint(database, run_id, 8, problem="damaged", loss=0.0)
    found = rows(database, "SELECT step, rank FROM leaderboard ORDER BY rank")
    assert found == [(step, rank) for rank, step in enumerate(order, 1)]


def test_each_run_has_a_leaderboard_of_its_own(database: Database):
    for name, losses in [("a", (0.5, 0.4)), ("b", (0.1, 0.2))]:
        run_id = add_run(database, name)
        for step, loss in enumerate(losses, 1):
            add_checkpoint(database, run_id, step, loss=loss)
    winners = rows(database, "SELECT run, step FROM leaderboard WHERE rank = 1 ORDER BY run")
    assert winners == [("a", 2), ("b", 1)]
    assert rows(database, "SELECT step, rank FROM leaderboard WHERE run = 'b' ORDER BY 2") == [
        (1, 1),
        (2, 2),
    ]


def test_two_runs_of_one_name_are_ranked_apart(database: Database):
    first = add_run(database, "a")
    with database.write() as connection:
        twin = {"uuid": "twin", "name": "a", "directory": "x/a", "metric_name": "loss"}
        second = connection.execute(schema.runs.insert().values(twin)).inserted_primary_key.id
    add_checkpoint(database, first, 1, loss=0.5)
    add_checkpoint(database, second, 1, loss=0.1)
    assert rows(database, "SELECT rank FROM leaderboard WHERE run = 'a'") == [(1,), (1,)]


def test_the_summary_counts_what_is_there(database: Database):
    run_id = add_run(database, "a")
    add_checkpoint(database, run_id, 1, "deleted", loss=0.1)
    add_checkpoint(database, run_id, 2, loss=0.3)
    add_checkpoint(database, run_id, 3, loss=0.4)
    add_checkpoint(database, run_id, 4, loss=0.0, problem="damaged")
    add_checkpoint(database, run_id, 5, "tmp")
    columns = (
        "run, final, tmp, deleted, problems, bytes_on_disk, best_step, best_value, latest_step,"
        " last_activity"
    )
    assert rows(database, f"SELECT {columns} FROM run_summary") == [
        ("a", 3, 1, 1, 1, 300, 2, 0.3, 3, "2026-11-05T00:00:00.000Z")
    ]


def test_the_summary_of_an_empty_run_has_zeros_and_nulls(database: Database):
    add_run(database, "a")
    columns = "final, tmp, deleted, bytes_on_disk, best_step, best_value, latest_step"
    found = rows(database, f"SELECT {columns}, last_activity FROM run_summary")
    assert found == [(0, 0, 0, 0, None, None, None, None)]


@pytest.mark.parametrize(("higher_is_better", "best"), [(0, (3, 0.2)), (1, (4, 0.9))])
def test_the_summary_agrees_with_the_leaderboard(database, higher_is_better, best):
    run_id = add_run(database, "a", higher_is_better=higher_is_better)
    for step, loss in [(1, 0.9), (2, 0.2), (3, 0.2), (4, 0.9)]:
        add_checkpoint(database, run_id, step, loss=loss)
    assert rows(database, "SELECT best_step, best_value FROM run_summary") == [best]
    assert rows(database, "SELECT step, value FROM leaderboard WHERE rank = 1") == [best]


def test_history_keeps_the_metrics_of_deleted_checkpoints(database: Database):
    run_id = add_run(database, "a")
    add_checkpoint(database, run_id, 1, "deleted", loss=0.5)
    add_checkpoint(database, run_id, 2, loss=None)
    found = rows(database, "SELECT step, value, status FROM metric_history ORDER BY step")
    assert found == [(1, 0.5, "deleted"), (2, None, "final")]


def test_deletions_say_what_when_and_why(database: Database):
    run_id = add_run(database, "a")
    add_checkpoint(database, run_id, 1, "deleted", deleted_reason="not among the 3 best")
    add_checkpoint(database, run_id, 2)
    found = rows(database, "SELECT run, step, deleted_at, deleted_reason FROM deletions")
    assert found == [("a", 1, "2026-11-01T00:00:00.000Z", "not among the 3 best")]
