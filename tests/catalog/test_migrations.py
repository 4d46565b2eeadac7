"""The two ways to a schema: made at once, and through every revision."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from ckptdb.catalog import schema
from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database, script_location, upgrade
from ckptdb.catalog.location import locate
from ckptdb.catalog.store import Changes
from ckptdb.core.metrics import Metric
from ckptdb.core.records import Annotations, Resumption
from ckptdb.errors import CatalogMissing, CatalogOutdated

REPOSITORY = Path(__file__).parents[2]


def alembic(
    *arguments: str, catalog: Path | None = None, variable: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CKPTDB_CATALOG"}
    if variable is not None:
        environment["CKPTDB_CATALOG"] = str(variable)
    chosen = [] if catalog is None else ["-x", f"catalog={catalog}"]
    command = [sys.executable, "-m", "alembic", *chosen, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
    )


def built(file: Path) -> dict[tuple[str, str], str]:
    """What a file is made of, white space aside."""
    with closing(sqlite3.connect(file)) as raw:
        found = raw.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        application_id = raw.execute("PRAGMA application_id").fetchone()[0]
        revision = raw.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}").fetchall()
    sql = {(kind, name): re.sub(r"\s+", " ", text or "").strip() for kind, name, text in found}
    return sql | {("application_id", str(application_id)): "", ("revision", str(revision)): ""}


@pytest.fixture
def first_revision(tmp_path: Path) -> Path:
    """A catalog as the first revision made it, with a run and two checkpoints."""
    file = tmp_path / "catalog.db"
    alembic("upgrade", "0001", catalog=file)
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute(
            "INSERT INTO runs (id, uuid, name, directory, metric_name)"
            " VALUES (1, 'u', 'grpo', 'grpo', 'loss')"
        )
        for step in (1, 2):
            raw.execute(
                "INSERT INTO checkpoints (id, run_id, uuid, step, path, created_at, status)"
                " VALUES (?1, 1, 'u' || ?1, ?1, 'p', 't', 'final')",
                (step,),
            )
            raw.execute(
                "INSERT INTO metrics VALUES (?1, 'loss', 1, ?1, 1.0 / ?1, 'training_info', 't', 1)",
                (step,),
            )
    return file


@pytest.fixture
def third_revision(tmp_path: Path) -> Path:
    """A catalog as the third revision made it, with a run whose second checkpoint is pinned."""
    file = tmp_path / "third.db"
    alembic("upgrade", "0003", catalog=file)
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute(
            "INSERT INTO runs (id, uuid, name, directory, metric_name)"
            " VALUES (1, 'u', 'grpo', 'grpo', 'loss')"
        )
        for step, parent in ((1, None), (2, 1), (3, 2)):
            raw.execute(
                "INSERT INTO checkpoints"
                " (id, run_id, uuid, step, path, created_at, status, parent_id, pinned)"
                " VALUES (?1, 1, 'u' || ?1, ?1, 'grpo/step_' || ?1, 't', 'final', ?2, ?1 = 2)",
                (step, parent),
            )
            raw.execute(
                "INSERT INTO metrics VALUES (?1, 'loss', 1, ?1, 1.0 / ?1, 'training_info', 't', 1)",
                (step,),
            )
        raw.execute("INSERT INTO metrics VALUES (3, 'mmlu', 1, 3, 0.5, 'lm-eval', 't', 1)")
    return file


@pytest.fixture
def fourth_revision(tmp_path: Path) -> Path:
    """A catalog as the fourth revision made it: a run with a deleted and three live checkpoints."""
    file = tmp_path / "fourth.db"
    alembic("upgrade", "0004", catalog=file)
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute(
            "INSERT INTO runs (id, uuid, name, directory, metric_name, config)"
            " VALUES (1, 'u', 'grpo', 'grpo', 'loss', '{\"lr\": 0.1}')"
        )
        for step in (1, 2, 3, 4):
            at = f"2026-11-22T0{step}:00:00.000Z"
            status = "deleted" if step == 1 else "final"
            raw.execute(
                "INSERT INTO checkpoints"
                " (id, run_id, uuid, step, path, created_at, finalized_at, status, size_bytes)"
                " VALUES (?1, 1, 'u' || ?1, ?1, 'grpo/step_' || ?1, ?2, ?2, ?3, ?4)",
                (step, at, status, 2 if step == 1 else 8),
            )
            raw.execute(
                "INSERT INTO metrics VALUES"
                " (?1, 'loss', 1, ?1, abs(?1 - 2.5), 'training_info', 't', ?2)",
                (step, int(step > 1)),
            )
    return file


def test_migrations_build_exactly_what_is_created_at_once(tmp_path: Path):
    migrated, created = tmp_path / "migrated.db", tmp_path / "created.db"
    alembic("upgrade", "head", catalog=migrated)
    Database.open(locate(created), create=True).close()
    assert built(migrated) == built(created)


def test_the_code_knows_every_revision_in_order():
    config = Config()
    config.set_main_option("script_location", str(script_location()))
    scripts = ScriptDirectory.from_config(config)
    known = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(known)) == schema.REVISIONS
    assert scripts.get_current_head() == schema.HEAD


def test_alembic_finds_nothing_to_generate(tmp_path: Path):
    file = tmp_path / "catalog.db"
    alembic("upgrade", "head", catalog=file)
    assert "No new upgrade operations" in alembic("check", catalog=file).stdout


def test_the_environment_variable_names_the_catalog(tmp_path: Path):
    file = tmp_path / "catalog.db"
    alembic("upgrade", "head", variable=file)
    assert Database.open(locate(file)).revision() == schema.HEAD


def test_the_option_goes_before_the_environment_variable(tmp_path: Path):
    alembic("upgrade", "head", catalog=tmp_path / "a.db", variable=tmp_path / "b.db")
    assert [file.name for file in tmp_path.glob("*.db")] == ["a.db"]


def test_migrations_print_sql_without_a_database(tmp_path: Path):
    printed = alembic("upgrade", "head", "--sql", catalog=tmp_path / "catalog.db").stdout
    assert "CREATE TABLE runs" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_failing_migration_leaves_the_database_as_it_was(first_revision: Path, monkeypatch):
    before = built(first_revision)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("alembic.operations.Operations.execute", fail)
    with pytest.raises(Exception, match="disk I/O error"):
        upgrade(locate(first_revision))
    assert built(first_revision) == before


def test_an_older_catalog_is_not_touched_unless_asked_for(first_revision: Path):
    before = first_revision.read_bytes()
    with pytest.raises(CatalogOutdated, match="0001; run `ckptdb db upgrade`"):
        Database.open(locate(first_revision))
    with pytest.raises(CatalogOutdated):
        Database.open(locate(first_revision), create=True)
    assert first_revision.read_bytes() == before
    assert not list(first_revision.parent.glob("*.bak"))


def test_an_upgraded_catalog_keeps_its_rows_and_answers(first_revision: Path):
    with closing(Database.open(locate(first_revision), upgrade=True)) as database:
        assert database.revision() == schema.HEAD
        assert database.integrity() == "ok"
        with database.read() as connection:
            found = connection.exec_driver_sql("SELECT run, step, rank FROM leaderboard").all()
        assert sorted(found) == [("grpo", 1, 2), ("grpo", 2, 1)]
        with database.write() as connection:
            connection.execute(schema.runs.delete())


def test_in_a_catalog_of_the_third_revision_checkpoints_can_be_rejected(third_revision: Path):
    location = locate(third_revision)
    assert upgrade(location) == ("0003", schema.HEAD, Path(f"{third_revision}.0003.bak"))
    with closing(Database.open(location)) as database:
        catalog = Catalog(database)
        (seen,) = catalog.runs()
        assert [(cp.step, cp.pinned, cp.rejected) for cp in catalog.checkpoints()] == [
            (1, False, None), (2, True, None), (3, False, None),
        ]  # fmt: skip
        late = (Metric("mmlu", 0.5, "lm-eval", "t"),)
        resumed = (Resumption("t", "host", 1),)
        said = {
            "u3": Annotations(rejected="diverged", late=late),
            "u2": Annotations(pinned=True, resumptions=resumed),
        }
        catalog.apply(Changes(run=seen.run, annotations=said))
        assert catalog.recorded(seen, history=True).annotations == said
        assert catalog.find_best_step(seen.id, "loss", "min") == 2
        assert catalog.find_best_step(seen.id, "mmlu", "max") is None
        with database.read() as connection:
            (summary,) = connection.exec_driver_sql(
                "SELECT final, problems, best_step, latest_step FROM run_summary"
            ).all()
            assert summary == (3, 1, 2, 2)
            told = "SELECT step, parent_step, parent_resumed_at FROM lineage ORDER BY step"
            assert connection.exec_driver_sql(told).all() == [
                (1, None, None), (2, 1, None), (3, 2, "t"),
            ]  # fmt: skip
        assert [one.step for one in catalog.lineage(seen.id, "u3")] == [3, 2, 1]


def test_a_catalog_of_the_fourth_revision_answers_through_the_new_views(fourth_revision: Path):
    location = locate(fourth_revision)
    assert upgrade(location) == ("0004", schema.HEAD, Path(f"{fourth_revision}.0004.bak"))
    with closing(Database.open(location)) as database, database.read() as connection:

        def ask(sql: str) -> list[tuple[object, ...]]:
            return [tuple(row) for row in connection.exec_driver_sql(sql).all()]

        assert ask("SELECT bytes_on_disk, freeable_bytes, freed_bytes FROM disk_usage") == [
            (24, 8, 2)
        ]
        assert ask("SELECT step, seconds FROM saves ORDER BY step") == [
            (1, None), (2, 3600.0), (3, 3600.0), (4, 3600.0),
        ]  # fmt: skip
        assert ask("SELECT metrics FROM checkpoint_history WHERE step = 2") == [('{"loss":0.5}',)]
        assert ask("SELECT key, value FROM config_values") == [("lr", 0.1)]
        assert ask("SELECT * FROM config_changes") == []
        plan = ask(
            "EXPLAIN QUERY PLAN SELECT SUM(size_bytes) FROM checkpoints"
            " WHERE run_id = 1 AND status = 'deleted'"
        )
        assert "COVERING INDEX ix_checkpoints_deleted" in str(plan)


def test_an_upgrade_keeps_a_copy_of_what_was(first_revision: Path):
    before = built(first_revision)
    location = locate(first_revision)
    assert upgrade(location) == ("0001", schema.HEAD, Path(f"{first_revision}.0001.bak"))
    copy = Path(f"{first_revision}.0001.bak")
    assert built(copy) == before
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT COUNT(*) FROM checkpoints").fetchone() == (2,)
    assert built(first_revision) != before


def test_an_upgrade_of_a_current_catalog_does_nothing(tmp_path: Path):
    location = locate(tmp_path)
    Database.open(location, create=True).close()
    assert upgrade(location) == (schema.HEAD, schema.HEAD, None)
    assert not list(tmp_path.rglob("*.bak"))


def test_an_upgrade_needs_a_catalog(tmp_path: Path):
    with pytest.raises(CatalogMissing):
        upgrade(locate(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_processes_may_upgrade_at_once(first_revision: Path):
    code = (
        "import sys; from ckptdb.catalog.engine import Database;"
        "from ckptdb.catalog.location import locate;"
        "Database.open(locate(sys.argv[1]), upgrade=True, timeout_seconds=60).close()"
    )
    command = [sys.executable, "-c", code, str(first_revision)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, said
    assert len(list(first_revision.parent.glob("*.bak"))) == 1
    assert Database.open(locate(first_revision)).revision() == schema.HEAD


def test_an_upgrade_leaves_the_loggers_of_the_program_alone(first_revision: Path):
    code = (
        "import logging, sys; from ckptdb.catalog.engine import upgrade;"
        "from ckptdb.catalog.location import locate;"
        "logger = logging.getLogger('trainer'); upgrade(locate(sys.argv[1]));"
        "assert not logger.disabled and not logging.getLogger().handlers"
    )
    subprocess.run([sys.executable, "-c", code, str(first_revision)], check=True)


def test_nobody_imports_alembic_for_a_current_catalog(tmp_path: Path):
    code = (
        "import sys; from ckptdb.catalog.engine import Database;"
        "from ckptdb.catalog.location import locate;"
        "Database.open(locate(sys.argv[1]), create=True); Database.open(locate(sys.argv[1]));"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.slow
def test_each_migration_takes_away_what_it_made(tmp_path: Path):
    file = tmp_path / "catalog.db"
    alembic("upgrade", "0001", catalog=file)
    first = built(file)
    alembic("upgrade", "head", catalog=file)
    alembic("downgrade", "0001", catalog=file)
    assert built(file) == first
    alembic("downgrade", "base", catalog=file)
    with closing(sqlite3.connect(file)) as raw:
        left = {
            name
            for (name,) in raw.execute("SELECT name FROM sqlite_master")
            if "sqlite" not in name
        }
    assert left == {schema.VERSION_TABLE}
