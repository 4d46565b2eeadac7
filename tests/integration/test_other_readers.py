"""The catalog answers without ckptdb: Python's sqlite3, the sqlite3 shell, DuckDB, pandas."""

import csv
import io
import json
import sqlite3
import subprocess
from contextlib import closing
from importlib.resources import files

import duckdb
import pandas as pd
import pytest
from tests.support.requirements import needs_sqlite_shell

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.views import VIEWS

pytestmark = pytest.mark.slow

TABLES = ("checkpoints", "metrics", "resumes", "runs", "tags")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A catalog in which something stands in every table and view."""
    root = tmp_path_factory.mktemp("results")
    Registry.init(root)[0].close()
    for run, rate in (("grpo-8b", 0.1), ("sft-1b", 0.2)):
        config = {
            "checkpoint_dir": root / run,
            "metric_name": "val:loss",
            "higher_is_better": False,
            "keep_top_k": 1,
        }
        with CheckpointManager(config) as manager:
            for step, loss in ((100, 0.9), (200, 0.5), (300, 0.7)):
                settings = {"optimizer": {"lr": rate}}
                with manager.save(step, {"val:loss": loss}, config=settings) as folder:
                    (folder / "model.bin").write_bytes(bytes(step))
    with CheckpointManager(config) as manager:
        manager.resume()
    with Registry.open(root) as registry:
        registry.reconcile()
        registry.tag("grpo-8b", 200, "release")
    return root / ".ckptdb" / "catalog.db"


def same(rows):
    """Rows in whatever order; who reads a column of numbers with holes makes them all floats."""

    def plain(value):
        if value is None or value != value:  # noqa: PLR0124  # what is not equal to itself is NaN
            return None
        return float(value) if isinstance(value, int | float) else value

    return sorted(repr([plain(value) for value in row]) for row in rows)


def expected(file, relation):
    """What ckptdb itself answers."""
    with Registry.open(file) as registry:
        rows = registry.query(f"SELECT * FROM {relation}")
    assert len(rows) > 0, relation
    return list(rows.columns), same(rows.rows)


@pytest.mark.parametrize("relation", [*TABLES, *VIEWS])
def test_pythons_sqlite3_reads_the_same(file, relation):
    with closing(sqlite3.connect(file)) as raw:
        cursor = raw.execute(f"SELECT * FROM {relation}")
        columns = [column[0] for column in cursor.description]
        assert (columns, same(cursor.fetchall())) == expected(file, relation)


@pytest.mark.parametrize("relation", [*TABLES, *VIEWS])
def test_pandas_reads_the_same(file, relation):
    with closing(sqlite3.connect(file)) as raw:
        frame = pd.read_sql_query(f"SELECT * FROM {relation}", raw)
    rows = frame.itertuples(index=False, name=None)
    columns, told = expected(file, relation)
    assert list(frame.columns) == columns
    assert same(rows) == told


@needs_sqlite_shell
@pytest.mark.parametrize("relation", [*TABLES, *VIEWS])
def test_the_sqlite3_shell_reads_the_same(file, relation):
    command = ["sqlite3", "-readonly", "-csv", "-header", str(file), f"SELECT * FROM {relation}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    header, *rows = csv.reader(io.StringIO(shown))
    columns, told = expected(file, relation)
    assert header == columns
    assert len(rows) == len(told)


@pytest.fixture(scope="module")
def attached(file):
    """DuckDB with the catalog attached; its extension comes with the tests, not from a network."""
    extension = files("duckdb_extension_sqlite_scanner") / "extensions" / f"v{duckdb.__version__}"
    with duckdb.connect() as connection:
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute(f"LOAD '{extension}/sqlite_scanner.duckdb_extension'")
        connection.execute(f"ATTACH '{file}' AS catalog (TYPE sqlite, READ_ONLY)")
        yield connection


@pytest.mark.parametrize("relation", [*TABLES, *VIEWS])
def test_duckdb_reads_the_same(file, attached, relation):
    cursor = attached.execute(f"SELECT * FROM catalog.{relation}")
    columns, told = expected(file, relation)
    assert [column[0] for column in cursor.description] == columns
    rows = cursor.fetchall()
    if relation in ("config_values", "config_changes"):
        # Of mixed kinds: to DuckDB all of them are text.
        rows = [tuple(_number(value) for value in row) for row in rows]
    assert same(rows) == told


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def test_duckdb_answers_a_question_of_its_own(attached):
    found = attached.execute(
        "SELECT run, step, value FROM catalog.leaderboard WHERE rank = 1 ORDER BY run"
    ).fetchall()
    assert found == [("grpo-8b", 200, 0.5), ("sft-1b", 200, 0.5)]
    ((metrics,),) = attached.execute(
        "SELECT metrics FROM catalog.checkpoint_history WHERE run = 'sft-1b' AND step = 300"
    ).fetchall()
    assert json.loads(metrics) == {"val:loss": 0.7}
