from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace

import pytest
from tests.support.reconciling import (
    age,
    kinds,
    live,
    put,
    reconcile,
    rows,
    save,
    seal,
    stage,
)

from ckptdb.core.facts import Fact
from ckptdb.disk import (
    fsutil,
    journal_records,
    observation,
    read_tmp,
    read_trash,
    writer,
)
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.reconcile.run import reconcile_run

AT = "2026-11-22T16:01:24.000Z"


def test_a_complete_tmp_is_published(catalog, run):
    uuid = seal(run, 1)
    report = reconcile(catalog, run)
    assert "complete tmp" in kinds(report)
    assert live(catalog) == {1: uuid}
    assert not (run / "tmp_step_1").exists()


def test_a_complete_tmp_that_replaces_what_is_published_is_published(catalog, run):
    old = save(run, 1, 0.1)
    reconcile(catalog, run)
    new = seal(run, 1, 0.2)

    reconcile(catalog, run)

    assert live(catalog) == {1: new}
    gone = catalog.checkpoints.list_all(status="deleted")
    assert [(c.uuid, c.deleted_reason) for c in gone] == [
        (old.uuid, "replaced by a new save of step 1")
    ]
    assert read_trash.list_trash(run) == ()


@pytest.mark.parametrize("by", ["ckptdb", "NeMo-RL"])
def test_what_was_exchanged_before_a_crash_is_put_away(catalog, run, by):
    if by == "ckptdb":
        save(run, 1, 0.1)
    else:
        put(run, "step_1", '{"loss": 0.1}')
    reconcile(catalog, run)
    publisher = Publisher(run)
    who = publisher.establish()
    new = seal(run, 1, 0.2)
    sealed = read_tmp.load_tmp(who, run / "tmp_step_1", 1).manifest
    publisher._record_replaced(who, StampWatch(run), run / "step_1", sealed)
    fsutil.exchange(run / "tmp_step_1", run / "step_1")

    report = reconcile(catalog, run)

    assert "complete tmp" in kinds(report)
    assert live(catalog) == {1: new}
    assert rows(catalog) == {("grpo", 1): ["deleted", "final"]}
    assert sorted(os.listdir(run)) == [".ckptdb", "step_1"]
    assert read_trash.list_trash(run) == ()


@pytest.mark.parametrize("new", [True, False], ids=["with the new one", "alone"])
def test_an_old_one_left_by_two_renames_finds_its_place(catalog, run, new):
    old = save(run, 1, 0.1)
    reconcile(catalog, run)
    expected = seal(run, 1, 0.2) if new else old.uuid
    (run / "step_1").rename(run / f"old_step_1.{old.uuid}")

    report = reconcile_run(catalog, run)
    assert "orphan old" in kinds(report)
    assert live(catalog) == {1: expected}
    assert observation.observe(run).olds == ()
    assert read_trash.list_trash(run) == ()
    assert not reconcile_run(catalog, run).has_changes


def test_bytes_of_what_was_retired_are_removed(catalog, run):
    one = save(run, 1)
    Publisher(run).retire([Deletion(1, one.uuid, "by hand")])
    assert "unfinished removal" in kinds(reconcile(catalog, run))
    assert read_trash.list_trash(run) == ()


def test_a_deletion_that_was_recorded_and_did_not_happen_counts_for_nothing(catalog, run):
    one = save(run, 1)
    reconcile(catalog, run)
    Publisher(run).record([journal_records.gone(one.ended("retention", "too old", AT))])
    assert reconcile(catalog, run).actions == ()
    assert live(catalog) == {1: one.uuid}


@pytest.mark.parametrize("depth", ["changes", "files"])
def test_what_was_pinned_and_replaced_stays_in_the_trash_until_it_is_unpinned(catalog, run, depth):
    old = save(run, 1, 0.1)
    Publisher(run).record([Fact(AT, "pin", old.uuid)])
    reconcile_run(catalog, run, depth=depth)
    seal(run, 1, 0.2)

    report = reconcile_run(catalog, run, depth=depth)
    assert report.blocked is None
    assert [leftover.uuid for leftover in read_trash.list_trash(run)] == [old.uuid]
    assert not reconcile_run(catalog, run, depth=depth).has_changes

    Publisher(run).record([Fact(AT, "unpin", old.uuid)])
    reconcile_run(catalog, run, depth=depth)
    assert read_trash.list_trash(run) == ()


def test_an_unfinished_tmp_is_kept_and_reported(catalog, run):
    path = stage(run, 5)
    assert kinds(reconcile_run(catalog, run)) == ["live tmp", "new run", "new tmp"]
    dead = replace(writer.find(path), started=1)
    (path / ".writer.json").write_text(json.dumps(asdict(dead)))
    assert kinds(reconcile(catalog, run)) == ["abandoned tmp"]
    assert path.is_dir()


def test_strangers_copies_and_odd_names_are_left_alone(catalog, run):
    save(run, 1)
    subprocess.run(["cp", "-r", run / "step_1", run / "tmp_step_1"], check=True)
    subprocess.run(["cp", "-r", run / "step_1", run / "step_2"], check=True)
    (run / "step_007").mkdir()
    (run / "step_3").symlink_to("step_1")

    report = reconcile(catalog, run)

    # A link to a checkpoint is one, at its own step.
    assert kinds(report) == ["added", "added", "added", "duplicate", "foreign", "new run"]
    assert sorted(os.listdir(run)) == [
        ".ckptdb", "step_007", "step_1", "step_2", "step_3", "tmp_step_1",
    ]  # fmt: skip
    assert set(live(catalog)) == {1, 2, 3}
    assert (run / "step_3").is_symlink()


@pytest.mark.parametrize("fresh", [True, False], ids=["just now", "long ago"])
def test_damage_is_found_in_full_depth_and_remembered_until_it_is_mended(catalog, run, fresh):
    save(run, 1)
    reconcile(catalog, run)
    (run / "step_1" / "model.pt").write_bytes(b"w")
    if not fresh:
        age(run)
    assert "damaged" not in kinds(reconcile_run(catalog, run))

    report = reconcile_run(catalog, run, depth="full")
    assert {"changed", "damaged"} <= set(kinds(report))
    problem = "damaged: model.pt: 1 of 7 bytes"
    assert catalog.checkpoints.list_all()[0].problem == problem
    assert catalog.ranking.find_latest_step(report.run_id) is None

    for depth in ("full", "files", "changes"):
        again = reconcile_run(catalog, run, depth=depth)
        assert not again.has_changes
        assert catalog.checkpoints.list_all()[0].problem == problem

    (run / "step_1" / "model.pt").write_bytes(b"weights")
    reconcile_run(catalog, run, depth="full")
    assert catalog.checkpoints.list_all()[0].problem is None
