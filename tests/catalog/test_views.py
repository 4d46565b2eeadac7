"""What the views say, on every kind of database."""

import json

import pytest
from sqlalchemy import text

from ckptdb.catalog import schema
from ckptdb.catalog.views import EXAMPLES, PURPOSES, VIEWS


@pytest.fixture
def rows(catalog):
    """Ask, and get tuples."""

    def ask(sql):
        with catalog.database.read() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]

    return ask


@pytest.fixture
def fill(catalog):
    """Add a run with checkpoints: (step, status, minute of its save, more columns)."""

    def add(name, *checkpoints, config=None, higher_is_better=0, created_at=None):
        values = {
            "uuid": name, "name": name, "directory": name, "metric_name": "loss",
            "higher_is_better": higher_is_better, "created_at": created_at,
            "config": None if config is None else json.dumps(config),
        }  # fmt: skip
        with catalog.database.write() as connection:
            run_id = connection.execute(schema.runs.insert().values(values)).inserted_primary_key.id
            for number, (step, status, minute, more) in enumerate(checkpoints):
                metrics = more.pop("metrics", {})
                at = f"2026-11-22T{minute // 60:02}:{minute % 60:02}:00.500Z"
                row = {
                    "run_id": run_id, "uuid": f"{name}-{number}", "step": step, "path": "p",
                    "status": status, "created_at": at, "size_bytes": 100,
                    "finalized_at": None if status == "tmp" else at,
                } | more  # fmt: skip
                added = connection.execute(schema.checkpoints.insert().values(row))
                live = int(status == "final" and not {"problem", "rejected"} & set(more))
                for metric, value in metrics.items():
                    connection.execute(
                        schema.metrics.insert().values(
                            checkpoint_id=added.inserted_primary_key.id, name=metric, value=value,
                            run_id=run_id, step=step, live=live, source="training_info",
                            reported_at=at,
                        )
                    )  # fmt: skip

    return add


def test_every_view_has_a_purpose_and_an_example():
    assert set(VIEWS) < set(PURPOSES) == set(EXAMPLES)


def test_history_holds_every_checkpoint_with_all_its_metrics(fill, rows):
    odd = 'a "b" \\ \n\t/日'
    fill(
        "a",
        (1, "deleted", 0, {"metrics": {"loss": 0.5, odd: 1.5}, "deleted_reason": "why"}),
        (2, "final", 1, {"metrics": {"loss": None, "acc": 0.25}}),
        (3, "tmp", 2, {}),
    )
    found = rows(
        "SELECT step, status, metric, value, metrics, deleted_reason FROM checkpoint_history"
        " WHERE run = 'a' ORDER BY step"
    )
    assert [(*row[:4], json.loads(row[4]), row[5]) for row in found] == [
        (1, "deleted", "loss", 0.5, {"loss": 0.5, odd: 1.5}, "why"),
        (2, "final", "loss", None, {"loss": None, "acc": 0.25}, None),
        (3, "tmp", "loss", None, {}, None),
    ]


