from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ckptdb.core.facts import Fact
from ckptdb.core.observed import KnownFingerprints, Tmp
from ckptdb.core.stamp import Stamp
from ckptdb.disk import (
    checkpoint_identity,
    identity,
    journal,
    manifest,
    observation,
    read_checkpoint,
    read_tmp,
    root_marker,
    run_finder,
    run_listing,
    run_stamp,
)
from ckptdb.disk.publish import Publisher
from ckptdb.disk.run_stamp import StampWatch

AT = "2026-11-22T16:01:24.000Z"
UUID = "0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def save(run: Path, step: int, loss: float = 0.5, *, config: bytes | None = None) -> Path:
    publisher = Publisher(run, make_durable=False)
    path = publisher.stage(step, json.dumps({"loss": loss}).encode(), config).checkpoint.path
    (path / "model.pt").write_bytes(b"weights")
    return publisher.publish(path).checkpoint.path


def put(run: Path, name: str, content: str | None = '{"loss": 0.5}') -> Path:
    """A directory as NeMo-RL leaves it."""
    path = run / name
    path.mkdir(parents=True)
    if content is not None:
        (path / "training_info.json").write_text(content)
    return path


def age(path: Path, seconds: float = 10) -> None:
    """Make a tree older, so that its times are trusted."""
    then = time.time() - seconds
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            os.utime(os.path.join(folder, name), (then, then), follow_symlinks=False)
        os.utime(folder, (then, then))


def failing_open(monkeypatch, victim: Path, code: int = errno.EIO) -> None:
    real = os.open

    def fail(path, *arguments, **options):
        if Path(os.fsdecode(path)) == victim:
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)


# --- the stamp --------------------------------------------------------------------------


def test_a_stamp_is_read_as_it_is_written(run):
    stamp = run_stamp.find_stamp(run)
    assert Stamp.parse(str(stamp)) == stamp
    assert stamp.journal_bytes == 0


def test_what_is_not_there_has_no_stamp(run):
    (run / "file").touch()
    assert run_stamp.find_stamp(run / "nowhere") is None
    assert run_stamp.find_stamp(run / "file") is None


def test_a_stamp_settles_with_time(run):
    assert not run_stamp.find_stamp(run).is_settled()
    age(run)
    assert run_stamp.find_stamp(run).is_settled()


def change_by_saving(run):
    save(run, 7)


def change_by_renaming(run):
    (run / "step_1").rename(run / "step_2")


def change_by_noting(run):
    Publisher(run, make_durable=False).record([Fact(AT, "pin", UUID)])


@pytest.mark.parametrize("change", [change_by_saving, change_by_renaming, change_by_noting])
def test_every_change_moves_the_stamp(run, change):
    save(run, 1)
    before = run_stamp.find_stamp(run)
    change(run)
    assert run_stamp.find_stamp(run) != before


def test_what_happens_in_the_hidden_folder_does_not_move_the_mtime(run):
    save(run, 1)
    before = run_stamp.find_stamp(run)
    (run / ".ckptdb" / "another").mkdir()
    root_marker.mark_root(run)
    assert run_stamp.find_stamp(run) == before


def test_a_watch_spans_our_own_changes(run):
    watch = StampWatch(run)
    assert watch.span is None
    first = run_stamp.find_stamp(run)
    for name in "ab":
        with watch.change(links=1):
            (run / name).mkdir()
    assert watch.span == (first, run_stamp.find_stamp(run))


def test_a_watch_notices_what_others_change_between(run):
    watch = StampWatch(run)
    for name in "ab":
        with watch.change(links=1):
            (run / name).mkdir()
        (run / f"theirs {name}").mkdir()
    assert watch.span is None


def test_a_watch_notices_what_others_change_at_the_same_moment(run):
    watch = StampWatch(run)
    (run / ".ckptdb").mkdir()
    with watch.change(links=1):
        (run / "a").mkdir()
        (run / "theirs").mkdir()
    assert watch.span is None


# --- one checkpoint ---------------------------------------------------------------------


def load(run: Path, path: Path, **options):
    step = int(path.name.rpartition("_")[2])
    return read_checkpoint.load(identity.identify(run), path, step, **options)


def test_a_checkpoint_of_ours_is_told_by_its_manifest(run):
    path = save(run, 5, 0.25)
    whole = manifest.find(path)

    found = load(run, path)

    assert (found.uuid, found.step, found.status) == (whole.uuid, 5, "final")
    assert (found.created_at, found.finalized_at) == (whole.created_at, whole.finalized_at)
    assert (found.size_bytes, found.file_count) == (whole.size_bytes, 2)
    assert (found.info, found.metrics, found.problem) == ({"loss": 0.25}, {"loss": 0.25}, None)


