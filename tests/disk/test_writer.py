from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import requirements

from ckptdb.core import process
from ckptdb.core.observed import Writer
from ckptdb.disk import lock, writer

AT = "2026-11-22T16:01:24.123Z"
STAGE = """
import sys, uuid
from pathlib import Path
from ckptdb.disk import writer
folder = Path(sys.argv[1])
writer.write(folder, str(uuid.uuid4()), "2026")
print("begun", flush=True)
sys.stdin.readline()
writer.release(folder)
print("released", flush=True)
sys.stdin.readline()
"""


def write(folder: Path) -> Writer:
    return writer.write(folder, str(uuid.uuid4()), AT)


@pytest.fixture
def folder(tmp_path: Path):
    yield tmp_path
    writer.release(tmp_path)


@pytest.fixture
def somebody(tmp_path: Path):
    """Another process, which stages a checkpoint in a directory."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as begun:
        assert begun.stdout.readline() == b"begun\n"
        yield begun
        begun.kill()


def test_a_writer_is_found_as_it_was_written(folder: Path):
    written = write(folder)
    assert writer.find(folder) == written
    assert writer.find(folder).is_me
    assert writer.find(folder).life == "alive"


def test_a_second_one_in_the_same_directory_is_refused(folder: Path):
    first = write(folder)
    with pytest.raises(FileExistsError):
        write(folder)
    assert writer.find(folder) == first
    assert writer.look_at_lock(folder, first) == "locked"


def test_who_looks_at_the_lock_at_that_moment_does_not_fail_the_save(folder: Path, monkeypatch):
    real, looking = fcntl.flock, []

    def flock(handle, how):
        if how & fcntl.LOCK_EX and (folder / ".writer.json").exists():
            looking.append(os.open(folder / ".writer.json", os.O_RDONLY))
            real(looking[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert writer.look_at_lock(folder, write(folder)) == "locked"
    assert looking == []


def test_the_lock_is_held_until_it_is_let_go(folder: Path, somebody):
    found = writer.find(folder)
    assert writer.look_at_lock(folder, found) == "locked"
    somebody.stdin.write(b"\n")
    somebody.stdin.flush()
    assert somebody.stdout.readline() == b"released\n"
    assert writer.look_at_lock(folder, found) == "free"


def test_the_lock_goes_with_a_process_that_is_killed(folder: Path, somebody):
    found = writer.find(folder)
    somebody.send_signal(signal.SIGKILL)
    somebody.wait()
    assert writer.look_at_lock(folder, found) == "free"


def test_a_forked_child_does_not_keep_the_lock(folder: Path):
    found = write(folder)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert writer.look_at_lock(folder, found) == "locked"
    writer.release(folder)
    assert writer.look_at_lock(folder, found) == "free"
    os.write(go[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for handle in (*ready, *go):
        os.close(handle)


def test_a_child_that_ends_leaves_the_lock_with_its_parent(folder: Path):
    found = write(folder)
    pid = os.fork()
    if pid == 0:
        writer.release(folder)
        os._exit(0)
    os.waitpid(pid, 0)
    assert writer.look_at_lock(folder, found) == "locked"


def test_removing_closes_the_file_first(folder: Path, monkeypatch):
    # A network file system keeps what is removed while it is open, under another name.
    found = write(folder)
    real = Path.unlink

    def unlink(path, **options):
        assert writer.look_at_lock(folder, found) == "free"
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        writer.remove(folder)
    assert os.listdir(folder) == []
    writer.remove(folder)


def test_of_a_copy_nothing_is_known(folder: Path, tmp_path_factory):
    write(folder)
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copy)
    assert writer.look_at_lock(copy, writer.find(copy)) == "none"


def test_a_lock_of_a_file_that_is_not_legible_is_seen_too(folder: Path):
    write(folder)
    assert writer.look_at_lock(folder, None) == "locked"
    writer.release(folder)
    assert writer.look_at_lock(folder, None) == "none"
    writer.remove(folder)
    assert writer.look_at_lock(folder, None) == "unseen"


@pytest.mark.slow
@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
@pytest.mark.parametrize("is_legible", [True, False])
def test_who_may_only_read_makes_no_dead_writer_seem_alive(folder: Path, somebody, how, is_legible):
    found = writer.find(folder)
    somebody.send_signal(signal.SIGKILL)
    somebody.wait()
    if not is_legible:
        (folder / ".writer.json").write_bytes(b"{")
    handle = os.open(folder / ".writer.json", os.O_RDONLY)
    fcntl.flock(handle, how | fcntl.LOCK_NB)
    fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    seen = writer.look_at_lock(folder, found if is_legible else None)
    os.close(handle)
    assert seen == ("free" if is_legible else "none")


def test_a_writer_of_an_earlier_version_lives_as_long_as_it_holds_its_only_lock(folder: Path):
    found = replace(write(folder), has_write_lock=False)
    writer.release(folder)
    assert writer.look_at_lock(folder, found) == "free"
    handle = os.open(folder / ".writer.json", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert writer.look_at_lock(folder, found) == "locked"
    os.close(handle)


def test_where_there_is_no_write_lock_the_other_one_says_it(folder: Path, monkeypatch):
    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    found = write(folder)
    assert not found.has_write_lock
    assert writer.look_at_lock(folder, found) == "locked"
    monkeypatch.delattr(fcntl, "F_OFD_GETLK")
    assert writer.look_at_lock(folder, found) == "locked"
    writer.release(folder)
    assert writer.look_at_lock(folder, found) == "free"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_look_into_the_checkpoint_may_read_who_writes_it(folder: Path, umask, mode):
    (folder / "tmp_step_1").mkdir()
    (folder / "tmp_step_1").chmod(0o777 & ~umask)
    write(folder / "tmp_step_1")
    writer.release(folder / "tmp_step_1")
    assert stat.S_IMODE((folder / "tmp_step_1" / ".writer.json").stat().st_mode) == mode


def test_nobody_may_open_the_file_before_it_is_locked(folder: Path, monkeypatch):
    real, modes = fcntl.flock, []

    def flock(handle, how):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write(folder)
    assert modes == [0o600]


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"boot": "earlier"}, "free"),
        ({"boot": "earlier", "system": 0x6969}, "unseen"),  # by NFS, what is local to us
        ({"device": 1}, "unseen"),
        ({"inode": 1}, "none"),
    ],
    ids=["before a boot", "of a client", "mounted otherwise", "copied"],
)
def test_a_free_lock_proves_something_where_locks_reach(folder: Path, change, seen):
    found = write(folder)
    writer.release(folder)
    if found.lock.system not in lock.LOCAL:
        requirements.skip(requirements.SHARED)
    taken = found.lock._replace(**{k: v for k, v in change.items() if k != "boot"})
    other = replace(found, lock=taken, boot=change.get("boot", found.boot))
    assert writer.look_at_lock(folder, other) == seen


def test_a_file_system_of_many_machines_proves_nothing_after_a_boot(folder: Path, monkeypatch):
    monkeypatch.setattr(lock, "find_file_system", lambda _: 0x6969)
    found = replace(write(folder), boot="earlier")
    writer.release(folder)
    assert writer.look_at_lock(folder, found) == "unseen"


def test_where_there_are_no_locks_it_says_so(folder: Path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = write(folder)
    assert found.lock is None
    assert writer.look_at_lock(folder, found) == "unseen"
    assert writer.find(folder) == found


def test_one_that_cannot_be_written_holds_nothing(folder: Path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_find_lock", refuse)
        with pytest.raises(OSError, match="No space"):
            write(folder)
    assert folder not in writer._locked
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "x"},
        {"uuid": None},
        {"pid": "x"},
        {"pid": None},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**40},
        {"pid": float("inf")},
        {"started": "x"},
        {"created_at": "\ud800"},
        {"created_at": 5},
        {"namespace": "x"},
        {"lock": [1]},
        {"lock": "abc"},
        {"lock": 5},
    ],
    ids=repr,
)
def test_a_writer_that_is_not_legible_is_none(folder: Path, change):
    write(folder)
    path = folder / ".writer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert writer.find(folder) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]"])
def test_a_file_that_is_no_writer_is_none(folder: Path, content):
    (folder / ".writer.json").write_bytes(content)
    assert writer.find(folder) is None


def test_one_of_an_earlier_version_says_neither_namespace_nor_lock(folder: Path):
    write(folder)
    path = folder / ".writer.json"
    content = json.loads(path.read_text())
    del content["namespace"], content["lock"]
    path.write_text(json.dumps(content))
    found = writer.find(folder)
    assert (found.namespace, found.lock) == (None, None)
    assert found.uuid == content["uuid"]
    assert process._boot() == found.boot
