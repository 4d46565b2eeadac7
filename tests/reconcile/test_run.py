from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.reconciling import (
    age,
    everything,
    kinds,
    live,
    put,
    reconcile,
    rows,
    save,
    seal,
    stage,
)

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.core.candidates import Wanted
from ckptdb.core.facts import Fact
from ckptdb.disk import (
    fsutil,
    identity,
    journal,
    paths,
)
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import RunLocked
from ckptdb.reconcile import locks
from ckptdb.reconcile.run import index_run, reconcile_run

AT = "2026-11-22T16:01:24.000Z"


# --- what the index learns --------------------------------------------------------------


def test_a_run_is_indexed_from_nothing(catalog, run):
    one = save(run, 1, 0.1, b"lr: 0.1")
    two = save(run, 2, 0.2)

    report = reconcile(catalog, run)

    assert kinds(report) == ["added", "added", "new run"]
    assert report.applied
    assert live(catalog) == {1: one.uuid, 2: two.uuid}
    seen = catalog.runs.find(one.run_uuid)
    assert seen.run.directory == run
    assert seen.run.config == {"lr": 0.1}
    assert catalog.ranking.find_best_step(seen.id, "loss", "min") == 1


def test_a_dry_run_says_the_same_and_changes_nothing(catalog, run):
    save(run, 1)
    seal(run, 2)
    before = sorted(str(path) for path in run.rglob("*"))

    report = reconcile_run(catalog, run, dry_run=True)

    assert kinds(report) == ["added", "complete tmp", "new run", "new tmp"]
    assert not report.applied
    assert report.has_changes
    assert report.as_dict()["actions"][0]["kind"] == "new run"
    assert everything(catalog) == ([], [])
    assert sorted(str(path) for path in run.rglob("*")) == before


def test_checkpoints_of_nemo_rl_are_indexed_and_nothing_is_written(catalog, run):
    put(run, "step_1", config_json='{"lr": 0.1}')
    put(run, "step_2", '{"loss": NaN}')
    put(run, "step_3", None)
    put(run, "step_4", "{")
    put(run, "tmp_step_5")

    report = reconcile(catalog, run)

    assert kinds(report) == [
        "abandoned tmp", "added", "added", "added", "added", "new run", "new tmp", "unreadable",
        "unreadable",
    ]  # fmt: skip
    found = {c.step: c for c in catalog.checkpoints.list_all(status="final")}
    assert [step for step, c in found.items() if c.problem] == [3, 4]
    assert found[1].metrics == {"loss": 0.5}
    assert found[2].metrics == {"loss": None}
    run_id = report.run_id
    assert catalog.ranking.find_latest_step(run_id) == 2
    assert [c.step for c in catalog.candidates.of_run(run_id, Wanted(metrics=("loss",)))] == [1, 2]
    assert catalog.runs.list_all()[0].run.config == {"lr": 0.1}
    assert not (run / ".ckptdb").exists()


def test_a_run_of_nemo_rl_keeps_its_identity_when_it_is_first_written_to(catalog, run):
    put(run, "step_1")
    reconcile(catalog, run)
    before = catalog.runs.list_all()[0].run.uuid

    save(run, 2)

    reconcile(catalog, run)
    assert [seen.run.uuid for seen in catalog.runs.list_all()] == [before]
    assert set(live(catalog)) == {1, 2}


def test_what_changed_on_disk_changes_in_the_index(catalog, run):
    save(run, 1, 0.1)
    age(run)
    reconcile(catalog, run)
    (run / "step_1" / "training_info.json").write_text('{"loss": 0.9}')

    assert kinds(reconcile(catalog, run)) == ["changed"]
    assert catalog.checkpoints.list_all()[0].metrics == {"loss": 0.9}


