from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.disk import (
    identity,
    leases,
    names,
    paths,
)

UUID = "0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"
OTHER = "1b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"
SINCE = "2026-01-02T03:04:05.678Z"

HOLD = """
import sys
from pathlib import Path
from ckptdb.disk import leases
leases.write(Path(sys.argv[1]), sys.argv[2], "mmlu", seconds=300, since=sys.argv[3])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(hidden: Path):
    """Another process that has a lease, and lives."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(hidden), UUID, SINCE]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def take(hidden: Path, uuid: str = UUID, evaluation: str = "mmlu", seconds: float = 300):
    return leases.write(hidden, uuid, evaluation, seconds=seconds, since=SINCE)


def rewrite(claim: leases.Lease, **changes):
    """Have the file say something else; what is None is left out."""
    content = {**json.loads(claim.path.read_text()), **changes}
    claim.path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def make_old(path: Path, seconds: float):
    found = path.stat()
    os.utime(path, (found.st_atime, found.st_mtime - seconds))


def test_a_lease_says_what_for_by_whom_and_since_when(tmp_path: Path):
    take(tmp_path)
    take(tmp_path, evaluation="gsm8k")
    take(tmp_path, OTHER)
    who = f"by process {os.getpid()} on {os.uname().nodename} since {SINCE}"
    assert leases.find_leased(tmp_path) == {
        UUID: f"'gsm8k' {who}, 'mmlu' {who}",
        OTHER: f"'mmlu' {who}",
    }
    assert leases.settle(tmp_path) == leases.find(tmp_path)
    assert len(leases.find(tmp_path)) == 3


def test_without_any_there_are_none_and_looking_makes_nothing(tmp_path: Path):
    assert leases.find(tmp_path) == leases.settle(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_lease_is_where_the_file_says_it(tmp_path: Path):
    claim = take(tmp_path, seconds=7)
    content = json.loads((tmp_path / "leases" / f"{UUID}.mmlu").read_text())
    assert content == {
        **asdict(claim.holder), "seconds": 7, "token": claim.token,
    }  # fmt: skip
    assert leases.find(tmp_path) == (claim,)


def test_the_run_s_directory_does_not_move(tmp_path: Path):
    hidden = tmp_path / ".ckptdb"
    hidden.mkdir()
    before = tmp_path.stat()
    claim = take(hidden)
    leases.renew(claim)
    leases.settle(hidden)
    leases.remove(claim)
    after = tmp_path.stat()
    assert (after.st_mtime_ns, after.st_nlink) == (before.st_mtime_ns, before.st_nlink)


# --- how it ends --------------------------------------------------------------------------------


def test_a_holder_that_is_killed_has_it_no_longer(tmp_path: Path):
    with holder(tmp_path) as process:
        assert leases.find_leased(tmp_path).keys() == {UUID}
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert leases.find_leased(tmp_path) == {}
    assert leases.settle(tmp_path) == ()
    assert os.listdir(tmp_path / "leases") == []


def test_one_that_nobody_renews_ends_after_its_seconds(tmp_path: Path):
    claim = take(tmp_path, seconds=100)
    assert not claim.has_ended(claim.touched + 99.9)
    assert claim.has_ended(claim.touched + 100.1)
    make_old(claim.path, 101)
    assert leases.find(tmp_path) == ()
    assert claim.path.exists()  # looking writes nothing
    assert leases.settle(tmp_path) == ()
    assert not claim.path.exists()


def test_renewing_lets_it_hold_on(tmp_path: Path):
    claim = take(tmp_path, seconds=100)
    make_old(claim.path, 101)
    assert leases.renew(claim)
    assert len(leases.settle(tmp_path)) == 1


def test_one_that_is_gone_or_was_taken_over_cannot_be_renewed(tmp_path: Path):
    claim = take(tmp_path)
    leases.remove(claim)
    assert not leases.renew(claim)
    assert leases.find_current(claim) is None
    other = take(tmp_path)
    assert not leases.renew(claim)
    assert leases.find_current(claim) == other
    assert leases.renew(other)


def test_an_io_error_is_not_taken_for_a_lease_that_was_lost(tmp_path: Path, monkeypatch):
    claim = take(tmp_path)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(paths, "open_to_read", fail)
        with pytest.raises(OSError, match="Input/output"):
            leases.renew(claim)
        # Whoever wants to delete what it is about takes it for a lease.
        assert [held.uuid for held in leases.find(tmp_path)] == [UUID]


ELSEWHERE = [
    {"host": "elsewhere"},
    {"boot": "another"},  # the same name may be that of two machines
    {"namespace": 1},  # or of two containers
]


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: next(iter(change)))
def test_of_a_holder_elsewhere_it_holds_as_long_as_it_is_renewed(tmp_path: Path, change):
    claim = take(tmp_path)
    rewrite(claim, **{"pid": 2**30, **change})
    assert leases.find_leased(tmp_path).keys() == {UUID}
    make_old(claim.path, 301)
    assert leases.find_leased(tmp_path) == {}


