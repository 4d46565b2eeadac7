"""A second trainer on a run is noticed at its first save, and told whom it met.

Real processes, that end in every way there is.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from ckptdb.disk import trainer_lock
from ckptdb.errors import RunInUse
from ckptdb.manager import CheckpointManager
from ckptdb.registry import Registry

pytestmark = pytest.mark.slow

METRIC = "val:loss"

# Answers every line of Python with what it comes to, or with the error.
TRAINER = """
import gc, os, signal, subprocess, sys, warnings
from ckptdb import CheckpointManager

# Whoever runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
warnings.filterwarnings("ignore", message=".*of another process|.*is saved below")

def make(**options):
    return CheckpointManager({"checkpoint_dir": sys.argv[1], "metric_name": "val:loss",
                              "higher_is_better": False, "durability": "none", **options})

def save(step):
    with manager.save(step, {"val:loss": step}):
        return step

def fork(live_on):
    ready, child = os.pipe(), os.fork()
    if child == 0:
        try:
            live_on()
        except BaseException as error:
            os.write(ready[1], repr(error).encode())
        os.write(ready[1], b".")
        sys.stdin.close()
        os.read(int(sys.argv[2]), 1)
        os._exit(0)
    os.close(ready[1])
    told = b""
    while not told.endswith(b"."):
        told += os.read(ready[0], 10000)
    return told.decode()[:-1]

manager = make()
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


class Trainer:
    """Another process with a manager on the run."""

    def __init__(self, run, end_of_children):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(run), str(end_of_children)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[end_of_children],
        )
        assert self.process.stdout.readline() == "ready\n"
        self.pid = self.process.pid

    def do(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def kill(self, sent=signal.SIGKILL):
        self.process.send_signal(sent)
        return self.process.wait()

    def close(self):
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(run):
    """Return what starts a trainer; its children live until the test is over."""
    started = []
    end_of_children, write_end = os.pipe()

    def start():
        started.append(Trainer(run, end_of_children))
        return started[-1]

    yield start
    os.close(write_end)
    for trainer in started:
        trainer.close()
    os.close(end_of_children)


@contextmanager
def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": METRIC,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    with CheckpointManager(config) as manager:
        yield manager


def save(manager, step):
    with manager.save(step, {METRIC: step}):
        pass


def live_steps(run):
    with Registry.open(run) as registry:
        return sorted(cp.step for cp in registry.checkpoints(status="final"))


def tree(run):
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))


# --- refused ------------------------------------------------------------------------------------


def test_a_second_trainer_is_refused_at_its_first_save_and_told_whom_it_met(run, start):
    trainer = start()
    assert trainer.do("save(1)") == "1"
    before, stamp = tree(run), run.stat().st_mtime_ns
    with open_manager(run) as manager:
        assert manager.get_latest_checkpoint_path() == str(run / "step_1")
        with pytest.raises(RunInUse) as told:
            save(manager, 2)
        text = str(told.value)
        assert text.startswith(f"{run} is being trained by process {trainer.pid} on ")
        assert f" on {os.uname().nodename} since " in text
        assert re.search(r"since 20\d\d-\d\d-\d\dT[\d:.]+Z; ", text)
        assert text.endswith("pass exclusive=False to save beside it.")
        # The loop may catch it and try again, as often as it likes.
        with pytest.raises(RunInUse):
            save(manager, 2)
    assert (tree(run), run.stat().st_mtime_ns) == (before, stamp)
    assert trainer.do("save(3)") == "3"
    assert live_steps(run) == [1, 3]


def test_the_first_trainer_holds_it_from_its_first_save_not_before(run, start):
    trainer = start()
    assert trainer.do("manager.get_best_checkpoint_path()") == "None"
    with open_manager(run) as manager:
        save(manager, 1)
        assert trainer.do("manager.get_best_checkpoint_path()") == str(run / "step_1")
        assert trainer.do("save(2)").startswith(f"RunInUse: {run} is being trained by process ")
        assert f"process {os.getpid()} on" in trainer.do("save(2)")
    assert trainer.do("save(2)") == "2"


def test_a_save_that_cannot_be_written_anyway_asks_for_no_lease(run):
    with open_manager(run) as manager, pytest.raises(TypeError):
        manager.init_tmp_checkpoint(1, {METRIC: object()})
    assert not run.exists()


def test_whoever_is_not_exclusive_neither_asks_nor_is_asked_for(run, start):
    trainer = start()
    assert trainer.do("save(1)") == "1"
    with open_manager(run, exclusive=False) as manager:
        save(manager, 2)
        trainer.do("manager.shutdown()")
        assert trainer.do("save(3)") == "3"
    assert live_steps(run) == [1, 2, 3]


