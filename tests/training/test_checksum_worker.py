"""Checksums: made behind the loop, compared by whoever verifies, and never in the way."""

import errno
import json
import os
import sys
import threading

import pytest
from tests.support.checksummed import DIFFERS, LOSS, flip, open_manager, save, save_all
from tests.support.warned import warned

from ckptdb import Registry
from ckptdb.disk import (
    checksums,
    fsutil,
    manifest,
    read_checkpoint,
)
from ckptdb.disk.publish import Publisher
from ckptdb.errors import ChecksumsUnavailable, InvalidConfig


@pytest.fixture
def run(tmp_path):
    return tmp_path / "results" / "run"


def settle(run):
    for path in (*run.rglob("*"), run):
        found = path.lstat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 10**10), follow_symlinks=False)


# --- made ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_every_published_file_has_a_checksum_after_shutdown(run, background):
    with open_manager(run, durability="full") as manager:
        staged = manager.init_tmp_checkpoint(1, {LOSS: 1}, {"lr": 1})
        (staged / "model.bin").write_bytes(b"m")
        if background:
            manager.begin_finalization(staged)
        else:
            manager.finalize_checkpoint(staged)
    found = manifest.find(run / "step_1")
    assert found.checksums == checksums.compute(run / "step_1", found.files)
    assert set(found.checksums) == {"model.bin", "training_info.json", "config.yaml"}
    assert sorted(os.listdir(run / "step_1")) == [
        "config.yaml", "manifest.json", "model.bin", "training_info.json",
    ]  # fmt: skip


def test_the_checkpoint_is_there_before_its_files_are_read(run, monkeypatch):
    read, real = threading.Event(), checksums.compute
    monkeypatch.setattr(checksums, "compute", lambda *given: read.wait(30) and real(*given))
    with open_manager(run) as manager:
        save(manager, 1)
        assert manager.get_latest_checkpoint_path() == str(run / "step_1")
        assert manifest.find(run / "step_1").checksums == {}
        read.set()
    assert manifest.find(run / "step_1").checksums


def test_without_being_asked_for_there_are_none(run):
    with open_manager(run, checksums=False) as manager:
        save(manager, 1)
    assert "checksums" not in json.loads((run / "step_1" / "manifest.json").read_text())


def test_one_that_was_replaced_or_pruned_while_it_was_read_is_let_be(run, monkeypatch):
    read, real = threading.Event(), checksums.compute
    monkeypatch.setattr(checksums, "compute", lambda *given: read.wait(30) and real(*given))
    with warned() as texts, open_manager(run, keep_top_k=0) as manager:
        save(manager, 1)
        save(manager, 2)
        save(manager, 3, b"first")
        save(manager, 3, b"again")
        read.set()
    assert texts == []
    assert [path.name for path in run.glob("step_*")] == ["step_3"]
    found = manifest.find(run / "step_3")
    assert found.checksums == checksums.compute(run / "step_3", found.files)


def test_a_crash_before_leaves_a_checkpoint_without(run, monkeypatch):
    with warned() as texts, monkeypatch.context() as patch, open_manager(run) as manager:
        real = fsutil.write_json

        def write(path, content, **options):
            if "checksums" in content:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(path, content, **options)

        patch.setattr(fsutil, "write_json", write)
        save(manager, 1)
        save(manager, 2)
    assert [text.partition(":")[0] for text in texts] == [
        f"{run}/step_1 is saved, and has no checksums"
    ]
    with open_manager(run) as manager:
        assert manager.resume(checksums=True).step == 2
    with Registry.open(run) as registry:
        assert not any(cp.problem for cp in registry.verify())


def test_the_index_is_content_with_them(run, monkeypatch):
    """The manifest is replaced after the checkpoint was indexed: no drift, and nothing to read."""
    with open_manager(run, checksums=False) as manager:
        save(manager, 1)
        save(manager, 2)
    settle(run)
    with Registry.open(run) as registry:
        registry.reconcile()
        uuid = registry.get(2).uuid
        sums = checksums.compute(run / "step_2", manifest.find(run / "step_2").files)
        assert Publisher(run).add_checksums(2, uuid, sums)
        assert not Publisher(run).add_checksums(2, registry.get(1).uuid, sums)
        assert not Publisher(run).add_checksums(7, uuid, sums)
        found = (run / "step_2").lstat()
        os.utime(run / "step_2", ns=(found.st_atime_ns, found.st_mtime_ns - 5 * 10**9))

        reads, real = [], read_checkpoint.read

        def read(who, path, step, **options):
            reads.append(step)
            return real(who, path, step, **options)

        monkeypatch.setattr(read_checkpoint, "read", read)
        assert registry.best(LOSS, mode="min").step == 2
        assert reads == []
        assert not registry.reconcile().has_drift
        assert sorted(reads) == [1, 2]  # it trusts no index
        reads.clear()
        assert registry.best(LOSS, mode="min").step == 2
        assert reads == []


def test_without_the_library_a_manager_that_wants_them_is_not_made(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ChecksumsUnavailable, match="pip install"):
        open_manager(run)
    with open_manager(run, checksums=False) as manager:
        save(manager, 1)
        with pytest.raises(ChecksumsUnavailable):
            manager.resume(checksums=True)
        assert manager.resume().step == 1
    with pytest.raises(InvalidConfig, match="checksums must be a bool"):
        open_manager(run, checksums="yes")


# --- a model that stands still ------------------------------------------------------------------


def test_a_payload_like_the_one_before_is_told_once(run):
    with warned() as texts, open_manager(run) as manager:
        for step, content in ((1, b"a"), (2, b"b"), (3, b"b"), (4, b"b"), (5, b"c"), (6, b"c")):
            save(manager, step, content)
    told = "holds bit for bit what step"
    assert texts == [
        f"Step {step} {told} {step - 1} holds; is the model being updated?" for step in (3, 6)
    ]


def test_after_resuming_the_first_is_compared_with_what_training_continued_from(run):
    with open_manager(run) as manager:
        save(manager, 1, b"a")
    with warned() as texts, open_manager(run) as manager:
        assert manager.resume().step == 1
        save(manager, 2, b"a")
    assert texts == ["Step 2 holds bit for bit what step 1 holds; is the model being updated?"]


def test_a_checkpoint_without_a_payload_is_like_no_other(run):
    with warned() as texts, open_manager(run) as manager:
        for step in (1, 2):
            manager.finalize_checkpoint(manager.init_tmp_checkpoint(step, {LOSS: 1}))
    assert texts == []


def test_resuming_reads_the_files_when_it_is_asked_to(run):
    save_all(run)
    flip(run / "step_3" / "model.bin")
    with warned() as texts, open_manager(run) as manager:
        assert manager.resume().step == 3
        assert manager.resume(checksums=True).step == 2
        assert manager.get_best_checkpoint_path() == str(run / "step_2")
    assert texts == [f"Step 3 is passed over ({run}/step_3): {DIFFERS}"]
