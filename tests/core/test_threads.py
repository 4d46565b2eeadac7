from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from ckptdb.core import threads
from ckptdb.core.threads import Task, tasks_at
from ckptdb.disk import fsutil, parallel
from ckptdb.training.background import Background

LEAVES_WITHOUT_SHUTDOWN = """
import sys, time
from ckptdb import CheckpointManager

manager = CheckpointManager({"checkpoint_dir": sys.argv[1]})
for step in (1, 2):
    folder = manager.init_tmp_checkpoint(step, {"loss": 1.0})
    for number in range(20):
        (folder / str(number)).write_bytes(b"x")
    manager.begin_finalization(folder, wait_fn=lambda: time.sleep(0.3))
"""


@pytest.mark.slow
def test_a_loop_that_ends_without_shutdown_gets_its_last_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_WITHOUT_SHUTDOWN, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert {"step_1", "step_2"} < set(os.listdir(tmp_path))
    assert len(list((tmp_path / "step_2").glob("[0-9]*"))) == 20


# Raises in the main thread after each of its calls in turn, as a signal's handler may. Then all
# that was begun has to come to an end, and what is asked for next has to work.
INTERRUPTED = """
import faulthandler, sys
from pathlib import Path
from ckptdb.training.background import Background
from ckptdb.disk import fsutil, parallel

faulthandler.dump_traceback_later(100, exit=True)
folder = Path(sys.argv[1])
for number in range(6):
    (folder / str(number)).write_bytes(b"x")
parts, ran = [[number] for number in range(5)], []
background = Background()


def flush():
    fsutil.fsync_tree(folder)


def go_through():
    list(parallel._at_once(parts, sum))


def finalize():
    background.finalize(folder, lambda: ran.append(1), then=lambda: ran.append(2))
    background.collect()
    background.drain()


def submit():
    background.submit(lambda: ran.append(3))
    background.drain()


def after():
    flush()
    assert list(parallel._at_once(parts, sum)) == [0, 1, 2, 3, 4]
    background.collect()
    background.drain()
    ran.clear()
    finalize()
    submit()
    assert ran == [1, 2, 3], ran


class Struck(BaseException):
    pass


def strike(work, at):
    left = [at]

    def called(frame, event, what):
        if event in ("c_return", "return"):
            left[0] -= 1
            if left[0] == 0:
                sys.setprofile(None)
                raise Struck

    sys.setprofile(called)
    try:
        work()
    except Struck:
        return "struck"
    finally:
        sys.setprofile(None)
    return "swallowed" if left[0] <= 0 else "over"


for work in (flush, go_through, finalize, submit):
    said, points = "", 0
    while said != "over":
        points += 1
        said = strike(work, points)
        after()
    print(work.__name__, points, flush=True)
"""


@pytest.mark.slow
def test_an_interrupt_anywhere_leaves_nobody_waiting(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    struck = dict(line.split() for line in done.stdout.splitlines())
    assert set(struck) == {"flush", "go_through", "finalize", "submit"}
    assert all(int(points) > 10 for points in struck.values())


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads._thread, "start_new_thread", refuse)


def test_without_threads_all_is_done_by_whoever_asks(no_threads, tmp_path):
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"x")
    fsutil.fsync_tree(tmp_path)
    assert list(parallel._at_once([[1], [2, 3]], sum)) == [1, 5]
    background, done = Background(), []
    background.finalize(
        tmp_path, lambda: done.append("finalized"), then=lambda: done.append("then")
    )
    assert done == ["finalized", "then"]
    background.collect()
    background.drain()


def test_an_error_of_a_task_is_told_by_whoever_waits():
    task = Task(lambda: 1 / 0)
    task.start()
    task.wait()
    assert isinstance(task.error, ZeroDivisionError)


def test_who_waits_with_others_is_not_held_up_by_one_that_was_interrupted(monkeypatch):
    monkeypatch.setattr(threads, "_LOOK_AGAIN_SECONDS", 0.01)
    release = threading.Event()
    task = Task(release.wait)
    task.start()
    waiting = threading.Thread(target=task.wait)
    waiting.start()
    release.set()
    task.wait()
    task._at_work.acquire()  # as an interrupt in the middle of `wait` leaves it
    waiting.join(10)
    assert not waiting.is_alive()


def test_work_that_fails_in_the_queue_does_not_keep_the_rest():
    background, done = Background(), []
    background.submit(lambda: 1 / 0)
    background.submit(lambda: background.submit(lambda: done.append("handed on")))
    background.drain()
    assert done == ["handed on"]


def test_tasks_end_with_the_block():
    ended = threading.Event()
    with tasks_at(ended.wait, 3, end=ended.set) as helpers:
        assert len(helpers) == 3
        assert not any(helper.has_ended for helper in helpers)
    assert all(helper.has_ended for helper in helpers)