def test_trainers_of_different_runs_do_not_meet(run, start):
    assert start().do("save(1)") == "1"
    with open_manager(run.with_name("another")) as manager:
        save(manager, 1)


@pytest.mark.parametrize("where", ["a link to the run", "a link above it"])
def test_a_run_is_the_same_by_any_name(run, start, tmp_path, where):
    assert start().do("save(1)") == "1"
    link = tmp_path / "link"
    link.symlink_to(run if where == "a link to the run" else tmp_path)
    by_another_name = link if where == "a link to the run" else link / "run"
    with open_manager(by_another_name) as manager, pytest.raises(RunInUse):
        save(manager, 2)


# --- free again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("doing", ["between saves", "while saving", "finalizing"])
def test_the_death_of_a_trainer_frees_the_run(run, start, sent, doing):
    trainer = start()
    trainer.do("save(1)")
    if doing != "between saves":
        trainer.do("manager.init_tmp_checkpoint(2, {'val:loss': 2})")
    if doing == "finalizing":
        command = "__import__('time').sleep(1000)"
        trainer.do(f"manager.begin_finalization({str(run / 'tmp_step_2')!r}, lambda: {command})")
    with open_manager(run) as manager:
        with pytest.raises(RunInUse):
            save(manager, 3)
        # An interrupted trainer first waits for what it finalizes, as any that ends.
        assert trainer.kill(signal.SIGKILL if doing == "finalizing" else sent) != 0
        save(manager, 3)
    assert live_steps(run) == [1, 3]


def test_a_shutdown_frees_the_run_until_the_next_save(run, start):
    trainer = start()
    trainer.do("save(1)")
    with open_manager(run) as manager:
        trainer.do("manager.shutdown()")
        save(manager, 2)
        assert trainer.do("save(3)").startswith("RunInUse: ")
        manager.shutdown()
        assert trainer.do("save(3)") == "3"
        with pytest.raises(RunInUse):
            save(manager, 4)


def test_the_end_of_a_trainer_without_shutdown_frees_the_run(run, start):
    trainer = start()
    trainer.do("save(1)")
    trainer.process.stdin.close()
    assert trainer.process.wait() == 0
    with open_manager(run) as manager:
        save(manager, 2)


def test_a_manager_that_is_collected_frees_the_run(run, start):
    trainer = start()
    trainer.do("save(1)")
    with open_manager(run) as manager:
        with pytest.raises(RunInUse):
            save(manager, 2)
        trainer.do("[globals().pop('manager'), None][1]")
        trainer.do("gc.collect()")
        save(manager, 2)


def test_two_managers_of_one_process_share_the_run_until_both_let_go(run, start):
    trainer = start()
    with open_manager(run) as one:
        with open_manager(run) as another:
            save(one, 1)
            save(another, 2)
            one.shutdown()
            assert trainer.do("save(3)").startswith("RunInUse: ")
            save(one, 3)
        assert trainer.do("save(4)").startswith("RunInUse: ")
    assert trainer.do("save(4)") == "4"
    assert not trainer_lock._taken


