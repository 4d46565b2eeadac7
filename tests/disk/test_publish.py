from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core import process
from ckptdb.core.facts import Fact
from ckptdb.core.observed import Leftover, Writer
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    journal,
    lock,
    manifest,
    observation,
    paths,
    run_stamp,
    tree_removal,
    writer,
)
from ckptdb.disk.fsutil import ExchangeUnsupported
from ckptdb.disk.lock import run_lock
from ckptdb.disk.manifest import Compared
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import (
    DeletionIncomplete,
    NoCheckpointHere,
    RunLocked,
    SaveFailed,
    StepInUse,
    StepTaken,
)
from ckptdb.reconcile.run import reconcile_run

NOW = 1_795_363_284.0
AT = "2026-11-22T16:01:24.000Z"


def refuse_flags(source, target, flags):
    raise ExchangeUnsupported


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    (tmp_path / "run").mkdir()
    return Publisher(tmp_path / "run", metric=("loss", False), clock=lambda: NOW)


@pytest.fixture(params=["native", "fallback"])
def renaming(request, monkeypatch):
    if request.param == "fallback":
        monkeypatch.setattr(fsutil, "_renameat2", refuse_flags)
    return request.param


def stage(publisher: Publisher, step: int, loss: float = 0.5) -> Path:
    path = publisher.stage(step, json.dumps({"loss": loss}).encode(), b"lr: 0.1\n").checkpoint.path
    (path / "policy").mkdir()
    (path / "policy" / "model.pt").write_bytes(b"weights of %d, loss %r" % (step, loss))
    return path


def save(publisher: Publisher, step: int, loss: float = 0.5):
    return publisher.publish(stage(publisher, step, loss)).checkpoint


def facts(publisher: Publisher):
    who = identity.identify(publisher.directory)
    return journal.read(identity.hidden(publisher.directory), who.run)


def trash(publisher: Publisher) -> list[str]:
    folder = publisher.directory / ".ckptdb" / "trash"
    return sorted(os.listdir(folder)) if folder.exists() else []


def listing(publisher: Publisher) -> list[str]:
    return sorted(name for name in os.listdir(publisher.directory) if name != ".ckptdb")


def loss_of(path: Path) -> float:
    return json.loads((path / "training_info.json").read_text())["loss"]


def put_by_nemo_rl(directory: Path, step: int, loss: float = 0.5) -> Path:
    """What NeMo-RL's own manager leaves: no manifest."""
    path = directory / f"step_{step}"
    (path / "policy").mkdir(parents=True)
    (path / "training_info.json").write_text(json.dumps({"loss": loss}))
    (path / "config.json").write_text("{}")
    (path / "policy" / "model.pt").write_bytes(b"weights")
    return path


# --- staging ----------------------------------------------------------------------------


def test_staging_makes_a_tmp_with_its_metadata(publisher):
    staged = publisher.stage(5, b'{"loss": 0.5}', b"lr: 0.1\n")

    found = staged.checkpoint
    assert found.path == publisher.directory / "tmp_step_5"
    assert (found.status, found.step, found.created_at) == ("tmp", 5, AT)
    assert (found.metrics, found.size_bytes) == ({"loss": 0.5}, None)
    assert (staged.gone, staged.adopted) == ((), ())
    assert sorted(os.listdir(found.path)) == [".writer.json", "config.yaml", "training_info.json"]
    assert (found.path / "training_info.json").read_bytes() == b'{"loss": 0.5}'
    by = writer.find(found.path)
    assert by is not None
    assert by.is_me
    assert by.uuid == found.uuid


def test_a_config_is_optional(publisher):
    path = publisher.stage(5, b"{}", None).checkpoint.path
    assert sorted(os.listdir(path)) == [".writer.json", "training_info.json"]


def test_an_incomplete_leftover_goes_to_the_trash_with_a_record(publisher):
    first = stage(publisher, 5, 0.1)
    uuid = writer.find(first).uuid

    staged = publisher.stage(5, b'{"loss": 0.2}', None)

    assert [checkpoint.uuid for checkpoint in staged.gone] == [uuid]
    assert trash(publisher) == [f"step_5.{uuid}"]
    gone = facts(publisher).gone[uuid]
    assert gone.deleted_reason == "discarded: left unfinished, the step was saved again"
    assert loss_of(staged.checkpoint.path) == 0.2


def test_a_complete_leftover_is_published_first(publisher):
    path = stage(publisher, 5, 0.1)
    sealed = publisher._seal(publisher.establish(), path, 5, None).manifest

    staged = publisher.stage(5, b'{"loss": 0.2}', None)

    assert [checkpoint.uuid for checkpoint in staged.adopted] == [sealed.uuid]
    assert loss_of(publisher.directory / "step_5") == 0.1
    assert listing(publisher) == ["step_5", "tmp_step_5"]
    assert facts(publisher).gone == {}


def test_a_complete_leftover_that_replaces_goes_first_and_the_old_one_is_told(publisher):
    old = save(publisher, 5, 0.1)
    sealed = publisher._seal(publisher.establish(), stage(publisher, 5, 0.2), 5, None).manifest

    staged = publisher.stage(5, b'{"loss": 0.3}', None)

    assert [checkpoint.uuid for checkpoint in staged.adopted] == [sealed.uuid]
    assert [checkpoint.uuid for checkpoint in staged.gone] == [old.uuid]


def test_a_complete_leftover_of_something_unrelated_is_discarded(publisher):
    sealed = publisher._seal(publisher.establish(), stage(publisher, 5, 0.1), 5, None).manifest
    put_by_nemo_rl(publisher.directory, 5)

    staged = publisher.stage(5, b'{"loss": 0.3}', None)

    assert [checkpoint.uuid for checkpoint in staged.gone] == [sealed.uuid]
    assert staged.adopted == ()


def test_what_was_replaced_before_a_crash_is_put_away_without_a_second_record(publisher):
    old = save(publisher, 5, 0.1)
    sealed = publisher._seal(publisher.establish(), stage(publisher, 5, 0.2), 5, None).manifest
    fsutil.exchange(publisher.directory / "tmp_step_5", publisher.directory / "step_5")

    staged = publisher.stage(5, b"{}", None)

    assert (staged.gone, staged.adopted) == ((), ())
    assert trash(publisher) == [f"step_5.{old.uuid}"]
    assert (
        checkpoint_identity.find_uuid(publisher.establish(), publisher.directory / "step_5", 5)
        == sealed.uuid
    )


