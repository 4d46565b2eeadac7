from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.requirements import needs_root
from tests.support.users import (
    ANN,
    as_user,
    shared_place,
)

from ckptdb.disk import lock
from ckptdb.disk.lock import run_lock
from ckptdb.errors import RunLocked

HOLD = """
import sys
from pathlib import Path
from ckptdb.disk.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(hidden: Path):
    """Another process that holds the lock until its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(hidden)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def is_free(hidden: Path) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "TIMEOUT_SECONDS", 0)
        try:
            with run_lock(hidden):
                return True
        except RunLocked:
            return False


def test_a_lock_held_by_another_process_is_waited_for_and_then_told(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0.01)
    told = pytest.raises(RunLocked, match=r"lock stayed locked for 0\.01 s")
    with holder(tmp_path), told, run_lock(tmp_path):
        pytest.fail("it is held")
    assert lock._open_handles == set()


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path: Path):
    with holder(tmp_path) as process:
        assert not is_free(tmp_path)
        release = threading.Timer(0.01, process.stdin.close)
        release.start()
        with run_lock(tmp_path):
            pass
        release.join()
        process.wait()


def test_a_killed_holder_frees_the_lock(tmp_path: Path):
    with holder(tmp_path) as process:
        assert not is_free(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert is_free(tmp_path)


def test_a_lock_excludes_threads_of_one_process_too(tmp_path: Path):
    with run_lock(tmp_path):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_an_error_inside_frees_the_lock(tmp_path: Path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    assert is_free(tmp_path)
    assert lock._open_handles == set()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path):
    ready, go_on = os.pipe(), os.pipe()
    with run_lock(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(ready[1], str(len(lock._open_handles)).encode())
            os.read(go_on[0], 1)
            os._exit(0)
        assert os.read(ready[0], 1) == b"0"
    try:
        # The child lives and would hold a copy of the descriptor.
        assert is_free(tmp_path)
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *go_on):
            os.close(end)


def test_a_forked_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path: Path):
    ready, go_on = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with run_lock(tmp_path):
            if os.fork() == 0:
                os.write(ready[1], b"r")
                os.read(go_on[0], 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.read(ready[0], 1) == b"r"
    os.waitpid(parent, 0)
    try:
        assert is_free(tmp_path)
    finally:
        os.write(go_on[1], b"x")
        for end in (*ready, *go_on):
            os.close(end)


def test_copies_of_a_lock_are_closed_in_a_child(tmp_path: Path):
    copy = os.open(tmp_path, os.O_RDONLY)
    lock._open_handles.add(copy)
    lock._close_inherited()
    assert lock._open_handles == set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about_once(tmp_path: Path, monkeypatch, code):
    def refuse(handle, operation):
        if operation != fcntl.LOCK_UN:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    entered = False
    with pytest.warns(UserWarning, match="without locks"), run_lock(tmp_path):
        entered = True
    assert entered
    with run_lock(tmp_path):
        pass


def test_any_other_error_of_the_lock_is_raised(tmp_path: Path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), run_lock(tmp_path):
        pass
    assert lock._open_handles == set()


def test_a_lock_that_is_a_symlink_is_refused(tmp_path: Path):
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="is a symlink"), run_lock(tmp_path):
        pass


@needs_root
def test_whose_lock_is_not_to_be_seen_has_changed_a_run_only_just_before():
    with shared_place() as top:
        hidden = top / "run" / ".ckptdb"
        hidden.mkdir(parents=True)
        (hidden / "lock").touch(mode=0o600)
        assert as_user(ANN, lock.may_be_locked, hidden)
        long_ago = time.time() - 60
        os.utime(hidden.parent, (long_ago, long_ago))
        # Nobody is in the middle of replacing a step there: a reader need not wait for it.
        assert not as_user(ANN, lock.may_be_locked, hidden)
