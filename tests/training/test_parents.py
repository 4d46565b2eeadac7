"""Going back: what was just saved and what training continues from stay, and it is told."""

import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from tests.support.warned import warned

from ckptdb import CheckpointManager, Registry
from ckptdb import manager as module
from ckptdb.training import load_history

LOSS = "val:loss"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def open_manager(run, **options):
    config = {"checkpoint_dir": run, "durability": "none", **options}
    if "metric_name" in config:
        config.setdefault("higher_is_better", False)
    return CheckpointManager(config)


def save(manager, step, loss=1.0, **options):
    with manager.save(step, {LOSS: loss}, **options) as folder:
        (folder / "model.bin").write_bytes(b"m" * 100)


def save_behind(manager, step, loss=1.0):
    manager.begin_finalization(manager.init_tmp_checkpoint(step, {LOSS: loss}))
    manager.shutdown()


def fill(run, *steps, **losses):
    """Save steps as another process does."""
    told = {int(step[1:]): loss for step, loss in losses.items()} | dict.fromkeys(steps, 1.0)
    script = (
        "import json, sys\n"
        "from ckptdb import CheckpointManager\n"
        "manager = CheckpointManager({'checkpoint_dir': sys.argv[1], 'durability': 'none'})\n"
        "with manager:\n"
        "    for step, loss in json.loads(sys.argv[2]):\n"
        f"        with manager.save(step, {{'{LOSS}': loss}}):\n"
        "            pass\n"
    )
    ordered = json.dumps(sorted(told.items()))
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, run, ordered], check=True)


def write_like_nemo(run, *steps):
    for step in steps:
        folder = run / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text(json.dumps({LOSS: 1.0}))
        os.utime(folder / "training_info.json", (step, step))
        os.utime(folder, (step, step))


def steps(run):
    return sorted(int(path.name[5:]) for path in run.glob("step_*"))


def parent(run, step):
    return json.loads((run / f"step_{step}" / "manifest.json").read_text())["parent"]


def uuid(run, step):
    return json.loads((run / f"step_{step}" / "manifest.json").read_text())["uuid"]


