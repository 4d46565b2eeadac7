from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ckptdb.disk import identity
from ckptdb.disk.identity import Writer


def establish(directory: Path, metric=None, *, higher=False, keep=False):
    identity.hidden(directory).mkdir(exist_ok=True)
    return identity.establish(
        directory,
        metric_name=metric,
        higher_is_better=higher,
        keep_metric=keep,
        make_durable=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def run_json(directory: Path) -> dict[str, object]:
    return json.loads((directory / ".ckptdb" / "run.json").read_text())


# --- runs -------------------------------------------------------------------------------


def test_looking_writes_nothing_and_says_the_same_twice(run: Path):
    first = identity.identify(run)

    assert identity.identify(run) == first
    assert (first.marked, first.recorded, first.problem) == (False, False, None)
    assert (first.run.name, first.run.directory, first.run.created_at) == ("run", run, None)
    assert first.origin == first.run.uuid
    assert os.listdir(run) == []


def test_a_missing_directory_is_an_error(run: Path):
    with pytest.raises(FileNotFoundError):
        identity.identify(run / "nowhere")


def test_a_fresh_directory_gets_a_new_identity_each_time(run: Path):
    first = establish(run, "loss")
    shutil.rmtree(run)
    run.mkdir()
    second = establish(run, "loss")

    assert first.run.uuid != second.run.uuid
    assert first.recorded
    assert first.run.created_at is not None
    assert first.run.metric_name == "loss"


@pytest.mark.parametrize("name", ["step_1", "tmp_step_1"])
def test_a_directory_with_checkpoints_keeps_the_identity_it_was_seen_with(run: Path, name):
    (run / name).mkdir()
    seen = identity.identify(run)
    assert establish(run).run.uuid == seen.run.uuid
    assert establish(run).origin == seen.origin


def test_establishing_again_writes_nothing(run: Path):
    first = establish(run, "loss")
    before = (run / ".ckptdb" / "run.json").stat()

    assert establish(run, "loss") == first
    assert establish(run, "other", keep=True) == first
    assert (run / ".ckptdb" / "run.json").stat().st_ino == before.st_ino


def test_a_new_metric_is_written_and_the_identity_stays(run: Path):
    first = establish(run, "loss")
    second = establish(run, "accuracy", higher=True)

    assert second.run.uuid == first.run.uuid
    assert second.run.created_at == first.run.created_at
    assert (second.run.metric_name, second.run.higher_is_better) == ("accuracy", True)


def test_a_moved_run_stays_the_same(run: Path):
    first = establish(run)
    moved = run.rename(run.with_name("moved"))

    found = identity.identify(moved)

    assert found.run == replace(first.run, name="moved", directory=moved)
    assert found.recorded


def test_a_copied_run_is_another_one(run: Path):
    first = establish(run, "loss")
    copy = run.with_name("copy")
    shutil.copytree(run, copy)

    looked = identity.identify(copy)
    assert looked.marked
    assert not looked.recorded
    assert looked.run.uuid != first.run.uuid
    assert looked.run.forked_from == first.run.uuid
    assert run_json(copy)["uuid"] == first.run.uuid

    written = establish(copy, "loss")
    assert written.recorded
    assert written.run.uuid == looked.run.uuid
    assert (written.run.forked_from, written.origin) == (first.run.uuid, first.run.uuid)
    assert identity.identify(run) == first


def test_a_copy_of_a_copy_remembers_where_it_all_began(run: Path):
    first = establish(run)
    shutil.copytree(run, run.with_name("copy"))
    second = establish(run.with_name("copy"))
    shutil.copytree(run.with_name("copy"), run.with_name("third"))
    third = establish(run.with_name("third"))

    assert third.run.forked_from == second.run.uuid
    assert third.origin == first.run.uuid


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"uuid": "x"}', b'{"uuid": 5}', b'{"uuid": null}', b'{"uuid": []}',
        b"\xff", b'{"uuid": true}',
    ],
)  # fmt: skip
def test_a_broken_run_json_is_told_and_kept_when_it_is_replaced(run: Path, content):
    establish(run)
    (run / ".ckptdb" / "run.json").write_bytes(content)

    found = identity.identify(run)
    assert found.problem is not None
    assert "run.json" in found.problem
    assert (found.marked, found.recorded) == (True, False)

    assert establish(run).recorded
    kept = [p for p in (run / ".ckptdb").iterdir() if p.name.startswith("run.json.broken-")]
    assert [p.read_bytes() for p in kept] == [content]


def test_fields_of_the_wrong_type_are_ignored(run: Path):
    known = str(uuid.uuid4())
    content = {
        "uuid": known, "created_at": 5, "metric_name": ["loss"], "higher_is_better": 1,
        "forked_from": "\ud800", "origin": None, "inode": run.stat().st_ino,
    }  # fmt: skip
    (run / ".ckptdb").mkdir()
    (run / ".ckptdb" / "run.json").write_text(json.dumps(content))

    found = identity.identify(run)

    assert found.recorded
    assert found.run.uuid == found.origin == known
    assert (found.run.created_at, found.run.metric_name, found.run.forked_from) == (None,) * 3
    assert found.run.higher_is_better is True


def test_a_directory_whose_name_is_no_text_has_an_identity(tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"run\xe9\n")
    odd.mkdir()
    assert identity.identify(odd) == identity.identify(odd)
    assert establish(odd).recorded


def test_derived_uuids_depend_on_every_fact():
    derive = identity.derive_checkpoint_uuid
    assert derive("run", "", 5, "hash") == derive("run", "", 5, "hash")
    assert len({derive("run", "", 5), derive("run", "tmp", 5), derive("run", "", 6)}) == 3


# --- roots ------------------------------------------------------------------------------