def test_a_checkpoint_of_nemo_rl_is_told_by_its_files(run):
    path = put(run, "step_5", '{"loss": NaN, "step": 7}')
    (path / "config.json").write_text("{}")
    age(path, 100)

    found = load(run, path)

    assert (found.step, found.problem) == (5, None)
    assert (found.info, found.metrics) == ({"loss": "NaN", "step": 7}, {"loss": None, "step": 7.0})
    assert (found.file_count, found.created_at) == (2, found.finalized_at)
    assert load(run, path) == found


def test_a_derived_uuid_depends_on_run_step_and_info(run, tmp_path):
    one = load(run, put(run, "step_1"))
    (tmp_path / "other").mkdir()
    others = [
        load(run, put(run, "step_2")),
        load(run, put(run, "step_3", '{"loss": 0.6}')),
        load(tmp_path / "other", put(tmp_path / "other", "step_1")),
    ]
    assert len({one.uuid, *(found.uuid for found in others)}) == 4


def test_a_checkpoint_copied_to_another_step_is_another_one(run):
    path = save(run, 5)
    moved = path.rename(run / "step_6")
    found = load(run, moved)
    assert found.uuid != manifest.find(moved).uuid
    assert found.parent is None
    assert found.uuid == load(run, moved).uuid


BAD = ["", "[]", "{", "null"]


@pytest.mark.parametrize("content", [None, *BAD])
def test_without_a_readable_info_there_is_a_problem(run, content):
    found = load(run, put(run, "step_5", content))
    assert found.problem.startswith("training_info.json ")
    assert (found.info, found.metrics) == ({}, {})


@pytest.mark.parametrize("content", BAD)
def test_an_unreadable_manifest_is_a_problem(run, content):
    path = save(run, 5)
    (path / "manifest.json").write_text(content)
    assert load(run, path).problem.startswith("manifest.json ")


def test_damage_is_found_by_verifying(run):
    path = save(run, 5)
    (path / "model.pt").write_bytes(b"w")
    assert load(run, path).problem is None
    assert load(run, path, verify=True).problem == "damaged: model.pt: 1 of 7 bytes"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("victim", ["manifest.json", "training_info.json"])
def test_a_file_that_cannot_be_read_now_tells_nothing(run, monkeypatch, code, victim):
    # Without the manifest the uuid is unknown; of NeMo-RL's, without training_info.json.
    path = save(run, 5) if victim == "manifest.json" else put(run, "step_5")
    failing_open(monkeypatch, path / victim, code)

    with pytest.raises(OSError, match=os.strerror(code)):
        load(run, path)
    with pytest.raises(OSError, match=os.strerror(code)):
        checkpoint_identity.find_uuid(identity.identify(run), path, 5)


def test_with_a_manifest_an_info_that_cannot_be_read_is_a_problem(run, monkeypatch):
    path = save(run, 5)
    failing_open(monkeypatch, path / "training_info.json")
    found = load(run, path)
    assert found.problem == "training_info.json cannot be opened (Input/output error)"
    assert found.fingerprint is None  # looked at again the next time
    with pytest.raises(OSError, match="Input/output"):
        read_checkpoint.load(identity.identify(run), path, 5, strict=True)


@pytest.mark.parametrize("what", ["nothing", "file", "symlink"])
def test_what_is_no_directory_has_no_uuid(run, what):
    path = run / "step_5"
    if what == "file":
        path.touch()
    elif what == "symlink":
        path.symlink_to(run)
    assert checkpoint_identity.find_uuid(identity.identify(run), path, 5) is None


def test_a_fingerprint_shows_any_change_and_waits_until_it_is_sure(run):
    path = save(run, 5)
    assert load(run, path).fingerprint is None
    age(path)
    first = load(run, path).fingerprint
    assert first is not None
    assert load(run, path).fingerprint == first

    (path / "training_info.json").write_text('{"loss": 0.75}')
    age(path)
    assert load(run, path).fingerprint not in {None, first}

    (path / "training_info.json").unlink()
    assert load(run, path).fingerprint is None
    age(path)
    assert load(run, path).fingerprint not in {None, first}


# --- a tmp ------------------------------------------------------------------------------


def load_tmp(run: Path, step: int) -> Tmp:
    return read_tmp.load_tmp(identity.identify(run), run / f"tmp_step_{step}", step)