def test_facts_of_the_journal_reach_the_index(catalog, run):
    one, two = save(run, 1), save(run, 2)
    reconcile(catalog, run)
    Publisher(run).record(
        [
            Fact(AT, "pin", one.uuid),
            Fact(AT, "tag", one.uuid, {"name": "rc"}),
            Fact(AT, "metric", one.uuid, {"name": "mmlu", "value": 0.6, "source": "eval"}),
            Fact(AT, "note", two.uuid, {"text": "good"}),
        ]
    )
    Publisher(run).retire([Deletion(2, two.uuid, "by hand")])

    report = reconcile(catalog, run)

    assert kinds(report) == ["annotated", "annotated", "deleted", "unfinished removal"]
    found = {c.step: c for c in catalog.checkpoints.list_all()}
    assert (found[1].pinned, found[1].tags, found[1].metrics["mmlu"]) == (True, ("rc",), 0.6)
    assert (found[2].status, found[2].deleted_reason, found[2].notes) == (
        "deleted",
        "by hand",
        "good",
    )


def test_history_is_rebuilt_without_an_index(catalog, run):
    one = save(run, 1, 0.1)
    two = save(run, 1, 0.2)
    Publisher(run).retire([Deletion(1, two.uuid, "by hand")])
    Publisher(run).discard(stage(run, 3), reason="discarded: gave up")

    reconcile(catalog, run)

    found = {c.uuid: c.deleted_reason for c in catalog.checkpoints.list_all(status="deleted")}
    assert found[one.uuid] == "replaced by a new save of step 1"
    assert found[two.uuid] == "by hand"
    assert sorted(found.values())[1] == "discarded: gave up"


def test_a_replacement_by_hand_is_one_that_vanished_and_one_that_came(catalog, run):
    one = save(run, 1, 0.1)
    reconcile(catalog, run)
    shutil.rmtree(run / "step_1")
    put(run, "step_1", '{"loss": 0.2}')

    assert kinds(reconcile(catalog, run)) == ["added", "vanished"]
    gone = catalog.checkpoints.list_all(status="deleted")
    assert [(c.uuid, c.deleted_reason) for c in gone] == [
        (one.uuid, "vanished: not on disk any more")
    ]


def test_another_tmp_in_the_place_of_one_is_told(catalog, run):
    stage(run, 5, 0.1)
    reconcile(catalog, run)
    shutil.rmtree(run / "tmp_step_5")
    put(run, "tmp_step_5", '{"loss": 0.2}')

    assert kinds(reconcile(catalog, run)) == ["abandoned tmp", "new tmp", "vanished"]
    assert [c.metrics for c in catalog.checkpoints.list_all(status="tmp")] == [{"loss": 0.2}]


def test_what_vanished_and_came_back_can_vanish_again(catalog, run, tmp_path):
    one = save(run, 1)
    reconcile(catalog, run)
    for _ in range(2):
        (run / "step_1").rename(tmp_path / "aside")
        assert kinds(reconcile(catalog, run)) == ["vanished"]
        assert rows(catalog) == {("grpo", 1): ["deleted"]}
        vanished = catalog.checkpoints.list_all()[0]

        (tmp_path / "aside").rename(run / "step_1")
        assert kinds(reconcile(catalog, run)) == ["reappeared"]
        assert live(catalog) == {1: one.uuid}
        assert catalog.checkpoints.list_all()[0].deleted_at is None
        facts = journal.read(run / ".ckptdb", identity.identify(run).run)
        assert facts.gone == {}
        assert vanished.uuid == one.uuid


def test_of_nemo_rl_a_vanished_checkpoint_is_recorded_too(catalog, run):
    put(run, "step_1")
    put(run, "step_2")
    reconcile(catalog, run)
    before = catalog.runs.list_all()[0].run.uuid
    shutil.rmtree(run / "step_1")

    assert "vanished" in kinds(reconcile(catalog, run))
    assert rows(catalog) == {("grpo", 1): ["deleted"], ("grpo", 2): ["final"]}
    assert identity.identify(run).run.uuid == before


def test_an_index_that_may_not_touch_the_disk_is_true_all_the_same(memory, run):
    save(run, 1)
    seal(run, 2)
    index_run(memory, run)
    shutil.rmtree(run / "step_1")
    size = journal.size(run)

    report = index_run(memory, run)

    assert rows(memory) == {("grpo", 1): ["deleted"], ("grpo", 2): ["tmp"]}
    assert journal.size(run) == size
    assert (run / "tmp_step_2").is_dir()
    assert report.applied


