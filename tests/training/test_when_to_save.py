"""A run that is about to be ended saves once, in time, and ends: real processes, as a user's."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from ckptdb import CheckpointManager
from ckptdb.errors import InvalidStep

# Trains until it is told to stop; prints what it is told, a line a step.
LOOP = """
import json, sys, time
from ckptdb import CheckpointManager

config = {"checkpoint_dir": "run", "metric_name": "loss", "higher_is_better": False,
          "save_period": 1_000_000}
with CheckpointManager(config, **json.loads(sys.argv[1])) as manager:
    print("began", time.time(), flush=True)
    step = 0
    while not manager.should_stop:
        step += 1
        time.sleep(0.01)  # the work
        reason = manager.should_save(step)
        print(step, reason, flush=True)
        if reason:
            folder = manager.init_tmp_checkpoint(step, {"step": step, "loss": 1 / step})
            (folder / "model.bin").write_bytes(b"m" * 1000)
            time.sleep(float(sys.argv[2]))  # a large model
            getattr(manager, sys.argv[3])(folder)
print("ended", flush=True)
"""


class Job:
    """A training process, and the scheduler that ends it."""

    def __init__(self, folder, *, environment=None, save_seconds=0.0, how="finalize_checkpoint",
                 **options):  # fmt: skip
        self.folder = folder
        options = {"durability": "none", **options}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP, json.dumps(options), str(save_seconds), how],
            cwd=folder, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.lines = []

    def read_until(self, step):
        """Read what it prints up to a step."""
        for line in self.process.stdout:
            self.lines.append(line.split())
            if self.lines[-1][0] == str(step):
                return
        pytest.fail("it has ended before")

    def read_beginning(self):
        """Return when it has begun."""
        word, at = self.process.stdout.readline().split()
        assert word == "began"
        return float(at)

    def end(self, grace_seconds=60):
        """Kill it if it does not end by itself; return what it saved, and how it ended."""
        try:
            told, _ = self.process.communicate(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            told, _ = self.process.communicate()
        self.lines += [line.split() for line in told.splitlines()]
        return self.process.returncode

    @property
    def saved(self):
        return [(int(step), reason) for step, reason in self.steps if reason != "None"]

    @property
    def steps(self):
        return [line for line in self.lines if line[0].isdigit()]

    @property
    def published(self):
        return sorted(int(path.name[5:]) for path in self.folder.glob("run/step_*"))


@pytest.fixture
def start(tmp_path):
    jobs = []

    def start(**options):
        jobs.append(Job(tmp_path, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()
        job.process.wait()
        job.process.stdout.close()


def check_saved_once(job, reason, before=()):
    last = int(job.steps[-1][0])
    assert job.saved == [(last, reason)]
    assert job.published == [*before, last]
    assert job.lines[-1] == ["ended"]
    return last


@pytest.mark.slow
@pytest.mark.parametrize("how", ["finalize_checkpoint", "begin_finalization"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_sent_a_signal_saves_once_and_ends(start, number, how):
    job = start(save_on_signals=["SIGTERM", "SIGUSR1"], how=how)
    job.read_until(5)
    job.process.send_signal(number)
    assert job.end() == 0
    check_saved_once(job, "signal")
    assert int(job.steps[-1][0]) > 5


@pytest.mark.slow
def test_a_scheduler_that_loses_patience_finds_the_run_saved(start):
    """SIGTERM, and more of them, and SIGKILL when the grace is over, as SLURM ends a job."""
    job = start(save_on_signals=["SIGTERM"], save_seconds=0.5)
    job.read_until(5)
    for _ in range(3):
        job.process.send_signal(signal.SIGTERM)
    assert job.end(grace_seconds=30) == 0
    check_saved_once(job, "signal")


@pytest.mark.slow
def test_a_run_that_does_not_wait_for_signals_is_ended_by_them(start):
    job = start()
    job.read_until(5)
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == -signal.SIGTERM
    assert job.published == []


def record_a_save(folder, seconds):
    """Leave a checkpoint whose save took so long."""
    with CheckpointManager({"checkpoint_dir": folder / "run"}) as manager:
        manager._publisher._clock = lambda: time.time() - seconds
        staged = manager.init_tmp_checkpoint(0, {"step": 0})
        manager._publisher._clock = time.time
        manager.finalize_checkpoint(staged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"), [("slurm", "finalize_checkpoint"), ("must save by", "begin_finalization")]
)
def test_a_run_with_a_deadline_saves_once_in_time_and_ends(start, tmp_path, kind, how):
    record_a_save(tmp_path, seconds=3)
    end = int(time.time()) + 13
    if kind == "slurm":
        job = start(environment={"SLURM_JOB_END_TIME": str(end)}, save_seconds=0.2, how=how)
    else:
        job = start(checkpoint_must_save_by="00:00:00:07", save_seconds=0.2, how=how)
    began = job.read_beginning()
    assert job.end() == 0
    last = check_saved_once(job, "deadline", before=[0])
    published = (tmp_path / f"run/step_{last}").stat().st_ctime
    assert published < (end if kind == "slurm" else began + 7)


# --- what a manager is asked --------------------------------------------------------------------


@pytest.fixture
def open_manager(tmp_path):
    def open_manager(**options):
        return CheckpointManager({"checkpoint_dir": tmp_path / "run"}, durability="none", **options)

    return open_manager


def test_every_step_is_saved_where_no_period_is_given(open_manager):
    manager = open_manager()
    assert [manager.should_save(step) for step in range(3)] == ["period"] * 3


def test_the_two_periods_of_nemo_rl_are_one_or_the_other(open_manager):
    manager = open_manager(save_period=10, ft_save_period=4)
    assert [step for step in range(1, 21) if manager.should_save(step)] == [4, 8, 10, 12, 16, 20]
    assert (manager.save_period, manager.ft_save_period) == (10, 4)
    manager.save_period, manager.ft_save_period = 7, None
    assert [step for step in range(1, 21) if manager.should_save(step)] == [7, 14]


def test_a_loop_that_is_not_to_save_never_should(open_manager):
    manager = open_manager(enabled=False, checkpoint_must_save_by="00:00:00:00")
    assert manager.should_save(1) is None
    assert manager.should_stop


@pytest.mark.parametrize("step", [-1, 1.5, "1", True, None])
def test_what_is_no_step_is_an_error(open_manager, step):
    with pytest.raises(InvalidStep):
        open_manager().should_save(step)


def test_the_end_of_a_slurm_job_is_a_deadline_unless_it_is_not_to_be(open_manager, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 60))
    manager, other = (open_manager(save_period=100, slurm_deadline=on) for on in (True, False))
    for one in (manager, other):
        one._scheduler._wall = lambda: time.time() + 59
    assert [manager.should_save(1), other.should_save(1)] == ["deadline", None]


def test_asking_leaves_no_trace(open_manager, tmp_path):
    manager = open_manager(checkpoint_must_save_by="00:00:00:01", save_on_signals="SIGUSR2")
    before = signal.getsignal(signal.SIGUSR2)
    assert manager.should_save(1)
    assert signal.getsignal(signal.SIGUSR2) is not before
    assert not manager.should_stop
    manager.shutdown()
    assert signal.getsignal(signal.SIGUSR2) is before
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_answered_by_a_save_of_this_manager_alone(open_manager, tmp_path):
    with (
        open_manager(save_on_signals="SIGUSR2", save_period=100) as one,
        CheckpointManager(
            {"checkpoint_dir": tmp_path / "other"}, save_on_signals="SIGUSR2", save_period=100
        ) as other,
    ):
        assert [one.should_save(1), other.should_save(1)] == [None, None]
        signal.raise_signal(signal.SIGUSR2)
        assert [one.should_save(2), other.should_save(2)] == ["signal", "signal"]
        with one.save(2, {}):
            pass
        assert [one.should_stop, other.should_stop] == [True, False]
        with suppress(ZeroDivisionError), other.save(2, {}):
            raise ZeroDivisionError
        assert not other.should_stop
        assert other._scheduler._open == {}
        assert [one.should_save(3), other.should_save(3)] == [None, "signal"]
        with other.save(3, {}):
            pass
        assert other.should_stop
