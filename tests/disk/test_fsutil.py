from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from ckptdb.disk import fsutil, tree_removal
from ckptdb.disk.fsutil import ExchangeUnsupported


def refuse_flags(source, target, flags):
    raise ExchangeUnsupported


@pytest.fixture(params=["native", "fallback"])
def renaming(request, monkeypatch):
    if request.param == "fallback":
        monkeypatch.setattr(fsutil, "_renameat2", refuse_flags)


def fail_fsync(monkeypatch, code: int, *, only=bool):
    real = os.fsync

    def fsync(handle):
        if only(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(fsutil.os, "fsync", fsync)


# --- flushing ---------------------------------------------------------------------------


@pytest.fixture
def flushed(monkeypatch):
    """Names of what was flushed, in order."""
    real, seen = os.fsync, []

    def fsync(handle):
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    monkeypatch.setattr(fsutil.os, "fsync", fsync)
    return seen


@pytest.mark.parametrize("files", [0, 1, 2, 3, 20])
def test_every_file_is_flushed_before_any_directory(tmp_path: Path, flushed, files):
    top = tmp_path / "top"
    (top / "sub" / "deeper").mkdir(parents=True)
    for number in range(files):
        (top / ("", "sub", "sub/deeper")[number % 3] / f"file{number}").touch()
    (top / "link").symlink_to("nowhere")
    os.mkfifo(top / "fifo")

    fsutil.fsync_tree(top)

    assert sorted(flushed[:files]) == sorted(f"file{number}" for number in range(files))
    assert flushed[files:] == ["deeper", "sub", "top"]


@pytest.mark.parametrize("files", [1, 10])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL])
def test_an_error_of_a_flush_is_raised(tmp_path: Path, monkeypatch, files, code):
    for number in range(files):
        (tmp_path / f"file{number}").touch()
    fail_fsync(monkeypatch, code, only=stat.S_ISREG)

    with pytest.raises(OSError, match=os.strerror(code)):
        fsutil.fsync_tree(tmp_path)


def test_a_directory_that_cannot_be_flushed_at_all_is_let_be(tmp_path: Path, monkeypatch):
    fail_fsync(monkeypatch, errno.EINVAL, only=stat.S_ISDIR)
    fsutil.fsync(tmp_path)


def test_a_directory_whose_flush_fails_is_not(tmp_path: Path, monkeypatch):
    fail_fsync(monkeypatch, errno.EIO, only=stat.S_ISDIR)
    with pytest.raises(OSError, match="Input/output error"):
        fsutil.fsync(tmp_path)


def test_a_directory_may_be_reached_through_a_symlink(tmp_path: Path, flushed):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    fsutil.fsync(tmp_path / "link")
    fsutil.make_directories(tmp_path / "link" / "a" / "b", durable=True)

    assert (tmp_path / "real" / "a" / "b").is_dir()
    assert flushed == ["real", "real", "a"]


def test_missing_parents_are_made(tmp_path: Path, flushed):
    fsutil.make_directories(tmp_path / "a" / "b" / "c", durable=True)
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert flushed == [tmp_path.name, "a", "b"]

    fsutil.make_directories(tmp_path / "a" / "d", durable=False)
    fsutil.make_directories(tmp_path / "a" / "d", durable=True)
    assert flushed == [tmp_path.name, "a", "b"]


# --- writing ----------------------------------------------------------------------------


@pytest.mark.parametrize("make_durable", [True, False], ids=["durable", "fast"])
def test_a_new_file_never_replaces_one(tmp_path: Path, flushed, make_durable):
    fsutil.write_new(tmp_path / "file", b"first", durable=make_durable)
    with pytest.raises(FileExistsError):
        fsutil.write_new(tmp_path / "file", b"second", durable=make_durable)

    assert (tmp_path / "file").read_bytes() == b"first"
    assert flushed == (["file"] if make_durable else [])


def test_json_replaces_what_was_there_in_one_step(tmp_path: Path):
    path = tmp_path / "file.json"
    fsutil.write_json(path, {"a": 1}, durable=True)
    fsutil.write_json(path, {"a": 2}, durable=False)

    assert path.read_bytes() == b'{\n "a": 2\n}\n'
    assert os.listdir(tmp_path) == ["file.json"]


def test_json_that_cannot_be_flushed_leaves_the_old_one(tmp_path: Path, monkeypatch):
    path = tmp_path / "file.json"
    fsutil.write_json(path, {"a": 1}, durable=True)
    fail_fsync(monkeypatch, errno.EIO)

    with pytest.raises(OSError, match="Input/output error"):
        fsutil.write_json(path, {"a": 2}, durable=True)

    assert path.read_bytes() == b'{\n "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["file.json"]


# --- renaming ---------------------------------------------------------------------------


