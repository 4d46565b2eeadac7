"""A checkpoint moved to another disk and linked, and what else may stand in a step's place."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import observation, read_checkpoint
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import LinkedCheckpoint, StepTaken
from ckptdb.manager import _load_checkpoint_history
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

LOSSES = {100: 0.5, 200: 0.4, 300: 0.3}


@pytest.fixture
def run(tmp_path):
    with open_manager(tmp_path / "run") as manager:
        for step, loss in LOSSES.items():
            save(manager, step, loss)
    return tmp_path / "run"


def open_manager(run, **options):
    return CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False, **options}
    )


def save(manager, step, loss=0.1):
    with manager.save(step, {"loss": loss}) as folder:
        (folder / "model.bin").write_bytes(b"weights of %d" % step)


def move_and_link(run, step):
    """Do what people do when a disk fills; return where the checkpoint lies now."""
    other = run.parent / "other disk"
    other.mkdir(exist_ok=True)
    path, target = run / f"step_{step}", other / f"step_{step}"
    shutil.move(path, target)
    path.symlink_to(target)
    return target


@contextmanager
def told():
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught]


def tree(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ckptdb(*arguments, cwd):
    command = [sys.executable, "-m", "ckptdb", *arguments]
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)


# --- understood -------------------------------------------------------------------------------


def test_the_newest_step_behind_a_link_stays_the_latest_the_best_and_what_is_resumed(run):
    target = move_and_link(run, 300)
    before = tree(target)
    with open_manager(run) as manager, told() as texts:
        assert manager.get_latest_checkpoint_path() == str(run / "step_300")
        assert manager.get_best_checkpoint_path() == str(run / "step_300")
        assert manager.load_training_info(run / "step_300") == {"loss": 0.3}
        assert manager.resume().step == 300
    assert texts == []
    with Registry.open(run) as registry:
        assert registry.latest().path == run / "step_300"
        report = registry.reconcile()
        assert not any(action.kind == "vanished" for one in report.runs for action in one.actions)
        assert not registry.reconcile().has_drift
        assert [cp.problem for cp in registry.verify().checkpoints] == [None] * 3
    assert [step for step, _, _ in _load_checkpoint_history(run)] == [100, 200, 300]
    assert tree(target) == before


def test_a_lost_catalog_is_rebuilt_with_what_is_behind_links(run):
    move_and_link(run, 200)
    with Registry.open(run) as registry:
        registry.reconcile()
        before = [(cp.uuid, cp.step, cp.size_bytes) for cp in registry.checkpoints()]
        file = registry.location.file
    file.unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert [(cp.uuid, cp.step, cp.size_bytes) for cp in registry.checkpoints()] == before


def test_retention_never_takes_what_is_behind_a_link(run):
    target = move_and_link(run, 100)
    with open_manager(run, keep_top_k=1) as manager:
        reasons = {d.step: d.reason for d in manager.plan_retention().decisions}
        assert reasons[100] == "kept: behind a symlink"
        save(manager, 400, 0.9)
        save(manager, 500, 0.8)
    assert sorted(os.listdir(run)) == [".ckptdb", "step_100", "step_300", "step_500"]
    assert (target / "model.bin").exists()
    with Registry.open(run) as registry:
        (planned,) = registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1), dry_run=True)
        assert {d.step: d.reason for d in planned.decisions if d.keep} == {
            100: "kept: behind a symlink",
            500: "kept: the latest",
        }
        registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1))
    assert sorted(os.listdir(run)) == [".ckptdb", "step_100", "step_500"]
    assert (run / "step_100" / "model.bin").exists()


def test_a_limit_in_bytes_does_not_count_what_lies_on_another_disk(run):
    target = move_and_link(run, 300)
    (target / "model.bin").write_bytes(b"x" * 100_000)
    (target / "manifest.json").unlink()
    with open_manager(run, keep=["at most 0.00005 GB"]) as manager:
        manager.remove_old_checkpoints()
        assert all(decision.keep for decision in manager.plan_retention().decisions)
    assert len(os.listdir(run)) == 4


def test_a_link_that_was_judged_as_a_directory_is_not_followed_by_retiring(run):
    uuid = read_checkpoint.load(observation.observe(run).identity, run / "step_100", 100).uuid
    target = move_and_link(run, 100)
    assert Publisher(run).retire([Deletion(100, uuid, "judged before")]).gone == ()
    assert (target / "model.bin").exists()


def test_rm_refuses_to_delete_through_a_link_and_says_what_to_do(run):
    target = move_and_link(run, 100)
    with Registry.open(run) as registry, pytest.raises(LinkedCheckpoint) as caught:
        registry.remove([100, 200], force=True)
    assert str(caught.value) == (
        f"{run}/step_100 is a link to {target}, and nothing is deleted through a link: remove the "
        "link and what it leads to by hand, then `ckptdb reconcile`. Nothing was deleted."
    )
    assert sorted(os.listdir(run)) == [".ckptdb", "step_100", "step_200", "step_300"]


def test_it_can_be_pinned_and_tagged_and_measured_later_without_a_byte_behind_the_link(run):
    target = move_and_link(run, 100)
    before = tree(target)
    with Registry.open(run) as registry:
        registry.pin(None, 100)
        registry.tag(None, 100, "release")
        registry.log_metrics(None, 100, {"mmlu": 0.6}, source="test")
        assert registry.get(100).pinned
    assert tree(target) == before


# --- saving where something stands ------------------------------------------------------------


def make_link(path):
    target = path.parent.parent / "elsewhere"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    path.symlink_to(target)


def make_dead_link(path):
    path.symlink_to("/mnt/not mounted/step_400")


def make_file(path):
    path.write_bytes(b"a file")


IN_PLACE = {"link": make_link, "dead link": make_dead_link, "file": make_file, "fifo": os.mkfifo}


@pytest.mark.parametrize("what", IN_PLACE)
@pytest.mark.parametrize("name", ["step_400", "tmp_step_400"])
def test_a_taken_step_is_refused_when_staging_before_anything_is_written(run, what, name):
    IN_PLACE[what](run / name)
    before = sorted(os.listdir(run))
    with open_manager(run) as manager:
        with pytest.raises(StepTaken, match="is not a checkpoint directory") as caught:
            manager.init_tmp_checkpoint(400, {"loss": 0.2})
        assert f"{run}/{name}" in str(caught.value)
        assert ("it is a link to" in str(caught.value)) == ("link" in what)
        assert sorted(os.listdir(run)) == before
        save(manager, 500)


def test_a_complete_save_whose_name_was_taken_is_kept_and_told_until_it_can_be_published(run):
    with open_manager(run) as manager:
        folder = manager.init_tmp_checkpoint(400, {"loss": 0.2})
        (folder / "model.bin").write_bytes(b"new")
        (run / "step_400").write_bytes(b"a file")
        with pytest.raises(StepTaken):
            manager.finalize_checkpoint(folder)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (1.6e9, 1.6e9))
    with Registry.open(run) as registry:
        (report,) = registry.reconcile().runs
        what = (
            "is complete, but step_400 is taken by what is no checkpoint; kept. Move that away, "
            "then `ckptdb reconcile` publishes it"
        )
        told = [(a.kind, a.what) for a in report.actions if a.step == 400]
        assert told == [("blocked tmp", what)]
        (collected,) = registry.gc()
        assert collected.leftovers == ()
        (spared,) = collected.spared
        assert (spared.step, spared.why) == (
            400,
            "complete, its name is taken; move that away, then `ckptdb reconcile` publishes it",
        )
        assert folder.exists()
        (run / "step_400").unlink()
        registry.reconcile()
        assert registry.latest().step == 400
    assert (run / "step_400" / "model.bin").read_bytes() == b"new"


# --- passed over, by name ---------------------------------------------------------------------


def test_a_target_that_is_not_mounted_is_unreadable_not_vanished_and_comes_back(run):
    target = move_and_link(run, 300)
    with Registry.open(run) as registry:
        registry.reconcile()
        away = target.parent.rename(target.parent.with_name("unmounted"))
        (report,) = registry.reconcile().runs
        why = f"step_300 cannot be read (it is a link to {target}, which is not there)"
        assert [(a.kind, a.what) for a in report.actions if a.kind == "unreadable"] == [
            ("unreadable", f"{why}; kept, not ranked")
        ]
        assert registry.get(300).status == "final"
        assert registry.get(300).problem == why
        assert registry.latest().step == 200
        away.rename(target.parent)
        assert registry.latest().step == 300
        assert registry.get(300).problem is None


def test_verify_calls_a_link_to_nothing_unreadable(run):
    target = move_and_link(run, 200)
    with Registry.open(run) as registry:
        registry.reconcile()
        shutil.rmtree(target)
        found = {cp.step: cp.problem for cp in registry.verify().checkpoints}
    why = f"step_200 cannot be read (it is a link to {target}, which is not there)"
    assert found == {100: None, 200: why, 300: None}


def test_a_manager_notices_at_once_that_a_target_has_gone_and_come_back(run):
    target = move_and_link(run, 300)
    with open_manager(run) as manager:
        assert manager.get_latest_checkpoint_path() == str(run / "step_300")
        away = target.parent.rename(target.parent.with_name("unmounted"))
        assert manager.get_latest_checkpoint_path() == str(run / "step_200")
        away.rename(target.parent)
        assert manager.get_latest_checkpoint_path() == str(run / "step_300")


def test_resume_names_a_link_to_nothing_that_it_passes_over(run):
    target = move_and_link(run, 300)
    with open_manager(run) as manager:
        assert manager.resume().step == 300
    shutil.rmtree(target)
    with open_manager(run) as manager, told() as texts:
        assert manager.resume().step == 200
        assert manager.resume().step == 200
    (text,) = texts
    assert text.startswith(f"Step 300 is passed over ({run}/step_300): ")
    assert f"it is a link to {target}, which is not there" in text


@pytest.mark.parametrize("what", ["dead link", "link", "file", "fifo"])
def test_resume_names_what_stands_in_a_newer_step_s_place_and_was_never_a_checkpoint(run, what):
    IN_PLACE[what](run / "step_400")
    IN_PLACE["file"](run / "step_150")
    with open_manager(run) as manager, told() as texts:
        assert manager.resume().step == 300
    (text,) = texts
    assert text.startswith(f"Step 400 is passed over ({run}/step_400): it is ")


def test_the_first_save_below_what_cannot_be_read_names_it_once(run):
    make_dead_link(run / "step_900")
    make_file(run / "step_150")
    with open_manager(run) as manager, told() as texts:
        assert manager.get_latest_checkpoint_path() == str(run / "step_300")
        save(manager, 400)
        save(manager, 500)
    (text,) = [text for text in texts if "passed over" in text]
    assert text.startswith(f"Step 900 is passed over ({run}/step_900): it is a link to ")


@pytest.mark.parametrize("command", [("latest",), ("ls",), ("top",), ("ls", "-o", "json")])
@pytest.mark.parametrize("what", ["dead link", "file"])
def test_the_command_line_names_what_would_be_the_newest(run, what, command):
    IN_PLACE[what](run / "step_400")
    answer = ckptdb(*command, cwd=run)
    assert answer.returncode == 0
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"{run}/step_400 is passed over: it is ")
    if command == ("latest",):
        assert answer.stdout == f"{run}/step_300\n"
    elif command[-1] == "json":
        assert [cp["step"] for cp in json.loads(answer.stdout)] == [100, 200, 300]


def test_where_only_a_file_stands_in_a_step_s_place_latest_names_it(tmp_path):
    with open_manager(tmp_path / "run") as manager:
        save(manager, 1)
    shutil.rmtree(tmp_path / "run" / "step_1")
    (tmp_path / "run" / "step_1").write_bytes(b"a file")
    answer = ckptdb("latest", cwd=tmp_path / "run")
    assert answer.returncode != 0
    assert re.search(r"step_1 is passed over: it is no directory", answer.stderr)