@pytest.fixture
def somebody():
    """Another living process."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def written_by(path: Path, pid: int, **more: object) -> Writer:
    other = replace(writer.find(path), pid=pid, started=process._started(pid), **more)
    name_writer(path, other)
    return other


def name_writer(path: Path, other: Writer) -> None:
    """Name another process, without a lock, as the writer."""
    writer.remove(path)
    (path / ".writer.json").write_text(json.dumps(asdict(replace(other, lock=None))))


def test_a_step_that_another_process_writes_is_in_use(publisher, somebody):
    path = stage(publisher, 5)
    written_by(path, somebody.pid)

    with pytest.raises(StepInUse, match=f"written by process {somebody.pid} on "):
        publisher.stage(5, b"{}", None)
    assert (path / "policy" / "model.pt").exists()

    somebody.send_signal(signal.SIGKILL)
    somebody.wait()
    assert len(publisher.stage(5, b"{}", None).gone) == 1


@pytest.mark.parametrize(
    "change",
    [{"host": "elsewhere"}, {"boot": "earlier"}, {"namespace": 1}],
    ids=["other host", "other boot", "other namespace"],
)
def test_what_a_process_has_begun_that_nobody_can_ask_is_not_discarded(publisher, somebody, change):
    path = stage(publisher, 5)
    other = written_by(path, somebody.pid, **change)
    with pytest.raises(StepInUse) as told:
        publisher.stage(5, b"{}", None)
    assert str(told.value) == (
        f"{path} was begun by process {somebody.pid} on {other.host}, which cannot be asked from "
        "here whether it still writes; stop it, then remove the directory, and save again."
    )
    assert (path / "policy" / "model.pt").exists()

    for file in (*path.rglob("*"), path):
        os.utime(file, (1, 1))
    assert len(publisher.stage(5, b"{}", None).gone) == 1


@pytest.mark.parametrize("what", ["file", "symlink"])
def test_a_stranger_with_the_tmp_name_is_left_alone(publisher, what):
    path = publisher.directory / "tmp_step_5"
    if what == "file":
        path.write_text("mine")
    else:
        path.symlink_to(publisher.directory)
    with pytest.raises(StepTaken, match="is not a checkpoint directory"):
        publisher.stage(5, b"{}", None)
    assert os.path.lexists(path)


def test_metadata_that_cannot_be_written_leaves_nothing(publisher, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        publisher.stage(5, b"{}", None)
    assert listing(publisher) == []


# --- publishing -------------------------------------------------------------------------


@pytest.mark.parametrize("make_durable", [True, False], ids=["durable", "fast"])
def test_publishing_gives_the_final_name_to_a_whole_directory(tmp_path, renaming, make_durable):
    publisher = Publisher(tmp_path / "new" / "run", make_durable=make_durable, clock=lambda: NOW)
    published = publisher.publish(stage(publisher, 5), parent="the parent")

    found = published.checkpoint
    assert found.path == publisher.directory / "step_5"
    assert listing(publisher) == ["step_5"]
    whole = manifest.find(found.path)
    assert whole is not None
    assert (whole.uuid, whole.parent, whole.replaces) == (found.uuid, "the parent", None)
    assert (whole.created_at, whole.finalized_at) == (AT, AT)
    assert set(whole.files) == {"training_info.json", "config.yaml", "policy/model.pt"}
    assert manifest.verify(found.path, whole) == Compared()
    assert (found.parent, found.problem, found.file_count) == ("the parent", None, 3)
    assert published.replaced is None
    assert published.span is not None
    assert published.span[1] == run_stamp.find_stamp(publisher.directory)


def test_publishing_does_nothing_durable_when_told_so(tmp_path, monkeypatch):
    def refuse(handle):
        pytest.fail("nothing has to be flushed")

    monkeypatch.setattr(fsutil.os, "fsync", refuse)
    publisher = Publisher(tmp_path, make_durable=False)
    save(publisher, 5)
    old = save(publisher, 5)
    publisher.retire([Deletion(5, old.uuid, "because")])
    publisher.discard(stage(publisher, 6), reason="because")
    assert listing(publisher) == []


def test_a_run_may_be_reached_through_a_symlink(tmp_path, renaming):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    publisher = Publisher(tmp_path / "link")
    save(publisher, 5, 0.1)
    save(publisher, 5, 0.2)
    below = Publisher(tmp_path / "link" / "below")
    save(below, 1)

    assert loss_of(tmp_path / "real" / "step_5") == 0.2
    assert (tmp_path / "real" / "below" / "step_1").is_dir()


def test_saving_a_step_again_replaces_it_and_records_that(publisher, renaming):
    old = save(publisher, 5, 0.1)

    published = publisher.publish(stage(publisher, 5, 0.2))

    gone = published.replaced
    assert gone is not None
    assert (gone.uuid, gone.status, gone.deleted_at) == (old.uuid, "deleted", AT)
    assert gone.deleted_reason == "replaced by a new save of step 5"
    assert facts(publisher).gone == {old.uuid: replace(gone, fingerprint=None)}
    assert loss_of(publisher.directory / "step_5") == 0.2
    assert manifest.find(publisher.directory / "step_5").replaces == old.uuid
    assert listing(publisher) == ["step_5"]
    assert trash(publisher) == [f"step_5.{old.uuid}"]
    assert published.span is not None


def test_a_checkpoint_of_nemo_rl_is_replaced_too(publisher, renaming):
    path = put_by_nemo_rl(publisher.directory, 5, 0.1)
    uuid = checkpoint_identity.find_uuid(publisher.establish(), path, 5)

    published = publisher.publish(stage(publisher, 5, 0.2))

    assert published.replaced.uuid == uuid
    assert trash(publisher) == [f"step_5.{uuid}"]


def test_a_step_replaced_since_it_was_sealed_is_named_in_the_manifest(publisher, monkeypatch):
    path = stage(publisher, 5, 0.3)
    path.rename(publisher.directory / "aside")
    real = publisher._seal

    def seal_then_lose_the_race(*arguments):
        sealed = real(*arguments)
        path.rename(publisher.directory / "later")
        (publisher.directory / "aside2").rename(path)
        publisher._seal = real
        publisher.publish(path)
        (publisher.directory / "later").rename(path)
        return sealed

    other = stage(publisher, 5, 0.2)
    other.rename(publisher.directory / "aside2")
    (publisher.directory / "aside").rename(path)
    monkeypatch.setattr(publisher, "_seal", seal_then_lose_the_race)

    published = publisher.publish(path)

    assert published.replaced.metrics == {"loss": 0.2}
    whole = manifest.find(published.checkpoint.path)
    assert whole.replaces == published.replaced.uuid
    assert whole.uuid == published.checkpoint.uuid


def test_a_checkpoint_that_somebody_published_for_us_is_found(publisher, monkeypatch):
    path = stage(publisher, 5)
    other = Publisher(publisher.directory)
    real = publisher._seal

    def seal_then_be_adopted(*arguments):
        sealed = real(*arguments)
        assert other.adopt(path).checkpoint.uuid == sealed.manifest.uuid
        return sealed

    monkeypatch.setattr(publisher, "_seal", seal_then_be_adopted)
    published = publisher.publish(path)
    assert published.checkpoint.path == publisher.directory / "step_5"
    assert published.span is None


def test_a_checkpoint_published_for_us_and_replaced_since_was_saved(publisher, monkeypatch):
    path = stage(publisher, 5)
    other = Publisher(publisher.directory)
    real = publisher._seal

    def seal_then_be_overtaken(*arguments):
        sealed = real(*arguments)
        other.publish(stage(other, 5))
        return sealed

    monkeypatch.setattr(publisher, "_seal", seal_then_be_overtaken)
    published = publisher.publish(path)
    assert published.checkpoint.status == "deleted"
    assert published.checkpoint.deleted_reason == "replaced by a new save of step 5"
    assert (published.replaced, published.span) == (None, None)


def test_a_checkpoint_published_for_us_while_it_is_sealed_is_found(publisher, monkeypatch):
    path = stage(publisher, 5)
    other = Publisher(publisher.directory)
    real, adopted = paths.unlink, []

    def unlink_and_be_adopted(removed, **options):
        real(removed, **options)
        if removed == path / ".writer.json" and not adopted:
            adopted.append(removed)
            assert other.adopt(path) is not None

    monkeypatch.setattr(paths, "unlink", unlink_and_be_adopted)
    assert publisher.publish(path).checkpoint.path == publisher.directory / "step_5"
    assert adopted


def test_a_living_writer_protects_even_a_sealed_tmp(publisher, somebody):
    path = stage(publisher, 5)
    other = written_by(path, somebody.pid)
    publisher._seal(publisher.establish(), path, 5, None)
    name_writer(path, other)

    assert publisher.adopt(path) is None
    assert listing(publisher) == ["tmp_step_5"]

    somebody.kill()
    somebody.wait()
    assert publisher.adopt(path) is not None
    assert sorted(os.listdir(publisher.directory / "step_5")) == [
        "config.yaml",
        "manifest.json",
        "policy",
        "training_info.json",
    ]


def test_what_vanished_while_it_was_sealed_is_told(publisher, monkeypatch):
    path = stage(publisher, 5)
    real = publisher._seal

    def seal_then_lose(*arguments):
        sealed = real(*arguments)
        path.rename(publisher.directory / "away")
        return sealed

    monkeypatch.setattr(publisher, "_seal", seal_then_lose)
    with pytest.raises(NoCheckpointHere, match="is not there"):
        publisher.publish(path)


def test_publishing_twice_or_nothing_is_told(publisher):
    path = stage(publisher, 5)
    publisher.publish(path)
    with pytest.raises(NoCheckpointHere, match="was finalized, discarded or removed before"):
        publisher.publish(path)
    with pytest.raises(NoCheckpointHere, match="is not a tmp_step_N directory"):
        publisher.publish(publisher.directory / "step_5")


@pytest.mark.parametrize("what", ["file", "symlink"])
def test_a_stranger_with_the_final_name_is_left_alone(publisher, renaming, what):
    final = publisher.directory / "step_5"
    path = stage(publisher, 5)  # and only then somebody comes
    if what == "file":
        final.write_text("mine")
    else:
        final.symlink_to("nowhere")

    with pytest.raises(StepTaken, match="move it away and save again"):
        publisher.publish(path)
    assert os.path.lexists(final)

    final.unlink()
    assert publisher.publish(path).checkpoint.step == 5


def test_a_locked_run_is_told_and_may_be_published_later(publisher, monkeypatch):
    path = stage(publisher, 5)
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0)
    with run_lock(publisher.directory / ".ckptdb"), pytest.raises(RunLocked):
        publisher.publish(path)
    assert publisher.publish(path).checkpoint.step == 5


# --- when the disk fails ----------------------------------------------------------------


@contextmanager
def failing_fsync(number: int, code: int = errno.EIO):
    """Let the given flush fail, and none after it; yields how many there were."""
    real, count = os.fsync, [0]

    def fsync(handle):
        count[0] += 1
        if count[0] == number:
            raise OSError(code, os.strerror(code))
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsutil.os, "fsync", fsync)
        yield count


def failure_of(publisher: Publisher, path: Path) -> SaveFailed | None:
    try:
        publisher.publish(path)
    except SaveFailed as error:
        return error
    return None


@pytest.mark.slow
def test_a_failed_flush_fails_the_save_for_good_wherever_it_strikes(tmp_path, renaming):
    number = struck = 0
    while True:
        number += 1
        publisher = Publisher(tmp_path / f"run{number}")
        old, same = save(publisher, 4, 0.1), save(publisher, 5, 0.2)
        path = stage(publisher, 5, 0.3)
        with failing_fsync(number) as count:
            failure = failure_of(publisher, path)
        if failure is None:
            assert count[0] < number
            break
        struck += 1
        assert "Older checkpoints are untouched" in str(failure)
        assert failure.__cause__.errno == errno.EIO

        assert loss_of(publisher.directory / "step_4") == 0.1
        final = publisher.directory / "step_5"
        aside = [path, *publisher.directory.glob("old_step_5.*")]
        kept = [
            folder
            for folder in (final, *aside, *(publisher.directory / ".ckptdb/trash").glob("step_5.*"))
            if folder.is_dir() and loss_of(folder) == 0.2
        ]
        assert len(kept) == 1
        assert manifest.verify(kept[0], manifest.find(kept[0])) == Compared()
        if path.is_dir() and kept[0] != path:
            # Not retried: the next flush may succeed without the bytes being there.
            with pytest.raises(SaveFailed, match="an earlier attempt"):
                publisher.publish(path)
        assert not {old.uuid, same.uuid} & {
            tmp.manifest.uuid
            for tmp in observation.observe(publisher.directory).tmps.values()
            if tmp.manifest and tmp.fate == "publish"
        }
    assert struck == number - 1 >= 9


def test_a_save_whose_flush_failed_is_never_adopted(tmp_path):
    number = 0
    while True:
        number += 1
        publisher = Publisher(tmp_path / f"run{number}")
        path = stage(publisher, 5)
        with failing_fsync(number):
            assert failure_of(publisher, path) is not None
        if not path.is_dir():
            break  # it has its final name: all that it is made of was flushed
        assert publisher.adopt(path) is None
        assert observation.observe(publisher.directory).tmps[5].fate is None
    assert number >= 6


def test_a_step_can_be_saved_again_after_its_save_failed(publisher):
    path = stage(publisher, 5, 0.1)
    with failing_fsync(1), pytest.raises(SaveFailed):
        publisher.publish(path)

    assert save(publisher, 5, 0.2).metrics == {"loss": 0.2}


def test_a_disk_too_full_for_the_journal_leaves_what_was_to_be_replaced(publisher, monkeypatch):
    save(publisher, 5, 0.1)
    path = stage(publisher, 5, 0.2)

    def fail(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", fail)
        with pytest.raises(SaveFailed, match="No space left"):
            publisher.publish(path)
    assert loss_of(publisher.directory / "step_5") == 0.1
    assert path.is_dir()
    assert facts(publisher).gone == {}


def test_a_journal_that_cannot_be_written_lets_nothing_be_retired(publisher, monkeypatch):
    old = save(publisher, 5)

    def fail(handle, data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", fail)
        with pytest.raises(OSError, match="Input/output error"):
            publisher.retire([Deletion(5, old.uuid, "because")])
    assert listing(publisher) == ["step_5"]


class FullDisk:
    """Lets no line into the journal until the weights of a step have been removed."""

    def __init__(self, directory: Path, step: int, code: int = errno.ENOSPC) -> None:
        self.directory, self.step, self.code = directory, step, code
        self.refused = 0
        self.real = os.write

    def write(self, handle: int, data: bytes) -> int:
        weights = b"weights of %d," % self.step
        if any(file.read_bytes().startswith(weights) for file in self.directory.rglob("model.pt")):
            self.refused += 1
            raise OSError(self.code, os.strerror(self.code))
        return self.real(handle, data)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["full", "over quota"])
def test_a_full_disk_is_freed_before_the_deletion_is_recorded(publisher, monkeypatch, code):
    one, two = save(publisher, 1), save(publisher, 2)
    disk = FullDisk(publisher.directory, 2, code)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk.write)
        retired = publisher.retire([Deletion(1, one.uuid, "old"), Deletion(2, two.uuid, "old")])

    assert disk.refused
    assert [c.uuid for c in retired.gone] == [one.uuid, two.uuid]
    assert listing(publisher) == []
    assert trash(publisher) == [f"step_1.{one.uuid}", f"step_2.{two.uuid}"]
    for cp in (one, two):
        told = facts(publisher).gone[cp.uuid]
        assert (told.deleted_reason, told.size_bytes) == ("old", cp.size_bytes)
    assert publisher.empty_trash() == 2


def test_a_copy_that_has_filled_the_disk_is_freed(publisher, monkeypatch, tmp_path):
    save(publisher, 5)
    subprocess.run(["cp", "-r", publisher.directory, tmp_path / "copy"], check=True)
    copy = Publisher(tmp_path / "copy")
    who = identity.identify(copy.directory)
    uuid = checkpoint_identity.find_uuid(who, copy.directory / "step_5", 5)

    def fail(path, content, *, durable):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fsutil, "write_json", fail)
        assert len(copy.retire([Deletion(5, uuid, "old")]).gone) == 1
        with pytest.raises(OSError, match="No space left"):
            copy.stage(6, b"{}", None)
    assert listing(copy) == []
    assert copy.establish().run.uuid == who.run.uuid


def test_a_disk_that_stays_full_frees_all_the_same_and_is_recorded_later(publisher, monkeypatch):
    old, tmp = save(publisher, 5, 0.1), stage(publisher, 6)
    uuid = writer.find(tmp).uuid
    disk = FullDisk(publisher.directory, 7)
    save(publisher, 7)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk.write)
        with pytest.raises(OSError, match="No space left"):
            publisher.retire([Deletion(5, old.uuid, "because")])
        with pytest.raises(OSError, match="No space left"):
            publisher.discard(tmp, reason="because")
        with pytest.raises(OSError, match="No space left"):
            publisher.empty_trash()
    assert listing(publisher) == ["step_7"]
    left = [f"step_5.{old.uuid}.unrecorded", f"step_6.{uuid}.unrecorded"]
    assert trash(publisher) == left
    kept = {name: sorted(os.listdir(publisher.directory / ".ckptdb/trash" / name)) for name in left}
    assert list(kept.values()) == [
        ["manifest.json", "training_info.json"],
        [".writer.json", "training_info.json"],
    ]
    seen = observation.observe(publisher.directory).facts.gone

    assert publisher.empty_trash() == 2
    told = facts(publisher).gone
    assert told == seen
    assert (told[old.uuid].size_bytes, told[old.uuid].metrics) == (old.size_bytes, {"loss": 0.1})
    assert (told[uuid].step, told[uuid].size_bytes) == (6, None)
    assert {end.deleted_reason for end in told.values()} == {
        "deleted on a full disk, which had no space for the reason"
    }
    assert trash(publisher) == []


def test_a_replacement_that_fails_half_way_gives_the_old_one_its_name_back(publisher, monkeypatch):
    save(publisher, 5, 0.1)
    path = stage(publisher, 5, 0.2)
    monkeypatch.setattr(fsutil, "_renameat2", refuse_flags)
    real = fsutil.rename_new

    def fail(source, target):
        if source == path:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(fsutil, "rename_new", fail)
    with pytest.raises(SaveFailed, match="Input/output error"):
        publisher.publish(path)
    assert listing(publisher) == ["step_5", "tmp_step_5"]
    assert loss_of(publisher.directory / "step_5") == 0.1


# --- retiring, discarding, recording ----------------------------------------------------


def test_retiring_records_the_reason_and_takes_it_out_of_sight(publisher, renaming):
    one, two = save(publisher, 1, 0.1), save(publisher, 2, 0.2)

    retired = publisher.retire([Deletion(1, one.uuid, "too old")])

    assert listing(publisher) == ["step_2"]
    assert trash(publisher) == [f"step_1.{one.uuid}"]
    assert [(c.uuid, c.status, c.deleted_reason) for c in retired.gone] == [
        (one.uuid, "deleted", "too old")
    ]
    assert facts(publisher).gone[one.uuid].deleted_reason == "too old"
    assert two.uuid not in facts(publisher).gone
    assert retired.span[1] == run_stamp.find_stamp(publisher.directory)


def test_one_that_will_not_go_keeps_no_other(publisher, monkeypatch):
    one, two, three = save(publisher, 1), save(publisher, 2), save(publisher, 3)
    real = fsutil.rename_new

    def fail(source, target):
        if source == two.path:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(fsutil, "rename_new", fail)
        with pytest.raises(DeletionIncomplete, match="Permission denied"):
            publisher.retire([Deletion(cp.step, cp.uuid, "old") for cp in (one, two, three)])
    assert listing(publisher) == ["step_2"]
    assert trash(publisher) == [f"step_1.{one.uuid}", f"step_3.{three.uuid}"]


def test_only_the_checkpoint_that_was_judged_is_retired(publisher):
    judged = save(publisher, 1, 0.1)
    save(publisher, 1, 0.2)
    (publisher.directory / "step_3").symlink_to("step_1")

    retired = publisher.retire(
        [
            Deletion(1, judged.uuid, "old"),
            Deletion(2, judged.uuid, "old"),
            Deletion(3, judged.uuid, "?"),
        ]
    )

    assert retired.gone == ()
    assert listing(publisher) == ["step_1", "step_3"]
    assert facts(publisher).gone[judged.uuid].deleted_reason.startswith("replaced")


def test_one_that_somebody_has_resumed_from_since_goes_only_by_hand(publisher):
    first, second = save(publisher, 1), save(publisher, 2)
    for uuid in (first.uuid, second.uuid, first.uuid):
        publisher.record([Fact(AT, "resumed", uuid, {"host": "h", "pid": 1})])
    judged = [Deletion(1, first.uuid, "judged"), Deletion(2, second.uuid, "judged")]
    assert [cp.step for cp in publisher.retire(judged).gone] == [2]
    by_hand = [Deletion(1, first.uuid, "by hand", by_hand=True)]
    assert [cp.step for cp in publisher.retire(by_hand).gone] == [1]


@pytest.mark.parametrize("still", [True, False], ids=["rejected", "not any more"])
def test_one_that_somebody_has_rejected_since_goes_only_by_hand(publisher, still):
    one = save(publisher, 1)
    publisher.record([Fact(AT, "rejected", one.uuid, {"reason": "diverged"})])
    if not still:
        publisher.record([Fact(AT, "unrejected", one.uuid)])
    gone = publisher.retire([Deletion(1, one.uuid, "retention: …")]).gone
    assert [cp.uuid for cp in gone] == ([] if still else [one.uuid])
    if still:
        (gone,) = publisher.retire([Deletion(1, one.uuid, "by hand", by_hand=True)]).gone
        assert gone.uuid == one.uuid


def test_one_that_somebody_has_pinned_since_is_left_alone_unless_forced(publisher):
    one, two = save(publisher, 1), save(publisher, 2)
    publisher.record([Fact(AT, "pin", cp.uuid) for cp in (one, two)])
    publisher.record([Fact(AT, "unpin", two.uuid)])

    retired = publisher.retire([Deletion(1, one.uuid, "old"), Deletion(2, two.uuid, "old")])

    assert [c.uuid for c in retired.gone] == [two.uuid]
    assert listing(publisher) == ["step_1"]
    assert one.uuid not in facts(publisher).gone

    publisher.retire([Deletion(1, one.uuid, "by hand", force=True)])
    assert listing(publisher) == []
    assert one.uuid not in facts(publisher).annotations
    assert publisher.empty_trash() == 2


def test_one_that_will_not_go_by_force_keeps_its_pin(publisher, monkeypatch):
    one = save(publisher, 1)
    publisher.record([Fact(AT, "pin", one.uuid)])

    def fail(source, target):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(fsutil, "rename_new", fail)
        with pytest.raises(OSError, match="Read-only"):
            publisher.retire([Deletion(1, one.uuid, "by hand", force=True)])
    assert facts(publisher).annotations[one.uuid].pinned


def test_one_that_came_back_under_its_name_is_retired_again(publisher, renaming):
    first = save(publisher, 1)
    for _ in range(3):
        publisher.retire([Deletion(1, first.uuid, "old")])
        source = publisher.directory / ".ckptdb" / "trash" / f"step_1.{first.uuid}"
        subprocess.run(["cp", "-r", source, publisher.directory / "step_1"], check=True)
    publisher.retire([Deletion(1, first.uuid, "old")])

    name = f"step_1.{first.uuid}"
    assert trash(publisher) == [name, f"{name}.1", f"{name}.2", f"{name}.3"]
    assert publisher.empty_trash() == 4


def test_a_trash_that_takes_no_more_is_an_error(publisher, monkeypatch):
    first = save(publisher, 1)

    def fail(source, target):
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(fsutil, "rename_new", fail)
    with pytest.raises(DeletionIncomplete, match="File exists"):
        publisher.retire([Deletion(1, first.uuid, "old")])


def test_a_failed_rename_is_not_taken_for_a_taken_name(publisher, monkeypatch):
    first = save(publisher, 1)

    def fail(source, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(fsutil, "rename_new", fail)
    with pytest.raises(OSError, match="Read-only"):
        publisher.retire([Deletion(1, first.uuid, "old")])
    assert listing(publisher) == ["step_1"]


def test_a_tmp_that_is_given_up_is_recorded(publisher):
    path = stage(publisher, 5)
    retired = publisher.discard(path, reason="the save raised")

    assert [c.deleted_reason for c in retired.gone] == ["the save raised"]
    assert retired.gone[0].path == publisher.directory / "step_5"
    assert facts(publisher).gone[retired.gone[0].uuid].status == "deleted"
    assert listing(publisher) == []
    assert publisher.discard(path, reason="again").gone == ()


def test_facts_are_appended_under_the_lock(publisher):
    one = save(publisher, 1)
    span = publisher.record([Fact(AT, "pin", one.uuid)])

    assert facts(publisher).annotations[one.uuid].pinned
    assert span[0] != span[1]
    assert publisher.record([]) is None


def test_a_change_by_somebody_else_in_between_leaves_no_span(publisher):
    one, two = save(publisher, 1), save(publisher, 2)
    real = publisher._append

    def append_while_somebody_works(watch, lines):
        real(watch, lines)
        (publisher.directory / "stranger").mkdir()

    publisher._append = append_while_somebody_works
    deletions = [Deletion(1, one.uuid, "old"), Deletion(2, two.uuid, "old")]
    assert publisher.retire(deletions).span is None


# --- after a crash ----------------------------------------------------------------------


def test_an_incomplete_tmp_is_not_adopted(publisher):
    assert publisher.adopt(stage(publisher, 5)) is None
    assert publisher.adopt(publisher.directory / "tmp_step_6") is None
    assert listing(publisher) == ["tmp_step_5"]


def test_a_copy_of_what_is_published_is_not_adopted(publisher):
    save(publisher, 5)
    source, copy = publisher.directory / "step_5", publisher.directory / "tmp_step_5"
    subprocess.run(["cp", "-r", source, copy], check=True)
    assert publisher.adopt(copy) is None
    assert listing(publisher) == ["step_5", "tmp_step_5"]


def test_a_tmp_beside_a_stranger_is_not_adopted(publisher):
    path = stage(publisher, 5)
    publisher._seal(publisher.establish(), path, 5, None)
    (publisher.directory / "step_5").write_text("mine")
    assert publisher.adopt(path) is None


def test_a_tmp_beside_an_unreadable_manifest_is_not_adopted(publisher):
    save(publisher, 5)
    path = stage(publisher, 5)
    publisher._seal(publisher.establish(), path, 5, None)
    (publisher.directory / "step_5" / "manifest.json").write_text("{")
    assert publisher.adopt(path) is None


@pytest.mark.parametrize("spoil", ["training_info.json", "manifest.json"])
def test_a_complete_tmp_that_was_spoilt_is_not_adopted(publisher, spoil):
    path = stage(publisher, 5)
    publisher._seal(publisher.establish(), path, 5, None)
    (path / spoil).write_text("{")
    assert publisher.adopt(path) is None


def test_a_tmp_renamed_by_hand_is_not_adopted(publisher):
    path = stage(publisher, 5)
    publisher._seal(publisher.establish(), path, 5, None)
    moved = path.rename(publisher.directory / "tmp_step_6")
    assert publisher.adopt(moved) is None


@pytest.mark.parametrize("by", ["ckptdb", "NeMo-RL", "a copy by hand"])
def test_what_was_exchanged_goes_to_the_trash_whoever_wrote_it(publisher, by):
    if by == "NeMo-RL":
        put_by_nemo_rl(publisher.directory, 5)
    elif by == "ckptdb":
        save(publisher, 5)
    else:
        save(publisher, 4).path.rename(publisher.directory / "step_5")
    who = publisher.establish()
    uuid = checkpoint_identity.find_uuid(who, publisher.directory / "step_5", 5)
    path = stage(publisher, 5)
    publisher._seal(who, path, 5, None)
    fsutil.exchange(path, publisher.directory / "step_5")

    assert observation.observe(publisher.directory).tmps[5].fate == "trash"
    assert publisher.adopt(path) is None
    assert listing(publisher) == ["step_5"]
    assert trash(publisher) == [f"step_5.{uuid}"]


def test_an_old_one_goes_back_when_its_name_is_free(publisher, renaming):
    one = save(publisher, 5)
    aside = one.path.rename(publisher.directory / f"old_step_5.{one.uuid}")
    leftover = Leftover(aside, 5, one.uuid)

    publisher.put_back(leftover)
    assert listing(publisher) == ["step_5"]
    publisher.put_back(leftover)
    assert listing(publisher) == ["step_5"]


def test_an_old_one_goes_to_the_trash_when_its_name_is_taken(publisher):
    one = save(publisher, 5, 0.1)
    aside = one.path.rename(publisher.directory / f"old_step_5.{one.uuid}")
    save(publisher, 5, 0.2)

    publisher.put_back(Leftover(aside, 5, one.uuid))
    assert listing(publisher) == ["step_5"]
    assert trash(publisher) == [f"step_5.{one.uuid}"]


# --- the trash --------------------------------------------------------------------------


def test_the_trash_is_emptied_except_for_what_is_kept(publisher):
    one, two = save(publisher, 1), save(publisher, 2)
    publisher.retire([Deletion(1, one.uuid, "old"), Deletion(2, two.uuid, "old")])
    (publisher.directory / ".ckptdb" / "trash" / "not ours").mkdir()

    publisher.record([Fact(AT, "pin", two.uuid)])
    assert publisher.empty_trash() == 1
    assert trash(publisher) == ["not ours", f"step_2.{two.uuid}"]
    publisher.record([Fact(AT, "unpin", two.uuid)])
    assert publisher.empty_trash() == 1
    assert publisher.empty_trash() == 0


def test_one_that_will_not_go_does_not_keep_the_others(publisher, monkeypatch):
    saved = [save(publisher, step) for step in (1, 2, 3)]
    publisher.retire([Deletion(c.step, c.uuid, "old") for c in saved])
    real = tree_removal.remove_tree

    def remove(path):
        if path.name.startswith("step_1."):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        if path.name.startswith("step_2."):
            real(path)  # another process is faster
        real(path)

    monkeypatch.setattr(tree_removal, "remove_tree", remove)
    with pytest.raises(DeletionIncomplete, match="step 1 is out of sight"):
        publisher.empty_trash()
    assert trash(publisher) == [f"step_1.{saved[0].uuid}"]


# --- killed at every operation ----------------------------------------------------------

# Every function through which these rooms change or flush anything.
STRUCK = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "write", "open")


class Bomb:
    """Kills its process before the k-th operation that changes or flushes something."""

    def __init__(self, fuse: int) -> None:
        self.fuse = fuse

    def arm(self) -> None:
        for name in STRUCK:
            setattr(os, name, self.wrapped(getattr(os, name)))
        fsutil._renameat2 = self.wrapped(fsutil._renameat2)
        fsutil.write_new = self.wrapped(fsutil.write_new)

    def wrapped(self, real):
        def call(*arguments, **options):
            if real is not REAL_OPEN or arguments[1] & os.O_CREAT:
                self.fuse -= 1
            if self.fuse == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call


REAL_OPEN = os.open


def dies_at(fuse: int, work) -> bool:
    """Do some work in a forked child that is killed at an operation; tell whether it was."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Bomb(fuse).arm()
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def work_save(publisher: Publisher) -> None:
    publisher.publish(stage(publisher, 7, 0.7))


