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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ckptdb.core.threads import tasks_at
from ckptdb.disk import ownership, paths
from ckptdb.disk.safe_path import ResolvedPath

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2


# Network and FUSE file systems answer EINVAL to either flag; kernels without the call ENOSYS.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY})
_FSYNC_THREADS = 8
_ATTEMPTS = 3


class ExchangeUnsupported(Exception):  # a signal to the caller, not an error
    """This file system cannot exchange two names in one step."""


def is_there(path: Path) -> bool:
    """Tell whether anything has that name.

    ``os.path.exists`` and its like take any error for a no; here only a name that is not there
    is one, for what follows from it may be that a checkpoint has gone.

    Raises:
        OSError: It cannot be read now.
    """
    return paths.find_status(path) is not None


def is_folder(path: Path) -> bool:
    """Tell whether a real directory, no link to one, has that name.

    Raises:
        OSError: It cannot be read now.
    """
    status = paths.find_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def fsync(path: Path | str) -> None:
    """Make one file or directory durable."""
    # A run may be reached through a symlink.
    with paths.opened(path, follow=True) as handle:
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network file systems cannot flush a directory, and keep names durable themselves.
            if error.errno not in _UNSUPPORTED or not stat.S_ISDIR(os.fstat(handle).st_mode):
                raise


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
    folders: list[str] = []
    for below, entries in paths.walk(top):
        folders.append(f"{top}/{below}")
        here = [e.name for e in entries if e.is_file(follow_symlinks=False)]
        files += [f"{top}/{below}{name}" for name in here if below or name != but]
    # The threads share one iterator, because handing out files costs as much as flushing them.
    # Every thread stops when it is exhausted.
    left = iter(files)
    # Starting threads for two files costs more than it saves.
    count = _FSYNC_THREADS - 1 if len(files) > 2 else 0  # noqa: PLR2004
    with tasks_at(partial(_fsync_all, left), count, end=partial(list, left)) as helpers:
        _fsync_all(left)
    for helper in helpers:
        if helper.error is not None:
            raise helper.error
    for place in reversed(folders):
        fsync(place)


def commit_file_system(path: Path) -> None:
    """Flush the file system of a path; some file systems free removed files only then."""
    if _libc_syncfs is None:
        return
    with paths.opened(path) as handle:
        _libc_syncfs(handle)


def make_folder(path: Path, *, durable: bool) -> None:
    """Create a directory in one that is there, its name durable; nothing when it is there.

    Raises:
        FileNotFoundError: What it would be in is not there.
    """
    if is_there(path):
        paths.give_back(path)
        return
    with suppress(FileExistsError):
        make_new_folder(path)
    if durable:
        fsync(path.parent)


def make_new_folder(path: Path) -> None:
    """Create a directory.

    Raises:
        FileExistsError: Something has the name.
    """
    if not ownership.helps_in(paths.find_stat(path.parent)):
        paths.make(path)
        return
    # It is the owner's before the owner can meet with it.
    aside = _aside(path)
    paths.make(aside)
    try:
        rename_new(aside, path)
    except BaseException:
        paths.remove_folder(aside)
        raise


def make_directories(path: Path, *, durable: bool) -> None:
    """Create a directory and its missing parents, each one's name durable."""
    missing = []
    while not is_there(path):
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        with suppress(FileExistsError):
            make_new_folder(one)
        if durable:
            fsync(one.parent)


def open_kept(path: Path, flags: int, *, for_writers: bool = False) -> int:
    """Open a file of ours that is written in place and never replaced; it is made when missing.

    Args:
        path: Its path.
        flags: As for ``os.open``.
        for_writers: Only those may open it who may write its directory: it is for a lock.

    Raises:
        Obstructed: Something else has the name.
        OSError: It cannot be opened, or made.
    """
    attempts = 0
    while True:
        try:
            return paths.open_file(path, flags, sole=True, for_writers=for_writers)
        except FileNotFoundError:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            _make_empty(path, for_writers=for_writers)


def _make_empty(path: Path, *, for_writers: bool) -> None:
    """Make a file with the owner and the permissions that it needs, unless there is one."""
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if for_writers else 0o666
    aside = _aside(path)
    with suppress(FileExistsError):
        try:
            os.close(paths.open_file(aside, flags, mode, for_writers=for_writers))
            _renameat2(aside, path, _NOREPLACE)
        except FileExistsError:
            _drop(aside)
        except (OSError, ExchangeUnsupported):
            # On a disk that is full, or a file system that has no such step: under its name.
            _drop(aside)
            os.close(paths.open_file(path, flags, mode, for_writers=for_writers))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4()}")


def _drop(path: Path) -> None:
    with suppress(OSError):
        paths.unlink(path)


def write_new(
    path: Path, content: bytes, *, durable: bool, before: os.stat_result | None = None
) -> None:
    """Write a file that must not exist yet.

    Args:
        path: Its path.
        content: Bytes to write.
        durable: Flush the bytes, so that they survive a power cut; the name may not yet.
        before: The file that it is to replace.
    """
    handle = paths.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, before=before)
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
    staging = _aside(path)
    # A line for each value is legible; json's own indentation takes ten times as long.
    lines = json.dumps(content, separators=(",\n ", ": "))[1:-1]
    try:
        content_bytes = f"{{\n {lines}\n}}\n".encode()
        write_new(staging, content_bytes, durable=durable, before=paths.find_status(path))
        paths.replace(staging, path)
    except OSError:
        _drop(staging)
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
        paths.replace(source, target)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step; no reader ever finds either missing.

    Raises:
        ExchangeUnsupported: This file system has no such step; nothing happened.
    """
    _renameat2(one, other, _EXCHANGE)


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
    with ResolvedPath(source) as old, ResolvedPath(target) as new:
        ctypes.set_errno(0)
        result = _libc_renameat2(
            _AT_FDCWD if old.parent is None else old.parent,
            os.fsencode(old.name),
            _AT_FDCWD if new.parent is None else new.parent,
            os.fsencode(new.name),
            flags,
        )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        raise ExchangeUnsupported
    raise OSError(code, os.strerror(code), str(source), None, str(target))