def test_a_metric_with_control_characters_leaves_the_json_json(fill, rows, catalog):
    fill("a", (1, "final", 0, {"metrics": {"x\x1b\x01": 1.0, "y": 2.0}}))
    ((found,),) = rows("SELECT metrics FROM checkpoint_history")
    # PostgreSQL makes the JSON itself.
    odd = "hex:781B01" if catalog.database.dialect_name == "sqlite" else "x\x1b\x01"
    assert json.loads(found) == {odd: 1.0, "y": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("higher_is_better", [0, 1])
def test_disk_usage_tells_what_retention_would_free(fill, rows, higher_is_better):
    fill(
        "a",
        (1, "final", 0, {"metrics": {"loss": 0.1 if higher_is_better else 0.9}, "size_bytes": 1}),
        (2, "final", 1, {"metrics": {"loss": 0.9 if higher_is_better else 0.1}, "size_bytes": 2}),
        (3, "final", 2, {"metrics": {"loss": 0.5}, "size_bytes": 4, "pinned": 1}),
        (4, "final", 3, {"metrics": {"loss": 0.5}, "size_bytes": 8, "problem": "damaged"}),
        (5, "final", 4, {"metrics": {"loss": 0.5}, "size_bytes": 16, "rejected": "diverged"}),
        (6, "final", 5, {"metrics": {"loss": 0.5}, "size_bytes": 32}),
        (7, "final", 6, {"metrics": {"loss": 0.5}, "size_bytes": 64}),
        (8, "deleted", 7, {"size_bytes": 128}),
        (9, "tmp", 8, {"size_bytes": None}),
        higher_is_better=higher_is_better,
    )
    fill("empty")
    found = rows(
        "SELECT run, checkpoints, bytes_on_disk, freeable_bytes, deleted, freed_bytes"
        " FROM disk_usage ORDER BY run"
    )
    # 1 and 6: not 2, the best, not 7, the latest, not 3, pinned, nor 4 and 5, which are in doubt.
    assert found == [("a", 7, 127, 1 + 32, 1, 128), ("empty", 0, 0, 0, 0, 0)]


def test_without_a_metric_all_but_the_latest_is_free(fill, rows):
    fill("a", (1, "final", 0, {"size_bytes": 1}), (2, "final", 1, {"size_bytes": 2}))
    assert rows("SELECT freeable_bytes FROM disk_usage") == [(1,)]


def test_nothing_is_usual_where_the_highest_step_was_saved_before_the_lowest(fill, rows):
    fill(
        "a",
        (100, "final", 0, {}), (200, "final", 10, {}), (50, "final", 20, {}), (60, "final", 30, {}),
    )  # fmt: skip
    found = rows("SELECT step, seconds, times_usual FROM saves WHERE run = 'a' ORDER BY step")
    assert found == [(50, None, None), (60, 600.0, None), (100, None, None), (200, 600.0, None)]


def test_history_has_every_digit_of_a_value(fill, rows):
    values = {"a": 0.1, "b": 2.460547052906911, "c": 0.1 + 0.2, "d": 1e-07, "e": 3e20, "f": -2.0}
    fill("a", (1, "final", 0, {"metrics": values}))
    ((found,),) = rows("SELECT metrics FROM checkpoint_history")
    assert json.loads(found) == values


def test_saves_tell_how_long_each_took_and_which_is_unusual(fill, rows):
    fill(
        "a",
        (10, "deleted", 0, {}), (20, "final", 10, {}), (30, "final", 70, {}),
        (40, "final", 80, {}), (50, "tmp", 99, {}),
    )  # fmt: skip
    found = rows(
        "SELECT step, previous_step, seconds, times_usual FROM saves WHERE run = 'a' ORDER BY step"
    )
    # 80 minutes for 30 steps: ten steps usually take 26 minutes and 40 seconds.
    assert found == [
        (10, None, None, None),
        (20, 10, 600.0, pytest.approx(0.375)),
        (30, 20, 3600.0, pytest.approx(2.25)),
        (40, 30, 600.0, pytest.approx(0.375)),
    ]


def test_after_a_resume_from_an_earlier_step_every_save_follows_what_was_there_then(fill, rows):
    fill(
        "a",
        (10, "final", 0, {}), (20, "deleted", 1, {}), (30, "deleted", 2, {}),
        (20, "final", 61, {}), (30, "final", 62, {}),
    )  # fmt: skip
    found = rows("SELECT step, status, previous_step, seconds FROM saves ORDER BY step, saved_at")
    assert found == [
        (10, "final", None, None),
        (20, "deleted", 10, 60.0), (20, "final", 10, 3660.0),
        (30, "deleted", 20, 60.0), (30, "final", 20, 60.0),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        ("2026-11-22T23:59:59.900Z", "2026-11-23T00:00:00.100Z", 0.2),
        ("2024-02-28T12:00:00.000Z", "2024-03-01T12:00:00.000Z", 2 * 86400.0),
        ("2026-02-28T12:00:00.000Z", "2026-03-01T12:00:00.000Z", 86400.0),
        ("2026-12-31T23:59:59.000Z", "2027-01-01T00:00:00.000Z", 1.0),
        ("2026-01-31T00:00:00.001Z", "2026-11-30T00:00:00.000Z", 303 * 86400.0 - 0.001),
    ],
)
def test_time_passes_over_the_ends_of_days_months_and_years(fill, rows, before, after, seconds):
    fill("a", (1, "final", 0, {"finalized_at": before}), (2, "final", 0, {"finalized_at": after}))
    assert rows("SELECT seconds FROM saves WHERE step = 2") == [(seconds,)]


