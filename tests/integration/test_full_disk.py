"""A full disk can be freed: deleting needs neither space nor a catalog that works."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress

import pytest
from tests.support import mounts
from tests.support.warned import warned

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog import engine
from ckptdb.disk import read_trash, root_marker, run_listing
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import NotEnoughSpace
from ckptdb.retention import Policy

PAGE = 4096
BYTES = 200_000
EXTRA = len(json.dumps({"loss": 0.5}))
LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.3}


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 3 MiB."""
    with mounts.small_disk(tmp_path / "small", "3m") as mount:
        yield mount


def open_manager(run, **options):
    return CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False, **options}
    )


def make_run(run):
    with open_manager(run) as manager:
        for step, loss in LOSSES.items():
            with manager.save(step, {"loss": loss}) as folder:
                (folder / "model.bin").write_bytes(b"m" * BYTES)


@pytest.fixture(params=["a run of its own", "below a root"])
def full(request, small_disk):
    """Return a run with four checkpoints on a disk without a free byte."""
    run = small_disk / "results" / "run"
    if request.param == "below a root":
        (small_disk / "results").mkdir()
        root_marker.mark_root(small_disk / "results")
    make_run(run)
    with Registry.open(run) as registry:
        registry.reconcile()
    fill(small_disk / "ballast")
    return run


@pytest.fixture
def struck(monkeypatch):
    """List what was freed before it could be recorded."""
    found = []
    real = Publisher._record_freed

    def record(self, watch, aside, facts):
        found.extend(left.step for left in aside)
        real(self, watch, aside, facts)

    monkeypatch.setattr(Publisher, "_record_freed", record)
    return found


def fill(file):
    with file.open("ab", buffering=0) as ballast, suppress(OSError):
        while ballast.write(b"\0" * PAGE):
            pass
    assert os.statvfs(file.parent).f_bavail == 0


def free_bytes(run):
    found = os.statvfs(run)
    return found.f_bavail * found.f_bsize


def check(run, live, reasons):
    """The disk, the journal and the index say the same, and a rebuild says it too."""
    assert steps(run) == live
    assert read_trash.list_trash(run) == ()
    with Registry.open(run) as registry:
        assert [cp.step for cp in registry.checkpoints(status="final")] == live
        gone = {cp.step: cp.deleted_reason for cp in registry.checkpoints(status="deleted")}
        assert {step: gone[step].partition(":")[0] for step in gone} == reasons
        file = registry.location.file
        registry.reconcile()
        assert not registry.reconcile().has_drift
    file.unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert gone == {cp.step: cp.deleted_reason for cp in registry.checkpoints(status="deleted")}


@pytest.mark.slow
def test_gc_frees_a_full_disk_and_records_why(full, struck):
    with Registry.open(full) as registry, warned() as texts:
        (collected,) = registry.gc(Policy(keep_top_k=1))
    assert len(texts) <= 1, texts
    assert struck == [1, 3]
    assert collected.freed_bytes > 2 * BYTES
    assert free_bytes(full) > 2 * BYTES - 50_000
    check(full, [2, 4], {1: "retention", 3: "retention"})


def test_rm_frees_a_full_disk_even_of_what_is_pinned(full, small_disk, struck):
    (small_disk / "ballast").unlink()
    with Registry.open(full) as registry:
        registry.pin(None, 1)
    journal = full / ".ckptdb" / "journal.jsonl"
    with journal.open("a") as file:
        file.write("\n" * (-journal.stat().st_size % PAGE))  # not one more line fits its page
    fill(small_disk / "ballast")
    with Registry.open(full) as registry, warned() as texts:
        registry.remove([1, 3], force=True)
    assert struck == [1, 3]
    assert len(texts) <= 1, texts
    assert free_bytes(full) > 2 * BYTES - 50_000
    check(full, [2, 4], {1: "by hand", 3: "by hand"})
    with Registry.open(full) as registry:
        assert not registry.get(1).pinned


def test_a_dry_run_on_a_full_disk_says_the_same(full):
    with Registry.open(full) as registry, warned():
        planned = registry.gc(Policy(keep_top_k=1), dry_run=True)[0].as_dict()
        done = registry.gc(Policy(keep_top_k=1))[0].as_dict()
    assert (planned.pop("applied"), done.pop("applied")) == (False, True)
    assert planned == done


