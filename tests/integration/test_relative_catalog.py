"""A catalog that is named by a relative path stays the one that was meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.location import fixed, locate

LOSS = "val:loss"


def make_manager(run, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    return CheckpointManager(config)


def save(manager, step, loss):
    with manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Stand in a directory, with a job's own one beside it, as Hydra makes."""
    for name in ("start", "outputs"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    return tmp_path / "start"


CHOICES = ["cat.db", "./sub/../cat.db", "sqlite:///cat.db", "cat-folder/", Path("cat.db")]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keyword", "environment"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_manager_keeps_the_catalog_it_was_made_with(start, tmp_path, monkeypatch, choice, how):
    file = start / "cat.db"
    if choice == "cat-folder/":
        (start / "cat-folder").mkdir()
        file = start / "cat-folder" / ".ckptdb" / "catalog.db"
    if how == "environment":
        monkeypatch.setenv("CKPTDB_CATALOG", str(choice))
    options = {"catalog": choice} if how == "keyword" else {}
    with make_manager(tmp_path / "run", **options) as manager:
        save(manager, 1, 0.5)
        os.chdir(tmp_path / "outputs")
        monkeypatch.delenv("CKPTDB_CATALOG", raising=False)
        save(manager, 2, 0.4)
        manager._index.close()
        assert manager.get_best_checkpoint_path() == str(tmp_path / "run" / "step_2")
        save(manager, 3, 0.3)
    assert list((tmp_path / "outputs").iterdir()) == []
    assert not (tmp_path / "run" / ".ckptdb" / "catalog.db").exists()
    with Registry.open(file) as registry:
        assert [cp.step for cp in registry.checkpoints(status="final")] == [1, 2, 3]


def test_the_environment_may_change_after_a_manager_was_made(start, tmp_path, monkeypatch):
    with make_manager(tmp_path / "run") as manager:
        monkeypatch.setenv("CKPTDB_CATALOG", str(tmp_path / "later.db"))
        save(manager, 1, 0.5)
    assert not (tmp_path / "later.db").exists()
    assert (tmp_path / "run" / ".ckptdb" / "catalog.db").exists()


@pytest.mark.parametrize("how", ["keyword", "environment"])
def test_a_registry_keeps_the_catalog_it_was_opened_with(start, tmp_path, monkeypatch, how):
    with make_manager(tmp_path / "run", catalog="cat.db") as manager:
        save(manager, 1, 0.5)
    if how == "environment":
        monkeypatch.setenv("CKPTDB_CATALOG", "cat.db")
    with Registry.open(tmp_path, catalog="cat.db" if how == "keyword" else None) as registry:
        os.chdir(tmp_path / "outputs")
        assert registry.latest(run="run").step == 1
        registry.close()
        registry.reconcile()
        assert registry.location.file == start / "cat.db"
    assert list((tmp_path / "outputs").iterdir()) == []


@pytest.mark.slow
def test_the_command_line_takes_a_relative_catalog_from_where_it_was_started(start, tmp_path):
    with make_manager(tmp_path / "run", catalog="cat.db") as manager:
        save(manager, 1, 0.5)
    command = [sys.executable, "-m", "ckptdb", "-C", "../run", "--catalog", "cat.db"]
    done = subprocess.run([*command, "latest"], check=True, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/run/step_1\n"


def test_a_home_directory_is_one_though_no_shell_has_seen_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fixed("~/cat.db") == str(tmp_path / "cat.db")
    assert fixed("sqlite:///~/cat.db") == f"sqlite:///{tmp_path}/cat.db"
    assert locate("~/cat.db").file == tmp_path / "cat.db"
    assert fixed("./~/cat.db") == str(Path.cwd() / "~" / "cat.db")


@pytest.mark.parametrize(
    "choice",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://me:secret@host/db",
        "nonsense://x",
        "",
        "a\0",
    ],
)
def test_what_is_no_path_stays_as_it_is(choice):
    assert fixed(choice) == choice


@pytest.mark.slow
def test_a_working_directory_that_is_gone_stops_no_manager(tmp_path, monkeypatch):
    script = (
        "import os, sys\n"
        "from ckptdb import CheckpointManager\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "os.environ['CKPTDB_CATALOG'] = 'cat.db'\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "with CheckpointManager({'checkpoint_dir': sys.argv[1]}) as manager:\n"
        "    with manager.save(1, {'loss': 0.5}):\n"
        "        pass\n"
    )
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", script, run], check=True, cwd=tmp_path)
    assert (run / "step_1").is_dir()
