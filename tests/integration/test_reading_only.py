"""Looking is cheap and leaves no trace."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.counting import counted
from tests.support.reading import ask_everything, make_manager, write_like_nemo
from tests.support.trees import AS_ANY_USER, settle, snapshot

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core import stamp
from ckptdb.disk import root_marker
from ckptdb.disk.publish import Publisher
from ckptdb.manager import CheckpointManager
from ckptdb.reconcile.run import reconcile_run
from ckptdb.registry import Registry

QUESTIONS = {
    "best": (CheckpointManager.get_best_checkpoint_path, "step_2"),
    "latest": (CheckpointManager.get_latest_checkpoint_path, "step_3"),
}


@pytest.fixture(params=["its own root", "below a root"])
def ours(request, tmp_path):
    """Return a settled run of ours that has been asked once."""
    if request.param == "below a root":
        root_marker.mark_root(tmp_path)
    run = tmp_path / "run"
    with make_manager(run) as manager:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
            with manager.save(step, {"val:loss": loss}):
                pass
        settle(tmp_path)
        manager.get_best_checkpoint_path()
    return run


# --- what a question costs ----------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "answer"), QUESTIONS.values(), ids=QUESTIONS)
def test_the_second_question_is_one_stamp_and_one_select(ours, monkeypatch, ask, answer):
    manager = make_manager(ours)
    assert ask(manager) == str(ours / answer)
    before = snapshot(ours.parent)
    with counted(monkeypatch) as (files, statements, stamps):
        assert ask(manager) == str(ours / answer)
    assert [s.split()[0] for s in statements] == ["SELECT"]
    assert stamps == [ours]
    assert files == []
    assert snapshot(ours.parent) == before
    manager.shutdown()


@pytest.mark.parametrize(("ask", "answer"), QUESTIONS.values(), ids=QUESTIONS)
def test_the_first_question_of_a_process_lists_and_writes_nothing(ours, monkeypatch, ask, answer):
    manager = make_manager(ours)
    before = snapshot(ours.parent)
    with counted(monkeypatch) as (files, statements, stamps):
        assert ask(manager) == str(ours / answer)
    assert {s.split()[0] for s in statements} <= {"SELECT", "PRAGMA"}
    assert stamps == [ours]
    assert not [what for what in files if what.startswith(("os.scandir", "os.listdir", "os.mkdir"))]
    assert snapshot(ours.parent) == before
    manager.shutdown()


def test_without_a_catalog_the_second_question_does_not_list_either(tmp_path, monkeypatch):
    write_like_nemo(tmp_path)
    settle(tmp_path)
    manager = make_manager(tmp_path)
    assert manager.get_best_checkpoint_path() == str(tmp_path / "step_30")
    with counted(monkeypatch) as (files, statements, _):
        assert manager.get_best_checkpoint_path() == str(tmp_path / "step_30")
    assert not [what for what in files if what.startswith(("os.scandir", "os.listdir"))]
    assert [s.split()[0] for s in statements] == ["SELECT"]


def test_a_change_by_hand_is_seen_by_the_next_question(ours):
    manager = make_manager(ours)
    for ask, _ in QUESTIONS.values():
        ask(manager)
    shutil.rmtree(ours / "step_3")
    assert manager.get_latest_checkpoint_path() == str(ours / "step_2")
    settle(ours)
    assert manager.get_latest_checkpoint_path() == str(ours / "step_2")
    shutil.rmtree(ours / "step_2")
    assert manager.get_best_checkpoint_path() == str(ours / "step_1")
    manager.shutdown()


def test_a_reader_writes_nothing_for_a_stamp_that_is_too_young(ours, monkeypatch):
    monkeypatch.setattr(stamp, "SETTLE_SECONDS", 3600)
    manager = make_manager(ours)
    with manager.save(4, {"val:loss": 0.05}):
        pass
    assert manager.get_best_checkpoint_path() == str(ours / "step_4")
    before = snapshot(ours.parent)
    reader = make_manager(ours)
    for _ in range(3):
        assert reader.get_best_checkpoint_path() == str(ours / "step_4")
        assert manager.get_best_checkpoint_path() == str(ours / "step_4")
    assert snapshot(ours.parent) == before
    manager.shutdown()
    reader.shutdown()


def leave_alone(run: Path) -> None:
    pass


def touch(run: Path) -> None:
    """Move the run's stamp, to one that is settled."""
    os.utime(run, (time.time() - 30,) * 2)


