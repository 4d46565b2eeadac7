"""Checks before a removal: permissions and attributes that would forbid it.

Permissions, sticky directories of others, and the attributes *immutable* and *append only*. What
only shows when it is tried (a disk without space, an I/O error) is not among it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptdb.disk import ownership, paths
from ckptdb.disk.safe_path import ResolvedPath

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20
_STATX_BYTES, _ATTRIBUTES_AT = 256, 8


def find_obstacle(checkpoint: Path) -> OSError | None:
    """Return the first error that moving a checkpoint away and removing its files would meet.

    Args:
        checkpoint: Directory of the checkpoint, no link to one.

    Raises:
        OSError: It cannot be looked at.
    """
    return next(_obstacles(checkpoint), None)


def _obstacles(checkpoint: Path) -> Iterator[OSError]:
    parent = Path(os.path.realpath(checkpoint.parent))
    yield from _of_name(parent, checkpoint, checkpoint.lstat())
    # A directory that gets another parent has its own ".." changed.
    if not _may_write(checkpoint):
        yield _error(errno.EACCES, checkpoint)
    for below, entries in paths.walk(checkpoint):
        folder = f"{checkpoint}/{below}"
        status = paths.get_status(folder)
        for entry in entries:
            yield from _of_attributes(folder + entry.name)
        # Of our own directories the mode is changed before they are emptied.
        if entries and not _is_ours(status):
            for entry in entries:
                yield from _of_name(folder, folder + entry.name, entry.stat(follow_symlinks=False))


def _of_name(folder: Path | str, path: Path | str, status: os.stat_result) -> Iterator[OSError]:
    """Yield what forbids taking a name out of a directory."""
    if not _may_write(folder):
        yield _error(errno.EACCES, folder)
    around = paths.get_status(folder)
    if around.st_mode & stat.S_ISVTX and not (_is_ours(around) or _is_ours(status)):
        yield _error(errno.EPERM, path)
    if _find_attributes(folder) & _APPEND_ONLY:
        yield _error(errno.EPERM, folder)
    yield from _of_attributes(path)


def _of_attributes(path: Path | str) -> Iterator[OSError]:
    if _find_attributes(path) & (_IMMUTABLE | _APPEND_ONLY):
        yield _error(errno.EPERM, path)


def _may_write(folder: Path | str) -> bool:
    with ResolvedPath(folder, strict=False) as resolved:
        return ownership.may_write(resolved.name, within=resolved.parent)


def _is_ours(status: os.stat_result) -> bool:
    return os.geteuid() in (0, status.st_uid)


def _error(code: int, path: Path | str) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _load_statx() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError):
        return None


_libc_statx = _load_statx()


def _find_attributes(path: Path | str) -> int:
    """Return the attributes of a file; none where the system does not tell them."""
    if _libc_statx is None:
        return 0
    found = ctypes.create_string_buffer(_STATX_BYTES)
    with ResolvedPath(path, strict=False) as resolved:
        place = _AT_FDCWD if resolved.parent is None else resolved.parent
        result = _libc_statx(place, os.fsencode(resolved.name), _AT_SYMLINK_NOFOLLOW, 0, found)
    if result != 0:
        return 0
    return ctypes.c_uint64.from_buffer(found, _ATTRIBUTES_AT).value