def test_the_nearest_marked_directory_is_the_root(tmp_path: Path):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    assert identity.find_root(deep) is None

    identity.mark_root(tmp_path / "a")
    identity.mark_root(tmp_path)
    assert identity.find_root(deep) == tmp_path / "a"
    assert identity.is_root(tmp_path / "a")
    assert not identity.is_root(deep)

    identity.unmark_root(tmp_path / "a")
    identity.unmark_root(tmp_path / "a")
    assert identity.find_root(deep) == tmp_path


def test_marking_again_changes_nothing(tmp_path: Path):
    identity.mark_root(tmp_path, make_durable=False)
    before = (tmp_path / ".ckptdb" / "root.json").read_bytes()
    identity.mark_root(tmp_path)
    assert (tmp_path / ".ckptdb" / "root.json").read_bytes() == before


def test_only_our_own_marks_and_those_of_the_super_user_count(tmp_path: Path, monkeypatch):
    identity.mark_root(tmp_path)
    owner = (tmp_path / ".ckptdb" / "root.json").stat().st_uid
    monkeypatch.setattr(identity.os, "geteuid", lambda: owner + 1)
    assert identity.find_root(tmp_path) == (tmp_path if owner == 0 else None)

    if os.getuid() == 0:
        os.chown(tmp_path / ".ckptdb" / "root.json", 12345, -1)
        assert identity.find_root(tmp_path) is None


# --- writers ----------------------------------------------------------------------------

AT = "2026-11-22T16:01:24.123Z"


def this_writer() -> Writer:
    return Writer.this_process(str(uuid.uuid4()), AT)


@pytest.fixture
def child():
    """Another living process."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def writer_of(pid: int) -> Writer:
    return replace(this_writer(), pid=pid, started=identity._started(pid))


def test_this_process_is_alive_and_me():
    writer = this_writer()
    assert (writer.is_here, writer.is_me, writer.is_alive) == (True, True, True)


def test_another_process_is_alive_until_it_dies(child):
    writer = writer_of(child.pid)
    assert (writer.is_me, writer.is_alive) == (False, True)

    child.send_signal(signal.SIGKILL)
    child.wait()
    assert writer.is_alive is False


def test_a_dead_process_whose_parent_has_not_asked_is_not_alive(child):
    writer = writer_of(child.pid)
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert writer.is_alive is False


ONE_THREAD_LEFT = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("begun", flush=True)
# Of a process that is being killed, too, the first thread may be gone while another one is still
# in the middle of a system call.
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


def test_a_process_of_which_a_thread_is_left_is_alive():
    command, pipe = [sys.executable, "-c", ONE_THREAD_LEFT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        writer = writer_of(process.pid)
        assert process.stdout.readline() == b"begun\n"
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert writer.is_alive is True
        process.kill()
        process.wait()
        assert writer.is_alive is False


def test_a_reused_pid_is_not_the_writer(child):
    writer = replace(writer_of(child.pid), started=1)
    assert writer.is_alive is False


def test_a_forked_child_is_not_me():
    writer = this_writer()
    pid = os.fork()
    if pid == 0:
        os._exit(int(writer.is_me) + 2 * int(writer.is_alive is not True))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_after_a_boot_nobody_is_alive():
    writer = replace(this_writer(), boot="another boot")
    assert (writer.is_here, writer.is_me, writer.is_alive) == (False, False, False)


def test_on_another_host_nobody_knows():
    writer = replace(this_writer(), host=f"not-{socket.gethostname()}")
    assert (writer.is_here, writer.is_me, writer.is_alive) == (False, False, None)


def test_a_process_that_may_not_be_asked_exists(monkeypatch):
    def refuse(pid, signal_number):
        raise PermissionError

    monkeypatch.setattr(identity.os, "kill", refuse)
    assert this_writer().is_alive is True


def test_without_proc_only_the_pid_counts(monkeypatch):
    def refuse(self, *arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    identity._born.cache_clear()
    writer = this_writer()
    identity._born.cache_clear()
    assert (writer.started, writer.boot, writer.is_alive) == (None, None, True)


def test_a_writer_is_found_as_it_was_written(tmp_path: Path):
    writer = this_writer()
    identity.write_writer(tmp_path, writer)
    assert identity.find_writer(tmp_path) == writer

    elsewhere = replace(writer, started=None, boot=None)
    identity.write_writer(tmp_path, elsewhere)
    assert identity.find_writer(tmp_path) == elsewhere


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
    ],
    ids=repr,
)
def test_a_writer_that_is_not_legible_is_none(tmp_path: Path, change):
    identity.write_writer(tmp_path, this_writer())
    path = tmp_path / ".writer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert identity.find_writer(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]"])
def test_a_file_that_is_no_writer_is_none(tmp_path: Path, content):
    (tmp_path / ".writer.json").write_bytes(content)
    assert identity.find_writer(tmp_path) is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "lstat"])
def test_a_run_json_that_cannot_be_read_now_makes_no_other_run(tmp_path, monkeypatch, call, code):
    before = establish(tmp_path)
    real = getattr(os, call)

    def fail(path, *rest, **options):
        if str(path).endswith("run.json"):
            raise OSError(code, os.strerror(code))
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            identity.identify(tmp_path)
        with pytest.raises(OSError, match=os.strerror(code)):
            establish(tmp_path)
    assert identity.identify(tmp_path) == before


def test_a_root_that_cannot_be_looked_at_now_is_not_taken_for_none(tmp_path, monkeypatch):
    identity.mark_root(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    real = os.lstat

    def fail(path, *rest, **options):
        if str(path) == str(tmp_path / ".ckptdb" / "root.json"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", fail)
        with pytest.raises(OSError, match="Stale"):
            identity.find_root(run)
    assert identity.find_root(run) == tmp_path
