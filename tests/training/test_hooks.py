"""What a loop is told as it happens."""

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest

from ckptdb import CheckpointManager, Problem, Registry
from ckptdb.disk.publish import Publisher
from ckptdb.errors import CatalogBroken, SaveFailed, Untrustworthy


class Told:
    """Takes down what the hooks of a manager are told."""

    def __init__(self):
        self.lines = []
        self.problems = []
        self.threads = set()

    def hooks(self):
        return {
            "on_published": lambda checkpoint: self.note("published", checkpoint),
            "on_deleted": lambda checkpoint: self.note("deleted", checkpoint),
            "on_problem": self.problems.append,
        }

    def note(self, what, checkpoint):
        self.threads.add(threading.current_thread().name)
        self.lines.append((what, checkpoint.step, checkpoint.uuid))

    @property
    def steps(self):
        return [(what, step) for what, step, _ in self.lines]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def open_manager(tmp_path, told):
    def open_manager(**options):
        config = {
            "checkpoint_dir": tmp_path / "run",
            "metric_name": "loss",
            "higher_is_better": False,
            "durability": "none",
        }
        return CheckpointManager(config, **{**told.hooks(), **options})

    return open_manager


def save(manager, step, loss=0.5):
    with manager.save(step, {"loss": loss}):
        pass


@contextmanager
def raised(monkeypatch, owner, name, error):
    """Let a method fail."""

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


# --- what is told -------------------------------------------------------------------------------


def test_what_is_published_and_what_goes_is_told_in_order(open_manager, told):
    with open_manager(keep_top_k=1) as manager:
        for step, loss in ((1, 0.5), (2, 0.4), (3, 0.6)):
            save(manager, step, loss)
        save(manager, 4, 0.1)
    assert told.steps == [
        ("published", 1), ("published", 2), ("deleted", 1), ("published", 3),
        ("published", 4), ("deleted", 2), ("deleted", 3),
    ]  # fmt: skip
    assert told.problems == []
    assert "MainThread" not in told.threads
    assert threading.current_thread().name not in told.threads


def test_what_is_told_is_there_already_and_its_record_is_whole(open_manager, tmp_path):
    seen = []

    def look(checkpoint):
        files = sorted(os.listdir(checkpoint.path)) if checkpoint.path.exists() else None
        seen.append((checkpoint.status, checkpoint.metrics, checkpoint.deleted_reason, files))

    with open_manager(on_published=look, on_deleted=look, keep_top_k=1) as manager:
        save(manager, 1)
        manager._hooks.drain()
        save(manager, 2, 0.4)
    assert seen == [
        ("final", {"loss": 0.5}, None, ["manifest.json", "training_info.json"]),
        ("final", {"loss": 0.4}, None, ["manifest.json", "training_info.json"]),
        ("deleted", {"loss": 0.5}, "retention: not best 1 by loss min (0.5)", None),
    ]


def test_of_a_step_that_is_saved_again_the_old_one_goes_before_the_new_one_comes(
    open_manager, told
):
    with open_manager() as manager:
        save(manager, 1)
        save(manager, 1)
    assert told.steps == [("published", 1), ("deleted", 1), ("published", 1)]
    first, gone, second = (uuid for _, _, uuid in told.lines)
    assert first == gone != second


def test_a_save_that_is_given_up_is_told_as_deleted(open_manager, told):
    with open_manager() as manager, suppress(ZeroDivisionError), manager.save(1, {}):
        raise ZeroDivisionError
    assert told.steps == [("deleted", 1)]


def test_what_a_crash_left_is_told_when_its_step_is_saved_again(open_manager, told, monkeypatch):
    complete, incomplete = open_manager(), open_manager()
    with raised(monkeypatch, Publisher, "_publish", KeyboardInterrupt), suppress(KeyboardInterrupt):
        save(complete, 1)
    incomplete.init_tmp_checkpoint(2, {})
    told.lines.clear()
    with open_manager() as manager:
        save(manager, 1)
        save(manager, 2)
    assert told.steps == [
        ("published", 1), ("deleted", 1), ("published", 1), ("deleted", 2), ("published", 2),
    ]  # fmt: skip


