"""What writes about a run wants its directory there: else nothing is made, recorded or lost."""

import json
import shutil

import pytest
from lab.dump import dump_catalog

from ckptdb import CheckpointManager, Registry
from ckptdb.disk.publish import Publisher
from ckptdb.errors import RunNotHere

LOSS = "val:loss"


def save(run, step, loss=1.0):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    with (
        CheckpointManager(config, durability="none") as manager,
        manager.save(step, {LOSS: loss}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * 100)


@pytest.fixture
def root(tmp_path):
    top = tmp_path / "root"
    top.mkdir()
    Registry.init(top)[0].close()
    for step in (1, 2, 3):
        save(top / "r1", step)
        save(top / "r2", step)
    with Registry.open(top) as registry:
        registry.remove([1], run="r2", trash_ttl_seconds=3600)
        registry.pin("r2", 2)
    return top


WRITING = {
    "log": ("log", "3", "acc=0.9"),
    "log of what is gone": ("log", "1", "acc=0.9"),
    "pin": ("pin", "3"),
    "pin with a note": ("pin", "3", "--note", "x"),
    "unpin": ("unpin", "2"),
    "tag": ("tag", "3", "x"),
    "untag": ("untag", "3", "x"),
    "reject": ("reject", "3", "bad"),
    "unreject": ("unreject", "3"),
    "rm": ("rm", "3"),
    "rm --force": ("rm", "2", "--force"),
    "rm --dry-run": ("rm", "3", "--dry-run"),
    "gc": ("gc",),
    "gc with rules": ("gc", "--keep-latest", "1"),
    "gc --dry-run": ("gc", "--keep-latest", "1", "--dry-run"),
    "gc --empty-trash": ("gc", "--empty-trash"),
    "undelete": ("undelete", "1"),
}


def files(top):
    return sorted(
        str(path.relative_to(top)) for path in top.rglob("*") if "catalog" not in path.name
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
def test_a_run_that_was_moved_away_is_left_as_it_was(root, tmp_path, ckptdb, command):
    was = dump_catalog(root / ".ckptdb" / "catalog.db")
    (root / "r2").rename(tmp_path / "elsewhere")
    before = files(tmp_path)
    answer = ckptdb(*command, "--run", "r2", cwd=root)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        f"ckptdb: Nothing was changed: the run 'r2' is not at {root}/r2, for there is no such "
        "directory. Mount or restore it there, or run `ckptdb reconcile` when it was moved.\n"
    )
    assert files(tmp_path) == before
    assert dump_catalog(root / ".ckptdb" / "catalog.db") == was
    (tmp_path / "elsewhere").rename(root / "r2")
    assert ckptdb("check", cwd=root).code == 0
    assert ckptdb("latest", "--run", "r2", cwd=root).out == f"{root}/r2/step_3\n"
    assert dump_catalog(root / ".ckptdb" / "catalog.db") == was


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
def test_the_empty_place_of_a_run_that_is_not_mounted_stays_empty(root, tmp_path, ckptdb, command):
    (root / "r2").rename(tmp_path / "elsewhere")
    (root / "r2").mkdir()
    answer = ckptdb(*command, "--run", "r2", cwd=root)
    assert (answer.code, answer.out) == (1, "")
    assert "Nothing was changed: the run 'r2' is not at" in answer.err
    assert "has no .ckptdb/run.json" in answer.err
    assert list((root / "r2").iterdir()) == []
    (root / "r2").rmdir()
    (tmp_path / "elsewhere").rename(root / "r2")
    assert ckptdb("check", cwd=root).code == 0
    shown = ckptdb("show", "2", "--run", "r2", "-o", "json", cwd=root).json
    assert (shown["status"], shown["pinned"]) == ("final", True)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
def test_history_whose_place_another_run_has_is_not_written_to(root, ckptdb, command):
    old = json.loads((root / "r2" / ".ckptdb" / "run.json").read_text())["uuid"]
    shutil.rmtree(root / "r2")
    for step in (1, 2, 3):
        save(root / "r2", step)
    before = files(root)
    answer = ckptdb(*command, "--run", old[:8], cwd=root)
    assert (answer.code, answer.out) == (1, "")
    assert f"the run 'r2' is not at {root}/r2, where another run is by now" in answer.err
    assert files(root) == before


def test_what_nobody_of_ours_has_written_to_may_be_annotated(root, ckptdb, write_nemo):
    write_nemo(root / "nemo", 1, {LOSS: 1.0})
    assert ckptdb("reconcile", cwd=root).code == 0
    assert not (root / "nemo" / ".ckptdb").exists()
    assert ckptdb("tag", "1", "x", "--run", "nemo", cwd=root).code == 0
    assert (root / "nemo" / ".ckptdb" / "run.json").is_file()
    shutil.move(root / "nemo", root / "away")
    assert ckptdb("tag", "1", "y", "--run", "nemo", cwd=root).code == 1
    assert not (root / "nemo").exists()


def test_a_tree_of_others_that_is_gone_is_not_made_again(root, ckptdb, write_nemo):
    write_nemo(root / "nemo", 1, {LOSS: 1.0})
    assert ckptdb("reconcile", cwd=root).code == 0
    shutil.rmtree(root / "nemo")
    assert ckptdb("log", "1", "acc=1", "--run", "nemo", cwd=root).code == 1
    assert not (root / "nemo").exists()


def test_a_run_that_came_back_from_a_backup_may_be_written_to(root, tmp_path, ckptdb):
    shutil.copytree(root / "r2", tmp_path / "backup", copy_function=shutil.copy2)
    shutil.rmtree(root / "r2")
    shutil.copytree(tmp_path / "backup", root / "r2", copy_function=shutil.copy2)
    assert ckptdb("tag", "3", "x", "--run", "r2", cwd=root).code == 0
    assert ckptdb("show", "3", "--run", "r2", "-o", "json", cwd=root).json["tags"] == ["x"]


def test_over_all_runs_what_is_not_there_is_passed_over(root, tmp_path, ckptdb):
    (root / "r2").rename(tmp_path / "elsewhere")
    answer = ckptdb("gc", "--keep-latest", "1", cwd=root)
    assert answer.code == 0, "there is only one left"
    assert sorted(path.name for path in (root / "r1").glob("step_*")) == ["step_3"]
    assert not (root / "r2").exists()


def test_an_evaluator_whose_run_is_moved_away_makes_nothing(root, tmp_path):
    with Registry.open(root) as registry:
        arrivals = registry.watch("r2", lease="mmlu", poll_seconds=None)
        assert next(arrivals).step == 2
        (root / "r2").rename(tmp_path / "elsewhere")
        arrivals.close()
    assert not (root / "r2").exists()


def test_only_the_first_save_makes_the_directory_of_a_run(tmp_path):
    run = tmp_path / "run"
    with CheckpointManager({"checkpoint_dir": run}) as manager:
        assert manager.resume() is None
        assert manager.get_best_checkpoint_path() is None
        assert not run.exists()
    for act in (
        lambda publisher: publisher.record([]),
        lambda publisher: publisher.establish(),
        lambda publisher: publisher.undelete(1),
        lambda publisher: publisher.retire([]),
    ):
        with pytest.raises(RunNotHere):
            act(Publisher(run))
        assert not run.exists()
    save(run, 1)
    assert (run / "step_1").is_dir()


def test_a_manager_whose_run_was_removed_begins_it_anew_with_its_next_save(tmp_path):
    run = tmp_path / "run"
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    with CheckpointManager(config, durability="none") as manager:
        with manager.save(1, {LOSS: 1.0}):
            pass
        shutil.rmtree(run)
        assert manager.get_latest_checkpoint_path() is None
        assert not run.exists()
        with manager.save(2, {LOSS: 1.0}):
            pass
        assert manager.get_latest_checkpoint_path() == str(run / "step_2")
