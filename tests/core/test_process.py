from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ckptdb.core import process
from ckptdb.core.process import Process, this_process


def me() -> Process:
    return Process(**this_process())


@pytest.fixture
def child():
    """Another living process."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as begun:
        yield begun
        begun.kill()


def process_of(pid: int) -> Process:
    return replace(me(), pid=pid, started=process._started(pid))


def test_this_process_is_alive_and_me():
    found = me()
    assert (found.is_here, found.is_of_this_boot, found.is_me) == (True, True, True)
    assert found.life == "alive"


def test_another_process_is_alive_until_it_dies(child):
    found = process_of(child.pid)
    assert (found.is_me, found.life) == (False, "alive")

    child.send_signal(signal.SIGKILL)
    child.wait()
    assert found.life == "dead"


def test_a_dead_process_whose_parent_has_not_asked_is_not_alive(child):
    found = process_of(child.pid)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert found.life == "dead"


ONE_THREAD_LEFT = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("begun", flush=True)
# Of a process that is being killed, too, the first thread may be gone while another one is still
# in the middle of a system call.
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_of_which_a_thread_is_left_is_alive():
    assert platform.machine() in ("x86_64", "aarch64")
    command, pipe = [sys.executable, "-c", ONE_THREAD_LEFT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as begun:
        found = process_of(begun.pid)
        assert begun.stdout.readline() == b"begun\n"
        stat = Path(f"/proc/{begun.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert found.life == "alive"
        begun.kill()
        begun.wait()
        assert found.life == "dead"


def test_a_reused_pid_is_another_process(child):
    assert replace(process_of(child.pid), started=1).life == "dead"


def test_a_forked_child_is_not_me():
    parent = me()
    pid = os.fork()
    if pid == 0:
        os._exit(int(parent.is_me) + 2 * int(parent.life != "alive"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"host": f"not-{socket.gethostname()}"},
        {"boot": "another boot"},  # a second machine may have the same name
        {"boot": None},
        {"namespace": 1},
        {"namespace": None},  # as it was written before it was recorded
    ],
    ids=str,
)
def test_of_a_process_elsewhere_nobody_knows(change):
    found = replace(me(), pid=2**30, **change)
    assert (found.is_here, found.is_me, found.life) == (False, False, "unknown")


def test_a_process_that_may_not_be_asked_exists(child, monkeypatch):
    def refuse(pid, signal_number):
        raise PermissionError

    found = process_of(child.pid)
    with monkeypatch.context() as patch:
        patch.setattr(process.os, "kill", refuse)
        assert found.life == "alive"


def test_a_process_that_proc_hides_is_not_taken_for_dead(child, monkeypatch):
    found = process_of(child.pid)
    monkeypatch.setattr(process, "_started", lambda _: None)
    assert found.life == "unknown"
    child.kill()
    child.wait()
    assert found.life == "dead"


def test_a_proc_of_another_namespace_says_nothing_of_a_pid(child, monkeypatch):
    found = process_of(child.pid)
    monkeypatch.setattr(process.os, "readlink", lambda _: "1")
    assert found.life == "unknown"


def test_without_proc_this_process_is_still_known(monkeypatch):
    def refuse(self, *arguments, **options):
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        process._born.cache_clear()
        found = me()
        assert (found.started, found.boot, found.is_me, found.life) == (None, None, True, "alive")
        assert replace(found, pid=2**30).life == "unknown"
    process._born.cache_clear()
