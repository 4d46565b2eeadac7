"""The few file-system operations that durability and atomic names are made of.

A rename can reach the disk before the data it makes visible; only fsync of the file, then of
its directory, says that something will be there after a power cut.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import uuid
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ckptdb.threads import tasks_at

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
# Network and FUSE file systems answer EINVAL to either flag; kernels without the call ENOSYS.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY})
_FSYNC_THREADS = 8


class ExchangeUnsupported(Exception):  # a signal to the caller, not an error
    """This file system cannot exchange two names in one step."""


def is_there(path: Path) -> bool:
    """Tell whether anything has that name.

    ``os.path.exists`` and its like take any error for a no; here only a name that is not there
    is one, for what follows from it may be that a checkpoint has gone.

    Raises:
        OSError: It cannot be told now.
    """
    return find_status(path) is not None


def is_folder(path: Path) -> bool:
    """Tell whether a real directory, no link to one, has that name.

    Raises:
        OSError: It cannot be told now.
    """
    status = find_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def find_status(path: Path) -> os.stat_result | None:
    """Return what has that name, None when nothing does; follows no symlink.

    Raises:
        OSError: It cannot be told now.
    """
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def fsync(path: Path | str) -> None:
    """Make one file or directory durable."""
    # A run may be reached through a symlink; O_NONBLOCK, should a FIFO have taken the name.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a directory, and keep names durable themselves.
        if error.errno not in _UNSUPPORTED or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


def _fsync_all(files: Iterator[str]) -> None:
    for file in files:
        fsync(file)


def fsync_tree(top: Path, *, but: str = "") -> None:
    """Make every regular file below ``top`` durable, then every directory, deepest first.

    Files go through threads: the disk can work on many at once.

    Args:
        top: The directory.
        but: The name of a file directly in it that need not be.
    """
    files: list[str] = []
    folders: list[Path] = []
    for folder, entries in walk(top):
        folders.append(folder)
        here = [e for e in entries if e.is_file(follow_symlinks=False)]
        files += [e.path for e in here if folder != top or e.name != but]
    # Each takes the next one itself: to be handed them costs as much as flushing. In the end
    # there is none left for anybody to begin with.
    left = iter(files)
    # Starting threads for two files costs more than it saves.
    count = _FSYNC_THREADS - 1 if len(files) > 2 else 0  # noqa: PLR2004
    with tasks_at(partial(_fsync_all, left), count, end=partial(list, left)) as helpers:
        _fsync_all(left)
    for helper in helpers:
        if helper.error is not None:
            raise helper.error
    for folder in reversed(folders):
        fsync(folder)


def commit_file_system(path: Path) -> None:
    """Make all durable that the file system of a path holds: some free what was removed only so."""
    if _libc_syncfs is None:
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc_syncfs(handle)
    finally:
        os.close(handle)


def walk(top: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield every directory below ``top`` (itself first) with its entries; follows no symlink."""
    pending = [top]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as listing:
            entries = list(listing)
        yield folder, entries
        pending += [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]


def make_folder(path: Path, *, durable: bool) -> None:
    """Create a directory in one that is there, its name durable; nothing when it is there.

    Raises:
        FileNotFoundError: What it would be in is not there.
    """
    if is_there(path):
        return
    path.mkdir(exist_ok=True)
    if durable:
        fsync(path.parent)


def make_directories(path: Path, *, durable: bool) -> None:
    """Create a directory and its missing parents, each one's name durable."""
    missing = []
    while not is_there(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        if durable:
            fsync(folder.parent)


def write_new(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a file that must not exist yet."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(handle, left) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool) -> None:
    """Put a JSON file at ``path`` in one step: a reader sees the old one or the new one."""
    staging = path.with_name(f".{path.name}.{uuid.uuid4()}")
    # A line for each value is legible; json's own indentation takes ten times as long.
    lines = json.dumps(content, separators=(",\n ", ": "))[1:-1]
    try:
        write_new(staging, f"{{\n {lines}\n}}\n".encode(), durable=durable)
        os.replace(staging, path)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(staging)
        raise
    if durable:
        fsync(path.parent)


def rename_new(source: Path, target: Path) -> None:
    """Rename to a name that nothing has.

    Raises:
        FileExistsError: Something has that name.
    """
    try:
        _renameat2(source, target, _NOREPLACE)
    except ExchangeUnsupported:
        if is_there(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.rename(target)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step; no reader ever finds either missing.

    Raises:
        ExchangeUnsupported: This file system has no such step; nothing happened.
    """
    _renameat2(one, other, _EXCHANGE)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; symlinks are removed, not followed.

    Directories that forbid it are made writable first: a trash must be emptiable. What another
    process removes at the same time is not missed.
    """
    if stat.S_ISDIR(path.lstat().st_mode):
        _remove_folder(os.fspath(path), None)
    else:
        path.unlink()


def remove_all_but(folder: Path, kept: Container[str]) -> None:
    """Remove what is in a directory, except for the names to keep."""
    mode = os.lstat(folder).st_mode
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(folder, stat.S_IMODE(mode) | stat.S_IRWXU)
    with os.scandir(folder) as listing:
        names = [entry.name for entry in listing]
    for name in names:
        if name not in kept:
            with suppress(FileNotFoundError):
                remove_tree(folder / name)


def _remove_folder(name: str, parent: int | None) -> None:
    # By handle, not by path: a symlink put in a directory's place must not lead elsewhere.
    handle = _open_folder(name, parent)
    try:
        os.fchmod(handle, stat.S_IRWXU)
        with os.scandir(handle) as listing:
            entries = list(listing)
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    _remove_folder(entry.name, handle)
                else:
                    os.unlink(entry.name, dir_fd=handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)


def _open_folder(name: str, parent: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _load(name: str, *types: Any) -> Any:
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError):
        return None
    function.argtypes = types
    return function


_libc_renameat2 = _load(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_libc_syncfs = _load("syncfs", ctypes.c_int)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    if _libc_renameat2 is None:
        raise ExchangeUnsupported
    ctypes.set_errno(0)
    result = _libc_renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags)
    if result == 0:
        return
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        raise ExchangeUnsupported
    raise OSError(code, os.strerror(code), str(source), None, str(target))