def test_the_time_is_that_of_the_file_system_and_not_of_this_machine(tmp_path: Path, monkeypatch):
    claim = take(tmp_path)
    rewrite(claim, host="elsewhere")
    monkeypatch.setattr(time, "time", lambda: claim.touched + 10**6)
    assert len(leases.settle(tmp_path)) == 1
    assert leases.find_leased(tmp_path, now=leases.tell_time(tmp_path)).keys() == {UUID}
    make_old(claim.path, 301)
    monkeypatch.setattr(time, "time", lambda: claim.touched - 10**6)
    assert leases.settle(tmp_path) == ()


def test_one_from_a_far_future_holds_for_its_time_from_now_on(tmp_path: Path):
    # The file system's clock was set back, and its holder goes on with the evaluation.
    claim = take(tmp_path)
    rewrite(claim, host="elsewhere")
    make_old(claim.path, -10_000)
    assert leases.find_leased(tmp_path).keys() == {UUID}
    assert len(leases.settle(tmp_path)) == 1
    assert claim.path.stat().st_mtime < time.time() + 100
    make_old(claim.path, 301)
    assert leases.settle(tmp_path) == ()


def test_where_the_time_cannot_be_asked_this_machine_s_clock_will_do(tmp_path: Path):
    assert abs(leases.tell_time(tmp_path) - time.time()) < 60


# --- what others have put there -----------------------------------------------------------------


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.unlink()
    path.symlink_to("/dev/zero")


SPOILT = {
    "empty": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_bytes(b"{"),
    "no UTF-8": lambda path: path.write_bytes(b'{"host": "\xff"}'),
    "a list": lambda path: path.write_bytes(b"[1]"),
    "a FIFO": fifo,
    "a link": link,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_is_not_legible_may_be_anybody_s_for_the_usual_time(tmp_path: Path, spoil):
    path = take(tmp_path).path
    spoil(path)
    assert leases.find_leased(tmp_path) == {UUID: "'mmlu' by somebody"}
    now = path.lstat().st_mtime
    os.utime(path, (now, now - 301), follow_symlinks=False)
    assert leases.settle(tmp_path) == ()
    assert os.listdir(tmp_path / "leases") == []


@pytest.mark.parametrize(
    "change",
    [
        {"token": None}, {"token": 1}, {"since": None}, {"since": "\ud800"}, {"pid": 0},
        {"pid": "x"}, {"seconds": -1}, {"seconds": "soon"}, {"seconds": float("inf")},
        {"seconds": float("nan")}, {"started": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_lease_with_a_wrong_field_is_somebody_s(tmp_path: Path, change):
    rewrite(take(tmp_path), **change)
    assert leases.find_leased(tmp_path) == {UUID: "'mmlu' by somebody"}


@pytest.mark.parametrize("name", ["x", UUID, f"{UUID}.", f".{UUID}.mmlu.{OTHER}", f"{UUID}.a\nb"])
def test_other_names_are_nobody_s_lease(tmp_path: Path, name):
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / name).write_bytes(b"{}")
    assert leases.find(tmp_path) == leases.settle(tmp_path) == ()
    assert (tmp_path / "leases" / name).exists()


def test_a_file_in_place_of_the_folder_is_no_lease(tmp_path: Path):
    (tmp_path / "leases").write_bytes(b"")
    assert leases.find(tmp_path) == ()


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mmlu", "val:loss", "../../etc", ".", "a b", "naïve", "%2F", "ж" * 25, "x" * 150]
)
def test_a_line_of_text_names_a_lease_and_comes_back(tmp_path: Path, name):
    assert names.can_name_a_lease(name)
    take(tmp_path, evaluation=name)
    assert [claim.evaluation for claim in leases.find(tmp_path)] == [name]
    assert os.listdir(tmp_path) == ["leases"]
    assert len(os.listdir(tmp_path / "leases")) == 1


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "\0", "\x1b[2J", "\ud800", "x" * 151, "ж" * 26, b"mmlu", None, 1]
)
def test_anything_else_does_not(name):
    assert not names.can_name_a_lease(name)


@given(st.text(max_size=40))
def test_whatever_can_name_a_lease_is_one_file_name(name):
    if names.can_name_a_lease(name):
        file = names.lease_name(UUID, name)
        assert "/" not in file
        assert file.isascii()
        assert names.find_lease(file) == (UUID, name)
        assert len(f".{file}.{identity.derive_checkpoint_uuid(name)}") <= 255
