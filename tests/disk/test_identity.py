from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.requirements import needs_root

from ckptdb.disk import identity, root_marker


def establish(directory: Path, metric=None, *, higher=False, keep=False):
    identity.hidden(directory).mkdir(exist_ok=True)
    return identity.establish(
        directory,
        metric_name=metric,
        higher_is_better=higher,
        keep_metric=keep,
        make_durable=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def run_json(directory: Path) -> dict[str, object]:
    return json.loads((directory / ".ckptdb" / "run.json").read_text())


# --- runs -------------------------------------------------------------------------------


def test_looking_writes_nothing_and_says_the_same_twice(run: Path):
    first = identity.identify(run)

    assert identity.identify(run) == first
    assert (first.marked, first.recorded, first.problem) == (False, False, None)
    assert (first.run.name, first.run.directory, first.run.created_at) == ("run", run, None)
    assert first.origin == first.run.uuid
    assert os.listdir(run) == []


def test_a_missing_directory_is_an_error(run: Path):
    with pytest.raises(FileNotFoundError):
        identity.identify(run / "nowhere")


def test_a_fresh_directory_gets_a_new_identity_each_time(run: Path):
    first = establish(run, "loss")
    shutil.rmtree(run)
    run.mkdir()
    second = establish(run, "loss")

    assert first.run.uuid != second.run.uuid
    assert first.recorded
    assert first.run.created_at is not None
    assert first.run.metric_name == "loss"


@pytest.mark.parametrize("name", ["step_1", "tmp_step_1"])
def test_a_directory_with_checkpoints_keeps_the_identity_it_was_seen_with(run: Path, name):
    (run / name).mkdir()
    seen = identity.identify(run)
    assert establish(run).run.uuid == seen.run.uuid
    assert establish(run).origin == seen.origin


def test_establishing_again_writes_nothing(run: Path):
    first = establish(run, "loss")
    before = (run / ".ckptdb" / "run.json").stat()

    assert establish(run, "loss") == first
    assert establish(run, "other", keep=True) == first
    assert (run / ".ckptdb" / "run.json").stat().st_ino == before.st_ino


def test_a_new_metric_is_written_and_the_identity_stays(run: Path):
    first = establish(run, "loss")
    second = establish(run, "accuracy", higher=True)

    assert second.run.uuid == first.run.uuid
    assert second.run.created_at == first.run.created_at
    assert (second.run.metric_name, second.run.higher_is_better) == ("accuracy", True)


def test_a_moved_run_stays_the_same(run: Path):
    first = establish(run)
    moved = run.rename(run.with_name("moved"))

    found = identity.identify(moved)

    assert found.run == replace(first.run, name="moved", directory=moved)
    assert found.recorded


def test_a_copied_run_is_another_one(run: Path):
    first = establish(run, "loss")
    copy = run.with_name("copy")
    shutil.copytree(run, copy)

    looked = identity.identify(copy)
    assert looked.marked
    assert not looked.recorded
    assert looked.run.uuid != first.run.uuid
    assert looked.run.forked_from == first.run.uuid
    assert run_json(copy)["uuid"] == first.run.uuid

    written = establish(copy, "loss")
    assert written.recorded
    assert written.run.uuid == looked.run.uuid
    assert (written.run.forked_from, written.origin) == (first.run.uuid, first.run.uuid)
    assert identity.identify(run) == first


def test_a_copy_of_a_copy_remembers_where_it_all_began(run: Path):
    first = establish(run)
    shutil.copytree(run, run.with_name("copy"))
    second = establish(run.with_name("copy"))
    shutil.copytree(run.with_name("copy"), run.with_name("third"))
    third = establish(run.with_name("third"))

    assert third.run.forked_from == second.run.uuid
    assert third.origin == first.run.uuid


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"uuid": "x"}', b'{"uuid": 5}', b'{"uuid": null}', b'{"uuid": []}',
        b"\xff", b'{"uuid": true}',
    ],
)  # fmt: skip
def test_a_broken_run_json_is_told_and_kept_when_it_is_replaced(run: Path, content):
    establish(run)
    (run / ".ckptdb" / "run.json").write_bytes(content)

    found = identity.identify(run)
    assert found.problem is not None
    assert "run.json" in found.problem
    assert (found.marked, found.recorded) == (True, False)

    assert establish(run).recorded
    kept = [p for p in (run / ".ckptdb").iterdir() if p.name.startswith("run.json.broken-")]
    assert [p.read_bytes() for p in kept] == [content]