def work_replace(publisher: Publisher) -> None:
    publisher.publish(stage(publisher, 5, 0.55))
    publisher.empty_trash()


def work_retire(publisher: Publisher) -> None:
    who = publisher.establish()
    deletions = [
        Deletion(
            step,
            checkpoint_identity.find_uuid(who, publisher.directory / f"step_{step}", step),
            "too old",
        )
        for step in (3, 5)
    ]
    publisher.retire(deletions)
    publisher.empty_trash()


def work_retire_on_a_full_disk(publisher: Publisher) -> None:
    disk = FullDisk(publisher.directory, 5)
    disk.real, os.write = os.write, disk.write
    work_retire(publisher)
    assert disk.refused


def work_discard_on_a_full_disk(publisher: Publisher) -> None:
    path = stage(publisher, 7)
    disk = FullDisk(publisher.directory, 7)
    disk.real, os.write = os.write, disk.write
    publisher.discard(path, reason="because")
    publisher.empty_trash()
    assert disk.refused


def contents(catalog: Catalog, run_id: int | None) -> list[tuple[object, ...]]:
    return [
        (c.step, c.uuid, c.status, c.deleted_reason, c.problem, tuple(c.metrics.items()))
        for c in catalog.checkpoints.list_all(run_id=run_id)
    ]