def test_a_shutdown_that_is_interrupted_still_has_something_to_save(run, start, monkeypatch):
    trainer = start()
    with open_manager(run) as manager:
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {METRIC: 1}))
        finalization = manager._background._finalization

        def interrupt():
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(finalization, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                manager.shutdown()
        assert trainer.do("save(2)").startswith("RunInUse: ")
    assert trainer.do("save(2)") == "2"


def test_a_run_that_is_made_anew_under_its_name_is_another_one(run, start):
    trainer = start()
    with open_manager(run) as manager:
        save(manager, 1)
        run.rename(run.with_name("moved"))
        assert trainer.do("save(1)") == "1"
        with pytest.raises(RunInUse):
            save(manager, 2)
        trainer.do("manager.shutdown()")
        save(manager, 2)
        assert trainer.do("save(3)").startswith("RunInUse: ")
    assert live_steps(run) == [1, 2]


# --- children -----------------------------------------------------------------------------------


def test_a_forked_worker_does_not_keep_the_run_of_a_dead_trainer(run, start):
    trainer = start()
    trainer.do("save(1)")
    assert trainer.do("fork(lambda: None)") == ""
    with open_manager(run) as manager:
        with pytest.raises(RunInUse):
            save(manager, 2)
        trainer.kill()
        save(manager, 2)


@pytest.mark.parametrize(
    "doing",
    [
        "manager.shutdown()",
        "[globals().pop('manager'), gc.collect()]",
        "manager.__exit__(*[None] * 3)",
    ],
    ids=["shut down", "collected", "left"],
)
def test_a_forked_worker_does_not_free_the_run_of_its_parent(run, start, doing):
    trainer = start()
    trainer.do("save(1)")
    assert trainer.do(f"fork(lambda: {doing})") == ""
    with open_manager(run) as manager:
        with pytest.raises(RunInUse, match=f"process {trainer.pid} on"):
            save(manager, 2)
        assert trainer.do("save(3)") == "3"
        with pytest.raises(RunInUse, match=f"process {trainer.pid} on"):
            save(manager, 2)


def test_a_forked_child_that_saves_is_another_trainer(run, start):
    trainer = start()
    trainer.do("save(1)")
    for manager in ("", "manager.shutdown(); ", "globals().update(manager=make()); "):
        work = f"[exec({manager + 'save(2)'!r}, globals())]"
        assert f"is being trained by process {trainer.pid} on" in trainer.do(
            f"fork(lambda: {work})"
        )
    trainer.do("manager.shutdown()")
    assert trainer.do("fork(lambda: save(2))") == ""
    assert re.search(r"trained by process \d+ on", refused := trainer.do("save(3)"))
    assert f"process {trainer.pid} " not in refused
    assert live_steps(run) == [1, 2]


@pytest.mark.parametrize("how", ["{}", "{'close_fds': False}"], ids=["closing", "inheriting"])
def test_a_subprocess_does_not_keep_the_run_of_a_dead_trainer(run, start, how):
    trainer = start()
    trainer.do("save(1)")
    command = "[sys.executable, '-c', 'print(1, flush=True); import os; os.read(0, 1)']"
    options = f"**{how}, stdin=int(sys.argv[2]), stdout=subprocess.PIPE"
    assert trainer.do(f"subprocess.Popen({command}, {options}).stdout.readline()") == r"b'1\n'"
    with open_manager(run) as manager:
        with pytest.raises(RunInUse):
            save(manager, 2)
        trainer.kill()
        save(manager, 2)


# --- everything else goes on --------------------------------------------------------------------


def ckptdb(run, *arguments):
    command = [sys.executable, "-m", "ckptdb", "-C", str(run), *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_asking_annotating_and_tidying_go_on_beside_a_trainer(run, start):
    trainer = start()
    for step in range(1, 5):
        trainer.do(f"save({step})")
    assert ckptdb(run, "latest").strip() == str(run / "step_4")
    for command in (
        "ls", "check", "verify", "show 2", "pin 2", "unpin 2", "tag 2 best", "log 2 mmlu=0.5",
        "reconcile --full", "rm 3", "gc --keep-top-k 1",
    ):  # fmt: skip
        ckptdb(run, *command.split())
    with Registry.open(run) as registry:
        registry.pin(None, 1)
        registry.reconcile()
    with open_manager(run, keep_top_k=1) as manager:
        assert manager.get_best_checkpoint_path() == str(run / "step_1")
        manager.remove_old_checkpoints()
    assert trainer.do("save(5)") == "5"
    assert live_steps(run) == [1, 4, 5]
    assert trainer.pid == trainer_lock.find_holder(run / ".ckptdb").pid


def test_what_only_looks_or_annotates_holds_nothing(run, start):
    trainer = start()
    trainer.do("save(1)")
    trainer.do("manager.shutdown()")
    with open_manager(run) as manager, Registry.open(run) as registry:
        manager.get_best_checkpoint_path()
        manager.remove_old_checkpoints()
        registry.pin(None, 1)
        registry.log_metrics(None, 1, {"mmlu": 0.5}, source="lm-eval")
        registry.reconcile()
        assert not trainer_lock._taken
        assert trainer.do("save(2)") == "2"


def test_the_lease_moves_no_stamp(run):
    with open_manager(run) as manager:
        save(manager, 1)
        manager.shutdown()
        before = run.stat().st_mtime_ns
        lease = manager._publisher.lock_trainer()
        assert run.stat().st_mtime_ns == before
        del lease
        assert run.stat().st_mtime_ns == before


def test_a_save_that_has_no_place_takes_no_lease(run):
    with open_manager(run) as manager:
        save(manager, 1)
        manager.shutdown()
        (run / "tmp_step_2").touch()
        before = run.stat().st_mtime_ns
        with pytest.raises(FileExistsError):
            save(manager, 2)
        assert manager._saver.trainer_lock is None
        assert run.stat().st_mtime_ns == before


def test_a_new_run_gets_an_identity_of_its_own_in_spite_of_the_lease(run):
    uuids = set()
    for _ in range(2):
        with open_manager(run) as manager:
            save(manager, 1)
        with Registry.open(run) as registry:
            (found,) = registry.runs()
            uuids.add(found.uuid)
        run.rename(run.with_name(f"moved_{len(uuids)}"))
    assert len(uuids) == 2