def save_elsewhere(run: Path) -> None:
    """Publish as a process does whose catalog is out of reach."""
    Publisher(run).publish(Publisher(run).stage(4, b'{"val:loss": 0.05}', None).checkpoint.path)


def save_long_ago(run: Path) -> None:
    save_elsewhere(run)
    settle(run / "step_4")
    touch(run)


def lose_one(run: Path) -> None:
    shutil.rmtree(run / "step_2")
    touch(run)


def ask_anew(run: Path) -> None:
    manager = make_manager(run)
    manager.get_best_checkpoint_path()
    manager.shutdown()


def ask_registry(run: Path) -> None:
    with Registry.open(run) as registry:
        assert registry.best() is not None


def pin(run: Path) -> None:
    with Registry.open(run) as registry:
        assert registry.pin(None, 1).pinned


# How many statements each may take; one more is one for every question of everybody.
COSTS = {
    "nothing": (leave_alone, ask_anew, 5),
    "nothing, registry": (leave_alone, ask_registry, 9),
    "the stamp": (touch, ask_anew, 10),
    "the stamp, registry": (touch, ask_registry, 14),
    "one more": (save_long_ago, ask_anew, 16),
    "one more, young": (save_elsewhere, ask_anew, 17),
    "one less": (lose_one, ask_anew, 22),
    "a pin": (leave_alone, pin, 19),
    "a pin, young": (save_elsewhere, pin, 36),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "act", "most"), COSTS.values(), ids=COSTS)
def test_what_changed_little_costs_few_statements(ours, monkeypatch, change, act, most):
    change(ours)
    with counted(monkeypatch) as (_, statements, _):
        act(ours)
    assert len(statements) <= most, "\n".join(statements)


def test_a_reconcile_asks_the_same_however_many_checkpoints_there_are(tmp_path, monkeypatch):
    costs = []
    for count in (3, 30):
        run = tmp_path / str(count)
        write_like_nemo(run, steps=range(1, count))
        settle(run)
        catalog = Catalog(Database.in_memory(tmp_path))
        reconcile_run(catalog, run)
        shutil.rmtree(run / "step_1")
        (run / "step_2").rename(run / "step_1000")
        touch(run)
        with counted(monkeypatch) as (_, statements, _):
            assert reconcile_run(catalog, run).has_drift
        costs.append(len(statements))
    assert costs[0] == costs[1] <= 22


# --- what looking leaves behind -----------------------------------------------------------------


@pytest.mark.parametrize("age", ["fresh", "settled"])
def test_looking_at_a_tree_of_nemo_rl_leaves_it_as_it_was(tmp_path, age):
    run = tmp_path / "results" / "run"
    write_like_nemo(run)
    if age == "settled":
        settle(tmp_path)
    before = snapshot(tmp_path)
    ask_everything(run)
    with Registry.open(run.parent) as registry:
        assert [found.name for found in registry.runs()] == ["run"]
        registry.reconcile(dry_run=True, full=True)
    assert snapshot(tmp_path) == before


def test_looking_at_a_run_of_nemo_rl_below_a_root_writes_nothing_into_it(tmp_path):
    root_marker.mark_root(tmp_path)
    with make_manager(tmp_path / "ours") as manager, manager.save(10, {"val:loss": 0.5}):
        pass
    run = tmp_path / "theirs"
    write_like_nemo(run)
    before = snapshot(run)
    ask_everything(run)
    assert snapshot(run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ckptdb", "ours", "theirs"]


def test_constructing_a_manager_creates_nothing_not_even_the_directory(tmp_path):
    manager = make_manager(tmp_path / "not" / "yet")
    assert manager.get_best_checkpoint_path() is None
    assert manager.get_latest_checkpoint_path() is None
    manager.remove_old_checkpoints()
    manager.shutdown()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("age", ["fresh", "settled"])
@pytest.mark.parametrize("whose", ["theirs", "ours", "ours, with leftovers"])
def test_a_read_only_tree_is_answered_from_and_left_as_it_was(tmp_path, whose, age):
    run = tmp_path / "run"
    if whose == "theirs":
        write_like_nemo(run)
    else:
        with make_manager(run) as manager:
            for step in (10, 20, 30):
                with manager.save(step, {"val:loss": 1 / step}):
                    pass
    if whose == "ours, with leftovers":
        # Somebody deleted one by hand; and a crash came before a rename.
        shutil.rmtree(run / "step_20")
        shutil.copytree(run / "step_10", run / "tmp_step_11")
        manifest = json.loads((run / "step_10" / "manifest.json").read_text())
        manifest |= {"step": 11, "uuid": "00000000-0000-4000-8000-000000000000"}
        (run / "tmp_step_11" / "manifest.json").write_text(json.dumps(manifest))
    if age == "settled":
        settle(tmp_path)
    for path in (*run.rglob("*"), run):
        path.chmod(path.stat().st_mode & ~0o222)
    before = snapshot(run)
    script = (
        "import sys, warnings\n"
        "from pathlib import Path\n"
        "warnings.simplefilter('error')\n"
        f"{AS_ANY_USER}"
        "run = Path(sys.argv[1])\n"
        "try:\n"
        "    (run / 'probe').touch()\n"
        "except PermissionError:\n"
        "    pass\n"
        "else:\n"
        "    raise SystemExit('the tree is not read-only')\n"
        "from tests.support.reading import ask_everything, make_manager\n"
        "ask_everything(run)\n"
        "for _ in range(2):\n"
        "    manager = make_manager(run)\n"
        "    assert manager.get_best_checkpoint_path() == str(run / 'step_30')\n"
        "    assert manager.get_latest_checkpoint_path() == str(run / 'step_30')\n"
        "    manager.shutdown()\n"
    )
    try:
        command = [sys.executable, "-c", script, run]
        top = Path(__file__).parents[2]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=top)
        assert (done.returncode, done.stderr) == (0, "")
        assert snapshot(run) == before
    finally:
        for path in (run, *run.rglob("*")):
            path.chmod(0o700)


