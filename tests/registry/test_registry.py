"""Registry: many runs, asked by people and tools."""

import errno
import json
import math
import os
import shutil
import sqlite3
import threading
import time
import warnings
from contextlib import closing, contextmanager

import pytest
from tests.support import requirements

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog import engine
from ckptdb.catalog.engine import Database
from ckptdb.disk import (
    names,
    observation,
    read_checkpoint,
    read_trash,
    root_marker,
)
from ckptdb.disk.publish import Publisher
from ckptdb.errors import (
    AmbiguousRun,
    CatalogLocked,
    CatalogMissing,
    CatalogUnusable,
    CheckpointGone,
    InvalidAnnotation,
    InvalidChoice,
    NoRuns,
    NothingFinite,
    PinnedCheckpoint,
    RootsBelow,
    UnknownCheckpoint,
    UnknownDirection,
    UnknownMetric,
    UnknownRun,
)
from ckptdb.reconcile import run as run_module
from ckptdb.registry import gc, healing, judge
from ckptdb.retention import Policy

LOSS = "val:loss"


def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    return CheckpointManager(config)


def save(run, step, metrics, **options):
    with open_manager(run, **options) as manager, manager.save(step, metrics) as folder:
        (folder / "model.bin").write_bytes(b"m" * 100)
    return folder.with_name(f"step_{step}")


def write_like_nemo(run, step, info):
    folder = run / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / names.INFO).write_text(json.dumps(info))
    return folder


def settle(run):
    """Make everything in a run look old, and the index sure of it."""
    for path in (*run.rglob("*"), run):
        found = path.lstat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 10**10), follow_symlinks=False)


def paths_below(top):
    return sorted(path for path in top.rglob("*"))


@pytest.fixture
def root(tmp_path):
    """Runs a (steps 1 to 3, best 2) and b (steps 2 and 9, best 9) below one root."""
    directory = tmp_path / "results"
    directory.mkdir()
    root_marker.mark_root(directory)
    for step, loss, acc in ((1, 0.5, 0.1), (2, 0.2, 0.2), (3, 0.4, 0.9)):
        save(directory / "a", step, {LOSS: loss, "acc": acc})
    for step, loss in ((2, 0.3), (9, 0.1)):
        save(directory / "b", step, {LOSS: loss})
    return directory


@pytest.fixture
def registry(root):
    with Registry.open(root) as found:
        yield found


def steps(found):
    return [(checkpoint.run, checkpoint.step) for checkpoint in found]


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "run"),
    [
        (".", None),
        ("a", "a"),
        ("a/step_2", "a"),
        ("a/.ckptdb", "a"),
        (".ckptdb/catalog.db", None),
    ],
)
def test_a_registry_opens_from_anywhere_inside(root, place, run):
    with Registry.open(root / place) as registry:
        assert registry.location.file == root / ".ckptdb" / "catalog.db"
        assert registry.run == (None if run is None else root / run)
        assert [r.name for r in registry.runs()] == (["a", "b"] if run is None else ["a"])
        mine = registry.checkpoints(status="final")
        assert len(mine) == (5 if run is None else 3)


def test_a_registry_opens_from_a_url_and_from_a_catalog_elsewhere(root, tmp_path):
    with Registry.open(f"sqlite:///{root}/.ckptdb/catalog.db") as registry:
        assert registry.best(run="b").step == 9
    elsewhere = tmp_path / "elsewhere.sqlite"
    with Registry.open(root, catalog=elsewhere) as registry:
        registry.reconcile()
        assert registry.best(run="b").path == root / "b" / "step_9"
    with Registry.open(elsewhere) as registry:
        assert steps(registry.checkpoints(run="b")) == [("b", 2), ("b", 9)]


def test_relative_places_are_taken_from_where_one_stands(root, monkeypatch):
    monkeypatch.chdir(root / "a" / "step_2")
    with Registry.open() as registry:
        assert registry.latest().step == 3