def test_a_manager_prunes_on_a_full_disk(full, struck):
    with open_manager(full, keep_top_k=1) as manager, warned():
        manager.remove_old_checkpoints()
    assert struck == [1, 3]
    check(full, [2, 4], {1: "retention", 3: "retention"})


@pytest.mark.slow
def test_a_save_that_fills_the_disk_gives_back_what_it_took(full, small_disk, struck):
    leave(small_disk, 20)
    with (
        open_manager(full, check_space=False) as manager,
        warned(),
        pytest.raises(OSError, match="No space left"),
        manager.save(9, {"loss": 0.2}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * BYTES)
    assert struck == [9]
    assert not folder.exists()
    assert read_trash.list_trash(full) == ()
    assert free_bytes(full) > 10 * PAGE
    check(full, [1, 2, 3, 4], {9: "discarded"})


# --- a disk with too little for another checkpoint ----------------------------------------------


def leave(small_disk, pages):
    """Leave so many pages of the disk free."""
    (small_disk / "ballast").unlink(missing_ok=True)
    fill(small_disk / "ballast")
    with (small_disk / "ballast").open("r+b") as ballast:
        ballast.truncate((small_disk / "ballast").stat().st_size - pages * PAGE)


def tree(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@pytest.mark.slow
def test_a_save_that_does_not_fit_is_refused_in_one_sentence_before_it_is_begun(full, small_disk):
    leave(small_disk, 20)
    before = tree(full)
    with open_manager(full) as manager:
        with pytest.raises(NotEnoughSpace) as caught:
            manager.init_tmp_checkpoint(9, {"loss": 0.2})
        assert str(caught.value) == (
            f"There is no space for step 9: recent checkpoints of {full} take up to 200.0 kB, and "
            f"{free_bytes(full) / 1000:.1f} kB are free there with the trash emptied; nothing was "
            "written. Free some (`ckptdb gc` shows what could go) and save again, or pass "
            "check_space=False if this one takes less."
        )
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.free_bytes < caught.value.needed_bytes == BYTES + EXTRA
        assert tree(full) == before
        leave(small_disk, 100)
        with manager.save(9, {"loss": 0.2}) as folder:
            (folder / "model.bin").write_bytes(b"m" * BYTES)
    check(full, [1, 2, 3, 4, 9], {})


def test_a_training_process_gets_its_sentence_and_leaves_what_it_had(small_disk):
    loop = """
import sys, warnings
from ckptdb import CheckpointManager
with CheckpointManager({"checkpoint_dir": "run"}) as manager:
    for step in range(1, 100):
        if manager.should_save(step):
            with manager.save(step, {"loss": 1 / step}) as folder:
                (folder / "model.bin").write_bytes(bytes(400_000))
            print(step, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", loop], cwd=small_disk, capture_output=True, text=True, check=False
    )
    saved = [int(line) for line in done.stdout.split()]
    assert done.returncode == 1
    assert saved == list(range(1, len(saved) + 1))
    assert 3 <= len(saved) <= 7
    said = done.stderr.splitlines()[-1]
    assert f"NotEnoughSpace: There is no space for step {len(saved) + 1}: recent" in said
    assert "nothing was written" in said
    assert sorted(os.listdir(small_disk / "run")) == [".ckptdb", *(f"step_{n}" for n in saved)]


def test_condemned_bytes_make_room_for_a_save(full, small_disk):
    (small_disk / "ballast").unlink()
    retired = [Deletion(1, uuid_of(full, 1), "retention: by hand")]
    Publisher(full).retire(retired)  # by somebody who died before removing the bytes
    leave(small_disk, 20)
    with open_manager(full) as manager, manager.save(9, {"loss": 0.2}) as folder:
        assert read_trash.list_trash(full) == ()
        (folder / "model.bin").write_bytes(b"m" * BYTES)
    check(full, [2, 3, 4, 9], {1: "retention"})


@pytest.mark.slow
def test_what_a_killed_save_left_makes_room_for_the_next(full, small_disk):
    (small_disk / "ballast").unlink()
    killed = """
import os, signal
from ckptdb import CheckpointManager
manager = CheckpointManager({"checkpoint_dir": "results/run"})
folder = manager.init_tmp_checkpoint(8, {})
(folder / "model.bin").write_bytes(bytes(200_000))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], cwd=small_disk, check=False).returncode
    leave(small_disk, 20)
    gone = []
    with (
        open_manager(full, on_deleted=gone.append) as manager,
        manager.save(9, {"loss": 0.2}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * BYTES)
    assert [checkpoint.step for checkpoint in gone] == [8]
    check(full, [1, 2, 3, 4, 9], {8: "discarded"})


def test_what_the_limits_do_not_keep_makes_room_for_a_save(full, small_disk):
    leave(small_disk, 20)
    with open_manager(full, keep_top_k=2) as manager, manager.save(9, {"loss": 0.2}) as folder:
        assert steps(full) == [2, 4]
        (folder / "model.bin").write_bytes(b"m" * BYTES)
    check(full, [2, 9], dict.fromkeys([1, 3, 4], "retention"))


def test_a_save_waits_for_the_removal_that_makes_room_for_it(full, small_disk):
    """With saves in the background the older ones go only when the next is about to begin."""
    leave(small_disk, 90)
    gate = threading.Event()
    with open_manager(full, keep_top_k=1) as manager:
        folder = manager.init_tmp_checkpoint(9, {"loss": 0.01})
        (folder / "model.bin").write_bytes(b"m" * BYTES)
        manager.begin_finalization(folder, lambda: gate.wait(60))
        waits = threading.Timer(0.2, gate.set)
        waits.start()
        folder = manager.init_tmp_checkpoint(10, {"loss": 0.02})
        assert steps(full) == [9]
        (folder / "model.bin").write_bytes(b"m" * BYTES)
        manager.finalize_checkpoint(folder)
    check(full, [9, 10], dict.fromkeys(LOSSES, "retention"))


def test_a_save_that_takes_less_than_others_may_be_made_all_the_same(full, small_disk):
    leave(small_disk, 20)
    with open_manager(full, check_space=False) as manager, manager.save(9, {"loss": 0.2}):
        pass
    check(full, [1, 2, 3, 4, 9], {})


def test_where_no_checkpoint_has_been_nothing_is_refused(small_disk):
    leave(small_disk, 60)
    with open_manager(small_disk / "run") as manager, manager.save(1, {"loss": 0.5}):
        pass
    assert steps(small_disk / "run") == [1]


def uuid_of(run, step):
    return json.loads((run / f"step_{step}" / "manifest.json").read_text())["uuid"]


def steps(run):
    return sorted(step for step, _ in run_listing.list_finals(run))


# --- without a catalog that works ---------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """Return a run with a catalog that does not know of its best checkpoint, 5."""
    run = tmp_path / "run"
    make_run(run)
    with Registry.open(run) as registry:
        registry.reconcile()
        registry.pin(None, 1)
    folder = run / "step_5"
    folder.mkdir()
    (folder / "training_info.json").write_text(json.dumps({"loss": 0.01}))
    save_six(run)
    return run


def save_six(run):
    folder = run / "step_6"
    folder.mkdir()
    (folder / "training_info.json").write_text(json.dumps({"loss": 0.8}))


@pytest.fixture
def _impatient(monkeypatch):
    real = engine.Database.open.__func__

    def impatient(cls, location, **options):
        return real(cls, location, **{**options, "timeout_seconds": 0.05})

    monkeypatch.setattr(engine.Database, "open", classmethod(impatient))


@contextmanager
def spoilt(file, how):
    if how == "broken":
        whole = file.read_bytes()
        file.write_bytes(b"no database\n" * 1000)
        yield
        file.write_bytes(whole)
        return
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        yield
        other.execute("ROLLBACK")


@pytest.mark.slow
@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE", "broken"])
def test_without_a_catalog_that_works_the_files_decide(run, how):
    with spoilt(run / ".ckptdb" / "catalog.db", how), warned() as texts:
        with Registry.open(run) as registry:
            registry.gc(Policy(keep_top_k=1))
        assert [step for step, _ in run_listing.list_finals(run)] == [1, 5, 6]
        with Registry.open(run) as registry:
            registry.remove([6])
    assert len(texts) == 2, texts
    assert all("What goes is decided by the files" in text for text in texts), texts
    with Registry.open(run) as registry:
        assert registry.best().step == 5
        assert registry.get(6).deleted_reason == "by hand"
        assert registry.get(2).deleted_reason.startswith("retention: ")
