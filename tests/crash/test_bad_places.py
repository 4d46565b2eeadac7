"""Directories that are not as a loop left them: names, paths, permissions, mounts, the clock."""

import errno
import json
import os
import resource
import shutil
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import scene
from lab.scene import BAD, BEST, GOOD, LATEST, LOSS, ckptdb
from tests.support.mounts import immutable, mounted
from tests.support.requirements import needs_root

from ckptdb import Registry
from ckptdb.core.facts import Fact
from ckptdb.disk import fsutil, identity, journal, root_marker
from ckptdb.errors import SaveFailed


@pytest.fixture
def run(tmp_path):
    return scene.build(tmp_path / "results")


def steps_of(run: Path) -> set[int]:
    with Registry.open(run.parent) as registry:
        return {cp.step for cp in registry.checkpoints(status="final")}


def check_nothing_gone(root: Path) -> None:
    with Registry.open(root) as registry:
        assert registry.checkpoints(status="deleted") == ()
        assert {cp.step for cp in registry.checkpoints(status="final")} == set(GOOD)


# --- names --------------------------------------------------------------------------------------

NAMES = [
    b"step_007", "step_١".encode(), b"step_9\n", b"step_1_0", b"step_+9", b"step_-9", b"step_1e3",
    b"step_9223372036854775808", b"step_9 ", b"step_9.0", b"step_0x9", b"step_True", b"step_",
    b"step_9-hf", b"STEP_9", b"step_\xff", b"step_9\r", b"old_step_9.x", b"tmp_step_09",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_is_no_step_is_nobody_s_checkpoint(run, name):
    stranger = run / os.fsdecode(name)
    shutil.copytree(run / f"step_{LATEST}", stranger)
    (stranger / "training_info.json").write_text('{"loss": 0.001}')
    before = scene.snapshot(stranger)
    scene.check_answers(run, best=BEST, latest=LATEST)
    assert ckptdb("-C", run, "reconcile").code == 0
    said = ckptdb("-C", run, "check")
    assert (said.code, "no drift" in said.out) == (0, True)
    if name.startswith((b"step_", b"tmp_step_", b"old_step_")):
        assert "is no checkpoint; left alone" in said.out
    scene.save(run, 20, 0.75, keep_top_k=1)
    assert scene.snapshot(stranger) == before
    assert steps_of(run) == {4, 20}


@pytest.mark.parametrize("make", ["symlink to a file", "file", "dangling symlink"])
def test_a_step_that_is_no_directory_is_left_alone(run, make):
    stranger = run / f"step_{BAD}"
    if make == "file":
        stranger.write_text("mine")
    else:
        stranger.symlink_to(__file__ if make == "symlink to a file" else "nowhere")
    scene.check_answers(run, best=BEST, latest=LATEST)
    said = ckptdb("-C", run, "reconcile")
    what = (
        f"step_{BAD} is no checkpoint; left alone"
        if make == "file"
        else f"step_{BAD} cannot be read (it is a link to "
    )
    assert (said.code, what in said.out) == (0 if make == "file" else 3, True)
    with pytest.raises((SaveFailed, FileExistsError), match="is not a checkpoint directory"):
        scene.save(run, BAD, 0.001)
    assert os.path.lexists(stranger)
    scene.check_answers(run, best=BEST, latest=LATEST)


@pytest.mark.parametrize("name", [b"run\n", b"r\xffn", "läuft".encode(), b"-C", b"%s*?[a]", b"a b"])
def test_a_run_of_any_name_is_answered_for(tmp_path, name):
    root = tmp_path / "results"
    scene.build(root)
    run = root / os.fsdecode(name)
    (root / "run").rename(run)
    scene.check_answers(run, best=BEST, latest=LATEST)
    assert ckptdb("-C", root, "reconcile").code == 0
    said = ckptdb("-C", root, "check")
    assert (said.code, "no drift" in said.out) == (0, True)
    scene.save(run, 20, 0.01, keep_top_k=1)
    scene.check_answers(run, best=20, latest=20)
    assert {p.name for p in run.glob("step_*")} == {"step_20"}


# --- paths --------------------------------------------------------------------------------------


def test_a_moved_root_is_the_same_root(run, tmp_path):
    with Registry.open(run) as registry:
        registry.pin(None, 2)
    moved = tmp_path / "elsewhere"
    run.parent.rename(moved)
    assert ckptdb("-C", moved, "reconcile").code == 0
    assert "no drift" in ckptdb("-C", moved, "check").out
    scene.check_answers(moved / "run", best=BEST, latest=LATEST)
    with Registry.open(moved) as registry:
        assert [cp.step for cp in registry.checkpoints() if cp.pinned] == [2]
        assert registry.checkpoints(status="deleted") == ()


def test_a_relative_run_stays_where_it_was_after_chdir(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    (tmp_path / "other").mkdir()
    with scene.make_manager(Path("run")) as manager:
        assert manager.get_best_checkpoint_path() == f"run/step_{BEST}"
        monkeypatch.chdir(tmp_path / "other")
        with manager.save(20, {LOSS: 0.01}) as folder:
            assert folder == run / "tmp_step_20"
        # Where it was given from, a relative answer would lead elsewhere by now.
        assert manager.get_best_checkpoint_path() == str(run / "step_20")
    assert list((tmp_path / "other").iterdir()) == []
    scene.check_answers(run, best=20, latest=20)


# --- permissions --------------------------------------------------------------------------------


@contextmanager
def mode(path: Path, bits: int):
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        with scene.powerless():
            yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize("ours", [True, False], ids=["with a manifest", "NeMo-RL's"])
@pytest.mark.parametrize("part", ["", "training_info.json"], ids=["directory", "file"])
def test_one_checkpoint_without_permission_is_marked_and_the_rest_goes_on(run, ours, part):
    folder = scene.add(run, lambda _: None, ours=ours)
    problem = "training_info.json cannot be opened" if ours and part else "cannot be read"
    with mode(folder / part, 0):
        scene.check_answers(run, best=BEST, latest=LATEST)
        shutil.rmtree(run / "step_2")
        assert ckptdb("-C", run, "reconcile").code == 3
        said = ckptdb("-C", run, "check")
        assert (said.code, said.err) == (3, "")
        assert f"step {BAD}: unreadable: " in said.out
        assert f"{problem} (Permission denied)" in said.out
        with Registry.open(run) as registry:
            assert [cp.step for cp in registry.checkpoints(status="deleted")] == [2]
        scene.save(run, 20, 0.75, keep_top_k=1)
        assert {p.name for p in run.glob("step_*")} == {"step_4", "step_20", f"step_{BAD}"}
    assert ckptdb("-C", run, "accept", 2).code == 0
    assert ckptdb("-C", run, "reconcile").code == 0
    scene.check_answers(run, best=BAD, latest=20)


def test_a_checkpoint_that_loses_its_permission_keeps_its_place_in_the_index(run):
    with mode(run / f"step_{BEST}", 0):
        assert ckptdb("-C", run, "reconcile").code == 3
        listed = json.loads(ckptdb("-C", run, "ls", "-o", "json").out)
        problems = {row["step"]: row["problem"] for row in listed}
        assert problems == {2: None, 4: "step_4 cannot be read (Permission denied)", 6: None}
        scene.check_answers(run, best=2, latest=LATEST)
    # Nobody has to reconcile: as long as something is unreadable, every question looks again.
    scene.check_answers(run, best=BEST, latest=LATEST)
    assert "no drift" in ckptdb("-C", run, "check").out


@pytest.mark.parametrize("bits", [0, 0o300], ids=["000", "not to be listed"])
def test_a_run_that_may_not_be_listed_is_not_read_as_deleted(run, bits):
    with mode(run, bits):
        said = ckptdb("-C", run.parent, "reconcile")
        assert said.code in (1, 4)
        assert str(run) in said.err
        assert "Permission denied" in said.err
        with scene.make_manager(run) as manager, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if bits:
                # Nothing has changed since it was last looked at, and that is all it takes.
                assert manager.get_latest_checkpoint_path() == str(run / f"step_{LATEST}")
            else:
                with pytest.raises(PermissionError, match="results/run"):
                    manager.get_latest_checkpoint_path()
        check_nothing_gone(run.parent)
    scene.check_answers(run, best=BEST, latest=LATEST)


@pytest.mark.parametrize("what", ["run", "its memory", "catalog's folder", "everything"])
def test_what_may_only_be_read_is_answered_from(run, what):
    places = {
        "run": [run], "its memory": [run / ".ckptdb"], "catalog's folder": [run.parent / ".ckptdb"],
    }  # fmt: skip
    chosen = places.get(what) or [p for found in places.values() for p in found]
    for place in chosen:
        place.chmod(0o555)
    try:
        with scene.powerless():
            before = scene.snapshot(run)
            scene.check_answers(run, best=BEST, latest=LATEST)
            assert ckptdb("-C", run, "check").code == 0
            assert scene.snapshot(run) == before
            if what in ("run", "everything"):
                with pytest.raises(OSError, match="ermission denied"):
                    scene.save(run, 20, 0.01, keep_top_k=1)
                assert {p.name for p in run.glob("step_*")} == {f"step_{s}" for s in GOOD}
            elif what == "its memory":
                with pytest.warns(UserWarning, match="Failed to prune .* The new .* is safe"):
                    scene.save(run, 20, 0.01, keep_top_k=1)
                assert {p.name for p in run.glob("step_*")} == {f"step_{s}" for s in (*GOOD, 20)}
    finally:
        for place in chosen:
            place.chmod(0o755)
    scene.save(run, 21, 0.01)
    scene.check_answers(run, best=21, latest=21)


@needs_root
def test_a_foreign_owner_changes_nothing_that_may_be_read(run):
    for path in (run / f"step_{BEST}", *(run / f"step_{BEST}").iterdir()):
        os.chown(path, 12345, 12345)
    with scene.powerless():
        scene.check_answers(run, best=BEST, latest=LATEST)
        assert "no drift" in ckptdb("-C", run, "check").out
        # A directory of somebody else's may not be moved: it stays, and keeps no other.
        with pytest.warns(UserWarning, match="Failed to prune old checkpoints"):
            scene.save(run, 20, 0.01, keep_top_k=1)
        scene.check_answers(run, best=20, latest=20)
    with Registry.open(run) as registry:
        assert {cp.step for cp in registry.checkpoints(status="final")} == {BEST, 20}
        assert {cp.step for cp in registry.checkpoints(status="deleted")} == {2, 6}


def test_an_immutable_file_stays_in_the_trash_and_training_goes_on(run):
    victim = run / "step_2" / "model.bin"
    with immutable(victim, below=run):
        with pytest.warns(UserWarning, match="Failed to prune old checkpoints"):
            scene.save(run, 20, 0.01, keep_top_k=1)
        scene.check_answers(run, best=20, latest=20)
        said = ckptdb("-C", run, "reconcile")
        assert (said.code, "not permitted" in said.err) == (4, True)
    assert ckptdb("-C", run, "gc").code == 0
    assert list((run / ".ckptdb" / "trash").iterdir()) == []


# --- what is not a deletion ---------------------------------------------------------------------


@contextmanager
def missing(run: Path):
    aside = run.parent.parent / "aside"
    run.rename(aside)
    try:
        yield
    finally:
        if run.exists():
            run.rmdir()
        aside.rename(run)


@contextmanager
def unmounted(run: Path):
    with missing(run):
        run.mkdir()
        yield


@contextmanager
def emptied(run: Path):
    aside = run.parent.parent / "aside"
    aside.mkdir()
    for path in [p for p in run.parent.iterdir() if p.name != ".ckptdb"]:
        path.rename(aside / path.name)
    try:
        yield
    finally:
        for path in aside.iterdir():
            path.rename(run.parent / path.name)


def mounted_over(run: Path):
    return mounted(run, "-t", "tmpfs", "none")


@contextmanager
def without_run_json(run: Path):
    file = run / ".ckptdb" / "run.json"
    file.rename(file.with_name("aside"))
    for step in GOOD:
        (run / f"step_{step}").rename(run / f".aside_{step}")
    try:
        yield
    finally:
        file.with_name("aside").rename(file)
        for step in GOOD:
            (run / f".aside_{step}").rename(run / f"step_{step}")


@contextmanager
def permission_lost(run: Path):
    with mode(run, 0):
        yield


NOT_A_DELETION = {
    "run directory missing": (missing, "is not there; its history is kept"),
    "empty directory in its place": (unmounted, "Mount or restore it, or `ckptdb forget` the run"),
    "root emptied": (emptied, "is not there; its history is kept"),
    "another file system mounted over it": (mounted_over, "Mount or restore it"),
    "run.json gone": (without_run_json, "has lost its .ckptdb/run.json"),
    "permission lost": (permission_lost, "Permission denied"),
}


@pytest.mark.parametrize(
    ("hide", "sentence"),
    [
        pytest.param(*case, id=name, marks=needs_root if case[0] is mounted_over else ())
        for name, case in NOT_A_DELETION.items()
    ],
)
def test_what_cannot_be_seen_was_not_deleted(run, hide, sentence):
    before = scene.snapshot(run)
    with hide(run):
        for _ in range(2):
            said = ckptdb("-C", run.parent, "reconcile")
            assert said.code in (1, 4)
            assert sentence in said.err, said
        with Registry.open(run.parent) as registry:
            assert registry.checkpoints(status="deleted") == ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if hide is not permission_lost:
                with scene.make_manager(run, catalog=run.parent) as manager:
                    assert manager.get_latest_checkpoint_path() is None
    after = scene.snapshot(run)
    assert after.keys() == before.keys()
    assert ckptdb("-C", run.parent, "reconcile").code == 0
    check_nothing_gone(run.parent)
    scene.check_answers(run, best=BEST, latest=LATEST)


# --- the machine --------------------------------------------------------------------------------


def test_without_file_descriptors_nothing_is_concluded(run):
    shutil.rmtree(run / "step_2")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Registry.open(run.parent) as registry, scene.make_manager(run) as manager:
        registry.checkpoints(run="run")
        used = max(map(int, os.listdir("/proc/self/fd")))
        failed = 0
        for most in range(5, used + 10):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            try:
                for ask in (manager.get_latest_checkpoint_path, registry.reconcile):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        ask()
            except Exception as error:  # noqa: BLE001  # which one depends on who needs the last
                assert "Too many open files" in str(error) or "unable to open" in str(error)  # noqa: PT017
                failed += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert failed > 1, "a limit that nothing meets proves nothing"
    gone = {2}
    with Registry.open(run.parent) as registry:
        registry.reconcile()
        assert {cp.step for cp in registry.checkpoints(status="deleted")} == gone
    scene.check_answers(run, best=BEST, latest=LATEST)


def test_a_clock_that_goes_back_hides_no_change(run):
    future = time.time() + 3 * 86400
    for path in (*run.rglob("*"), run):
        os.utime(path, (future, future), follow_symlinks=False)
    assert ckptdb("-C", run, "reconcile").code == 0
    scene.check_answers(run, best=BEST, latest=LATEST)
    scene.save(run, 20, 0.01)
    scene.check_answers(run, best=20, latest=20)
    shutil.rmtree(run / "step_20")
    scene.check_answers(run, best=BEST, latest=LATEST)
    with Registry.open(run) as registry:
        registry.pin(None, 2, note="before")
        journal.append(
            run / ".ckptdb",
            [Fact("2020-01-01T00:00:00.000Z", "note", registry.get(2).uuid, {"text": "x"})],
            make_durable=False,
        )
    # The last line wins, whatever time it names.
    assert json.loads(ckptdb("-C", run, "show", 2, "-o", "json").out)["notes"] == "x"
    assert ckptdb("-C", run, "accept", 20).code == 0
    assert ckptdb("-C", run, "reconcile").code == 0
    assert "no drift" in ckptdb("-C", run, "check").out


def test_a_trash_on_another_file_system_is_done_without(run, tmp_path):
    trash = run / ".ckptdb" / "trash"
    with mounted(trash, "-t", "tmpfs", "none"):
        with pytest.warns(UserWarning, match=r"Failed to prune .*cross-device.*undelete"):
            scene.save(run, 19, 0.01, keep_top_k=1, trash_ttl="1 day")
        assert {p.name for p in run.glob("step_*")} == {f"step_{s}" for s in (*GOOD, 19)}
        scene.save(run, 20, 0.01, keep_top_k=1)
        assert {p.name for p in run.glob("step_*")} == {"step_20"}
        assert ckptdb("-C", run, "reconcile").code == 0
        assert "no drift" in ckptdb("-C", run, "check").out
        check = {row["step"] for row in json.loads(ckptdb("-C", run, "ls", "-o", "json").out)}
        assert check == {20}
    scene.save(run, 21, 0.02, keep_top_k=1)
    assert {p.name for p in run.glob("step_*")} == {"step_20", "step_21"}


def test_a_file_system_that_flushes_no_directory_is_trusted_with_names(run, monkeypatch):
    real, refused = os.fsync, []

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            refused.append(handle)
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(fsutil.os, "fsync", fsync)
    scene.save(run, 20, 0.01, durability="full", keep_top_k=1)
    assert refused
    scene.check_answers(run, best=20, latest=20)


def test_the_root_of_another_user_is_not_ours_to_write_to(run, monkeypatch):
    monkeypatch.setattr(identity.os, "geteuid", lambda: 4711)
    assert root_marker.find_root(run) in (run.parent, None)
    scene.check_answers(run, best=BEST, latest=LATEST)