def test_saves_in_the_background_are_told_of_too(open_manager, told):
    with open_manager(keep_top_k=1) as manager:
        for step in (1, 2, 3):
            manager.begin_finalization(manager.init_tmp_checkpoint(step, {"loss": 1 / step}))
    assert sorted(told.steps) == [("deleted", 1), ("deleted", 2)] + [
        ("published", step) for step in (1, 2, 3)
    ]


def test_nothing_is_told_twice_or_after_shutdown(open_manager, told):
    manager = open_manager()
    save(manager, 1)
    manager.shutdown()
    assert told.steps == [("published", 1)]
    manager.shutdown()
    save(manager, 2)
    manager.shutdown()
    assert told.steps == [("published", 1), ("published", 2)]


# --- problems -----------------------------------------------------------------------------------


def test_a_save_that_fails_in_the_background_is_a_problem(open_manager, told):
    manager = open_manager()
    folder = manager.init_tmp_checkpoint(1, {})

    def fail():
        raise ValueError("disk on fire")

    manager.begin_finalization(folder, fail)
    with pytest.raises(RuntimeError) as caught:
        manager.shutdown()
    assert told.problems == [Problem("save", folder, caught.value.__cause__)]
    assert told.lines == []


def test_a_save_that_fails_in_the_loop_is_the_loops_own(open_manager, told, monkeypatch):
    manager = open_manager()
    with raised(monkeypatch, Publisher, "_seal", OSError("full")), pytest.raises(SaveFailed):
        save(manager, 1)
    manager.shutdown()
    assert (told.lines, told.problems) == ([], [])


@pytest.mark.parametrize("method", ["retire", "empty_trash"])
def test_a_prune_that_fails_is_a_problem(open_manager, told, monkeypatch, method):
    error = OSError("read-only")
    with open_manager(keep_top_k=1) as manager:
        save(manager, 1)
        with (
            raised(monkeypatch, Publisher, method, error),
            pytest.warns(UserWarning, match="Failed to prune old checkpoints"),
            manager,
        ):
            save(manager, 2, 0.1)
    assert told.problems == [Problem("prune", manager.checkpoint_dir, error)]


def test_a_save_that_cannot_be_put_away_is_a_problem(open_manager, told, monkeypatch):
    error = OSError("read-only")
    manager = open_manager()
    with (
        raised(monkeypatch, Publisher, "discard", error),
        suppress(ZeroDivisionError),
        manager.save(1, {}) as folder,
    ):
        raise ZeroDivisionError
    manager.shutdown()
    assert told.problems == [Problem("discard", folder, error)]


def test_a_catalog_that_is_given_up_is_a_problem_told_once(open_manager, told, tmp_path):
    with open_manager() as manager:
        save(manager, 1)
    (tmp_path / "run/.ckptdb/catalog.db").write_bytes(b"no database\n" * 1000)
    with open_manager() as manager:
        with pytest.warns(UserWarning, match="is not readable"):
            save(manager, 2)
        save(manager, 3)
    (problem,) = told.problems
    assert (problem.what, problem.where) == ("catalog", tmp_path / "run")
    assert isinstance(problem.error, CatalogBroken)
    assert told.steps == [("published", step) for step in (1, 2, 3)]


def test_a_checkpoint_that_cannot_be_trusted_is_a_problem_told_once(open_manager, told, tmp_path):
    with open_manager() as manager:
        for step in (1, 2, 3):
            save(manager, step, 1 / step)
        for step in (2, 3):
            (tmp_path / f"run/step_{step}/training_info.json").write_text("{")
        (tmp_path / "run/other").mkdir()  # moves the stamp
        for _ in range(2):
            assert manager.get_latest_checkpoint_path() == str(tmp_path / "run/step_1")
            (tmp_path / "run/another").mkdir(exist_ok=True)
    assert [(p.what, p.where.name) for p in told.problems] == [
        ("checkpoint", "step_2"), ("checkpoint", "step_3"),
    ]  # fmt: skip
    error = told.problems[0].error
    assert isinstance(error, Untrustworthy)
    assert str(error).startswith(f"{tmp_path}/run/step_2 cannot be trusted: training_info.json ")