def test_a_tmp_has_the_uuid_that_its_writer_gave_it(run):
    staged = Publisher(run, make_durable=False).stage(5, b'{"loss": 0.5}', None).checkpoint
    found = load_tmp(run, 5)
    assert found.checkpoint == staged
    assert (found.manifest, found.fate) == (None, None)
    assert found.writer.is_me


def test_a_tmp_without_a_writer_has_a_uuid_of_its_own(run):
    put(run, "tmp_step_5")
    put(run, "step_5")
    found = load_tmp(run, 5)
    assert found.writer is None
    assert found.checkpoint.uuid == load_tmp(run, 5).checkpoint.uuid
    assert found.checkpoint.uuid != load(run, run / "step_5").uuid


def test_a_tmp_that_cannot_be_read_now_tells_nothing(run, monkeypatch):
    path = put(run, "tmp_step_5")
    failing_open(monkeypatch, path / "training_info.json")
    with pytest.raises(OSError, match="Input/output"):
        load_tmp(run, 5)


# --- a whole run ------------------------------------------------------------------------


def test_everything_is_sorted_by_what_it_is(run):
    save(run, 2)
    put(run, "step_10")
    put(run, "tmp_step_3")
    put(run, f"old_step_4.{UUID}")
    for name in ("step_007", "step_1-hf", "tmp_step_x", "old_step_4", "step_\u0661"):
        (run / name).mkdir()
    (run / "step_5").touch()
    (run / "step_6").symlink_to("step_2")
    (run / "step_7").symlink_to("nowhere")
    (run / "latest_checkpoint_status.json").write_text("{}")
    (run / "logs").mkdir()

    seen = observation.observe(run)

    assert list(seen.finals) == [2, 6, 10]
    assert seen.unreadable == {"step_7": "it is a link to nowhere, which is not there"}
    assert seen.unsure
    assert list(seen.tmps) == [3]
    assert [(old.path.name, old.step, old.uuid) for old in seen.olds] == [
        (f"old_step_4.{UUID}", 4, UUID)
    ]
    assert seen.foreign == (
        "old_step_4", "step_007", "step_1-hf", "step_5", "step_\u0661", "tmp_step_x",
    )  # fmt: skip
    assert (seen.errors, seen.trash) == ((), ())
    assert seen.stamp == run_stamp.find_stamp(run)


def test_looking_leaves_no_trace(run):
    put(run, "step_1")
    before = run_stamp.find_stamp(run)
    observation.observe(run, verify=True)
    assert run_stamp.find_stamp(run) == before
    assert os.listdir(run) == ["step_1"]


def test_a_missing_run_cannot_be_observed(run):
    with pytest.raises(FileNotFoundError, match="is not there"):
        observation.observe(run / "nowhere")


def test_what_is_known_and_unchanged_is_not_read_again(run):
    one, two = load(run, save(run, 1)), load(run, save(run, 2))
    age(run)
    known = KnownFingerprints(
        {c.step: (c.uuid, load(run, c.path).fingerprint) for c in (one, two)}, 0, config=True
    )

    seen = observation.observe(run, known)
    assert seen.finals == {1: None, 2: None}
    assert (seen.facts, seen.config) == (None, None)

    (run / "step_2" / "training_info.json").write_text('{"loss": 0.1}')
    seen = observation.observe(run, known)
    assert seen.finals[1] is None
    assert seen.finals[2].metrics == {"loss": 0.1}
    assert seen.facts is None


def test_a_new_checkpoint_makes_the_journal_be_read_again(run):
    save(run, 1)
    Publisher(run, make_durable=False).record([Fact(AT, "pin", UUID)])
    known = KnownFingerprints(journal_bytes=journal.size(run))
    assert observation.observe(run, known).facts.annotations[UUID].pinned

    known = replace(known, finals={1: (load(run, run / "step_1").uuid, None)})
    assert observation.observe(run, known).facts is None
    assert observation.observe(run, replace(known, journal_bytes=3)).facts is not None


def test_the_config_is_that_of_the_newest_checkpoint_that_has_one(run):
    save(run, 1, config=b"lr: 1")
    save(run, 2, config=b"lr: 2")
    save(run, 3)
    assert observation.observe(run).config == {"lr": 2}


def test_each_checkpoint_is_counted(run):
    for step in (1, 2, 3):
        put(run, f"step_{step}")
    calls = []
    observation.observe(run, on_checkpoint=lambda: calls.append(1))
    assert len(calls) == 3