def check_what_is_left(directory: Path, before: dict[int, str], reasons: tuple[str, ...]) -> None:
    seen = observation.observe(directory)
    for step, uuid in before.items():
        # Whatever was acknowledged is there and whole, or its end is on record.
        homes = [directory / f"step_{step}", directory / f"tmp_step_{step}"]
        homes += [leftover.path for leftover in seen.olds]
        alive = [
            home
            for home in homes
            if checkpoint_identity.find_uuid(seen.identity, home, step) == uuid
        ]
        if not alive:
            assert seen.facts.gone[uuid].deleted_reason.startswith(reasons)
        for home in alive:
            assert (home / "policy" / "model.pt").stat().st_size > 0
    for found in seen.finals.values():
        # A published name is whole.
        assert found.problem is None
        whole = manifest.find(found.path)
        assert whole is None or manifest.verify(found.path, whole) == Compared()


def check_reconciling(
    directory: Path, catalog: Catalog, rebuilt: Catalog, before: dict[int, str]
) -> dict[int, str]:
    report = reconcile_run(catalog, directory)
    assert report.blocked is None

    left = observation.observe(directory)
    assert (left.olds, left.trash) == ((), ())
    assert all(tmp.fate is None for tmp in left.tmps.values())
    found = catalog.checkpoints.list_all(run_id=report.run_id)
    live = {c.step: c.uuid for c in found if c.status == "final"}
    assert live == {step: c.uuid for step, c in left.finals.items()}
    gone = {c.uuid for c in found if c.status == "deleted"}
    assert all(live.get(step) == uuid or uuid in gone for step, uuid in before.items())

    after = contents(catalog, report.run_id)
    assert not reconcile_run(catalog, directory).has_changes
    assert contents(catalog, report.run_id) == after
    assert contents(rebuilt, reconcile_run(rebuilt, directory).run_id) == after
    return live


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "by", "points"),
    [
        (work_save, "ckptdb", 20),
        (work_replace, "ckptdb", 30),
        (work_replace, "NeMo-RL", 30),  # without a manifest to go by
        (work_retire, "ckptdb", 20),
        (work_retire_on_a_full_disk, "ckptdb", 20),
        (work_discard_on_a_full_disk, "ckptdb", 20),
    ],
    ids=["save", "replace", "replace NeMo-RL's", "retire", "retire on full", "discard on full"],
)
def test_a_kill_at_any_operation_loses_nothing(tmp_path, monkeypatch, renaming, work, by, points):
    # A killed process does not lose what the kernel has: nothing really has to be flushed.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    catalog, rebuilt = Catalog(Database.in_memory()), Catalog(Database.in_memory())
    fuse, killed = 0, True
    while killed:
        fuse += 1
        directory = tmp_path / f"run{fuse}"
        directory.mkdir()
        publisher = Publisher(directory)
        for step in (3, 5):
            if by == "ckptdb":
                save(publisher, step, step / 10)
            else:
                put_by_nemo_rl(directory, step, step / 10)
        who = publisher.establish()
        reconcile_run(catalog, directory)
        before = {
            step: checkpoint_identity.find_uuid(who, directory / f"step_{step}", step)
            for step in (3, 5)
        }

        killed = dies_at(fuse, lambda publisher=publisher: work(publisher))

        retires = work in (work_retire, work_retire_on_a_full_disk)
        reasons = ("too old", "deleted on a full disk") if retires else ("replaced",)
        check_what_is_left(directory, before, reasons)
        live = check_reconciling(directory, catalog, rebuilt, before)
        assert retires or set(before) <= set(live)
    # The last one was struck no more, so every operation before it was.
    assert fuse > points
    catalog.database.close()
    rebuilt.database.close()