RULES = {
    "top k without a metric": {"keep_top_k": 3},
    "top k by a metric": {"keep_top_k": 3, "metric_name": LOSS},
    "the newest": {"ft_keep_latest_k": 2, "save_period": 1000},
    "latest 1": {"keep": ["latest 1"]},
    "best and hours": {"keep": ["best 1", "every 1 hours"], "metric_name": LOSS},
    "at most": {"keep": ["at most 1 B"]},
    "a condition": {"keep": ["where step > 400"]},
    "none": {"keep_top_k": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("act", [save, save_behind], ids=["synchronous", "in the background"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_saving_below_the_newest_step_keeps_what_was_just_saved(run, rules, act):
    fill(run, s500=0.1, s600=0.2, s700=0.3)
    with open_manager(run, **rules) as manager:
        manager.get_latest_checkpoint_path()
        for step in (100, 200):
            act(manager, step, 9.0)
            assert step in steps(run)
            assert 700 in steps(run), "the latest"
            reasons = {d.step: d.reason for d in manager.plan_retention().decisions}
            assert reasons[step] == "kept: just saved"
        assert reasons.get(100) != "kept: just saved", "the rules decide about those before"
        assert 100 not in steps(run) or reasons[100] == "kept: every 1 hour"
        assert manager.get_latest_checkpoint_path() == str(run / "step_700")


def test_what_was_just_saved_is_left_to_the_rules_when_the_latest_is(run):
    with open_manager(run, keep_top_k=1, metric_name=LOSS) as manager:
        save(manager, 1, 0.1)
        save(manager, 2, 0.5)
        plan = manager.plan_retention(exclude_latest=False)
        assert [d.step for d in plan.gone] == [2]
        manager.remove_old_checkpoints(exclude_latest=False)
    assert steps(run) == [1]


@pytest.mark.slow
def test_a_plan_that_is_applied_right_after_a_save_leaves_it_there(run):
    fill(run, 500, 600)
    with open_manager(run) as manager:
        manager.get_latest_checkpoint_path()
        save(manager, 100)
        manager.keep = ["latest 1"]
        manager.apply_retention(manager.plan_retention())
    assert steps(run) == [100, 600]


def by_info(manager, path):
    assert manager.load_training_info(path)


def by_resume_paths(_, path):
    with pytest.warns(UserWarning, match="Optimizer state not found"):
        CheckpointManager.get_resume_paths(path)


def by_drop_in(_, path):
    (Path(path) / "policy" / "optimizer").mkdir(parents=True)
    module.CheckpointManager.get_resume_paths(str(path))


def by_a_link(manager, path):
    link = path.parent.parent / "chosen"
    link.symlink_to(path)
    assert manager.load_training_info(link)


def by_another_path(manager, path):
    other = path.parent.parent / "alias"
    other.symlink_to(path.parent)
    assert manager.load_training_info(str(other / path.name) + "/")


LOADS = [by_info, by_resume_paths, by_drop_in, by_a_link, by_another_path]


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("fill_run", [fill, write_like_nemo], ids=["ours", "NeMo-RL's"])
def test_going_on_by_hand_beside_a_bad_one_keeps_what_was_loaded(run, load, fill_run):
    fill_run(run, 300, 400, 500)
    with open_manager(run, keep=["latest 1"]) as manager:
        load(manager, run / "step_400")
        for step in (450, 460):
            save(manager, step)
            assert steps(run) == [400, step, 500]
        reasons = {d.step: d.reason for d in manager.plan_retention().decisions}
    assert reasons == {
        400: "kept: this process continues from it",
        460: "kept: just saved",
        500: "kept: the latest",
    }
    with Registry.open(run) as registry:
        assert [one.step for one in registry.lineage(460)][:3] == [460, 450, 400]


def test_what_was_loaded_again_within_a_process_stays_when_the_steps_go_on_above_it(run):
    with open_manager(run, keep_top_k=0) as manager:
        save(manager, 2)
        by_drop_in(manager, run / "step_2")  # step 5 has diverged, unsaved
        save(manager, 10)
        assert steps(run) == [2, 10]
        save(manager, 20)
        assert steps(run) == [2, 20]
        by_drop_in(manager, run / "step_20")
        save(manager, 30)
    assert steps(run) == [20, 30]


def test_what_was_loaded_stays_when_the_trainer_is_made_later_or_in_a_thread(run):
    fill(run, 300, 400, 500)
    with open_manager(run) as asking:
        thread = threading.Thread(target=by_info, args=(asking, run / "step_400"))
        thread.start()
        thread.join()
    with open_manager(run, keep=["latest 1"]) as manager:
        manager.remove_old_checkpoints()
        assert steps(run) == [400, 500]
        save(manager, 450)
    assert steps(run) == [400, 450, 500]
    with open_manager(run, keep=["latest 1"]) as manager:
        save(manager, 460)
    assert steps(run) == [400, 460, 500], "the process is the same"


def test_what_a_parent_has_loaded_stays_in_a_forked_child(run):
    fill(run, 300, 400, 500)
    with open_manager(run, keep=["latest 1"]) as manager:
        by_info(manager, run / "step_400")
        child = os.fork()
        if child == 0:
            try:
                save(manager, 450)
                manager.shutdown()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    assert steps(run) == [400, 450, 500]


def test_what_was_resumed_from_stays_beside_a_rejected_one_and_a_wrong_clock(run):
    fill(run, 300, 400, 500)
    with open_manager(run, keep=["latest 1"]) as manager:
        with pytest.warns(UserWarning, match="passed over"):
            assert manager.reject(manager.resume(), "diverged").step == 400
        manager._publisher._clock = lambda: 0.0
        for step in (410, 420):
            save(manager, step)
            assert steps(run) == [400, step, 500]


def test_looking_at_many_for_a_table_does_not_keep_them_all_for_ever(run):
    with open_manager(run, ft_keep_latest_k=2, save_period=1000) as manager:
        for step in range(1, 9):
            save(manager, step)
            manager.load_training_info(manager.get_latest_checkpoint_path())
            manager.load_training_info(run / f"step_{max(step - 1, 1)}")
        assert steps(run) == [7, 8]
        assert parent(run, 8) == uuid(run, 7)
    for step in range(50):
        write_like_nemo(run, 100 + step)
        load_history.note_load(run / f"step_{100 + step}", has_weights=True)
    assert len(load_history.find(run).loaded) == load_history.MOST_LOADED


def test_the_first_save_has_as_its_parent_what_was_loaded_and_no_other(run):
    fill(run, 1, 2, 3)
    with open_manager(run) as manager:
        by_resume_paths(manager, run / "step_2")
        by_info(manager, run / "step_3")  # e.g. for the best value so far
        second = uuid(run, 2)
        shutil.rmtree(run / "step_2")
        with pytest.raises(ZeroDivisionError), manager.save(4, {LOSS: 1.0}):
            raise ZeroDivisionError
        save(manager, 4)
        by_info(manager, run / "step_1")
        save(manager, 5)
    assert parent(run, 4) == second
    assert parent(run, 5) == uuid(run, 4)


def test_going_back_within_a_process_is_another_line_from_what_was_loaded(run):
    with open_manager(run) as manager:
        for step in (1, 2, 3):
            save(manager, step)
        staged = manager.init_tmp_checkpoint(4, {LOSS: 1.0})
        by_info(manager, run / "step_1")
        back = manager.init_tmp_checkpoint(2, {LOSS: 0.5})
        manager.finalize_checkpoint(staged)
        manager.finalize_checkpoint(back)
        save(manager, 3)
    assert parent(run, 4) is not None
    assert parent(run, 2) == uuid(run, 1)
    assert parent(run, 3) == uuid(run, 2)


# --- what is told -------------------------------------------------------------------------------


def test_a_save_below_the_newest_step_is_told_once_with_what_lies_above(run):
    fill(run, *range(500, 507))
    with open_manager(run) as manager:
        manager.get_latest_checkpoint_path()
        with warned(__file__) as texts:
            save(manager, 100)
            save(manager, 200)
    [text] = texts
    assert text == (
        f"Step 100 is saved below steps 500, 501, 502, 503 and 3 more of {run}: the latest is "
        "still step 506, and retention counts them, too. To go on from here, put them aside "
        "(`ckptdb reject STEP REASON`, or reject() of the manager); to start afresh, use another "
        "checkpoint_dir."
    )
    with open_manager(run) as manager, warned(__file__) as texts:
        manager.get_latest_checkpoint_path()
        save(manager, 507)
        save(manager, 507)
        save(manager, 505)
    assert [text.partition(" of ")[0] for text in texts] == [
        "Step 505 is saved below steps 506 and 507"
    ]


def test_below_one_that_is_put_aside_nothing_is_told(run):
    fill(run, 300, 400, 500)
    with open_manager(run) as manager:
        with pytest.warns(UserWarning, match="passed over"):
            manager.reject(manager.resume(), "diverged")
        with warned(__file__) as texts:
            save(manager, 450)
            save(manager, 460)
        assert texts == []
        assert manager.get_latest_checkpoint_path() == str(run / "step_460")


def test_below_what_nemo_rl_has_saved_it_is_told_with_a_catalog_or_without(run):
    write_like_nemo(run, 300)
    for step, catalog in ((100, None), (200, b"no database" * 1000)):
        if catalog is not None:
            (run / ".ckptdb" / "catalog.db").write_bytes(catalog)
        with open_manager(run) as manager, warned(__file__) as texts:
            manager.load_training_info(run / "step_300")
            save(manager, step)
        assert [text.partition(" of ")[0] for text in texts if "saved below" in text] == [
            f"Step {step} is saved below step 300"
        ]


# --- resuming -----------------------------------------------------------------------------------


def test_resume_follows_the_line_that_went_back_and_says_what_is_higher(run):
    fill(run, 300, 400, 500)
    with open_manager(run) as manager, warned(__file__):
        by_info(manager, run / "step_400")
        save(manager, 450)
    with open_manager(run) as manager, warned(__file__) as texts:
        assert manager.resume().step == 450
        assert manager.resume().step == 450
        assert manager.get_latest_checkpoint_path() == str(run / "step_500")
    [text] = texts
    assert text == (
        "Training continues from step 450, the newest of the line of training that was saved "
        f"last; step 500 of {run} is higher, and not on that line. To continue from step 500 "
        f"instead, load {run}/step_500 in place of what resume() returns: load_training_info() and "
        "get_resume_paths() note what training continues from."
    )
    with open_manager(run) as manager, warned(__file__):
        found = manager.reject(manager.resume(), "does not load")
        assert found.step == 400, "the line of training goes on below it"
        assert manager.get_latest_checkpoint_path() == str(run / "step_500")


def test_resume_follows_the_second_job_in_a_directory_that_is_used_again(run):
    fill(run, 500, 600, 700)
    fill(run, 100, 200)
    with open_manager(run) as manager, pytest.warns(UserWarning, match="steps 500, 600 and 700"):
        assert manager.resume().step == 200


def test_resume_goes_back_to_the_higher_ones_when_they_were_loaded_since(run):
    fill(run, 400, 500)
    for load, step in ((400, 450), (500, 510)):
        with open_manager(run) as manager, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_info(manager, run / f"step_{load}")
            save(manager, step)
    with open_manager(run) as manager, warned(__file__) as texts:
        assert manager.resume().step == 510
    assert texts == []


# --- a second job in the same directory ---------------------------------------------------------


def ask_registry(run):
    with Registry.open(run) as registry:
        assert registry.latest().step == 4


OTHERS = "holds 4 checkpoints of another process (steps 1, 2, 3 and 4)"
QUESTIONS = {
    "latest": lambda manager, _: manager.get_latest_checkpoint_path(),
    "best": lambda manager, _: manager.get_best_checkpoint_path(),
    "top": lambda manager, _: manager.get_top_checkpoint_paths(1),
    "resume": lambda manager, _: manager.resume(),
    "info": lambda manager, run: manager.load_training_info(run / "step_4"),
    "info of nothing": lambda manager, _: manager.load_training_info(None),
    "resume paths": lambda manager, run: by_resume_paths(manager, run / "step_4"),
    "history": lambda _, run: module._load_checkpoint_history(run),
    "of a registry": lambda _, run: ask_registry(run),
    "of another manager": lambda _, run: open_manager(run).get_latest_checkpoint_path(),
}


def test_a_second_job_that_has_asked_for_nothing_is_warned_at_its_first_save(run):
    fill(run, 1, 2, 3, 4)
    with open_manager(run) as manager, warned(__file__) as texts:
        save(manager, 5)
        save(manager, 6)
    [text] = texts
    assert text == (
        f"{run} {OTHERS}, and this one has not asked for any: what it saves replaces what is there "
        "of the same step. To go on with that training, begin with resume(); to start afresh, use "
        "another checkpoint_dir."
    )
    with open_manager(run) as manager, warned(__file__) as texts:
        save(manager, 7)
    assert texts == [], "they are of this process, too"


def test_a_second_job_that_begins_again_below_is_told_both_at_once(run):
    fill(run, 1, 2, 3, 4)
    with open_manager(run) as manager, warned(__file__) as texts:
        save(manager, 1)
        save(manager, 2)
    [text] = texts
    assert text == (
        f"{run} {OTHERS}, and this one has not asked for any: what it saves replaces what is there "
        "of the same step. Step 1 is saved below steps 2, 3 and 4: the latest is still step 4, and "
        "retention counts them, too. To go on with that training, begin with resume(); to go on "
        "from here, put them aside (`ckptdb reject STEP REASON`, or reject() of the manager); to "
        "start afresh, use another checkpoint_dir."
    )


@pytest.mark.slow
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_who_has_asked_what_is_there_is_not_warned(run, ask):
    fill(run, 1, 2, 3, 4)
    with open_manager(run) as manager:
        ask(manager, run)
        with warned(__file__) as texts:
            save(manager, 5)
    assert texts == []


def test_the_first_job_of_a_directory_is_not_warned(run):
    for directory in (run, run.parent / "there"):
        (run.parent / "there").mkdir(exist_ok=True)
        with open_manager(directory) as manager, warned(__file__) as texts:
            save(manager, 1)
            save(manager, 2)
        assert texts == []


def test_a_forked_child_and_its_parent_are_one_job_and_other_programs_are_not(run):
    with open_manager(run) as manager:
        save(manager, 1)
    child = os.fork()
    if child == 0:
        try:
            with open_manager(run) as manager, warned(__file__) as texts:
                save(manager, 2)
            os._exit(len(texts))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other = run.parent / "other"
    write_like_nemo(other, 1)
    with open_manager(other) as manager, warned(__file__) as texts:
        save(manager, 2)
    assert [text.partition(",")[0] for text in texts] == [
        f"{other} holds a checkpoint of another process (step 1)"
    ]