def test_fields_of_the_wrong_type_are_ignored(run: Path):
    known = str(uuid.uuid4())
    content = {
        "uuid": known, "created_at": 5, "metric_name": ["loss"], "higher_is_better": 1,
        "forked_from": "\ud800", "origin": None, "inode": run.stat().st_ino,
    }  # fmt: skip
    (run / ".ckptdb").mkdir()
    (run / ".ckptdb" / "run.json").write_text(json.dumps(content))

    found = identity.identify(run)

    assert found.recorded
    assert found.run.uuid == found.origin == known
    assert (found.run.created_at, found.run.metric_name, found.run.forked_from) == (None,) * 3
    assert found.run.higher_is_better is True


def test_a_directory_whose_name_is_no_text_has_an_identity(tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"run\xe9\n")
    odd.mkdir()
    assert identity.identify(odd) == identity.identify(odd)
    assert establish(odd).recorded


def test_derived_uuids_depend_on_every_fact():
    derive = identity.derive_checkpoint_uuid
    assert derive("run", "", 5, "hash") == derive("run", "", 5, "hash")
    assert len({derive("run", "", 5), derive("run", "tmp", 5), derive("run", "", 6)}) == 3


# --- roots ------------------------------------------------------------------------------


def test_the_nearest_marked_directory_is_the_root(tmp_path: Path):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    assert root_marker.find_root(deep) is None

    root_marker.mark_root(tmp_path / "a")
    root_marker.mark_root(tmp_path)
    assert root_marker.find_root(deep) == tmp_path / "a"
    assert root_marker.is_root(tmp_path / "a")
    assert not root_marker.is_root(deep)

    root_marker.unmark_root(tmp_path / "a")
    root_marker.unmark_root(tmp_path / "a")
    assert root_marker.find_root(deep) == tmp_path


def test_marking_again_changes_nothing(tmp_path: Path):
    root_marker.mark_root(tmp_path, make_durable=False)
    before = (tmp_path / ".ckptdb" / "root.json").read_bytes()
    root_marker.mark_root(tmp_path)
    assert (tmp_path / ".ckptdb" / "root.json").read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "owner", "counts"),
    [
        (0o755, 12345, True),  # root may write there
        (0o1777, 12345, False),
        (0o777, 12345, False),
        (0o1775, 12345, False),
        (0o1777, 0, True),
    ],
)
@needs_root
def test_a_mark_counts_by_who_may_write_there(tmp_path: Path, mode, owner, counts):
    """With real users in test_other_users.py."""
    root_marker.mark_root(tmp_path)
    os.chown(tmp_path / ".ckptdb" / "root.json", owner, -1)
    tmp_path.chmod(mode)
    run = tmp_path / "run"
    assert root_marker.find_root(run) == (tmp_path if counts else None)
    assert root_marker.is_root(tmp_path) == counts
    assert [marker.counts for marker in root_marker.find_markers(run)] == [counts]


# --- what cannot be read now -----------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "lstat"])
def test_a_run_json_that_cannot_be_read_now_makes_no_other_run(tmp_path, monkeypatch, call, code):
    before = establish(tmp_path)
    real = getattr(os, call)

    def fail(path, *rest, **options):
        if str(path).endswith("run.json"):
            raise OSError(code, os.strerror(code))
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            identity.identify(tmp_path)
        with pytest.raises(OSError, match=os.strerror(code)):
            establish(tmp_path)
    assert identity.identify(tmp_path) == before


def test_a_root_that_cannot_be_looked_at_now_is_not_taken_for_none(tmp_path, monkeypatch):
    root_marker.mark_root(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    real = os.lstat

    def fail(path, *rest, **options):
        if str(path) == str(tmp_path / ".ckptdb" / "root.json"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", fail)
        with pytest.raises(OSError, match="Stale"):
            root_marker.find_root(run)
    assert root_marker.find_root(run) == tmp_path