def test_a_time_that_is_none_spoils_no_other(fill, rows):
    fill("a", (1, "final", 0, {"finalized_at": "yesterday"}), (2, "final", 9, {}))
    assert rows("SELECT step, seconds FROM saves") == [(2, None)]


def test_saves_at_one_moment_are_no_division_by_zero(fill, rows):
    fill("a", (1, "final", 0, {}), (2, "final", 0, {}))
    assert rows("SELECT seconds, times_usual FROM saves ORDER BY step") == [
        (None, None),
        (0.0, None),
    ]


CONFIG = {
    "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
    "model": "llama", "flag": True, "none": None, "empty": {}, "whole": 1, "gone": 3,
    "d.x": 1, "text": 'a "b" \\ \n日', "was": {"deep": 1},
}  # fmt: skip
OTHER = {
    "optimizer": {"lr": 0.2, "betas": [0.9, 0.98], "wd": 0.5},
    "model": "llama", "flag": "true", "none": None, "empty": {}, "whole": 1.0,
    "d.x": 1, "text": 'a "b" \\ \n本', "was": 5,
}  # fmt: skip


def test_configurations_are_flat(fill, rows):
    fill("a", config=CONFIG)
    fill("b")
    found = {key: str(value) for key, value in rows("SELECT key, value FROM config_values")}
    assert found == {
        "optimizer.lr": "0.1", "optimizer.betas[0]": "0.9", "optimizer.betas[1]": "0.95",
        "model": "llama", "flag": "true", "none": "null", "empty": "{}", "whole": "1", "gone": "3",
        "d.x": "1", "text": 'a "b" \\ \n日', "was.deep": "1",
    }  # fmt: skip
    assert rows("SELECT run FROM config_values WHERE key = 'model' AND value = 'llama'") == [("a",)]


def test_a_configuration_is_compared_with_that_of_the_run_before_it(fill, rows):
    fill("first", config=CONFIG, created_at="2026-11-20")
    fill("later", config=CONFIG, created_at="2026-11-23")
    fill("second", config=OTHER, created_at="2026-11-21")
    fill("unknown", config=CONFIG)
    shown = {
        key: tuple(None if value is None else str(value) for value in values)
        for run, previous, key, *values in rows(
            "SELECT run, previous, key, previous_value, value FROM config_changes"
            " WHERE run = 'second' AND previous = 'first'"
        )
    }
    assert shown == {
        "optimizer.lr": ("0.1", "0.2"), "optimizer.betas[1]": ("0.95", "0.98"),
        "optimizer.wd": (None, "0.5"), "flag": ("true", "true"), "gone": ("3", None),
        "text": ('a "b" \\ \n日', 'a "b" \\ \n本'), "was.deep": ("1", None), "was": (None, "5"),
    }  # fmt: skip
    back = rows("SELECT run, previous, key FROM config_changes WHERE run <> 'second'")
    assert {(run, previous) for run, previous, _ in back} == {("later", "second")}
    assert {key for _, _, key in back} == set(shown)


def test_a_configuration_with_a_nul_in_it_spoils_no_other(fill, rows):
    fill("a", config={"x": "a\0b"})
    fill("b", config={"x": 1, "y": 2})
    assert ("b", "y", "2") in [
        (run, key, str(value))
        for run, key, value in rows("SELECT run, key, value FROM config_values")
    ]