# --- moved, copied, lost ----------------------------------------------------------------


def test_a_run_that_moved_is_the_same_run(catalog, run, tmp_path):
    one = save(run, 1)
    age(run)
    reconcile(catalog, run)
    moved = run.rename(tmp_path / "results" / "moved")

    report = reconcile(catalog, moved)

    assert "moved run" in kinds(report)
    assert [(s.run.directory, s.run.name) for s in catalog.runs.list_all()] == [(moved, "moved")]
    assert [(c.uuid, c.path) for c in catalog.checkpoints.list_all()] == [
        (one.uuid, moved / "step_1")
    ]


@pytest.mark.slow
def test_a_copied_run_is_another_run_with_the_same_checkpoints(catalog, run, tmp_path):
    one = save(run, 1)
    Publisher(run).record([Fact(AT, "pin", one.uuid)])
    put(run, "step_2")
    reconcile(catalog, run)
    copy = tmp_path / "results" / "copy"
    subprocess.run(["cp", "-r", run, copy], check=True)

    reconcile(catalog, copy)

    both = {s.run.name: s for s in catalog.runs.list_all()}
    assert set(both) == {"grpo", "copy"}
    assert both["copy"].run.forked_from == both["grpo"].run.uuid
    found = {name: catalog.checkpoints.list_all(run_id=seen.id) for name, seen in both.items()}
    assert [c.uuid for c in found["copy"]] == [c.uuid for c in found["grpo"]]
    assert found["copy"][0].pinned

    save(copy, 3)
    reconcile(catalog, copy)
    reconcile(catalog, run)
    assert rows(catalog, "final") == {
        (name, step): ["final"] for name in ("copy", "grpo") for step in (1, 2, 3)
        if (name, step) != ("grpo", 3)
    }  # fmt: skip


def test_a_root_copied_with_its_catalog_goes_on(tmp_path):
    root, run = tmp_path / "results", tmp_path / "results" / "grpo"
    run.mkdir(parents=True)
    save(run, 1)
    first = Catalog(Database.open(locate(root), create=True, durable=False))
    reconcile_run(first, run)
    first.database.close()
    subprocess.run(["cp", "-r", root, tmp_path / "copy"], check=True)

    second = Catalog(Database.open(locate(tmp_path / "copy")))
    reconcile_run(second, tmp_path / "copy" / "grpo")

    assert [(s.run.directory, s.run.name) for s in second.runs.list_all()] == [
        (tmp_path / "copy" / "grpo", "grpo")
    ]
    assert rows(second) == {("grpo", 1): ["final"]}
    second.database.close()


def test_a_moved_root_of_nemo_rl_runs_is_reconciled(tmp_path):
    root = tmp_path / "results"
    put(root, "grpo/step_1")
    first = Catalog(Database.open(locate(root), create=True, durable=False))
    reconcile_run(first, root / "grpo")
    first.database.close()
    moved = root.rename(tmp_path / "moved")

    second = Catalog(Database.open(locate(moved)))
    report = reconcile_run(second, moved / "grpo")

    assert report.blocked is None
    assert [s.run.directory for s in second.runs.list_all()] == [moved / "grpo"]
    assert rows(second) == {("grpo", 1): ["final"]}
    assert not reconcile_run(second, moved / "grpo").has_changes
    second.database.close()


def test_a_run_that_lost_its_run_json_is_not_taken_for_deleted(catalog, run):
    save(run, 1)
    save(run, 2)
    reconcile(catalog, run)
    (run / ".ckptdb").rename(run / "away")
    shutil.rmtree(run / "step_1")
    before = everything(catalog)

    report = reconcile_run(catalog, run)

    assert report.blocked is not None
    assert "has lost its .ckptdb/run.json" in report.blocked
    assert not report.applied
    assert everything(catalog) == before
    assert not (run / ".ckptdb").exists()

    (run / "away").rename(run / ".ckptdb")
    assert reconcile(catalog, run).blocked is None