# --- what importing loads -----------------------------------------------------------------------


HEAVY = {"alembic", "click", "rich", "numpy", "torch", "pydantic"}
NEEDED_LATER = {"yaml", "email.parser", "sqlalchemy.dialects.postgresql"}


def loaded_by(script, *arguments):
    """The modules that a script loads, beside those that Python, or coverage in it, starts with."""
    script = f"import sys\nbefore = set(sys.modules)\n{script}\nprint(*set(sys.modules) - before)"
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "without"),
    [
        ("import ckptdb", {"sqlalchemy", "sqlite3", "asyncio", "ckptdb.manager"}),
        ("import ckptdb\nckptdb.CkptdbError, ckptdb.Checkpoint, ckptdb.Run", {"sqlalchemy"}),
        ("import ckptdb.manager, ckptdb.registry", {"sqlalchemy.dialects.sqlite"}),
        ("from ckptdb import *", {"sqlalchemy.dialects.sqlite"}),
        ("from ckptdb import Registry", {"ckptdb.manager"}),
    ],
)
def test_importing_loads_nothing_heavy(script, without):
    loaded = loaded_by(script)
    assert "ckptdb" in loaded
    assert loaded.isdisjoint(HEAVY | NEEDED_LATER | without)


@pytest.mark.slow
def test_what_is_imported_late_is_there_all_the_same():
    script = (
        "import ckptdb\n"
        "assert set(ckptdb.__all__) <= set(dir(ckptdb))\n"
        "assert {'__version__', 'errors', 'manager', 'registry'} <= set(dir(ckptdb))\n"
        "assert all(hasattr(ckptdb, name) for name in dir(ckptdb))\n"
        "assert ckptdb.Registry is ckptdb.registry.Registry\n"
        "assert ckptdb.CheckpointManager is ckptdb.manager.CheckpointManager\n"
        "assert not hasattr(ckptdb, 'no_such_name')"
    )
    assert "ckptdb.manager" in loaded_by(script)


@pytest.mark.slow
def test_printing_a_path_loads_nothing_to_draw_with(tmp_path):
    with CheckpointManager({"checkpoint_dir": tmp_path}) as manager, manager.save(1, {"a": 1.0}):
        pass
    script = (
        "from ckptdb.cli.main import main\n"
        "try:\n"
        "    main(['-C', sys.argv[1], 'latest'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0"
    )
    loaded = loaded_by(script, tmp_path)
    assert "click" in loaded
    assert loaded.isdisjoint((HEAVY - {"click"}) | NEEDED_LATER | {"ckptdb.manager"})


@pytest.mark.slow
def test_saving_and_asking_loads_nothing_heavy_either(tmp_path):
    script = (
        "import ckptdb\n"
        "manager = ckptdb.CheckpointManager({'checkpoint_dir': sys.argv[1]})\n"
        "with manager, manager.save(1, {'a': 1.0}, config={'b': 2}):\n"
        "    pass\n"
        "assert manager.get_best_checkpoint_path()"
    )
    assert loaded_by(script, tmp_path).isdisjoint(HEAVY)