def test_what_is_not_there_is_said_in_one_sentence(tmp_path):
    with pytest.raises(CatalogMissing, match=r"There is no directory .*/nowhere"):
        Registry.open(tmp_path / "nowhere")
    with pytest.raises(CatalogMissing, match="No catalog and no checkpoints at"):
        Registry.open(tmp_path).runs()
    with pytest.raises(CatalogUnusable):
        Registry.open(tmp_path, catalog=tmp_path / "no" / "such" / "catalog.db")
    with pytest.raises(CatalogMissing):
        Registry.init(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_registry_opens_again_when_asked(registry):
    registry.close()
    assert registry.best().step == 9


# --- which run ----------------------------------------------------------------------------------


def test_a_run_is_addressed_by_name_path_or_uuid_prefix(registry, root, monkeypatch):
    uuid = next(run.uuid for run in registry.runs() if run.name == "a")
    monkeypatch.chdir(root / "b")
    for address in ("a", root / "a", "../a", uuid, uuid[:6]):
        assert registry.latest(run=address).run == "a"


def test_a_run_that_nobody_knows_lists_those_that_exist(registry):
    with pytest.raises(UnknownRun, match=r"known runs: a, b\.$"):
        registry.latest(run="c")
    with pytest.raises(UnknownRun):
        registry.latest(run=registry.runs()[0].uuid[:3])


def test_an_ambiguous_name_lists_the_candidates(root):
    save(root / "x" / "same", 1, {LOSS: 1})
    save(root / "y" / "same", 1, {LOSS: 2})
    with Registry.open(root) as registry:
        registry.reconcile()
        with pytest.raises(AmbiguousRun, match=f"{root}/x/same, {root}/y/same"):
            registry.latest(run="same")
        assert registry.latest(run="x/same").metrics == {LOSS: 1}
        with pytest.raises(AmbiguousRun, match="Several runs are here"):
            registry.pin(None, 1)


def test_the_only_run_needs_no_name(tmp_path):
    save(tmp_path / "run", 1, {LOSS: 1})
    with Registry.open(tmp_path) as registry:
        assert registry.pin(None, 1).pinned


# --- questions ----------------------------------------------------------------------------------


def test_best_top_and_latest_answer_for_all_runs_and_for_one(registry):
    assert steps([registry.best()]) == [("b", 9)]
    assert steps([registry.best(run="a")]) == [("a", 2)]
    assert steps(registry.top(3)) == [("b", 9), ("a", 2), ("b", 2)]
    assert steps(registry.top(9, LOSS, mode="max", run="a")) == [("a", 1), ("a", 3), ("a", 2)]
    assert steps([registry.latest()]) == [("b", 9)]
    assert steps([registry.latest(run="a")]) == [("a", 3)]
    assert steps([registry.best("acc", mode="max")]) == [("a", 3)]


def test_the_newest_of_all_runs_is_the_one_finished_last_not_the_highest_step(registry, root):
    save(root / "a", 4, {LOSS: 1})
    assert steps([registry.latest()]) == [("a", 4)]


def test_ties_go_to_the_higher_step_and_nothing_infinite_is_ranked(registry, root):
    save(root / "a", 5, {LOSS: 0.2})
    save(root / "a", 6, {LOSS: math.nan})
    save(root / "a", 7, {LOSS: -math.inf})
    assert registry.best(run="a").step == 5
    assert [cp.step for cp in registry.top(9, run="a")] == [5, 2, 3, 1]


def test_a_metric_that_is_nowhere_finite_is_not_called_missing(registry, root):
    for step in (1, 2):
        save(root / "c", step, {LOSS: math.nan, "kl": step})
    registry.reconcile()
    said = r"No checkpoint of 'c' \(NaN or infinite at step\(s\) 1, 2\) has a finite value of "
    for ask in (
        lambda: registry.best(run="c"),
        lambda: registry.best(run="c", where="kl > 0"),
        lambda: registry.best(run="c", ever=True),
        lambda: registry.top(3, run="c"),
        lambda: registry.pareto(run="c", against=("kl", "min")),
    ):
        with pytest.raises(NothingFinite, match=said) as caught:
            ask()
        assert caught.value.steps == {"c": (1, 2)}
    assert registry.latest(run="c").step == 2
    with Registry.open(root / "c") as alone, pytest.raises(NothingFinite, match=said):
        alone.best_of_runs()
    assert {found.run for found in registry.best_of_runs()} >= {"a"}


def test_an_unknown_metric_lists_those_that_exist(registry):
    with pytest.raises(UnknownMetric, match=r"'val_loss'; known metrics: acc, val:loss\.$"):
        registry.best("val_loss", mode="min")
    with pytest.raises(UnknownMetric, match=r"known metrics: val:loss\.$"):
        registry.top(3, "acc", run="b")


def test_the_direction_comes_from_the_run_or_must_be_said(root):
    save(root / "c", 1, {"reward": 1}, metric_name="reward", higher_is_better=True)
    save(root / "c", 2, {"reward": 5}, metric_name="reward", higher_is_better=True)
    with Registry.open(root) as registry:
        assert registry.best("reward").step == 2
        assert registry.best(run="c").step == 2
        assert registry.best("reward", mode="min").step == 1
        with pytest.raises(UnknownDirection, match="'acc' is better low or high"):
            registry.best("acc")
        with pytest.raises(UnknownDirection, match="No metric to rank by"):
            registry.best()  # two runs, two metrics


@pytest.mark.parametrize("ask", ["best", "top"])
def test_a_direction_or_a_status_that_is_none_is_refused(registry, ask):
    arguments = () if ask == "best" else (3,)
    with pytest.raises(InvalidChoice, match="mode must be 'min' or 'max', not 'low'"):
        getattr(registry, ask)(*arguments, LOSS, mode="low")
    with pytest.raises(InvalidChoice, match="must be 'tmp', 'final' or 'deleted', not 'fin'"):
        registry.checkpoints(status="fin")


def test_runs_that_disagree_on_the_direction_must_be_told_apart(root):
    save(root / "c", 1, {LOSS: 1}, higher_is_better=True)
    with Registry.open(root) as registry:
        with pytest.raises(UnknownDirection):
            registry.best(LOSS)
        assert registry.best(LOSS, run="c").step == 1


def test_the_best_of_a_run_without_a_metric_is_its_latest(tmp_path):
    write_like_nemo(tmp_path / "run", 1, {LOSS: 0.1})
    write_like_nemo(tmp_path / "run", 2, {LOSS: 0.2})
    with Registry.open(tmp_path / "run") as registry:
        assert registry.best().step == 2
        assert registry.best(LOSS, mode="min").step == 1


# --- the best of every run ------------------------------------------------------------------------


def test_each_run_is_judged_by_its_own_metric_and_direction(registry, root):
    save(root / "c", 1, {"reward": 5}, metric_name="reward", higher_is_better=True)
    save(root / "c", 2, {"reward": 1}, metric_name="reward", higher_is_better=True)
    write_like_nemo(root / "d", 1, {LOSS: 0.1})
    write_like_nemo(root / "d", 2, {LOSS: 0.2})
    save(root / "e", 1, {"other": 1})  # lacks its own metric
    registry.reconcile()
    found = registry.best_of_runs()
    assert steps(found) == [("a", 2), ("b", 9), ("c", 1), ("d", 2)]
    for checkpoint in found:
        assert checkpoint == registry.best(run=checkpoint.run)


def test_runs_are_compared_by_one_metric_where_they_have_it(registry, root):
    save(root / "c", 1, {LOSS: 0.5, "reward": 5}, metric_name="reward", higher_is_better=True)
    registry.reconcile()
    assert steps(registry.best_of_runs(LOSS)) == [("a", 2), ("b", 9), ("c", 1)]
    assert steps(registry.best_of_runs(LOSS, mode="max")) == [("a", 1), ("b", 2), ("c", 1)]
    assert steps(registry.best_of_runs("acc", mode="max")) == [("a", 3)]
    with pytest.raises(UnknownMetric, match="known metrics: acc, reward, val:loss"):
        registry.best_of_runs("loss", mode="min")
    with pytest.raises(UnknownDirection):
        registry.best_of_runs("acc")
    with pytest.raises(InvalidChoice):
        registry.best_of_runs(mode="low")


def test_the_best_of_each_run_is_one_that_is_there(registry, root):
    registry.runs()
    shutil.rmtree(root / "a" / "step_2")  # its journal knows nothing of that
    shutil.rmtree(root / "b")
    assert steps(registry.best_of_runs()) == [("a", 3)]


def test_behind_what_cannot_be_recorded_as_gone_lies_the_next_best(registry, root, monkeypatch):
    def fail(*arguments, **options):
        raise CatalogLocked(root)

    write_like_nemo(root / "c", 1, {LOSS: 0.1})
    write_like_nemo(root / "c", 2, {LOSS: 0.1})
    registry.reconcile()
    shutil.rmtree(root / "a" / "step_2")
    shutil.rmtree(root / "c" / "step_2")
    monkeypatch.setattr(healing, "reconcile_run", fail)
    assert steps(registry.best_of_runs()) == [("a", 3), ("b", 9), ("c", 1)]


def test_the_best_of_each_run_of_one_run_is_its_best(registry, root):
    with Registry.open(root / "a") as one:
        assert steps(one.best_of_runs()) == [("a", 2)]
    with Registry.open(write_like_nemo(root / "f", 1, {"x": 1}).parent) as one:
        assert steps(one.best_of_runs()) == [("f", 1)]


def test_a_metric_that_all_have_lost_has_no_best(registry, root):
    save(root / "a", 8, {"rare": 1})
    shutil.rmtree(root / "a" / "step_8")
    assert registry.best("rare", mode="max", run="a") is None


def test_a_checkpoint_is_found_live_or_gone(registry, root):
    registry.remove([1], run="a")
    assert registry.get(2, run="a").path == root / "a" / "step_2"
    gone = registry.get(1, run="a")
    assert (gone.status, gone.deleted_reason) == ("deleted", "by hand")
    with pytest.raises(UnknownCheckpoint, match="no checkpoint at step 77"):
        registry.get(77, run="a")


def test_sql_is_answered_and_the_schema_described(registry):
    found = registry.query("SELECT COUNT(*) AS n FROM checkpoints WHERE step > :s", {"s": 2})
    assert found.as_dicts() == [{"n": 2}]
    assert {"runs", "checkpoints", "metrics", "tags", "leaderboard"} <= {
        relation.name for relation in registry.schema()
    }


# --- staying true -------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [True, False])
def test_answers_never_name_a_checkpoint_that_is_not_there(root, settled):
    with Registry.open(root) as registry:
        registry.reconcile()
        if settled:
            settle(root / "b")
            registry.reconcile()
        shutil.rmtree(root / "b" / "step_9")
        assert steps([registry.best()]) == [("a", 2)]
        assert steps(registry.top(2)) == [("a", 2), ("b", 2)]
        assert registry.latest().step != 9
        assert registry.latest(run="b").step == 2


def test_answers_for_a_run_see_what_was_added_by_hand(registry, root):
    write_like_nemo(root / "a", 50, {LOSS: 0.01})
    assert registry.best(run="a").step == 50
    assert registry.latest(run="a").step == 50


def test_a_tree_without_a_catalog_is_read_in_memory_and_left_as_it_was(tmp_path):
    for step in (1, 2):
        write_like_nemo(tmp_path / "x" / "run", step, {LOSS: 1 / step})
        write_like_nemo(tmp_path / "run", step, {LOSS: step})
    before = [(path, path.lstat().st_mtime_ns) for path in paths_below(tmp_path)]
    with Registry.open(tmp_path) as registry:
        assert [str(run.directory.relative_to(tmp_path)) for run in registry.runs()] == [
            "run",
            "x/run",
        ]
        assert registry.best(LOSS, mode="min").path == tmp_path / "x" / "run" / "step_2"
        assert registry.latest(run="x/run").step == 2
        assert registry.query("SELECT COUNT(*) FROM checkpoints").rows == ((4,),)
        assert registry.reconcile(dry_run=True).has_drift
        assert not registry.status().exists
        registry.verify()
        registry.gc(dry_run=True)
    assert [(path, path.lstat().st_mtime_ns) for path in paths_below(tmp_path)] == before


def test_a_step_by_hand_during_a_question_in_memory_is_seen(tmp_path):
    write_like_nemo(tmp_path / "run", 1, {LOSS: 1})
    with Registry.open(tmp_path) as registry:
        assert registry.latest(run="run").step == 1
        write_like_nemo(tmp_path / "run", 2, {LOSS: 2})
        assert registry.latest(run="run").step == 2
        shutil.rmtree(tmp_path / "run" / "step_2")
        assert registry.latest(run="run").step == 1
        assert registry.latest().step == 1


# --- what people add ----------------------------------------------------------------------------


def journal(run):
    lines = (run / ".ckptdb" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_late_metrics_are_ranked_and_survive_the_catalog(registry, root):
    registry.log_metrics("a", 1, {"mmlu": 0.7, "odd": math.nan}, source="lm-eval")
    found = registry.log_metrics("a", 3, {"mmlu": 0.6, LOSS: 0.01}, source="lm-eval")
    assert found.metrics == {LOSS: 0.01, "acc": 0.9, "mmlu": 0.6}
    assert found.late["mmlu"].source == "lm-eval"
    registry.close()
    (root / ".ckptdb" / "catalog.db").unlink()
    registry.reconcile()
    assert registry.best("mmlu", mode="max").step == 1
    assert registry.best(run="a").step == 3
    assert registry.get(1, run="a").metrics["odd"] is None
    assert registry.get(3, run="a").info[LOSS] == 0.4


def test_late_metrics_of_a_deleted_checkpoint_are_history(registry):
    registry.remove([1], run="a")
    found = registry.log_metrics("a", 1, {"mmlu": 0.7}, source="lm-eval")
    assert found.status == "deleted"
    assert found.metrics["mmlu"] == 0.7
    assert registry.best("mmlu", mode="max", run="a") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "source", "why"),
    [
        ({}, "x", "no value"),
        ({"a": "0.5"}, "x", "'a'"),
        ({"a": True, "b": 1}, "x", "not 'a'"),
        ({"a": 1}, "", "source"),
        ({"a": 1}, "training_info", "the save itself"),
        ({"a": 1}, "two\nlines", "source"),
    ],
)
def test_what_is_no_metric_is_refused_before_anything_is_written(
    registry, root, values, source, why
):
    with pytest.raises(InvalidAnnotation, match=why):
        registry.log_metrics("a", 1, values, source=source)
    assert not (root / "a" / ".ckptdb" / "journal.jsonl").exists()


