"""Runs that came to the place of others: a name means what is there, and no history is lost."""

import json
import shutil

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import identity
from ckptdb.errors import AmbiguousRun

LOSS = "val:loss"


def save(run, step, loss):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    with (
        CheckpointManager(config, durability="none") as manager,
        manager.save(step, {LOSS: loss}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * 100)


def uuid_of(run):
    return json.loads((run / ".ckptdb" / "run.json").read_text())["uuid"]


@pytest.fixture
def root(tmp_path):
    """A root with the runs a (steps 1, 2) and b (steps 10, 20)."""
    top = tmp_path / "r"
    top.mkdir()
    Registry.init(top)[0].close()
    for run, steps in (("a", (1, 2)), ("b", (10, 20))):
        for step in steps:
            save(top / run, step, 1 / step)
    return top


def remove_and_train(root):
    old = uuid_of(root / "b")
    shutil.rmtree(root / "b")
    save(root / "b", 5, 0.7)
    return old


COMMANDS = {
    "latest": ("latest", "--run"),
    "best": ("best", "--run"),
    "best --where": ("best", "--where", "step > 0", "--run"),
    "top": ("top", "--run"),
    "pareto": ("pareto", "--against", LOSS, "min", "--run"),
    "ls": ("ls",),
    "show": ("show", "5", "--run"),
    "plot": ("plot", "--run"),
    "verify": ("verify", "-o", "json", "--run"),
    "rm --dry-run": ("rm", "5", "--dry-run", "--run"),
    "gc --dry-run": ("gc", "--dry-run", "--run"),
    "gc": ("gc", "--run"),
    "pin": ("pin", "5", "--run"),
    "tag": ("tag", "5", "x", "--run"),
    "log": ("log", "5", "acc=1", "--run"),
    "reject": ("reject", "5", "bad", "--run"),
    "diff": ("diff", "5", "5", "--run"),
    "watch": ("watch", "--once"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_name_means_the_run_that_was_trained_where_another_was_removed(root, ckptdb, command):
    remove_and_train(root)
    for name in ("b", root / "b", "./b"):
        answer = ckptdb(*command, name, cwd=root)
        assert answer.code == 0, answer.err
        assert "step_20" not in answer.out
        assert "step 20" not in answer.out
    inside = ckptdb("ls", "--all", "-o", "json", cwd=root / "b").json
    assert {(cp["step"], cp["run_uuid"]) for cp in inside} == {(5, uuid_of(root / "b"))}


def test_what_was_removed_is_history_and_goes_by_its_uuid(root, ckptdb):
    old = remove_and_train(root)
    found = ckptdb("ls", old[:8], "--all", "-o", "json", cwd=root).json
    assert [(cp["step"], cp["status"]) for cp in found] == [(10, "deleted"), (20, "deleted")]
    assert ckptdb("show", "20", "--run", old, cwd=root).code == 0
    assert f"b (gone, {old[:8]})" in ckptdb("ls", cwd=root).out
    assert f"b (gone, {old[:8]})" in ckptdb("ls", "--all", cwd=root).out
    states = {row["uuid"]: row["whereabouts"] for row in ckptdb("ls", "-o", "json", cwd=root).json}
    assert states[old] == "replaced"
    assert states[uuid_of(root / "b")] == "here"


def test_reconcile_says_whose_history_it_keeps(root, ckptdb):
    old = remove_and_train(root)
    for command in ("check", "reconcile"):
        answer = ckptdb(command, cwd=root)
        assert answer.code == 0, answer.out
        assert (
            f"{root}/b is another run's by now; what was there before is history, and is called "
            f"{old[:8]}"
        ) in answer.out
    told = ckptdb("check", "-o", "json", cwd=root).json["replaced"]
    assert told == [{"run": "b", "uuid": old, "directory": str(root / "b")}]
    assert ckptdb("forget", old[:8], cwd=root).code == 0
    assert "history" not in ckptdb("check", cwd=root).out
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_5\n"


@pytest.mark.slow
@pytest.mark.parametrize("reconciled", [False, True])
def test_a_run_that_was_moved_aside_goes_on_under_its_new_name(root, ckptdb, reconciled):
    old = uuid_of(root / "b")
    assert ckptdb("log", "20", "acc=0.5", "--run", "b", cwd=root).code == 0
    (root / "b").rename(root / "b.old")
    save(root / "b", 5, 0.7)
    if reconciled:
        assert ckptdb("reconcile", cwd=root).code == 0
    for name in ("b.old", root / "b.old"):
        answer = ckptdb("best", "--run", name, cwd=root)
        assert answer.out == f"{root}/b.old/step_20\n", answer.err
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_5\n"
    assert ckptdb("latest", "--run", old, cwd=root).out == f"{root}/b.old/step_20\n"
    shown = ckptdb("show", "20", "--run", "b.old", "-o", "json", cwd=root).json
    assert (shown["run_uuid"], shown["metrics"]["acc"]) == (old, 0.5)
    assert "gone" not in ckptdb("ls", cwd=root).out
    assert "another run's" not in ckptdb("check", cwd=root).out


@pytest.mark.parametrize("reconciled", [False, True])
def test_two_runs_that_changed_places_are_told_apart(root, ckptdb, reconciled):
    a, b = uuid_of(root / "a"), uuid_of(root / "b")
    (root / "a").rename(root / "c")
    (root / "b").rename(root / "a")
    (root / "c").rename(root / "b")
    if reconciled:
        assert ckptdb("reconcile", cwd=root).code == 0
    assert ckptdb("latest", "--run", "a", cwd=root).out == f"{root}/a/step_20\n"
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_2\n"
    each = ckptdb("best", "--each", "-o", "json", cwd=root).json
    assert [(cp["run_uuid"], cp["path"]) for cp in each] == [
        (b, f"{root}/a/step_20"), (a, f"{root}/b/step_2"),
    ]  # fmt: skip
    for run in ("a", "b"):
        assert not (root / run / ".ckptdb" / "journal.jsonl").exists(), "nothing has happened to it"
    assert ckptdb("check", cwd=root).code == 0


def test_the_best_of_all_is_never_what_lies_where_another_run_was(root, ckptdb):
    (root / "a").rename(root / "c")
    (root / "b").rename(root / "a")
    (root / "c").rename(root / "b")
    save(root / "a", 2, 5.0)
    best = ckptdb("best", "-o", "json", cwd=root).json
    assert best["path"] == f"{root}/a/step_20"
    info = json.loads((root / "a" / "step_20" / "training_info.json").read_text())
    assert best["metrics"][LOSS] == info[LOSS]


def test_a_run_that_moved_into_the_place_of_another_leaves_that_as_history(root, ckptdb):
    old = uuid_of(root / "b")
    shutil.rmtree(root / "b")
    (root / "a").rename(root / "b")
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_2\n"
    live = ckptdb("ls", "--all", "-o", "json", cwd=root).json
    assert {cp["status"] for cp in live if cp["run_uuid"] == old} == {"deleted"}
    assert ckptdb("ls", old[:8], "--all", cwd=root).code == 0


@pytest.mark.parametrize("how", ["cp -r", "mv"])
def test_a_run_that_came_back_from_a_backup_is_the_run(root, tmp_path, ckptdb, how):
    shutil.copytree(root / "b", tmp_path / "backup", copy_function=shutil.copy2)
    if how == "mv":
        shutil.rmtree(tmp_path / "backup")
        (root / "b").rename(tmp_path / "backup")
        save(root / "b", 5, 0.7)
        shutil.rmtree(root / "b")
        (tmp_path / "backup").rename(root / "b")
    else:
        shutil.rmtree(root / "b")
        shutil.copytree(tmp_path / "backup", root / "b", copy_function=shutil.copy2)
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_20\n"
    assert ckptdb("pin", "20", "--run", "b", cwd=root).code == 0
    assert ckptdb("reconcile", cwd=root).code == 0
    assert ckptdb("show", "20", "--run", "b", "-o", "json", cwd=root).json["pinned"]


def test_a_copy_beside_its_original_is_another_run(root, ckptdb):
    shutil.copytree(root / "b", root / "c")
    assert ckptdb("latest", "--run", "c", cwd=root).out == f"{root}/c/step_20\n"
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_20\n"
    assert ckptdb("reconcile", cwd=root).code == 0
    assert ckptdb("latest", "--run", "c", cwd=root).out == f"{root}/c/step_20\n"
    shutil.rmtree(root / "b")
    (root / "c").rename(root / "b")
    assert ckptdb("latest", "--run", "b", cwd=root).out == f"{root}/b/step_20\n"
    assert identity.identify(root / "b").run.forked_from is not None


def test_the_name_of_a_run_that_was_removed_still_means_its_history(root, ckptdb):
    old = uuid_of(root / "b")
    shutil.rmtree(root / "b")
    for name in ("b", root / "b", old[:8]):
        answer = ckptdb("ls", name, "--all", "-o", "json", cwd=root)
        assert [cp["step"] for cp in answer.json] == [10, 20]
    assert "b (not there)" in ckptdb("ls", cwd=root).out


def test_of_several_that_were_removed_from_a_place_the_last_one_is_meant(root, ckptdb):
    first = remove_and_train(root)
    second = uuid_of(root / "b")
    shutil.rmtree(root / "b")
    found = ckptdb("ls", "b", "--all", "-o", "json", cwd=root).json
    assert {cp["run_uuid"] for cp in found} == {second}
    assert {cp["run_uuid"] for cp in ckptdb("ls", first, "--all", "-o", "json", cwd=root).json} == {
        first
    }


def test_runs_of_one_name_elsewhere_stay_ambiguous(root, ckptdb):
    save(root / "x" / "run", 1, 1.0)
    save(root / "y" / "run", 1, 1.0)
    answer = ckptdb("latest", "--run", "run", cwd=root)
    assert answer.code == 1
    assert f"{root}/x/run, {root}/y/run" in answer.err
    with Registry.open(root) as registry, pytest.raises(AmbiguousRun):
        registry.latest(run="run")


def test_gc_and_verify_count_a_place_once(root, ckptdb):
    remove_and_train(root)
    plans = ckptdb("gc", "--dry-run", "-o", "json", cwd=root).json
    assert [plan["run"] for plan in plans] == ["a", "b"]
    told = ckptdb("verify", cwd=root)
    assert "3 checkpoint(s) verified" in told.err


def test_a_watcher_sees_the_run_that_came_to_a_place(root):
    with Registry.open(root) as registry, registry.watch(poll_seconds=0.01) as arrivals:
        seen = [next(arrivals) for _ in range(4)]
        assert {cp.step for cp in seen} == {1, 2, 10, 20}
        remove_and_train(root)
        came = next(arrivals)
        assert (came.step, came.run_uuid) == (5, uuid_of(root / "b"))
