"""Paths below a run, resolved so that no symlink leads elsewhere; used by `paths`.

Below a run's ``.ckptdb`` no name is followed if it is a symlink, and none is used that is not what
it should be, or is not of somebody who may write there. While a thread has
`anchored` a run, all paths below it are resolved from a handle on its directory: renaming that
directory, or putting another one in its place, changes neither what is read nor what is written.

Callers pass ordinary absolute paths; only this module decides where they are resolved from.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ckptdb.disk import names
from ckptdb.errors import Obstructed

PathLike = str | os.PathLike[str]

# A handle that only stands for a directory needs no permission to list it.
_ONLY_A_PLACE = getattr(os, "O_PATH", os.O_RDONLY)
FOLDER = _ONLY_A_PLACE | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags that open such a handle."""
_OURS = f"/{names.HIDDEN}"
NOT_AS_IT_SHOULD_BE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})
"""Errors of opening something that is of another kind."""
_SURELY_SHORT = 1000
"""Letters of a path that is one for the system, whatever they are."""
_PORTION = 3500
"""Bytes of a path that the system takes at once."""
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_KINDS = (
    (stat.S_ISLNK, "a symlink"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class DirectoryId(NamedTuple):
    """Device and inode of a directory, whatever its name."""

    device: int
    inode: int


class _Anchor:
    """An open handle on a run's directory, from which paths below it are resolved.

    Attributes:
        path: Path of the directory, as it was passed.
        folders: Handles on our folders, by path below it.
    """

    def __init__(self, path: str, handle: int) -> None:
        self.path = path
        self.handle = handle
        self.folders: dict[str, int] = {}

    def close(self) -> None:
        for handle in (*self.folders.values(), self.handle):
            os.close(handle)


class _ThreadAnchors(threading.local):
    anchors: tuple[_Anchor, ...] = ()


_local = _ThreadAnchors()


def is_anchored() -> bool:
    """Tell whether this thread has anchored a run."""
    return bool(_local.anchors)


@contextmanager
def anchored(directory: Path) -> Iterator[DirectoryId]:
    """Resolve all paths below a directory from a handle on it, in this thread; yield its id.

    Raises:
        OSError: It is not there, or is no directory.
    """
    within = _find_anchor(os.fspath(directory))
    if within is not None and within.path == os.fspath(directory):
        yield as_directory_id(os.fstat(within.handle))
        return
    # The run itself may be reached through a symlink, like any directory that a user names.
    anchor = _Anchor(os.fspath(directory), os.open(directory, FOLDER))
    before = _local.anchors
    _local.anchors = (*before, anchor)
    try:
        yield as_directory_id(os.fstat(anchor.handle))
    finally:
        _local.anchors = before
        anchor.close()


def as_directory_id(found: os.stat_result) -> DirectoryId:
    """Return the id of a directory from its status."""
    return DirectoryId(found.st_dev, found.st_ino)


class ResolvedPath:
    """A path as an open directory and a name in it.

    Args:
        path: Absolute.
        strict: Follow no symlink below the run. Below ``.ckptdb`` none is followed in any case; a
            checkpoint that is only read may lie behind one.
    """

    __slots__ = ("_opened", "_path", "name", "parent")

    def __init__(self, path: PathLike, *, strict: bool = True) -> None:
        # A slash at the end would leave no name to ask about.
        self._path = text = os.fspath(path).rstrip("/") or "/"
        self._opened: list[int] = []
        self.parent: int | None = None
        self.name = text
        anchor = _find_anchor(text)
        base, below = (anchor.path, text[len(anchor.path) + 1 :]) if anchor else _split(text)
        if anchor is None and not below:
            if len(text) > _SURELY_SHORT:
                try:
                    self._descend_in_portions()
                except BaseException:
                    self._close()
                    raise
            return  # no path of ours
        is_ours = below == names.HIDDEN or below.startswith(f"{names.HIDDEN}/")
        try:
            self.parent = anchor.handle if anchor else self._open(base)
            self.name = below or "."
            if strict or is_ours:
                *folders, self.name = (below or ".").split("/")
                self._descend(anchor, base, folders)
            elif len(self.name) > _SURELY_SHORT:
                self._descend_in_portions()
        except BaseException:
            self._close()
            raise

    def _open(self, base: str) -> int:
        handle = os.open(base or "/", FOLDER)
        self._opened.append(handle)
        return handle

    def _descend_in_portions(self) -> None:
        """Go down a path that is too long for the system, as far as needed, as it would."""
        *folders, self.name = self.name.split("/")
        portion, size_bytes = list[str](), 0
        for folder in folders:
            size_bytes += len(os.fsencode(folder)) + 1
            if size_bytes > _PORTION:
                self._go_down("/".join(portion))
                portion, size_bytes = [], len(os.fsencode(folder)) + 1
            portion.append(folder)
        self.name = "/".join([*portion, self.name])

    def _go_down(self, name: str) -> None:
        self._enter(os.open(name or "/", FOLDER, dir_fd=self.parent))

    def _enter(self, handle: int) -> None:
        # One handle at a time: there may be fewer of them than levels.
        self._close()
        self._opened.append(handle)
        self.parent = handle

    def _descend(self, anchor: _Anchor | None, base: str, folders: list[str]) -> None:
        below = ""
        for name in folders:
            below = f"{below}/{name}" if below else name
            known = anchor.folders.get(below) if anchor else None
            if known is None:
                known = _open_folder(self.parent, name, f"{base}/{below}")
                if anchor is not None and below.startswith(names.HIDDEN) and below.count("/") < 2:  # noqa: PLR2004  # ours
                    anchor.folders[below] = known
                else:
                    self._enter(known)
            self.parent = known

    def _close(self) -> None:
        while self._opened:
            os.close(self._opened.pop())

    @contextmanager
    def around(self) -> Iterator[int]:
        """Yield a handle that stands for the directory that the name is in."""
        if self.parent is not None and "/" not in self.name:
            yield self.parent
            return
        handle = os.open(os.path.dirname(self.name) or "/", FOLDER, dir_fd=self.parent)
        try:
            yield handle
        finally:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._close()
        if isinstance(error, OSError) and self.parent is not None and error.filename == self.name:
            error.filename = self._path  # people know it by its path


def _find_anchor(path: str) -> _Anchor | None:
    for anchor in reversed(_local.anchors):
        if path.startswith(anchor.path) and path[len(anchor.path) :][:1] in ("", "/"):
            return anchor
    return None


def _split(path: str) -> tuple[str, str]:
    """Return the directory that a folder of ours is in, and the path from there; else nothing."""
    at = path.rfind(f"{_OURS}/")
    if at < 0:
        if not path.endswith(_OURS):
            return "", ""
        at = len(path) - len(_OURS)
    return path[:at], path[at + 1 :]


def is_ours(path: PathLike) -> bool:
    """Tell whether a path is that of a folder ``.ckptdb`` or of something below one."""
    text = os.fspath(path)
    return f"{_OURS}/" in text or text.endswith(_OURS)


def lies_in_ours(path: PathLike) -> bool:
    """Tell whether a path is that of something in a folder of ours, at any depth."""
    return is_ours(os.path.dirname(path))


def _open_folder(parent: int | None, name: str, path: str) -> int:
    try:
        handle = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in NOT_AS_IT_SHOULD_BE:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            raise Obstructed(
                path, f"is {describe_kind(found)}, not a directory", errno.ENOTDIR
            ) from None
        error.filename = path
        raise
    if parent is not None and is_ours(path):
        try:
            refuse_foreign(path, os.fstat(handle), os.fstat(parent))
        except BaseException:
            os.close(handle)
            raise
    return handle


def describe_kind(found: os.stat_result) -> str:
    """Say what a file is, with its article."""
    return next((kind for is_one, kind in _KINDS if is_one(found.st_mode)), "a device")


def refuse_foreign(path: str, found: os.stat_result, around: os.stat_result) -> None:
    """Refuse what somebody has put into a directory who may not write there.

    It was moved there, or unpacked, by somebody else. Where others may write it counts like one's
    own: whoever may is trusted with all of the run.
    """
    if found.st_uid in (os.geteuid(), 0, around.st_uid):
        return
    if around.st_mode & _OTHERS_MAY_WRITE and not around.st_mode & stat.S_ISVTX:
        return
    raise Obstructed(path, f"belongs to another user ({found.st_uid})", errno.EPERM)
