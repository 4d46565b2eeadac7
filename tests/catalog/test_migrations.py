"""The two ways to a schema: made at once, and through every revision."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from ckptdb import Registry
from ckptdb.catalog import schema
from ckptdb.catalog.engine import Database, upgrade
from ckptdb.catalog.location import locate
from ckptdb.catalog.revisions import script_location
from ckptdb.errors import CatalogMissing, CatalogOutdated, CatalogTampered, CatalogTooNew
from ckptdb.manager import CheckpointManager

REPOSITORY = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"


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
def results(tmp_path: Path) -> Path:
    """A root as the last version that knew only revision 0001 left it, its catalog included.

    A run of 15 steps, of which some are gone, each in another way; step 4 is rejected, 5 pinned,
    8, 9 and 10 have problems.
    """
    with tarfile.open(DATA / "baseline.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    # The run's own directory, and not a copy of it.
    identity = tmp_path / "results" / "grpo" / ".ckptdb" / "run.json"
    said = json.loads(identity.read_text())
    said["inode"] = identity.parents[1].stat().st_ino
    identity.write_text(json.dumps(said))
    return tmp_path / "results"


@pytest.fixture
def baseline(results: Path) -> Path:
    """The catalog of these results."""
    return results / ".ckptdb" / "catalog.db"


KINDS = {
    1: "retention", 2: "manual", 7: "vanished", 11: "manual", 12: "replaced", 13: "retention",
    15: "discarded",
}  # fmt: skip
"""How checkpoints of these results went, by step."""
PROBLEMS = {8: "damaged", 9: "corrupt", 10: "unreadable", 11: "damaged"}
"""What sort of problem they have, by step."""


def kinds(registry: Registry) -> tuple[dict[int, str | None], dict[int, str | None]]:
    found = registry.checkpoints(run="grpo")
    return (
        {cp.step: cp.deleted_kind for cp in found if cp.status == "deleted"},
        {cp.step: cp.problem_kind for cp in found if cp.problem is not None},
    )


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


@pytest.mark.slow
def test_alembic_finds_nothing_to_generate(tmp_path: Path):
    file = tmp_path / "catalog.db"
    alembic("upgrade", "head", catalog=file)
    assert "No new upgrade operations" in alembic("check", catalog=file).stdout


def test_the_environment_variable_names_the_catalog(tmp_path: Path):
    file = tmp_path / "catalog.db"
    alembic("upgrade", "head", variable=file)
    assert Database.open(locate(file)).revision() == schema.HEAD


@pytest.mark.slow
def test_the_option_goes_before_the_environment_variable(tmp_path: Path):
    alembic("upgrade", "head", catalog=tmp_path / "a.db", variable=tmp_path / "b.db")
    assert [file.name for file in tmp_path.glob("*.db")] == ["a.db"]


def test_migrations_print_sql_without_a_database(tmp_path: Path):
    printed = alembic("upgrade", "head", "--sql", catalog=tmp_path / "catalog.db").stdout
    assert "CREATE TABLE runs" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_upgraded_catalog_keeps_its_rows_and_answers(first_revision: Path):
    with closing(Database.open(locate(first_revision), upgrade=True)) as database:
        assert database.revision() == schema.HEAD
        assert database.integrity() == "ok"
        with database.read() as connection:
            found = connection.exec_driver_sql("SELECT run, step, rank FROM leaderboard").all()
        assert sorted(found) == [("grpo", 1, 2), ("grpo", 2, 1)]
        with database.write() as connection:
            connection.execute(schema.runs.delete())


def test_the_first_revision_is_what_the_baseline_was(baseline: Path, tmp_path: Path):
    file = tmp_path / "made.db"
    alembic("upgrade", "0001", catalog=file)
    assert built(file) == built(baseline)


def test_an_upgraded_baseline_has_the_kinds(baseline: Path):
    location = locate(baseline)
    assert upgrade(location) == ("0001", schema.HEAD, Path(f"{baseline}.0001.bak"))
    with closing(Database.open(location)) as database, database.read() as connection:

        def ask(sql: str) -> dict[int, object]:
            return dict(map(tuple, connection.exec_driver_sql(sql).all()))

        assert ask("SELECT step, deleted_kind FROM deletions") == KINDS
        assert ask("SELECT step, problem_kind FROM checkpoints WHERE problem <> ''") == PROBLEMS
        gone = "SELECT step, deleted_kind FROM checkpoint_history WHERE status = 'deleted'"
        assert ask(gone) == KINDS
        live = "SELECT step, deleted_kind FROM checkpoints WHERE status <> 'deleted'"
        assert set(ask(live).values()) == {None}


def test_an_upgraded_baseline_agrees_with_its_files(results: Path, baseline: Path):
    upgrade(locate(baseline))
    with Registry.open(results) as registry:
        found = registry.reconcile(dry_run=True)
        assert [action for run in found.runs for action in run.actions if action.is_change] == []
        registry.reconcile()
        assert kinds(registry) == (KINDS, PROBLEMS)


def test_files_written_by_the_baseline_give_the_kinds(results: Path, baseline: Path):
    pytest.importorskip("xxhash")
    baseline.unlink()
    with Registry.open(results) as registry:
        registry.reconcile()
        registry.verify(depth="contents")
        assert kinds(registry) == (KINDS, PROBLEMS)


def test_an_upgraded_baseline_is_asked_and_saved_into(results: Path, baseline: Path):
    run = results / "grpo"
    config = {"checkpoint_dir": str(run), "metric_name": "val:loss", "keep_top_k": 6}
    with CheckpointManager(config) as manager:
        with manager.save(16, {"val:loss": 0.01}):
            pass
        with manager.save(17, {"val:loss": 0.02}):
            pass
        assert manager.get_best_checkpoint_path() == str(run / "step_16")
    assert Path(f"{baseline}.0001.bak").exists()
    with Registry.open(results) as registry:
        assert [cp.step for cp in registry.top(9)] == [16, 17, 14, 12, 6, 5]
        assert kinds(registry) == ({**KINDS, 3: "retention"}, PROBLEMS)
        registry.reject("grpo", 16, "diverged")
        assert [cp.step for cp in registry.top(2)] == [17, 14]
        (late,) = registry.top(1, "mmlu", mode="max")
        assert (late.step, late.tags, late.metrics["mmlu"]) == (6, ("rc",), 0.5)
        (summary,) = registry.query("SELECT problems, best_step, latest_step FROM run_summary")
        assert summary == (5, 17, 17)


@pytest.mark.parametrize("revision", ["0003", "0004", "0005"])
def test_a_revision_from_before_the_baseline_is_not_known(baseline: Path, revision: str):
    with closing(sqlite3.connect(baseline)) as raw, raw:
        raw.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = ?", (revision,))
    before = baseline.read_bytes()
    for attempt in (partial(Database.open, upgrade=True), upgrade):
        with pytest.raises(CatalogTooNew, match=f"is at revision {revision}, which this version"):
            attempt(locate(baseline))
    assert baseline.read_bytes() == before


def test_another_schema_under_the_newest_revision_is_refused(baseline: Path):
    with closing(sqlite3.connect(baseline)) as raw, raw:
        raw.execute(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{schema.HEAD}'")
    before = baseline.read_bytes()
    with pytest.raises(CatalogTampered):
        Database.open(locate(baseline), upgrade=True)
    assert baseline.read_bytes() == before


@pytest.mark.slow
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


@pytest.mark.slow
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
