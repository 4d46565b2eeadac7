from __future__ import annotations

import dis
import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import CodeType

import pytest

from ckptdb.core.process import this_process
from ckptdb.disk import lock, trainer_lock
from ckptdb.disk.trainer_lock import Holder, find_holder, take
from ckptdb.errors import RunInUse

SINCE = "2026-01-02T03:04:05Z"

HOLD = """
import sys
from pathlib import Path
from ckptdb.disk import trainer_lock
held = trainer_lock.take(Path(sys.argv[1]), since=sys.argv[2])
print("held", flush=True)
sys.stdin.readline()
del held
print("released", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(hidden: Path):
    """Another process that holds the lease until it reads a line."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(hidden), SINCE]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What is not told at once is not waited for."""
    monkeypatch.setattr(trainer_lock, "PATIENCE_SECONDS", 0.0)


def is_free(hidden: Path) -> bool:
    """Tell as another process would: this one may share what it holds."""
    handle = os.open(hidden / "trainer", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def test_a_second_process_is_told_who_holds_it_and_since_when(tmp_path: Path):
    with holder(tmp_path) as process, pytest.raises(RunInUse) as told:
        take(tmp_path, since=SINCE)
    who = f"process {process.pid} on {os.uname().nodename} since {SINCE}"
    assert str(told.value) == (
        f"{tmp_path.parent} is being trained by {who}; stop it, use another checkpoint_dir, or "
        "pass exclusive=False to save beside it."
    )
    assert not trainer_lock._taken


def test_it_says_who_holds_it_as_long_as_somebody_does(tmp_path: Path):
    held = take(tmp_path, since=SINCE)
    assert find_holder(tmp_path) == Holder(since=SINCE, **this_process())
    assert find_holder(tmp_path).is_me
    del held
    assert (tmp_path / "trainer").read_bytes() == b""
    assert find_holder(tmp_path) is None


def test_a_killed_holder_frees_it(tmp_path: Path):
    with holder(tmp_path) as process:
        assert not is_free(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert find_holder(tmp_path).pid == process.pid
        held = take(tmp_path, since=SINCE)
        assert find_holder(tmp_path).is_me
    del held


def test_one_process_takes_it_as_often_as_it_likes_by_any_spelling(tmp_path: Path):
    hidden, link = tmp_path / "run", tmp_path / "link"
    hidden.mkdir()
    link.symlink_to("run")
    one, other = take(hidden, since=SINCE), take(link / ".." / "run", since=SINCE)
    assert one is other
    assert take(link, since=SINCE) is one
    del one
    gc.collect()
    assert not is_free(hidden)
    del other
    assert is_free(hidden)


def test_many_threads_take_the_same_one(tmp_path: Path):
    start, taken = threading.Barrier(8), []

    def take_it() -> None:
        start.wait()
        taken.append(take(tmp_path, since=SINCE))

    for _ in range(30):
        threads = [threading.Thread(target=take_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 8
        assert len(set(map(id, taken))) == 1
        taken.clear()
        assert is_free(tmp_path)


def test_two_runs_have_two(tmp_path: Path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with holder(tmp_path / "one"):
        held = take(tmp_path / "other", since=SINCE)
        assert not is_free(tmp_path / "one")
        del held


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_one_whose_file_is_gone_is_taken_again(tmp_path: Path, how):
    before = take(tmp_path, since=SINCE)
    if how == "moved":
        (tmp_path / "trainer").rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "trainer").unlink()
    if how == "replaced":
        (tmp_path / "trainer").touch()
    after = take(tmp_path, since=SINCE)
    assert after is not before
    assert not is_free(tmp_path)
    del before
    assert not is_free(tmp_path)
    del after
    assert is_free(tmp_path)


def test_a_file_that_is_removed_while_it_is_taken_keeps_nobody_out(tmp_path: Path, monkeypatch):
    real, struck = fcntl.flock, []

    def remove_before(handle, operation):
        if not struck:
            struck.append(operation)
            (tmp_path / "trainer").unlink()
        real(handle, operation)

    monkeypatch.setattr(trainer_lock, "PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(trainer_lock.fcntl, "flock", remove_before)
    held = take(tmp_path, since=SINCE)
    assert struck
    assert not is_free(tmp_path)
    assert find_holder(tmp_path).is_me
    del held


# --- the name is best effort --------------------------------------------------------------------


def its_own(**changes) -> bytes:
    facts = {"since": SINCE, **this_process(), **changes}
    return json.dumps(facts).encode()


ILLEGIBLE = {
    "empty": b"",
    "torn": its_own()[:30],
    "two at once": its_own() + its_own()[5:],
    "no object": b"[1]",
    "no json": b"\xff\x00",
    "too deep": b"[" * 4000,
    "incomplete": b'{"pid": 4}',
    "a group of processes": its_own(pid=-1),
    "no time": its_own(since=3),
    "a lone surrogate": its_own(since="\ud800"),
    "a dead process": its_own(started=1),
    "ourselves": its_own(),
}


@pytest.mark.slow
@pytest.mark.parametrize("content", ILLEGIBLE.values(), ids=ILLEGIBLE)
def test_a_holder_that_is_not_named_legibly_is_another_process(tmp_path: Path, content):
    with holder(tmp_path):
        (tmp_path / "trainer").write_bytes(content)
        told = pytest.raises(RunInUse, match="is being trained by another process; stop it")
        with told:
            take(tmp_path, since=SINCE)
    assert not trainer_lock._taken


@pytest.mark.parametrize("change", [{"host": "gpu-7"}, {"boot": "before"}, {"namespace": 1}])
def test_a_name_of_a_process_that_cannot_be_asked_may_be_of_the_one_before(tmp_path: Path, change):
    with holder(tmp_path):
        named = its_own(pid=12, **change)
        (tmp_path / "trainer").write_bytes(named)
        host = json.loads(named)["host"]
        last = f"by another process .the last one to say so was process 12 on {host} since {SINCE}."
        with pytest.raises(RunInUse, match=last):
            take(tmp_path, since=SINCE)


def test_a_name_that_is_being_rewritten_is_waited_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trainer_lock, "PATIENCE_SECONDS", 60.0)
    looked = []

    def write_then_look_away(_):
        (tmp_path / "trainer").write_bytes(named if looked else b"{")
        looked.append(1)

    monkeypatch.setattr(trainer_lock.time, "sleep", write_then_look_away)
    with holder(tmp_path) as process:
        named = (tmp_path / "trainer").read_bytes()
        (tmp_path / "trainer").write_bytes(b"")
        with pytest.raises(RunInUse, match=f"process {process.pid} on"):
            take(tmp_path, since=SINCE)
    assert len(looked) == 2


def test_one_that_is_let_go_meanwhile_is_taken(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(trainer_lock, "PATIENCE_SECONDS", 60.0)
    with holder(tmp_path) as process:

        def let_go(_):
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"released\n"

        (tmp_path / "trainer").write_bytes(b"")
        monkeypatch.setattr(trainer_lock.time, "sleep", let_go)
        held = take(tmp_path, since=SINCE)
    assert find_holder(tmp_path).is_me
    del held


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_a_full_disk_takes_the_name_and_not_the_lease(tmp_path: Path, monkeypatch, call):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "trainer").write_bytes(its_own(boot="before"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer_lock.os, call, refuse)
        held = take(tmp_path, since=SINCE)
        assert not is_free(tmp_path)
        del held
    assert is_free(tmp_path)


@pytest.fixture
def _somebody_else(tmp_path: Path, read_only: Path):
    """Be a user whom permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    above = [folder for folder in tmp_path.parents if folder.stat().st_uid == 0]
    before = {folder: folder.stat().st_mode for folder in (tmp_path, *above)}
    for folder, mode in before.items():
        folder.chmod(mode | 0o011)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    for folder, mode in before.items():
        folder.chmod(mode)


@pytest.fixture
def read_only(tmp_path: Path):
    """Return a folder in which nothing may be written, with the file of a lease or without."""
    (tmp_path / "with" / "trainer").parent.mkdir()
    (tmp_path / "with" / "trainer").write_bytes(its_own(boot="before"))
    (tmp_path / "with" / "trainer").chmod(0o444)
    (tmp_path / "without").mkdir()
    for folder in ("with", "without"):
        (tmp_path / folder).chmod(0o555)
    return tmp_path


@pytest.mark.usefixtures("_somebody_else")
def test_a_file_that_may_only_be_read_is_held_without_a_name(read_only: Path):
    held = take(read_only / "with", since=SINCE)
    handle = os.open(read_only / "with" / "trainer", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.pread(handle, 1000, 0) == its_own(boot="before")
    del held
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


@pytest.mark.usefixtures("_somebody_else")
def test_a_folder_that_may_not_be_written_is_an_error(read_only: Path):
    with pytest.raises(PermissionError, match="without/trainer"):
        take(read_only / "without", since=SINCE)


def test_a_symlink_is_refused(tmp_path: Path):
    (tmp_path / "trainer").symlink_to("elsewhere")
    with pytest.raises(OSError, match="is a symlink"):
        take(tmp_path, since=SINCE)
    assert not (tmp_path / "elsewhere").exists()


# --- locks that do not work ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about_once(tmp_path: Path, monkeypatch, code):
    def refuse(handle, operation):
        if operation != fcntl.LOCK_UN:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="without locks"):
        held = take(tmp_path, since=SINCE)
    assert find_holder(tmp_path).is_me
    del held
    take(tmp_path, since=SINCE)
    with lock.run_lock(tmp_path):
        pass


def test_any_other_error_of_the_lock_is_raised_and_nothing_is_held(tmp_path: Path, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"):
        take(tmp_path, since=SINCE)
    assert not trainer_lock._taken
    assert len(os.listdir("/proc/self/fd")) == before


# --- fork ---------------------------------------------------------------------------------------


def test_a_forked_child_neither_keeps_nor_releases_it(tmp_path: Path):
    ready, go_on = os.pipe(), os.pipe()
    held = take(tmp_path, since=SINCE)
    child = os.fork()
    if child == 0:
        handles = len(trainer_lock._taken)
        del held
        gc.collect()
        os.write(ready[1], str(handles).encode())
        os.read(go_on[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"0"
    assert not is_free(tmp_path)
    assert find_holder(tmp_path).is_me
    del held
    try:
        # The child lives and would hold a copy of the descriptor.
        assert is_free(tmp_path)
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *go_on):
            os.close(end)


def test_a_child_forked_while_a_thread_takes_it_does_not_keep_it(tmp_path: Path, monkeypatch):
    inside, forking = threading.Event(), threading.Event()
    real = trainer_lock._write

    def write_while_forked(handle, holder):
        inside.set()
        forking.wait()
        real(handle, holder)

    monkeypatch.setattr(trainer_lock, "_write", write_while_forked)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(take(tmp_path, since=SINCE)))
    thread.start()
    inside.wait()
    # The fork itself waits for the thread; only somebody else can let that go on.
    threading.Timer(0.01, forking.set).start()
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"r")
        os.read(go_on[0], 1)
        os._exit(0)
    thread.join()
    assert os.read(ready[0], 1) == b"r"
    taken.clear()
    # Released by name here. What a kill would leave is what the child has open.
    leaked = [
        os.readlink(f"/proc/{child}/fd/{handle}") for handle in os.listdir(f"/proc/{child}/fd")
    ]
    os.write(go_on[1], b"x")
    os.waitpid(child, 0)
    for end in (*ready, *go_on):
        os.close(end)
    assert str(tmp_path / "trainer") not in leaked


def _count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Python says so of a file whose only name was about to be given; it closes that all the same.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed file:pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_it_free_and_closes_nothing_twice(tmp_path: Path):
    """Python calls the handler of a signal where a function begins, and after each call."""
    mine = (
        trainer_lock.take,
        trainer_lock._try,
        trainer_lock._find_taken,
        trainer_lock.TrainerLock.__init__,
    )
    spots = {function.__code__: _after_calls(function.__code__) for function in mine}
    left = 0

    def interrupt(frame, event, _):
        nonlocal left
        if frame.f_code not in spots:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in spots[frame.f_code]:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return interrupt

    points, tracing, opened = 0, sys.gettrace(), _count_open_files()
    while left <= 0:
        points += 1
        left = points
        try:
            sys.settrace(interrupt)
            take(tmp_path, since=SINCE)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        assert is_free(tmp_path), points
        assert not trainer_lock._guard._is_owned(), points
    assert points > 20
    assert _count_open_files() == opened


def _after_calls(code: CodeType) -> set[int]:
    pairs = pairwise(dis.get_instructions(code))
    return {
        after.offset
        for before, after in pairs
        if before.opname == "RESUME" or before.opname.startswith("CALL")
    }
