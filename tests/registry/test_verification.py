"""Verifying: every file in the end, the oldest verification first, and never more than asked."""

import json
import shutil
import sys

import pytest
from tests.support.checksummed import DIFFERS, flip, save_all
from tests.support.warned import warned

from ckptdb import Registry
from ckptdb.disk import manifest
from ckptdb.errors import InvalidChoice
from ckptdb.registry import verification


@pytest.fixture
def run(tmp_path):
    return tmp_path / "results" / "run"


def test_a_flipped_bit_is_found_remembered_and_cleared(run):
    save_all(run)
    flip(run / "step_3" / "model.bin")
    with Registry.open(run) as registry:
        assert not any(cp.problem for cp in registry.verify(depth="sizes"))
        assert [cp.step for cp in registry.verify() if cp.problem] == [3]
        assert registry.get(3).problem == DIFFERS
        assert registry.best().step == 2
        for look in (registry.reconcile, lambda: registry.reconcile(full=True),
                     lambda: registry.verify(depth="sizes")):  # fmt: skip
            look()
            assert registry.get(3).problem == DIFFERS
            assert registry.latest().step == 2
        flip(run / "step_3" / "model.bin")
        assert not any(cp.problem for cp in registry.verify())
        assert registry.best().step == 3
        with pytest.raises(InvalidChoice, match="depth must be"):
            registry.verify(depth="half")


def test_without_the_library_sizes_are_compared_and_one_warning_says_so(run, monkeypatch):
    save_all(run)
    flip(run / "step_3" / "model.bin")
    with Registry.open(run) as registry:
        before = registry.verify().oldest_at
        monkeypatch.setitem(sys.modules, "xxhash", None)
        with warned() as texts:
            found = registry.verify()
    assert len(texts) == 1
    assert texts[0].startswith("Only sizes are compared. Checksums need the package xxhash")
    assert [cp.step for cp in found if cp.problem] == [3], "what was known is kept"
    assert (found.done, found.oldest_at) == (3, before), "what was not read is not noted"


# --- a little at a time -------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that every file takes a second of."""
    now = [1_000.0]
    real = manifest.compare_file

    def compare_file(*given):
        now[0] += 1
        return real(*given)

    monkeypatch.setattr(manifest, "compare_file", compare_file)
    monkeypatch.setattr(verification.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(verification.time, "time", lambda: now[0])
    return now


def looked_at(monkeypatch):
    """Collect which files are looked at."""
    found, real = [], manifest.compare_file

    def compare_file(folder, name, content):
        found.append((int(folder.name[5:]), name))
        return real(folder, name, content)

    monkeypatch.setattr(manifest, "compare_file", compare_file)
    return found


def test_what_was_verified_longest_ago_comes_first_and_no_file_is_left_out(run, monkeypatch, clock):
    save_all(run, (1, 2, 3))  # four files each
    looked = looked_at(monkeypatch)
    told = []
    with Registry.open(run) as registry:
        for _ in range(4):
            found = registry.verify(max_seconds=3)
            told.append((found.done, len(found), found.never))
        assert [step for step, _ in looked] == [1] * 4 + [2] * 4 + [3] * 4
        assert told == [(0, 3, 3), (1, 3, 2), (1, 3, 1), (1, 3, 0)]
        assert len(set(looked)) == 12
        looked.clear()
        registry.verify(max_seconds=5)
        assert [step for step, _ in looked] == [1, 1, 1, 1, 2]
        assert registry.verify().done == 3


def test_however_little_time_there_is_one_file_is_looked_at(run, monkeypatch, clock):
    save_all(run, (1,))
    looked = looked_at(monkeypatch)
    with Registry.open(run) as registry:
        for done in (0, 0, 0, 1):
            assert registry.verify(max_seconds=0).done == done
    assert len(looked) == 4


def test_what_has_no_manifest_takes_its_time_too(tmp_path, monkeypatch, clock):
    for step in (1, 2, 3):
        folder = tmp_path / "run" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text("{}")
    looked = []
    with Registry.open(tmp_path / "run") as registry:
        for max_seconds, count in ((0, 1), (1, 3)):  # no file of theirs is looked at
            found = registry.verify(max_seconds=max_seconds, on_checkpoint=lambda: looked.append(1))
            assert (found.done, found.never, len(found.not_verifiable)) == (0, 0, 3)
            assert len(looked) == count
            looked.clear()


def test_damage_is_told_before_all_files_have_been_looked_at(run, clock):
    save_all(run, (1, 2))
    (run / "step_1" / "config.yaml").unlink()
    with Registry.open(run) as registry:
        found = registry.verify(max_seconds=1)
        assert [cp.step for cp in found if cp.problem] == [1]
        assert registry.latest().step == 2


def test_a_note_that_is_lost_costs_nothing_but_looking_again(run, monkeypatch):
    save_all(run)
    with Registry.open(run) as registry:
        assert registry.verify().never == 0
        (run / ".ckptdb" / "verified.json").write_bytes(b"\xff")
        found = registry.verify(max_seconds=1000)
        assert (found.done, found.never) == (3, 0)
        assert not registry.reconcile().has_drift
        shutil.rmtree(run / "step_1")
        assert len(registry.verify()) == 2
        note = json.loads((run / ".ckptdb" / "verified.json").read_text())
        assert len(note["contents"]["at"]) == 2
