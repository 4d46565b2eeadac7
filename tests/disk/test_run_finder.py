from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ckptdb.disk import root_marker, run_finder, run_listing
from ckptdb.disk.run_finder import Runs


def make_run(path: Path) -> Path:
    (path / "step_1").mkdir(parents=True)
    (path / "step_1" / "training_info.json").write_text("{}")
    return path


def settle(top: Path):
    for folder, _, _ in os.walk(top):
        os.utime(folder, ns=(0, os.stat(folder).st_mtime_ns - 10**10))


@pytest.fixture
def listed(monkeypatch):
    """Collect what is listed."""
    found = []
    real = run_listing.sort_folders

    def sort_folders(top):
        found.append(top)
        return real(top)

    monkeypatch.setattr(run_listing, "sort_folders", sort_folders)
    return found


@pytest.mark.parametrize("other_roots", [False, True])
def test_runs_are_found_as_by_one_search(tmp_path: Path, other_roots):
    for name in ("a", "deep/er/b", "c", "c/below", "other/d", "lone"):
        make_run(tmp_path / name)
    for name in (".", "other", "lone"):
        root_marker.mark_root(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("a")
    runs = Runs(tmp_path, other_roots=other_roots)
    expected = tuple(run_finder.find_runs(tmp_path, other_roots=other_roots))
    assert (tmp_path / "other" / "d" in expected) == other_roots
    assert runs.find() == expected
    settle(tmp_path)
    assert runs.find() == expected
    assert runs.find() == expected


def test_only_what_has_changed_is_listed_again(tmp_path: Path, listed):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "deep" / "b")
    settle(tmp_path)
    runs = Runs(tmp_path)
    assert runs.find() == (a, b)
    listed.clear()
    assert runs.find() == (a, b)
    assert listed == []
    c = make_run(tmp_path / "deep" / "c")
    assert runs.find() == (a, b, c)
    assert listed == [tmp_path / "deep", c]


def test_what_is_too_young_to_be_sure_of_is_listed_again(tmp_path: Path, listed):
    make_run(tmp_path / "a")
    runs = Runs(tmp_path)
    assert runs.find() == runs.find()
    assert len(listed) == 4


def test_a_directory_becomes_a_run_moves_and_goes(tmp_path: Path):
    runs = Runs(tmp_path / "top")
    assert runs.find() == ()
    (tmp_path / "top" / "a").mkdir(parents=True)
    settle(tmp_path)
    assert runs.find() == ()
    a = make_run(tmp_path / "top" / "a")
    assert runs.find() == (a,)
    a.rename(tmp_path / "top" / "b")
    assert runs.find() == (tmp_path / "top" / "b",)
    shutil.rmtree(tmp_path / "top")
    assert runs.find() == ()
