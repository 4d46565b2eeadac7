"""Removing a directory with all below it, handle by handle; no symlink is followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from ckptdb.disk import paths
from ckptdb.disk.safe_path import ResolvedPath

_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; symlinks are removed, not followed.

    Directories that forbid it are made writable first: a trash must be emptiable. What another
    process removes at the same time is not missed.
    """
    with ResolvedPath(path) as resolved:
        found = os.stat(resolved.name, dir_fd=resolved.parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            _empty(path, resolved, ())
            os.rmdir(resolved.name, dir_fd=resolved.parent)
        else:
            os.unlink(resolved.name, dir_fd=resolved.parent)


def remove_all_but(path: Path, kept: Container[str]) -> None:
    """Remove what is in a directory, except for the names to keep."""
    with ResolvedPath(path) as resolved:
        _empty(path, resolved, kept)


def _empty(path: Path, resolved: ResolvedPath, kept: Container[str]) -> None:
    """Remove all that is in a directory, which may be deeper than there may be open files.

    From handle to handle, each opened from the one above or below it: a symlink put in a
    directory's place leads nowhere, and one that is moved away meanwhile stops it.
    """
    handle = _open_to_empty(resolved.parent, resolved.name)
    # The directories on the way down: which each is, and those in it that are still to be removed.
    down: list[tuple[tuple[int, int], list[str]]] = [(_key(handle), [])]
    try:
        down[-1][1].extend(_remove_files(handle, kept))
        while True:
            folders = down[-1][1]
            if folders:
                try:
                    handle = _step(handle, _open_to_empty(handle, folders[-1]))
                except FileNotFoundError:
                    folders.pop()
                    continue
                down.append((_key(handle), []))
                down[-1][1].extend(_remove_files(handle, ()))
                continue
            if len(down) == 1:
                return
            down.pop()
            above, folders = down[-1]
            handle = _step(handle, os.open("..", _LISTED, dir_fd=handle))
            _must_be(handle, above)
            with suppress(FileNotFoundError):
                os.rmdir(folders[-1], dir_fd=handle)
            folders.pop()
    except OSError as error:
        # People know it by its path.
        inside = [folders[-1] for _, folders in down[:-1]]
        name = error.filename if isinstance(error.filename, str) else ""
        error.filename = str(path.joinpath(*inside, name))
        raise
    finally:
        os.close(handle)


def _step(left: int, entered: int) -> int:
    os.close(left)
    return entered


def _key(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _must_be(handle: int, key: tuple[int, int]) -> None:
    if _key(handle) != key:
        raise OSError(errno.ESTALE, "a directory was moved while it was removed")


def _remove_files(handle: int, kept: Container[str]) -> list[str]:
    """Remove the files in a directory; return the names of the directories in it."""
    folders: list[str] = []
    try:
        with os.scandir(handle) as listing:
            entries = [entry for entry in listing if entry.name not in kept]
    except FileNotFoundError:  # removed by somebody else just now
        return folders
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        else:
            with suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=handle)
    return folders


def _open_to_empty(parent: int | None, name: str) -> int:
    flags = _LISTED | os.O_NOFOLLOW
    try:
        handle = os.open(name, flags, dir_fd=parent)
    except PermissionError as error:
        try:
            paths.set_mode_at(parent, name, stat.S_IRWXU)
        except PermissionError:
            raise error from None  # another user's
        handle = os.open(name, flags, dir_fd=parent)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(PermissionError):  # another user's, which we may be able to empty anyway
            os.fchmod(handle, mode | stat.S_IRWXU)
    return handle