def test_what_cannot_be_read_is_told_and_the_rest_observed(run, monkeypatch):
    bad, tmp = put(run, "step_1"), put(run, "tmp_step_3")
    put(run, "step_2")
    real = os.open

    def fail(path, *arguments, **options):
        if Path(os.fsdecode(path)) in {bad / "training_info.json", tmp / "training_info.json"}:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    seen = observation.observe(run)
    assert list(seen.finals) == [2]
    assert seen.errors == ()
    assert seen.unreadable == {"step_1": "Input/output error", "tmp_step_3": "Input/output error"}


def test_an_error_that_may_befall_all_of_them_is_told_apart(run, monkeypatch):
    bad = put(run, "step_1")
    real = os.open

    def fail(path, *arguments, **options):
        if str(path).startswith(str(bad)):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    seen = observation.observe(run)
    assert seen.errors == (f"{bad}: Too many open files",)
    assert seen.unreadable == {}


def test_a_journal_that_cannot_be_read_hides_no_checkpoint(run):
    put(run, "step_1")
    (run / ".ckptdb" / "journal.jsonl").mkdir(parents=True)
    seen = observation.observe(run)
    assert (list(seen.finals), seen.facts) == ([1], None)
    assert seen.errors == (f"{run}/.ckptdb/journal.jsonl: is a directory, not a regular file",)


@pytest.mark.parametrize("name", ["step_1", "tmp_step_1"])
def test_what_leaves_while_we_look_was_never_there(run, monkeypatch, name):
    path = put(run, name)
    owner, reader = (read_checkpoint, "read") if name == "step_1" else (read_tmp, "load_tmp")
    real = getattr(owner, reader)

    def leave(*arguments, **options):
        path.rename(run / "gone")
        return real(*arguments, **options)

    monkeypatch.setattr(owner, reader, leave)
    seen = observation.observe(run)
    assert (seen.errors, seen.finals, seen.tmps) == ((), {}, {})


# --- many runs --------------------------------------------------------------------------


def test_runs_are_found_below_a_directory(tmp_path):
    put(tmp_path, "nemo/step_1")
    put(tmp_path, "deep/er/tmp_step_1")
    put(tmp_path, "nested/step_1")
    put(tmp_path, "nested/child/step_1")
    put(tmp_path, "nested/step_1/policy/step_2")
    put(tmp_path, ".hidden/step_1")
    put(tmp_path, f"nemo/old_step_1.{UUID}/step_1")
    put(tmp_path, "not one/step_1", None)
    (tmp_path / "link").symlink_to("nemo")
    (tmp_path / "empty" / ".ckptdb").mkdir(parents=True)
    (tmp_path / "empty" / ".ckptdb" / "run.json").write_text("{}")

    found = [path.relative_to(tmp_path).as_posix() for path in run_finder.find_runs(tmp_path)]

    assert found == [".hidden", "deep/er", "empty", "nemo", "nested", "nested/child"]
    assert run_listing.is_run(tmp_path / "nemo")
    assert not run_listing.is_run(tmp_path)


def test_other_roots_are_searched_only_when_asked(tmp_path):
    put(tmp_path, "a/step_1")
    put(tmp_path, "b/inner/step_1")
    root_marker.mark_root(tmp_path / "b")
    assert list(run_finder.find_runs(tmp_path)) == [tmp_path / "a"]
    inner = tmp_path / "b" / "inner"
    assert list(run_finder.find_runs(tmp_path, other_roots=True)) == [tmp_path / "a", inner]
    assert list(run_finder.find_runs(tmp_path / "b")) == [inner]


def test_a_run_that_is_a_root_of_its_own_is_a_run(tmp_path):
    put(tmp_path, "a/step_1")
    root_marker.mark_root(tmp_path / "a")
    assert list(run_finder.find_runs(tmp_path)) == [tmp_path / "a"]


def test_a_directory_that_may_not_be_read_holds_no_run(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(run_listing.os, "scandir", refuse)
    assert list(run_finder.find_runs(tmp_path)) == []


def test_published_steps_are_listed(run):
    for name in ("step_10", "step_2", "tmp_step_3"):
        put(run, name)
    assert run_listing.list_finals(run) == [(2, run / "step_2"), (10, run / "step_10")]
    assert run_listing.list_finals(run / "nowhere") == []
    assert run_listing.list_finals(run / "step_2" / "training_info.json") == []


def test_a_manifest_of_other_hands_never_breaks_the_reading(run):
    path = save(run, 5)
    whole = asdict(manifest.find(path))
    for change in ({"step": 6}, {"files": {"model.pt": 2**62}}, {"parent": "x"}):
        (path / "manifest.json").write_text(json.dumps({**whole, **change}))
        assert load(run, path).problem is None