def test_every_mode_of_a_directory_survives_publishing(publisher):
    path = stage(publisher, 5)
    (path / "policy").chmod(0o750)
    publisher.publish(path)
    mode = (publisher.directory / "step_5" / "policy").stat().st_mode
    assert stat.S_IMODE(mode) == 0o750


# --- the order of flushes, for when the power goes --------------------------------------


@pytest.fixture
def steps(publisher, monkeypatch):
    """What happens to names and what is flushed, in order."""
    seen = []

    def record(module, name):
        real = getattr(module, name)

        def call(path, *rest):
            short = Path(path).name
            seen.append(f"{name} {short.partition('.')[0] or short}")
            real(path, *rest)

        monkeypatch.setattr(module, name, call)

    for name in ("fsync", "rename_new", "exchange"):
        record(fsutil, name)
    record(tree_removal, "remove_tree")
    return seen


def test_what_was_replaced_is_durable_in_the_trash_before_its_old_name_goes(publisher, steps):
    save(publisher, 5, 0.1)
    path = stage(publisher, 5, 0.2)
    steps.clear()
    publisher.publish(path)
    assert steps[steps.index("exchange tmp_step_5") :] == [
        "exchange tmp_step_5", "fsync run", "rename_new tmp_step_5", "fsync trash",
    ]  # fmt: skip