def test_a_run_whose_run_json_is_broken_is_not_taken_for_another(catalog, run):
    save(run, 1)
    reconcile(catalog, run)
    (run / ".ckptdb" / "run.json").write_text("{")
    before = everything(catalog)

    report = reconcile_run(catalog, run)

    assert "is not JSON" in report.blocked
    assert "restore the file" in report.blocked
    assert everything(catalog) == before


def test_another_run_may_take_the_directory_of_one(catalog, run):
    save(run, 1)
    reconcile(catalog, run)
    shutil.rmtree(run)
    run.mkdir()
    new = save(run, 1)

    reconcile(catalog, run)

    assert live(catalog) == {1: new.uuid}
    assert [c.deleted_reason for c in catalog.checkpoints.list_all(status="deleted")] == [
        "vanished: another run took its directory"
    ]


def test_a_directory_that_is_no_run_is_not_indexed(catalog, run):
    report = reconcile_run(catalog, run)
    assert (report.actions, report.run_id, report.applied) == ((), None, False)
    assert catalog.runs.list_all() == ()


# --- when something fails ---------------------------------------------------------------


def failing_open(monkeypatch, *victims: Path, code: int = errno.EIO) -> None:
    real = paths.open_to_read

    def fail(path):
        if Path(path) in victims:
            raise OSError(code, os.strerror(code))
        return real(path)

    monkeypatch.setattr(paths, "open_to_read", fail)


def test_what_cannot_be_read_is_marked_and_the_rest_recorded(catalog, run, monkeypatch):
    one, two = save(run, 1), save(run, 2)
    reconcile(catalog, run)
    shutil.rmtree(run / "step_1")
    save(run, 3)
    with monkeypatch.context() as patch:
        failing_open(patch, run / "step_2" / "manifest.json")
        report = reconcile_run(catalog, run)
        assert sorted(kinds(report)) == ["added", "changed", "unreadable", "vanished"]
        assert report.blocked is None
        assert report.verified is None
        again = reconcile_run(catalog, run)
        assert (sorted(kinds(again)), again.has_changes) == (["lost", "unreadable"], False)
    marked, _ = catalog.checkpoints.list_all(status="final")
    assert marked.problem == "step_2 cannot be read (Input/output error)"
    assert (set(live(catalog)), marked.uuid) == ({2, 3}, two.uuid)
    assert set(journal.read(run / ".ckptdb", identity.identify(run).run).gone) == {one.uuid}

    assert sorted(kinds(reconcile(catalog, run))) == ["changed", "lost"]
    mended, _ = catalog.checkpoints.list_all(status="final")
    assert (mended.problem, mended.metrics) == (None, two.metrics)


@pytest.mark.parametrize("name", ["training_info.json", "config.yaml"])
def test_what_cannot_be_read_for_once_is_read_at_the_next_question(catalog, run, monkeypatch, name):
    """The stamp does not move when a file becomes readable again."""
    save(run, 1, config=b"lr: 0.1\n")
    save(run, 2, config=b"lr: 0.2\n")
    age(run)
    with monkeypatch.context() as patch:
        failing_open(patch, run / "step_2" / name)
        report = reconcile_run(catalog, run)
    assert (report.verified, catalog.runs.list_all()[0].verified) == (None, False)

    report = reconcile_run(catalog, run, depth="changes")
    assert report.verified is not None
    assert [cp.problem for cp in catalog.checkpoints.list_all()] == [None, None]
    assert catalog.runs.list_all()[0].run.config == {"lr": 0.2}


@pytest.mark.parametrize("final", [True, False], ids=["beside a final one", "alone"])
def test_a_tmp_that_cannot_be_read_is_not_taken_for_gone(catalog, run, monkeypatch, final):
    if final:
        save(run, 1)
    tmp = stage(run, 1)
    reconcile(catalog, run)
    with monkeypatch.context() as patch:
        failing_open(patch, tmp / "training_info.json")
        report = reconcile_run(catalog, run)
    assert (kinds(report), report.has_changes) == (["unreadable"], False)
    assert journal.read(run / ".ckptdb", identity.identify(run).run).gone == {}
    assert [c.step for c in catalog.checkpoints.list_all(status="tmp")] == [1]