@pytest.mark.slow
def test_pins_notes_and_tags_come_and_go(registry):
    assert registry.pin("a", 1, note="the one in the paper").notes == "the one in the paper"
    assert registry.tag("a", 1, "release").tags == ("release",)
    assert registry.tag("a", 1, "best so far").tags == ("best so far", "release")
    assert registry.untag("a", 1, "release").tags == ("best so far",)
    assert registry.untag("a", 1, "never given").tags == ("best so far",)
    found = registry.unpin("a", 1)
    assert (found.pinned, found.notes) == (False, "the one in the paper")
    with pytest.raises(InvalidAnnotation, match="a tag must be"):
        registry.tag("a", 1, " ")
    with pytest.raises(InvalidAnnotation, match="a note must be"):
        registry.pin("a", 1, note="")
    with pytest.raises(UnknownCheckpoint):
        registry.pin("a", 77)


def test_annotations_go_to_disk_first_even_while_the_catalog_is_locked(root, monkeypatch):
    real = engine.Database.open.__func__

    def impatient(cls, location, **options):
        return real(cls, location, **{**options, "timeout_seconds": 0.05})

    monkeypatch.setattr(engine.Database, "open", classmethod(impatient))
    with (
        Registry.open(root) as registry,
        closing(sqlite3.connect(root / ".ckptdb" / "catalog.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(UserWarning, match="the index follows later: .* is locked"):
            registry.pin("a", 1)
        with pytest.warns(UserWarning, match="the index follows later"):
            registry.log_metrics("a", 1, {"mmlu": 0.7}, source="lm-eval")
        assert [fact["fact"] for fact in journal(root / "a")] == ["pin", "metric"]
        other.execute("ROLLBACK")
        assert registry.get(1, run="a").pinned
        assert registry.best("mmlu", mode="max").step == 1


@pytest.mark.parametrize("ours", [True, False], ids=["ckptdb's", "NeMo-RL's"])
def test_annotating_without_a_catalog_begins_none_and_hides_no_other_run(tmp_path, ours):
    for name in ("x", "y"):
        if ours:
            save(tmp_path / name, 1, {LOSS: 1}, catalog=tmp_path / "elsewhere.db")
        else:
            write_like_nemo(tmp_path / name, 1, {LOSS: 1})
    with Registry.open(tmp_path) as registry:
        assert registry.tag("x", 1, "release").tags == ("release",)
        assert registry.remove([1], run="y").decisions[0].step == 1
        assert [run.name for run in registry.runs()] == ["x", "y"]
    assert not (tmp_path / ".ckptdb").exists()
    assert not (tmp_path / "y" / "step_1").exists()
    with Registry.open(tmp_path) as registry:
        registry.reconcile()
        assert registry.get(1, run="x").tags == ("release",)
        assert registry.get(1, run="y").deleted_reason == "by hand"


# --- roots --------------------------------------------------------------------------------------


@pytest.fixture
def loners(tmp_path):
    """Two runs that are roots of their own, below a directory that nobody has marked."""
    for name in ("x", "y"):
        save(tmp_path / name, 1, {LOSS: 1})
        save(tmp_path / name, 2, {LOSS: 2})
    with Registry.open(tmp_path / "x") as registry:
        registry.remove([1])
        registry.pin(None, 2)
    return tmp_path


def assert_one_root(top):
    assert root_marker.is_root(top)
    for name in ("x", "y"):
        assert not root_marker.is_root(top / name)
        assert list((top / name / ".ckptdb").glob("catalog.db*")) == []
        with Registry.open(top / name) as registry:
            assert registry.location.file == top / ".ckptdb" / "catalog.db"
    with Registry.open(top) as registry:
        assert [run.name for run in registry.runs()] == ["x", "y"]
        assert registry.get(1, run="x").deleted_reason == "by hand"
        assert registry.get(2, run="x").pinned
        assert not registry.reconcile(dry_run=True).has_drift


def test_init_absorbs_runs_that_were_roots_of_their_own(loners):
    registry, report = Registry.init(loners)
    registry.close()
    assert len(report.runs) == 2
    assert_one_root(loners)
    again, report = Registry.init(loners)
    again.close()
    assert not report.has_drift


def test_reconcile_above_runs_that_are_their_own_roots_makes_one_root_like_init(loners):
    with Registry.open(loners) as registry:
        assert [run.name for run in registry.runs()] == ["x", "y"]
        planned = registry.reconcile(dry_run=True)
        assert not root_marker.is_root(loners)
        done = registry.reconcile()
    assert [run.as_dict()["actions"] for run in planned.runs] == [
        run.as_dict()["actions"] for run in done.runs
    ]
    assert_one_root(loners)


def test_a_trainer_goes_on_in_the_root_that_absorbed_its_run(loners):
    with open_manager(loners / "x") as manager:
        assert manager.get_latest_checkpoint_path() == str(loners / "x" / "step_2")
        Registry.init(loners)[0].close()
        with manager.save(3, {LOSS: 0.5}):
            pass
        assert manager.get_best_checkpoint_path() == str(loners / "x" / "step_3")
    assert not (loners / "x" / ".ckptdb" / "catalog.db").exists()
    with Registry.open(loners) as registry:
        assert registry.get(3, run="x").status == "final"


def test_reconcile_takes_in_a_run_that_came_with_a_catalog_of_its_own(loners):
    root_marker.mark_root(loners)
    with Registry.open(loners) as registry:
        planned = registry.reconcile(dry_run=True)
        assert root_marker.is_root(loners / "x")
        assert planned.has_drift
        assert len(registry.reconcile().runs) == 2
    assert_one_root(loners)


def test_reconcile_leaves_a_root_of_several_runs_below_a_root_alone(loners):
    inner = loners / "inner"
    save(inner / "z", 1, {LOSS: 1})
    Registry.init(inner)[0].close()
    with Registry.open(loners) as registry:
        planned, done = registry.reconcile(dry_run=True), registry.reconcile()
    for report in (planned, done):
        assert [run.name for run in report.runs] == ["x", "y"]
    with Registry.open(inner / "z") as registry:
        assert registry.location.base == inner
        assert [run.name for run in registry.runs()] == ["z"]


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_reconcile_of_a_path_begins_the_catalog_there_and_not_where_one_stands(
    loners, tmp_path_factory, marked
):
    here = tmp_path_factory.mktemp("here")
    if marked:
        root_marker.mark_root(here)
    before = paths_below(here)
    with Registry.open(here) as registry:
        assert len(registry.reconcile(loners, dry_run=True).runs) == 2
        assert not root_marker.is_root(loners)
        assert len(registry.reconcile(loners).runs) == 2
    assert_one_root(loners)
    assert paths_below(here) == before


@pytest.mark.slow
def test_reconcile_of_a_path_below_an_unmarked_directory_leaves_that_unmarked(loners):
    with Registry.open(loners.parent) as registry:
        assert registry.reconcile(loners, dry_run=True).has_drift
        assert registry.reconcile(loners).has_drift
    assert_one_root(loners)
    assert not root_marker.is_root(loners.parent)


def test_a_path_inside_a_run_is_about_the_run(registry, root):
    write_like_nemo(root / "a", 50, {LOSS: 0.01})
    (report,) = registry.reconcile(root / "a" / "step_2", dry_run=True).runs
    assert report.directory == root / "a"
    (report,) = registry.reconcile(root / "a" / "step_2").runs
    assert ("added", 50) in {(action.kind, action.step) for action in report.actions}


def test_a_chosen_catalog_takes_in_what_it_is_told_to_and_leaves_roots_as_they_are(
    loners, tmp_path_factory
):
    chosen = tmp_path_factory.mktemp("elsewhere") / "catalog.sqlite"
    with Registry.open(chosen.parent, catalog=chosen) as registry:
        assert len(registry.reconcile(loners).runs) == 2
        assert registry.get(1, run="x").deleted_reason == "by hand"
    assert root_marker.is_root(loners / "x")
    assert not root_marker.is_root(loners)


@pytest.mark.parametrize("dry_run", [True, False])
def test_reconciling_where_there_is_nothing_says_so_and_leaves_nothing(tmp_path, dry_run):
    (tmp_path / "empty").mkdir()
    with Registry.open(tmp_path) as registry:
        for path in (None, tmp_path / "empty"):
            with pytest.raises(CatalogMissing, match="No catalog and no checkpoints at"):
                registry.reconcile(path, dry_run=dry_run)
        with pytest.raises(CatalogMissing, match=r"There is no directory .*/nowhere"):
            registry.reconcile(tmp_path / "nowhere", dry_run=dry_run)
    assert paths_below(tmp_path) == [tmp_path / "empty"]


def test_reconciling_above_roots_names_them_and_begins_nothing(root):
    with (
        Registry.open(root.parent) as registry,
        pytest.raises(CatalogMissing, match=f"have catalogs of their own at {root}; "),
    ):
        registry.reconcile()
    assert isinstance(registry.explain_missing(), RootsBelow)
    assert not (root.parent / ".ckptdb").exists()


def test_a_root_may_be_begun_before_its_runs(tmp_path):
    Registry.init(tmp_path)[0].close()
    with Registry.open(tmp_path) as registry:
        assert registry.reconcile().runs == ()


def test_a_copy_that_was_reconciled_stays_itself_when_it_moves(registry, root):
    shutil.copytree(root / "a", root / "copy")
    registry.reconcile()
    uuid = next(run.uuid for run in registry.runs() if run.name == "copy")
    (root / "copy").rename(root / "moved")
    report = registry.reconcile()
    assert report.blocked == ()
    assert report.missing == ()
    assert next(run.uuid for run in registry.runs() if run.name == "moved") == uuid
    assert not registry.reconcile().has_drift


def test_a_question_about_a_copy_writes_nothing_into_it(registry, root):
    shutil.copytree(root / "a", root / "copy")
    before = (root / "copy" / ".ckptdb" / "run.json").read_bytes()
    with Registry.open(root / "copy") as copy:
        assert copy.latest().step == 3
    assert (root / "copy" / ".ckptdb" / "run.json").read_bytes() == before


def test_a_copied_root_says_that_it_was_copied(root, tmp_path):
    with Registry.open(root) as registry:
        registry.reconcile()
    shutil.copytree(root, tmp_path / "copy")
    with Registry.open(tmp_path / "copy") as registry:
        said = {a.what for run in registry.reconcile().runs for a in run.actions}
    assert f"{tmp_path}/copy/a was copied, and is a run of its own now" in said


def test_a_run_is_needed_and_there_is_none(tmp_path):
    Registry.init(tmp_path)[0].close()
    with Registry.open(tmp_path) as registry, pytest.raises(NoRuns, match="holds no run yet"):
        registry.pin(None, 1)


@pytest.mark.parametrize("writer", [True, False], ids=["on another host", "unknown"])
def test_check_and_gc_agree_on_what_is_abandoned(registry, root, writer):
    left = root / "a" / "tmp_step_9"
    left.mkdir()
    if writer:
        who = {"uuid": "12345678-1234-1234-1234-123456789abc", "created_at": "2026", "pid": 1,
               "host": "elsewhere", "started": 1, "boot": "gone"}  # fmt: skip
        (left / names.WRITER).write_text(json.dumps(who))

    def say():
        report = registry.reconcile(root / "a", dry_run=True)
        (what,) = (a.what for r in report.runs for a in r.actions if a.kind.endswith("ed tmp")
                   or a.kind == "live tmp")  # fmt: skip
        return what, [left.step for left in registry.gc(run="a", dry_run=True)[0].leftovers]

    what, leftovers = say()
    assert what.endswith("`ckptdb gc` removes it a day after its last change")
    assert leftovers == []
    for path in (*left.iterdir(), left):
        os.utime(path, (1, 1))
    assert say() == ("was left unfinished; `ckptdb gc` removes it", [9])


# --- deleting -----------------------------------------------------------------------------------


def plan_of(collected):
    return [{**one.as_dict(), "applied": None} for one in collected]


def test_gc_says_first_what_it_then_does(registry, root):
    policy = Policy(keep_top_k=1)
    registry.pin("a", 1)
    with open_manager(root / "b") as manager:
        staged = manager.init_tmp_checkpoint(77, {LOSS: 1})
    bury(staged)
    planned = registry.gc(policy, dry_run=True)
    assert staged.is_dir()
    assert (root / "b" / "step_2").is_dir()
    done = registry.gc(policy, all_runs=True)
    assert plan_of(planned) == plan_of(done)
    assert not any(one.applied for one in planned)
    assert steps(registry.checkpoints(status="final")) == [
        ("a", 1), ("a", 2), ("a", 3), ("b", 9),
    ]  # fmt: skip
    assert not staged.exists()
    assert done[1].leftovers[0].kind == "unfinished save"
    reasons = {decision.step: decision.reason for decision in done[0].decisions}
    assert reasons == {
        1: "kept: pinned",
        2: "kept: best 1 by val:loss min",
        3: "kept: the latest",
    }
    assert registry.get(2, run="b").deleted_reason.startswith("retention: not best 1")
    assert registry.get(77, run="b").deleted_reason == ("discarded: left unfinished, removed by gc")
    assert registry.gc(dry_run=True)[0].freed_bytes == 0


def bury(staged):
    """Make the process that wrote a tmp a dead one."""
    path = staged / names.WRITER
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))


def test_gc_leaves_a_living_save_alone(registry, root):
    with open_manager(root / "a") as manager:
        staged = manager.init_tmp_checkpoint(4, {LOSS: 1})
        assert registry.gc(all_runs=True)[0].leftovers == ()
        manager.finalize_checkpoint(staged)
    assert registry.latest(run="a").step == 4


def test_gc_leaves_alone_what_was_begun_in_the_place_of_something_abandoned(
    registry, root, monkeypatch
):
    with open_manager(root / "a") as manager:
        staged = manager.init_tmp_checkpoint(4, {LOSS: 1})
        bury(staged)
        real = Publisher.discard

        def begin_anew_first(self, path, **options):
            monkeypatch.undo()
            manager.init_tmp_checkpoint(4, {LOSS: 2})
            return real(self, path, **options)

        monkeypatch.setattr(Publisher, "discard", begin_anew_first)
        registry.gc(run="a")
        manager.finalize_checkpoint(staged)
    assert registry.latest(run="a").metrics == {LOSS: 2.0}


def test_gc_goes_on_when_another_process_removes_the_same_leftovers(registry, root, monkeypatch):
    with open_manager(root / "a") as manager:
        staged = manager.init_tmp_checkpoint(4, {LOSS: 1})
    bury(staged)
    real = observation.observe

    def observe_and_be_overtaken(*arguments, **options):
        found = real(*arguments, **options)
        if staged.is_dir():
            monkeypatch.undo()
            Publisher(root / "a").discard(staged, reason="discarded: by another")
            Publisher(root / "a").empty_trash()
        return found

    monkeypatch.setattr(gc.observation, "observe", observe_and_be_overtaken)
    registry.gc(run="a")
    assert registry.get(4, run="a").deleted_reason == "discarded: by another"


@pytest.mark.parametrize("dry_run", [True, False])
def test_gc_ranks_by_nothing_but_a_metric_that_is_there(registry, root, dry_run):
    for step in (1, 2):
        write_like_nemo(root / "n", step, {"acc": step})
    registry.reconcile()
    with pytest.raises(UnknownDirection, match="No metric to rank 'n' by"):
        registry.gc(Policy(keep_top_k=1), all_runs=True, dry_run=dry_run)
    with pytest.raises(UnknownMetric, match=r"of 'a' has the metric 'val_loss'; known .*: acc,"):
        registry.gc(
            Policy(keep_top_k=1, metric="val_loss", mode="min"), all_runs=True, dry_run=dry_run
        )
    with pytest.raises(UnknownMetric, match="of 'b' has the metric 'acc'; known metrics: val:"):
        registry.gc(Policy(keep_top_k=1, metric="acc", mode="max"), all_runs=True, dry_run=dry_run)
    assert len(registry.checkpoints(status="final")) == 7
    (found,) = registry.gc(Policy(keep_top_k=0), run="n", dry_run=True)
    assert [d.step for d in found.decisions if d.keep] == [2]


def test_gc_does_not_rank_by_a_metric_without_a_value(registry, root):
    for step in (1, 2):
        save(root / "c", step, {LOSS: math.nan, "acc": step})
    registry.reconcile()
    said = (
        r"No checkpoint of 'c' \(NaN or infinite at step\(s\) 1, 2\) has a finite value of the "
        r"metric 'val:loss'; known metrics: acc\.$"
    )
    with pytest.raises(NothingFinite, match=said):
        registry.gc(Policy(keep_top_k=1), run="c")
    with pytest.raises(NothingFinite, match=said):
        registry.replay(Policy(keep_top_k=1), run="c")
    assert len(registry.checkpoints(run="c", status="final")) == 2


@pytest.mark.parametrize(
    ("code", "judged"), [(errno.EMFILE, []), (errno.EIO, [1, 3])], ids=["all", "only this one"]
)
def test_gc_does_not_judge_what_cannot_be_seen(registry, root, monkeypatch, code, judged):
    real = read_checkpoint.read

    def fail(who, path, step, **options):
        if path == root / "a" / "step_2":
            raise OSError(code, "it cannot be read")
        return real(who, path, step, **options)

    (root / "a" / "step_2" / "more").write_text("so that it is read again")
    monkeypatch.setattr(read_checkpoint, "read", fail)
    (collected,) = registry.gc(Policy(keep_top_k=0), run="a")
    assert [decision.step for decision in collected.decisions] == judged
    assert (root / "a" / "step_2").is_dir()
    assert (root / "a" / "step_1").is_dir() == (judged == [])


def test_rm_says_first_what_it_then_does(registry, root):
    planned = registry.remove([3, 1], run="a", dry_run=True)
    assert (root / "a" / "step_1").is_dir()
    done = registry.remove([3, 1], run="a")
    assert plan_of([planned]) == plan_of([done])
    assert [decision.step for decision in done.decisions] == [1, 3]
    assert done.freed_bytes == sum(d.size_bytes for d in done.decisions) > 200
    assert not (root / "a" / "step_1").exists()
    assert list((root / "a" / ".ckptdb" / "trash").iterdir()) == []
    assert registry.latest(run="a").step == 2


def test_rm_removes_all_that_was_named_or_nothing(registry, root):
    registry.pin("a", 2)
    with pytest.raises(PinnedCheckpoint, match="--force"):
        registry.remove([1, 2], run="a")
    with pytest.raises(UnknownCheckpoint):
        registry.remove([1, 77], run="a")
    assert len(registry.checkpoints(run="a", status="final")) == 3


def test_removing_a_pinned_checkpoint_by_force_frees_it_and_ends_its_pin(registry, root, dump):
    registry.pin("a", 2, note="in the paper")
    registry.remove([2], run="a", force=True)
    assert read_trash.list_trash(root / "a") == ()
    gone = registry.get(2, run="a")
    assert (gone.pinned, gone.notes, gone.deleted_reason) == (False, "in the paper", "by hand")
    registry.reconcile()
    file = root / ".ckptdb" / "catalog.db"
    before = dump(file)
    registry.close()
    file.unlink()
    registry.reconcile()
    assert dump(file) == before


def test_what_is_gone_cannot_be_pinned(registry, root):
    registry.remove([1], run="a")
    with pytest.raises(CheckpointGone, match="Step 1 of 'a' cannot be kept any more: by hand"):
        registry.pin("a", 1)
    assert not registry.get(1, run="a").pinned


def test_gc_leaves_alone_what_is_pinned_while_it_decides(registry, root, monkeypatch):
    real = judge.judge

    def judge_then_somebody_pins(*arguments, **options):
        decisions = real(*arguments, **options)
        monkeypatch.setattr(judge, "judge", real)  # it is judged again under the run's lock
        with Registry.open(root) as other:
            other.pin("a", 1)
        return decisions

    monkeypatch.setattr(judge, "judge", judge_then_somebody_pins)
    (collected,) = registry.gc(Policy(keep_top_k=1), run="a")
    assert (root / "a" / "step_1").is_dir()
    assert (collected.decisions[0].keep, collected.freed_bytes) == (True, 0)
    assert registry.get(1, run="a").status == "final"


def test_a_pinned_checkpoint_that_is_replaced_keeps_its_bytes_until_unpinned(registry, root):
    registry.pin("a", 2)
    with pytest.warns(UserWarning, match="pinned checkpoint at step 2 was replaced"):
        save(root / "a", 2, {LOSS: 0.9})
    registry.gc(all_runs=True)
    assert [left.step for left in read_trash.list_trash(root / "a")] == [2]


def test_a_pin_answers_with_what_was_pinned_though_its_step_is_saved_again(
    registry, root, monkeypatch
):
    before = registry.get(2, run="a")
    real = Publisher.record

    def record_and_be_overtaken(self, facts):
        monkeypatch.undo()
        span = real(self, facts)
        with pytest.warns(UserWarning, match="pinned checkpoint at step 2 was replaced"):
            save(root / "a", 2, {LOSS: 0.9})
        return span

    monkeypatch.setattr(Publisher, "record", record_and_be_overtaken)
    pinned = registry.pin("a", 2)
    assert (pinned.uuid, pinned.pinned, pinned.status) == (before.uuid, True, "deleted")
    assert not registry.get(2, run="a").pinned


def test_forget_drops_a_run_from_the_index_and_nothing_from_disk(registry, root):
    before = paths_below(root / "a")
    assert registry.forget("a").name == "a"
    assert [run.name for run in registry.runs()] == ["b"]
    assert paths_below(root / "a") == before
    registry.reconcile()
    assert [run.name for run in registry.runs()] == ["a", "b"]


# --- names that are no text ---------------------------------------------------------------------


def test_names_that_are_no_text_are_indexed_and_come_back_as_they_are(tmp_path):
    raw = os.fsencode(tmp_path) + b"/r\xe9sum\xe9"
    run = tmp_path / os.fsdecode(b"r\xe9sum\xe9")
    try:
        os.mkdir(raw)
    except OSError:
        requirements.skip(requirements.ONLY_UTF8)
    root_marker.mark_root(tmp_path)
    save(run, 1, {LOSS: 1})
    (run / "step_1" / os.fsdecode(b"\xff.bin")).write_bytes(b"x")
    save(run, 2, {LOSS: 2})
    with Registry.open(tmp_path) as registry:
        assert registry.best().path == run / "step_1"
        assert registry.latest(run=run).path.is_dir()
        registry.tag(run, 1, "release")
        shutil.rmtree(run / "step_2")
        registry.reconcile()
        assert not registry.reconcile().has_changes
        assert registry.get(2, run=run).deleted_reason.startswith("vanished")
        assert json.dumps(registry.latest(run=run).as_dict())


# --- damage -------------------------------------------------------------------------------------


def test_a_truncated_file_is_found_skipped_remembered_and_cleared(registry, root):
    model = root / "a" / "step_2" / "model.bin"
    whole = model.read_bytes()
    model.write_bytes(whole[:50])
    assert registry.best(run="a").step == 2  # nobody has looked into it yet
    damaged = {cp.step for cp in registry.verify(run="a") if cp.problem}
    assert damaged == {2}
    assert registry.get(2, run="a").problem == "damaged: model.bin: 50 of 100 bytes"
    assert registry.best(run="a").step == 3
    assert [cp.step for cp in registry.top(9, run="a")] == [3, 1]
    report = registry.reconcile()
    assert not report.has_changes
    assert ("damaged", 2) in {(a.kind, a.step) for run in report.runs for a in run.actions}
    assert registry.best(run="a").step == 3
    (collected,) = registry.gc(Policy(keep_top_k=0), run="a")
    assert [decision.step for decision in collected.decisions] == [1, 3]
    assert model.exists(), "what is damaged is kept for a person to look at"
    model.write_bytes(whole)
    assert not any(cp.problem for cp in registry.verify(run="a"))
    assert registry.best(run="a").step == 2


def test_a_damage_found_once_is_kept_by_questions_and_by_managers(registry, root):
    (root / "b" / "step_9" / "model.bin").unlink()
    registry.verify()
    settle(root / "b")
    assert registry.best(run="b").step == 2
    with open_manager(root / "b") as manager:
        assert manager.get_latest_checkpoint_path() == str(root / "b" / "step_2")
    registry.reconcile()
    assert registry.latest(run="b").step == 2


def test_unreadable_metadata_is_reported_kept_and_neither_best_nor_latest(registry, root):
    (root / "a" / "step_3" / names.INFO).write_text('{"val:loss": 0.')
    assert registry.latest(run="a").step == 2
    assert "is not JSON" in registry.get(3, run="a").problem
    (root / "a" / "step_3" / names.INFO).write_text('{"val:loss": 0.01}')
    assert registry.best(run="a").step == 3


# --- what is not a deletion ---------------------------------------------------------------------


@contextmanager
def away(directory):
    aside = directory.parent.parent / "elsewhere"
    directory.rename(aside)
    try:
        yield
    finally:
        if directory.exists():
            directory.rmdir()
        aside.rename(directory)


@pytest.mark.slow
@pytest.mark.parametrize("mount_point", [True, False], ids=["empty directory", "no directory"])
@pytest.mark.parametrize("nemo", [True, False], ids=["NeMo-RL's", "ckptdb's"])
def test_an_unmounted_run_is_not_read_as_deleted(registry, root, mount_point, nemo):
    name = "n" if nemo else "a"
    if nemo:
        write_like_nemo(root / "n", 1, {LOSS: 0.01})
        write_like_nemo(root / "n", 2, {LOSS: 0.02})
    registry.reconcile()
    expected = registry.checkpoints(run=name)
    with away(root / name):
        if mount_point:
            (root / name).mkdir()
        report = registry.reconcile()
        assert len(report.blocked) == 1
        assert str(root / name) in report.blocked[0]
        assert "ckptdb forget" in report.blocked[0]
        assert steps([registry.best()]) == [("b", 9)]
        assert registry.latest(run=name) is None
        assert registry.gc(Policy(keep_top_k=0, metric=LOSS, mode="min"), run="b")
        assert registry.checkpoints(status="deleted", run=name) == ()
    registry.reconcile()
    assert registry.checkpoints(run=name) == expected
    assert not registry.reconcile().blocked


def test_an_emptied_run_that_lost_its_run_json_is_not_read_as_deleted(registry, root):
    for path in (root / "a").glob("step_*"):
        shutil.rmtree(path)
    (root / "a" / ".ckptdb" / "run.json").unlink()
    report = registry.reconcile()
    assert (
        "has lost its .ckptdb/run.json; nothing of it is recorded as deleted" in (report.blocked[0])
    )
    assert registry.checkpoints(run="a", status="deleted") == ()


def test_emptying_a_run_that_keeps_its_run_json_is_a_deletion(registry, root):
    for path in (root / "a").glob("step_*"):
        shutil.rmtree(path)
    registry.reconcile()
    gone = registry.checkpoints(run="a", status="deleted")
    assert {cp.deleted_reason for cp in gone} == {"vanished: not on disk any more"}
    assert len(gone) == 3


# --- the catalog itself -------------------------------------------------------------------------


def test_status_tells_where_the_catalog_is_and_how_it_does(registry, root):
    status = registry.status()
    assert status.location == str(root / ".ckptdb" / "catalog.db")
    assert (status.exists, status.integrity, status.runs, status.checkpoints) == (True, "ok", 2, 5)
    assert status.revision == status.head
    assert json.dumps(status.as_dict())


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "empty"), (b"no database\n" * 1000, "`ckptdb reconcile` sets it aside")],
)
def test_status_of_a_broken_catalog_says_so(root, content, told):
    (root / ".ckptdb" / "catalog.db").write_bytes(content)
    with Registry.open(root) as registry:
        status = registry.status()
    assert status.exists
    assert told in status.integrity


