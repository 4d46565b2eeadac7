"""Another metric or direction than a run was judged by: told, and nothing goes by it at once."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from tests.support.warned import warned

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import fsutil
from ckptdb.errors import InvalidConfig
from ckptdb.retention import Policy

ACC, LOSS = "val_acc", "loss"
VALUES = {1: 0.9, 2: 0.8, 3: 0.1, 4: 0.2, 5: 0.3}
"""Of ACC by step; LOSS is 1 - ACC for odd steps, and ACC for even ones."""
MAX = {"metric_name": ACC, "higher_is_better": True}
MIN = {"metric_name": ACC, "higher_is_better": False}


@pytest.fixture
def run(tmp_path):
    """A run that is judged by the highest accuracy, with 1 and 2 as its best."""
    with open_manager(tmp_path / "run", **MAX) as manager:
        for step in VALUES:
            save(manager, step)
    return tmp_path / "run"


def open_manager(run, **options):
    return CheckpointManager({"checkpoint_dir": run, "durability": "none", **options})


def save(manager, step):
    value = VALUES.get(step, 0.5)
    with manager.save(step, {ACC: value, LOSS: 1 - value if step % 2 else value}):
        pass


def steps(run):
    return sorted(int(path.name[5:]) for path in run.glob("step_*"))


def recorded(run):
    return json.loads((run / ".ckptdb" / "run.json").read_text())


def test_a_metric_without_a_direction_is_refused_in_a_fresh_run(tmp_path):
    with pytest.raises(InvalidConfig, match="higher_is_better is missing"):
        open_manager(tmp_path / "run", metric_name=ACC)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{}, {"higher_is_better": None}], ids=["absent", "None"])
def test_a_restart_without_the_direction_takes_what_is_recorded(run, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for directory in (run, "run"):
        with open_manager(directory, metric_name=ACC, keep_top_k=2, **given) as manager:
            assert manager.higher_is_better is True
            assert manager.get_best_checkpoint_path().endswith("step_1")
            save(manager, 6)
            assert steps(run) == [1, 2, 6]
    with pytest.raises(InvalidConfig, match="'loss' is better high"):
        open_manager(run, metric_name=LOSS)


CHANGES = {
    "the other direction": (MIN, "'val_acc' (lower is better)", [3, 4]),
    "another metric": (
        {"metric_name": LOSS, "higher_is_better": True}, "'loss' (higher is better)", [2, 3],
    ),
    "no metric": ({}, "no metric (the newest are the best)", [5, 6]),
}  # fmt: skip


def check(run, config, told, best, **rules):
    with open_manager(run, **config, **rules) as manager:
        with warned(__file__) as texts:
            plan = manager.plan_retention()
            assert texts == []
            save(manager, 6)
        assert steps(run) == sorted({1, 2, 6, *best}), "what the old rule keeps, too"
        [text] = texts
        assert text == (
            f"{run} was judged by 'val_acc' (higher is better) until now, and is by {told} from "
            "here on. The first prune keeps what either keeps, later ones go by the new one. If "
            "that is not meant, correct metric_name and higher_is_better; if it is, "
            "accept_metric_change=True prunes by the new one at once."
        )
        assert {1, 2} <= {d.step for d in plan.decisions if d.keep}
        reasons = {d.step: d.reason for d in plan.decisions}
        assert reasons[1] == "kept: best 2 by val_acc max, as until now"
        with warned(__file__) as texts:
            save(manager, 7)
        assert texts == []
        assert not {1, 2} - set(best) & set(steps(run)), "later ones go by the new one"
    assert "pruned_by" not in recorded(run) or config == {}
    with open_manager(run, **config, **rules) as manager, warned(__file__) as texts:
        save(manager, 8)
    assert texts == []


@pytest.mark.parametrize(("config", "told", "best"), CHANGES.values(), ids=CHANGES)
def test_what_the_old_rule_keeps_outlives_the_first_prune_by_another(run, config, told, best):
    check(run, config, told, best, keep_top_k=2)


@pytest.mark.parametrize(("config", "told", "best"), CHANGES.values(), ids=CHANGES)
def test_likewise_with_a_rule_that_takes_the_metric_of_the_run(run, config, told, best):
    check(run, config, told, best, keep=["best 2"])


@pytest.mark.parametrize("config", [MIN, {}], ids=["the other direction", "no metric"])
def test_whoever_says_that_it_is_meant_is_not_told(run, config):
    rules = {"keep_top_k": 2, "accept_metric_change": True}
    with open_manager(run, **config, **rules) as manager, warned(__file__) as texts:
        save(manager, 6)
    assert texts == []
    assert steps(run) == ([3, 4, 6] if config else [5, 6])
    assert "pruned_by" not in recorded(run)


def test_before_the_first_prune_by_hand_it_is_told_as_well(run):
    with open_manager(run, **MIN, keep_top_k=2) as manager:
        with warned(__file__) as texts:
            manager.remove_old_checkpoints(exclude_latest=False)
        assert len(texts) == 1
        assert steps(run) == [1, 2, 3, 4]
        manager.apply_retention(manager.plan_retention(exclude_latest=False))
    assert steps(run) == [3, 4]


def test_a_plan_that_is_applied_is_the_first_prune(run):
    with open_manager(run, **MIN, keep_top_k=2) as manager:
        plan = manager.plan_retention(exclude_latest=False)
        with warned(__file__) as texts:
            manager.apply_retention(plan)
        assert len(texts) == 1
        assert steps(run) == [1, 2, 3, 4]
        assert [d.step for d in manager.plan_retention(exclude_latest=False).gone] == [1, 2]


def test_a_prune_that_would_take_nothing_is_not_the_first(run):
    with open_manager(run, **MIN, keep_top_k=6) as manager, warned(__file__):
        save(manager, 6)
    with open_manager(run, **MIN, keep_top_k=2) as manager, warned(__file__) as texts:
        save(manager, 7)
    assert len(texts) == 1
    assert steps(run) == [1, 2, 3, 4, 7]


def test_it_outlives_a_kill_between_the_first_save_and_its_prune(run):
    script = (
        "import os, signal, sys\n"
        "from ckptdb import CheckpointManager; from ckptdb.training import prune_selection\n"
        "prune_selection.select = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "manager = CheckpointManager({'checkpoint_dir': sys.argv[1], 'metric_name': 'val_acc',\n"
        "                             'higher_is_better': False, 'keep_top_k': 2})\n"
        "with manager.save(6, {'val_acc': 0.5}): pass\n"
    )
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script, run], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert recorded(run)["higher_is_better"] is False
    with open_manager(run, metric_name=ACC, keep_top_k=2) as manager, warned(__file__) as texts:
        save(manager, 7)
    assert [text.partition(" until")[0] for text in texts if "judged" in text] == [
        f"{run} was judged by 'val_acc' (higher is better)"
    ]
    assert steps(run) == [1, 2, 3, 4, 7]
    assert "pruned_by" not in recorded(run)


def test_a_mistake_that_is_corrected_has_cost_nothing(run):
    with open_manager(run, **MIN, keep_top_k=2) as manager, warned(__file__):
        manager.finalize_checkpoint(manager.init_tmp_checkpoint(6, {ACC: 0.05}))
    assert recorded(run)["metric_name"] == ACC
    with open_manager(run, **MIN) as manager:
        save(manager, 7)
    with open_manager(run, **MAX, keep_top_k=2) as manager, warned(__file__) as texts:
        save(manager, 8)
    assert len(texts) == 1
    assert {1, 2} <= set(steps(run))
    with open_manager(run, **MIN) as manager, warned(__file__) as texts:
        save(manager, 9)
    with open_manager(run, **MAX, keep_top_k=2) as manager, warned(__file__) as more:
        save(manager, 10)
    assert (len(texts), more) == (1, []), "nothing was pruned by the other one"


def test_when_it_cannot_be_noted_that_the_first_prune_is_over_the_next_spares_again(
    run, monkeypatch
):
    real = fsutil.write_json

    def refuse(path, content, **options):
        if path.name == "run.json" and "pruned_by" not in content:
            raise OSError(28, "No space left on device")
        real(path, content, **options)

    with open_manager(run, **MIN, keep_top_k=2) as manager, warned(__file__) as texts:
        with monkeypatch.context() as patch:
            patch.setattr(fsutil, "write_json", refuse)
            save(manager, 6)
            save(manager, 7)
            assert steps(run) == [1, 2, 3, 4, 7]
        save(manager, 8)
        save(manager, 9)
    assert steps(run) == [3, 4, 9]
    assert len(texts) == 1


def test_a_metric_that_deletes_nothing_is_told_and_changes_nothing_else(run):
    with open_manager(run, **MIN, keep=["best 2 by loss min", "latest 1"]) as manager:
        with warned(__file__) as texts:
            save(manager, 6)
        assert len(texts) == 1
        assert steps(run) == [1, 4, 6]
    with open_manager(run, keep=["latest 1"]) as manager, warned(__file__) as texts:
        save(manager, 7)
    assert texts == [], "by no metric nothing is judged, and nothing goes"


def test_a_run_that_never_had_a_metric_gets_one_in_silence(tmp_path):
    with open_manager(tmp_path) as manager:
        for step in VALUES:
            save(manager, step)
    with open_manager(tmp_path, **MAX, keep_top_k=2) as manager, warned(__file__) as texts:
        save(manager, 6)
    assert texts == []
    assert steps(tmp_path) == [1, 2, 6]


def test_a_copy_of_a_run_is_judged_as_the_run_was(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with open_manager(copy, metric_name=ACC) as manager:
        assert manager.higher_is_better is True
    with open_manager(copy, **MIN, keep_top_k=2) as manager, warned(__file__) as texts:
        manager.get_latest_checkpoint_path()
        save(manager, 6)
    assert len(texts) == 1
    assert steps(copy) == [1, 2, 3, 4, 6]


def test_asking_by_another_metric_tells_and_changes_nothing(run):
    before = recorded(run)
    with open_manager(run, **MIN, keep_top_k=1) as manager, warned(__file__) as texts:
        assert manager.get_best_checkpoint_path() == str(run / "step_3")
        assert manager.get_latest_checkpoint_path() == str(run / "step_5")
    assert texts == []
    assert recorded(run) == before


def test_gc_goes_by_what_the_run_has_recorded(run):
    with Registry.open(run) as registry:
        registry.gc(Policy(keep_top_k=2))
    assert steps(run) == [1, 2, 5]


@pytest.mark.parametrize("damage", [{"pruned_by": 3}, {"pruned_by": {"metric_name": "\ud800"}}])
def test_what_other_hands_have_written_there_stops_nothing(run, damage):
    content = recorded(run) | damage
    (run / ".ckptdb" / "run.json").write_text(json.dumps(content))
    os.utime(run / ".ckptdb" / "run.json", (1, 1))
    with open_manager(run, **MAX, keep_top_k=2) as manager, warned(__file__):
        save(manager, 6)
    assert {1, 2, 6} <= set(steps(run))