def test_what_takes_the_place_of_another_is_recorded_beside_what_cannot_be_read(
    catalog, run, monkeypatch
):
    old = save(run, 1)
    reconcile(catalog, run)
    new = seal(run, 1)
    fsutil.exchange(run / "tmp_step_1", run / "step_1")
    with monkeypatch.context() as patch:
        failing_open(patch, run / "tmp_step_1" / "manifest.json")
        assert "unreadable" in kinds(reconcile_run(catalog, run))
    assert live(catalog) == {1: new}
    assert [c.uuid for c in catalog.checkpoints.list_all(status="deleted")] == [old.uuid]


def test_while_all_may_be_unreadable_nothing_is_recorded_as_deleted(catalog, run, monkeypatch):
    save(run, 1)
    save(run, 2)
    reconcile(catalog, run)
    shutil.rmtree(run / "step_1")
    save(run, 3)
    with monkeypatch.context() as patch:
        failing_open(patch, run / "step_2" / "manifest.json", code=errno.EMFILE)
        report = reconcile_run(catalog, run)
    assert "Too many open files; nothing missing is recorded as deleted" in report.blocked
    assert set(live(catalog)) == {1, 2, 3}
    assert kinds(reconcile(catalog, run)) == ["vanished"]


def test_what_cannot_be_recorded_did_not_vanish(catalog, run, monkeypatch):
    one = save(run, 1)
    reconcile(catalog, run)
    shutil.rmtree(run / "step_1")
    put(run, "step_1")
    put(run, "step_2")

    def fail(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", fail)
        report = reconcile_run(catalog, run)

    assert report.blocked.endswith("deletions cannot be recorded (Read-only file system)")
    assert report.verified is None
    assert live(catalog)[1] == one.uuid
    assert set(live(catalog)) == {1, 2}
    assert sorted(kinds(reconcile(catalog, run))) == ["added", "vanished"]


def test_a_run_of_others_that_may_not_be_written_is_read(memory, run, monkeypatch):
    put(run, "step_1")
    put(run, "step_2")
    reconcile_run(memory, run)
    shutil.rmtree(run / "step_1")

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Publisher, "establish", refuse)
    report = reconcile_run(memory, run)
    assert "deletions cannot be recorded" in report.blocked
    assert set(live(memory)) == {1, 2}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_lock_on_a_read_only_mount_is_done_without(memory, run, monkeypatch, code):
    save(run, 1)
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith("/lock"):
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert reconcile_run(memory, run).applied
    assert set(live(memory)) == {1}


def test_a_lock_that_somebody_keeps_is_told(memory, run, monkeypatch):
    save(run, 1)

    def refuse(hidden):
        raise RunLocked(hidden / "lock", 60)

    monkeypatch.setattr(locks, "run_lock", refuse)
    with pytest.raises(RunLocked):
        reconcile_run(memory, run)


def test_a_repair_that_fails_is_told_and_the_rest_indexed(catalog, run, monkeypatch):
    one = save(run, 1)
    seal(run, 2)
    with monkeypatch.context() as patch:

        def fail(source, target):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(fsutil, "rename_new", fail)
        report = reconcile_run(catalog, run)

    assert report.blocked == f"{run}: [Errno 5] Input/output error"
    assert report.verified is None
    assert live(catalog) == {1: one.uuid}
    reconcile(catalog, run)
    assert set(live(catalog)) == {1, 2}


def test_a_run_that_goes_while_it_is_repaired_is_told(catalog, run, monkeypatch):
    seal(run, 1)
    real = Publisher.adopt

    def adopt_and_lose_the_run_json(self, path):
        real(self, path)
        (run / ".ckptdb" / "run.json").write_text("{")

    index_run(catalog, run)
    monkeypatch.setattr(Publisher, "adopt", adopt_and_lose_the_run_json)
    report = reconcile_run(catalog, run)
    assert "restore the file" in report.blocked


def test_a_missing_directory_is_an_error(memory, run):
    with pytest.raises(FileNotFoundError):
        reconcile_run(memory, run / "nowhere")