def test_a_rename_gives_a_free_name(tmp_path: Path, renaming):
    (tmp_path / "a").mkdir()
    fsutil.rename_new(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("taken", ["file", "empty directory", "dangling symlink"])
def test_a_rename_never_replaces(tmp_path: Path, renaming, taken):
    (tmp_path / "a").mkdir()
    target = tmp_path / "b"
    if taken == "file":
        target.touch()
    elif taken == "empty directory":
        target.mkdir()
    else:
        target.symlink_to("nowhere")

    with pytest.raises(FileExistsError):
        fsutil.rename_new(tmp_path / "a", target)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_renaming_nothing_is_an_error(tmp_path: Path, renaming):
    with pytest.raises(FileNotFoundError):
        fsutil.rename_new(tmp_path / "a", tmp_path / "b")


def test_two_names_are_exchanged(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    fsutil.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY])
def test_a_file_system_that_cannot_exchange_is_recognised(tmp_path: Path, monkeypatch, code):
    def renameat2(*arguments):
        fsutil.ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(fsutil, "_libc_renameat2", renameat2)
    (tmp_path / "a").mkdir()

    with pytest.raises(ExchangeUnsupported):
        fsutil.exchange(tmp_path / "a", tmp_path / "b")
    fsutil.rename_new(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


def test_a_system_without_the_call_falls_back(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fsutil, "_libc_renameat2", None)
    (tmp_path / "a").mkdir()
    with pytest.raises(ExchangeUnsupported):
        fsutil.exchange(tmp_path / "a", tmp_path / "b")
    fsutil.rename_new(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_the_call_is_looked_up_without_trust(monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(fsutil.ctypes, "CDLL", refuse)
    assert fsutil._load("renameat2") is None


def test_names_that_are_no_text_are_renamed(tmp_path: Path, renaming):
    odd = tmp_path / os.fsdecode(b"caf\xe9\n")
    odd.mkdir()
    fsutil.rename_new(odd, tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


# --- removing ---------------------------------------------------------------------------


def test_a_tree_is_removed_and_no_symlink_followed(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    top = tmp_path / "top"
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "sub" / "file").touch()
    (top / "link").symlink_to(tmp_path / "kept")
    (top / "sub" / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    (top / "sub" / "deeper").chmod(0o500)
    (top / "sub").chmod(0)

    tree_removal.remove_tree(top)

    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_a_directory_that_forbids_looking_is_removed_too(tmp_path: Path, monkeypatch):
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "sub" / "file").touch()
    real, refused = os.open, []

    def open_as_a_user(path, flags, *arguments, **options):
        # The super-user may open everything; refuse once, as anybody else would be.
        if path == "sub" and not refused:
            refused.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(fsutil.os, "open", open_as_a_user)
    tree_removal.remove_tree(tmp_path / "top")

    assert refused == ["sub"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["file", "symlink"])
def test_what_is_no_directory_is_unlinked(tmp_path: Path, what):
    path = tmp_path / "a"
    if what == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path)
    tree_removal.remove_tree(path)
    assert os.listdir(tmp_path) == []


def test_removing_nothing_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        tree_removal.remove_tree(tmp_path / "a")


@pytest.mark.parametrize("victim", ["top", "sub"])
def test_a_symlink_swapped_in_during_a_removal_is_not_followed(tmp_path: Path, monkeypatch, victim):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "top" / "sub").mkdir(parents=True)
    real = tree_removal._open_to_empty

    def swap_then_open(parent, name):
        if Path(name).name == victim:
            path = tmp_path / "top" if victim == "top" else tmp_path / "top" / "sub"
            path.rename(tmp_path / "aside")
            path.symlink_to(tmp_path / "kept")
        return real(parent, name)

    monkeypatch.setattr(tree_removal, "_open_to_empty", swap_then_open)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        tree_removal.remove_tree(tmp_path / "top")
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_what_somebody_else_removes_meanwhile_is_not_missed(tmp_path: Path, monkeypatch):
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "a").touch()
    (top / "b").touch()
    real = os.unlink

    def unlink_twice(name, *, dir_fd=None):
        real(name, dir_fd=dir_fd)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(fsutil.os, "unlink", unlink_twice)
    tree_removal.remove_tree(top)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ask", [fsutil.is_there, fsutil.is_folder])
def test_only_a_name_that_is_not_there_counts_as_gone(tmp_path, monkeypatch, ask):
    assert ask(tmp_path)
    assert not ask(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not ask(tmp_path / "file" / "below")

    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lstat", fail)
    with pytest.raises(OSError, match="Input/output"):
        ask(tmp_path)


def test_a_link_to_a_folder_is_none(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert fsutil.is_there(tmp_path / "link")
    assert not fsutil.is_folder(tmp_path / "link")