def test_a_broken_catalog_is_set_aside_and_built_anew(root, dump):
    file = root / ".ckptdb" / "catalog.db"
    with Registry.open(root) as registry:
        registry.reconcile()
    before = dump(file)
    file.write_bytes(b"no database\n" * 1000)
    with Registry.open(root) as registry, warnings.catch_warnings():
        report = registry.reconcile()
        assert report.set_aside.read_bytes() == b"no database\n" * 1000
        assert registry.best().step == 9
    assert dump(file) == before


LIE = """
    INSERT INTO checkpoints (run_id, uuid, step, path, created_at, status)
    SELECT run_id, 'lie', 77, path, created_at, status FROM checkpoints
    WHERE status = 'final' LIMIT 1
"""


def break_and_lie(file):
    """Let a catalog tell of a step that never was, and break a page that nobody reads."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(LIE)
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_tags_name'"
        (page,) = connection.execute(query).fetchone()
    with file.open("r+b") as stream:
        stream.seek(4096 * (page - 1))
        stream.write(b"\xff" * 4096)
    return file.read_bytes()


@pytest.fixture
def late(monkeypatch):
    """Let the check of a catalog end when a run has been looked at, and no sooner."""
    looked, look, check = threading.Event(), run_module.plan_run, Database.integrity

    def look_first(*arguments, **options):
        found = look(*arguments, **options)
        looked.set()
        return found

    monkeypatch.setattr(run_module, "plan_run", look_first)
    monkeypatch.setattr(
        Database, "integrity", lambda self, **how: looked.wait(60) and check(self, **how)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("full", [False, True])
def test_nothing_that_a_broken_catalog_says_gets_anywhere(root, dump, full):
    file = root / ".ckptdb" / "catalog.db"
    with Registry.open(root) as registry:
        registry.reconcile()
    before, said = dump(file), break_and_lie(file)
    journals = {path: path.read_bytes() for path in root.rglob("journal.jsonl")}
    with Registry.open(root) as registry:
        report = registry.reconcile(full=full)
    assert report.set_aside.read_bytes() == said
    assert {path: path.read_bytes() for path in root.rglob("journal.jsonl")} == journals
    assert {action.kind for run in report.runs for action in run.actions} == {"new run", "added"}
    assert dump(file) == before


@pytest.mark.slow
@pytest.mark.usefixtures("late")
def test_a_run_is_absorbed_by_a_root_whose_catalog_is_whole(loners):
    with Registry.open(loners) as registry:
        registry.reconcile()
    root_marker.mark_root(loners / "x")
    (loners / "x" / ".ckptdb" / "catalog.db").write_bytes(b"of its own")
    break_and_lie(loners / ".ckptdb" / "catalog.db")
    with Registry.open(loners) as registry:
        assert registry.reconcile().set_aside is not None
    assert_one_root(loners)


def test_upgrading_a_catalog_that_is_new_changes_nothing(registry):
    before, after, copy = registry.upgrade()
    assert before == after
    assert copy is None


def test_a_run_begun_where_another_one_moved_away_is_a_run_of_its_own(registry, root):
    registry.reconcile()
    (root / "a").rename(root / "z")
    write_like_nemo(root / "a", 1, {LOSS: 0.7})
    report = registry.reconcile()
    assert report.blocked == ()
    assert not registry.reconcile(dry_run=True).has_drift
    assert [cp.metrics for cp in registry.checkpoints(run="a")] == [{LOSS: 0.7}]
    assert registry.best(run="z").path == root / "z" / "step_2"


def test_gc_with_a_clock_that_is_ahead_takes_nothing_young(registry, root, monkeypatch):
    for step in (7, 8, 9):
        save(root / "a", step, {LOSS: 1.0})
    ahead = time.time() + 26 * 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    (found,) = registry.gc(Policy(keep=["newer than 1 day"]), run="a", dry_run=True)
    assert [d.step for d in found.decisions if not d.keep] == []
