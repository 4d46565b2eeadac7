"""A full disk can be freed: deleting needs neither space nor a catalog that works."""

import json
import os
import sqlite3
import subprocess
import warnings
from contextlib import closing, contextmanager, suppress

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog import engine
from ckptdb.disk import identity, scan
from ckptdb.disk.publish import Publisher
from ckptdb.retention import Policy

PAGE = 4096
BYTES = 200_000
LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.3}


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 3 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "ckptdb-test", mount]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        yield mount
    finally:
        if subprocess.run(["umount", mount], check=False).returncode:
            subprocess.run(["umount", "--lazy", mount], check=True)
            pytest.fail("somebody still has a file open")


def open_manager(run, **options):
    return CheckpointManager({"checkpoint_dir": run, "metric_name": "loss", **options})


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
        identity.mark_root(small_disk / "results")
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


@contextmanager
def warned():
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught]


def check(run, live, reasons):
    """The disk, the journal and the index say the same, and a rebuild says it too."""
    assert sorted(step for step, _ in scan.list_finals(run)) == live
    assert scan.list_trash(run) == ()
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


def test_a_save_that_fills_the_disk_gives_back_what_it_took(full, small_disk, struck):
    (small_disk / "ballast").unlink()
    fill(small_disk / "ballast")
    with (small_disk / "ballast").open("r+b") as ballast:
        ballast.truncate((small_disk / "ballast").stat().st_size - 20 * PAGE)
    with (
        open_manager(full) as manager,
        warned(),
        pytest.raises(OSError, match="No space left"),
        manager.save(9, {"loss": 0.2}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * BYTES)
    assert struck == [9]
    assert not folder.exists()
    assert scan.list_trash(full) == ()
    assert free_bytes(full) > 10 * PAGE
    check(full, [1, 2, 3, 4], {9: "discarded"})


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


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE", "broken"])
def test_without_a_catalog_that_works_the_files_decide(run, how):
    with spoilt(run / ".ckptdb" / "catalog.db", how), warned() as texts:
        with Registry.open(run) as registry:
            registry.gc(Policy(keep_top_k=1))
        assert [step for step, _ in scan.list_finals(run)] == [1, 5, 6]
        with Registry.open(run) as registry:
            registry.remove([6])
    assert len(texts) == 2, texts
    assert all("What goes is decided by the files" in text for text in texts)
    with Registry.open(run) as registry:
        assert registry.best().step == 5
        assert registry.get(6).deleted_reason == "by hand"
        assert registry.get(2).deleted_reason.startswith("retention: ")