def test_an_old_one_put_away_is_durable_in_the_trash(publisher, steps):
    old = save(publisher, 5)
    aside = old.path.rename(publisher.directory / f"old_step_5.{old.uuid}")
    save(publisher, 5)
    steps.clear()
    publisher.put_back(Leftover(aside, 5, old.uuid))
    assert steps == ["rename_new old_step_5", "fsync trash"]


def test_nothing_is_removed_before_the_name_it_had_is_gone_for_good(publisher, steps):
    # Whoever has retired it may have been killed before it flushed the directory.
    retired = save(publisher, 5)
    publisher.retire([Deletion(5, retired.uuid, "too old")])
    steps.clear()
    assert Publisher(publisher.directory).empty_trash() == 1
    assert steps == ["fsync run", "remove_tree step_5"]
    steps.clear()
    assert publisher.empty_trash() == 0
    assert steps == []


def test_the_first_change_flushes_names_that_others_have_made(publisher, steps):
    # They may have been killed between making a directory and flushing its name.
    save(publisher, 5)
    another = Publisher(publisher.directory)
    steps.clear()
    another.establish()
    assert steps == ["fsync .ckptdb", "fsync run", f"fsync {publisher.directory.parent.name}"]
    steps.clear()
    another.establish()
    Publisher(publisher.directory, make_durable=False).establish()
    assert steps == []