def test_what_resume_finds_damaged_is_a_problem_told_once(open_manager, told, tmp_path):
    with open_manager() as manager:
        for step in (1, 2):
            save(manager, step, 1 / step)
    (tmp_path / "run/step_2/config.yaml").unlink(missing_ok=True)
    with open_manager() as manager:
        listed = json.loads((tmp_path / "run/step_2/manifest.json").read_text())["files"]
        (tmp_path / "run/step_2" / next(iter(listed))).unlink()
        with pytest.warns(UserWarning, match="Step 2 is passed over"):
            assert manager.resume().step == 1
        (tmp_path / "run/other").mkdir()  # moves the stamp
        manager.get_latest_checkpoint_path()
    assert [(p.what, p.where.name) for p in told.problems] == [("checkpoint", "step_2")]


# --- what hooks may do --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no network"), SystemExit(1)])
def test_a_hook_that_fails_is_logged_and_nothing_else(open_manager, told, caplog, error):
    def fail(_):
        raise error

    with caplog.at_level(logging.ERROR, "ckptdb"), open_manager(on_published=fail) as manager:
        save(manager, 1)
        save(manager, 1)
    assert manager.get_latest_checkpoint_path() is not None
    assert told.steps == [("deleted", 1)]
    assert told.problems == []
    assert [record.exc_info[1] for record in caplog.records] == [error, error]


def test_a_hook_may_ask_and_change_the_manager_that_calls_it(open_manager, told, caplog):
    answers = []

    def ask(checkpoint):
        told.note("published", checkpoint)
        answers.append(manager.get_best_checkpoint_path())
        answers.append(manager.should_stop)
        manager.finalize_pending()
        if checkpoint.step == 1:
            with manager.save(2, {"loss": 0.1}):
                pass
            manager.remove_old_checkpoints()
        manager.shutdown()

    manager = open_manager(on_published=ask, keep_top_k=1)
    save(manager, 1)
    manager.shutdown()
    assert [record.message for record in caplog.records if record.exc_info] == []
    assert len(answers) == 4
    assert answers[2] == str(manager.checkpoint_dir / "step_2")
    assert told.steps == [("published", 1), ("published", 2), ("deleted", 1)]


def test_a_slow_hook_delays_neither_saves_nor_deletions(open_manager, tmp_path):
    gate = threading.Event()
    with open_manager(on_published=lambda _: gate.wait(60), keep_top_k=1) as manager:
        for step in (1, 2, 3):
            manager.begin_finalization(manager.init_tmp_checkpoint(step, {"loss": 1 / step}))
        manager.finalize_pending()
        manager._background.wait()
        assert sorted(path.name for path in (tmp_path / "run").glob("step_*")) == ["step_3"]
        assert list((tmp_path / "run/.ckptdb/trash").iterdir()) == []
        gate.set()


@pytest.mark.slow
def test_a_loop_that_ends_without_shutdown_still_calls_its_hooks(tmp_path):
    loop = """
import sys
from ckptdb import CheckpointManager
manager = CheckpointManager({"checkpoint_dir": sys.argv[1]},
                            on_published=lambda checkpoint: print(checkpoint.step))
for step in range(3):
    manager.begin_finalization(manager.init_tmp_checkpoint(step, {}))
"""
    done = subprocess.run(
        [sys.executable, "-c", loop, tmp_path / "run"], capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["0", "1", "2"], "")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_hooks_of_its_parent_to_it(open_manager, told):
    gate = threading.Event()
    manager = open_manager(on_published=lambda _: gate.wait(60))
    save(manager, 1)
    child = os.fork()
    if child == 0:
        own = Problem("save", manager.checkpoint_dir, ValueError())
        manager._hooks.report_problem(own)
        manager._hooks.drain()
        os._exit(0 if told.problems == [own] else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    manager.shutdown()
    assert told.problems == []


def test_late_metrics_and_hand_made_deletions_are_nobodys_hooks(open_manager, told, tmp_path):
    with open_manager() as manager:
        save(manager, 1)
        with Registry.open(tmp_path / "run") as registry:
            registry.remove([1])
        manager.get_latest_checkpoint_path()
    assert told.steps == [("published", 1)]
