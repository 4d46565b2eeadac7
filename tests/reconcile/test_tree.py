from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.support.reconciling import (
    age,
    kinds,
    live,
    put,
    reconcile,
    rows,
    save,
    stage,
)

from ckptdb.disk.publish import Publisher
from ckptdb.reconcile.tree import reconcile_tree


def test_a_tree_is_reconciled_run_by_run(catalog, run, tmp_path):
    save(run, 1)
    other = tmp_path / "results" / "deep" / "sft"
    put(other, "step_1")
    put(other, "step_2")
    runs, count = [], []

    report = reconcile_tree(
        catalog,
        tmp_path / "results",
        on_run=runs.append,
        on_checkpoint=lambda: count.append(1),
    )

    assert runs == [other, run]
    assert (report.checkpoints, len(count)) == (3, 3)
    assert report.has_changes
    assert (report.blocked, report.missing) == ((), ())
    assert report.seconds >= 0
    assert [r["run"] for r in report.as_dict()["runs"]] == ["sft", "grpo"]
    again = reconcile_tree(catalog, tmp_path / "results")
    assert not again.has_changes
    assert again.as_dict()["drift"] is False


@pytest.fixture
def listings(monkeypatch):
    """Collect every directory that is listed."""
    made, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: made.append(path) or real(path))
    return made


def test_looking_for_runs_and_looking_at_one_take_one_listing(catalog, run, listings):
    save(run, 1)
    age(run)
    for _ in ("from nothing", "unchanged"):
        del listings[:]
        reconcile_tree(catalog, run.parent)
        assert listings.count(run) == 1
    save(run, 2)
    del listings[:]
    reconcile_tree(catalog, run.parent)
    assert listings.count(run) == 3, "it was too young to prove anything, also under the lock"
    assert set(live(catalog)) == {1, 2}


@pytest.mark.parametrize("hidden", [False, True], ids=["as ever", "with its time set back"])
def test_what_comes_after_the_listing_is_seen(catalog, run, hidden):
    save(run, 1)
    put(run, "step_2")
    age(run)
    reconcile_tree(catalog, run.parent)
    before = run.stat()

    def change(directory: Path) -> None:
        put(directory, "step_3")
        shutil.rmtree(directory / "step_2")
        if hidden:
            os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))

    (report,) = reconcile_tree(catalog, run.parent, on_run=change).runs
    assert (run.stat().st_mtime_ns == before.st_mtime_ns) == hidden
    assert kinds(report) == ["added", "vanished"]
    assert set(live(catalog)) == {1, 3}


def test_a_run_that_is_not_there_is_told_and_its_history_kept(catalog, run, tmp_path):
    save(run, 1)
    reconcile_tree(catalog, tmp_path / "results")
    run.rename(tmp_path / "unmounted")

    report = reconcile_tree(catalog, tmp_path / "results")

    assert report.missing == (run,)
    assert report.blocked == (
        f"{run} is not there; its history is kept until it is back or `ckptdb forget {run}`",
    )
    assert set(live(catalog)) == {1}


def test_what_blocks_a_run_blocks_not_the_others(catalog, run, tmp_path):
    save(run, 1)
    other = tmp_path / "results" / "sft"
    other.mkdir()
    save(other, 1)
    reconcile_tree(catalog, tmp_path / "results")
    (run / ".ckptdb" / "run.json").write_text("{")
    save(other, 2)

    report = reconcile_tree(catalog, tmp_path / "results")

    assert len(report.blocked) == 1
    assert rows(catalog) == {("grpo", 1): ["final"], ("sft", 1): ["final"], ("sft", 2): ["final"]}


def test_a_run_whose_names_are_no_text_is_indexed(catalog, tmp_path):
    odd = tmp_path / "results" / os.fsdecode(b"caf\xe9 \n'\"")
    odd.mkdir()
    one = save(odd, 1)
    reconcile(catalog, odd)
    assert [(c.uuid, c.path) for c in catalog.checkpoints.list_all()] == [
        (one.uuid, odd / "step_1")
    ]


@pytest.mark.parametrize("depth", ["changes", "files"])
def test_a_save_that_was_given_up_elsewhere_leaves_the_configuration_known(catalog, run, depth):
    save(run, 1, config=b"lr: 30\n")
    reconcile(catalog, run)
    Publisher(run).discard(stage(run, 2), reason="discarded: by another process")
    reconcile(catalog, run, depth=depth)
    (seen,) = catalog.runs.list_all()
    assert seen.run.config == {"lr": 30}
    assert [cp.step for cp in catalog.checkpoints.list_all(run_id=seen.id, status="deleted")] == [2]