def test_what_was_freed_is_durable_in_the_trash_before_it_is_recorded(publisher, steps):
    # Whoever freed it may have been killed before it flushed the trash.
    retired = save(publisher, 5)
    aside = publisher.directory / ".ckptdb" / "trash" / f"step_5.{retired.uuid}.unrecorded"
    retired.path.rename(aside)
    steps.clear()
    assert publisher.empty_trash() == 1
    assert steps[:2] == ["fsync trash", "fsync run"]
    facts = journal.read(publisher.directory / ".ckptdb", publisher.establish().run)
    assert retired.uuid in facts.gone


def test_after_a_failed_commit_the_names_are_flushed_before_anything_goes(
    publisher, steps, monkeypatch
):
    # The new one has its name, and may lose it; the older one must not be gone by then.
    def refuse():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    old, path = save(publisher, 5), stage(publisher, 6)
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "_sync_directory", refuse)
        with pytest.raises(SaveFailed):
            publisher.publish(path)
    assert listing(publisher) == ["step_5", "step_6"]
    steps.clear()
    publisher.retire([Deletion(5, old.uuid, "too old")])
    assert steps.index("fsync run") < steps.index("rename_new step_5")


def test_a_parent_that_may_not_be_read_is_left_to_its_owner(publisher, monkeypatch):
    real = fsutil.fsync

    def refuse(path):
        if path == publisher.directory.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real(path)

    monkeypatch.setattr(fsutil, "fsync", refuse)
    assert save(publisher, 5).step == 5


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_read_now_stays_unless_it_is_forced(publisher, monkeypatch, force):
    for step in (1, 2):
        save(publisher, step)
    uuids = {step: manifest.find(publisher.directory / f"step_{step}").uuid for step in (1, 2)}
    real = os.open

    def fail(path, *rest, **options):
        if Path(path).parts[-2:] == ("step_1", "training_info.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *rest, **options)

    deletions = [Deletion(step, uuid, "by hand", force=force) for step, uuid in uuids.items()]
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        if force:
            publisher.retire(deletions)
        else:
            with pytest.raises(OSError, match="Input/output"):
                publisher.retire(deletions)
    assert (publisher.directory / "step_1").exists() != force
    assert not (publisher.directory / "step_2").exists()
    assert facts(publisher).gone.keys() == ({*uuids.values()} if force else {uuids[2]})


def test_the_record_of_what_is_replaced_is_read_again_when_that_fails(publisher, monkeypatch):
    save(publisher, 1, loss=0.25)
    staged = stage(publisher, 1)
    real, failures = os.open, [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def fail_once(path, *rest, **options):
        if Path(path).parts[-2:] == ("step_1", "training_info.json") and failures:
            raise failures.pop()
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", fail_once)
    publisher.publish(staged)
    assert not failures
    (old,) = facts(publisher).gone.values()
    assert old.metrics == {"loss": 0.25}
