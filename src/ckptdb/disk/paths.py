"""Reaching files below a run so that nobody can lead us elsewhere.

Below a run's ``.ckptdb`` no name is followed if it is a symlink, and none is used that is not what
it should be, or is not of somebody who may write there. While a run is held (`hold`), all below it
is resolved from a handle on its directory: whoever renames that, or puts something else in its
place, changes neither what we look at nor what we change.

Paths stay ordinary absolute paths; what they are resolved from is decided here alone.
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

from ckptdb.disk import names, ownership
from ckptdb.errors import Obstructed

PathLike = str | os.PathLike[str]

# A handle that only stands for a directory needs no permission to list it.
_ONLY_A_PLACE = getattr(os, "O_PATH", os.O_RDONLY)
_FOLDER = _ONLY_A_PLACE | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OURS = f"/{names.HIDDEN}"
_NOT_AS_IT_SHOULD_BE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})
MOST_LEVELS = 2000
LONGEST = 128 * 1024
"""Letters of a path; what is deeper is not gone through: its paths alone would fill any memory."""
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


class Place(NamedTuple):
    """Which directory one is, whatever its name."""

    device: int
    inode: int


class _Held:
    """A run's directory that is held.

    Attributes:
        path: What its names are written below.
        folders: By path below it, handles on the folders of ours.
    """

    def __init__(self, path: str, handle: int) -> None:
        self.path = path
        self.handle = handle
        self.folders: dict[str, int] = {}

    def close(self) -> None:
        for handle in (*self.folders.values(), self.handle):
            os.close(handle)


class _Holding(threading.local):
    held: tuple[_Held, ...] = ()


_here = _Holding()


@contextmanager
def hold(directory: Path) -> Iterator[Place]:
    """Let this thread resolve all below a directory from a handle on it; yields which it is.

    Raises:
        OSError: It is not there, or is no directory.
    """
    within = _find_held(os.fspath(directory))
    if within is not None and within.path == os.fspath(directory):
        yield _place(os.fstat(within.handle))
        return
    # The run itself may be reached through a symlink, like any directory that a user names.
    held = _Held(os.fspath(directory), os.open(directory, _FOLDER))
    before = _here.held
    _here.held = (*before, held)
    try:
        yield _place(os.fstat(held.handle))
    finally:
        _here.held = before
        held.close()


def find_place(directory: Path, *, below: Path | None = None) -> Place | None:
    """Return which directory has a name now, None when there is none.

    Args:
        directory: Its path.
        below: A directory that it is in, from which on no symlink is followed; None follows all.

    Raises:
        Obstructed: There is one.
    """
    try:
        if below is None:
            return _place(find_stat(directory))
        with hold(below), Way(directory / "-") as way, way.around() as handle:
            return _place(os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _place(found: os.stat_result) -> Place:
    return Place(found.st_dev, found.st_ino)


class Way:
    """The way to a name: an open directory, and the name in it.

    Args:
        path: Absolute.
        strict: Follow no symlink on the way, from the run on; what is below ``.ckptdb`` is reached
            so in any case. A checkpoint that is only read may lie behind one.
    """

    __slots__ = ("_opened", "_path", "name", "parent")

    def __init__(self, path: PathLike, *, strict: bool = True) -> None:
        # A slash at the end would leave no name to ask about.
        self._path = text = os.fspath(path).rstrip("/") or "/"
        self._opened: list[int] = []
        self.parent: int | None = None
        self.name = text
        held = _find_held(text)
        base, below = (held.path, text[len(held.path) + 1 :]) if held else _split(text)
        if held is None and not below:
            if len(text) > _SURELY_SHORT:
                try:
                    self._descend_in_portions()
                except BaseException:
                    self._close()
                    raise
            return  # no path of ours
        is_ours = below == names.HIDDEN or below.startswith(f"{names.HIDDEN}/")
        try:
            self.parent = held.handle if held else self._open(base)
            self.name = below or "."
            if strict or is_ours:
                *folders, self.name = (below or ".").split("/")
                self._descend(held, base, folders)
            elif len(self.name) > _SURELY_SHORT:
                self._descend_in_portions()
        except BaseException:
            self._close()
            raise

    def _open(self, base: str) -> int:
        handle = os.open(base or "/", _FOLDER)
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
        self._enter(os.open(name or "/", _FOLDER, dir_fd=self.parent))

    def _enter(self, handle: int) -> None:
        # One handle at a time: there may be fewer of them than levels.
        self._close()
        self._opened.append(handle)
        self.parent = handle

    def _descend(self, held: _Held | None, base: str, folders: list[str]) -> None:
        below = ""
        for name in folders:
            below = f"{below}/{name}" if below else name
            known = held.folders.get(below) if held else None
            if known is None:
                known = _open_folder(self.parent, name, f"{base}/{below}")
                if held is not None and below.startswith(names.HIDDEN) and below.count("/") < 2:  # noqa: PLR2004  # ours
                    held.folders[below] = known
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
        handle = os.open(os.path.dirname(self.name) or "/", _FOLDER, dir_fd=self.parent)
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


def _find_held(path: str) -> _Held | None:
    for held in reversed(_here.held):
        if path.startswith(held.path) and path[len(held.path) :][:1] in ("", "/"):
            return held
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
        handle = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _NOT_AS_IT_SHOULD_BE:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            raise Obstructed(path, f"is {_kind(found)}, not a directory", errno.ENOTDIR) from None
        error.filename = path
        raise
    if parent is not None and is_ours(path):
        try:
            _refuse_foreign(path, os.fstat(handle), os.fstat(parent))
        except BaseException:
            os.close(handle)
            raise
    return handle


def _kind(found: os.stat_result) -> str:
    return next((kind for is_one, kind in _KINDS if is_one(found.st_mode)), "a device")


def _refuse_foreign(path: str, found: os.stat_result, around: os.stat_result) -> None:
    """Refuse what somebody has put into a directory who may not write there.

    It was moved there, or unpacked, by somebody else. Where others may write it counts like one's
    own: whoever may is trusted with all of the run.
    """
    if found.st_uid in (os.geteuid(), 0, around.st_uid):
        return
    if around.st_mode & _OTHERS_MAY_WRITE and not around.st_mode & stat.S_ISVTX:
        return
    raise Obstructed(path, f"belongs to another user ({found.st_uid})", errno.EPERM)


def open_file(
    path: PathLike,
    flags: int,
    mode: int = 0o666,
    *,
    sole: bool = False,
    before: os.stat_result | None = None,
    for_writers: bool = False,
) -> int:
    """Open a regular file, and nothing else that may have its name; never waits for a pipe.

    Args:
        path: Its path.
        flags: As for ``os.open``; what is to be made must not be there.
        mode: Of a new one, before the umask; see `ownership`.
        sole: That it must have no other name: what is written into it is meant for this one.
        before: What a new one will replace.
        for_writers: Only those may open it who may write its directory: it is for a lock.

    Raises:
        Obstructed: Something else has the name.
        OSError: It cannot be opened.
    """
    with Way(path, strict=flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0) as way:
        handle = _open_file(way, path, flags, mode)
        try:
            _refuse_other(os.fspath(path), os.fstat(handle), way.parent, sole=sole)
            if flags & os.O_CREAT or sole:
                with way.around() as around:
                    folder = os.fstat(around)
                    if flags & os.O_CREAT:
                        ownership.settle(handle, folder, before, most=mode)
                    else:
                        ownership.give_back(handle, folder)
                    is_shared = flags & os.O_CREAT and before is None and lies_in_ours(path)
                    if for_writers or is_shared:
                        ownership.share(handle, around, with_readers=not for_writers)
        except BaseException:
            os.close(handle)
            raise
        return handle


def open_to_read(path: PathLike) -> tuple[int, os.stat_result]:
    """Open a regular file as `open_file` does, to read it; return also what it is."""
    with Way(path, strict=False) as way:
        handle = _open_file(way, path, os.O_RDONLY, 0)
        try:
            # Asked once: there may be very many.
            found = os.fstat(handle)
            _refuse_other(os.fspath(path), found, way.parent, sole=False)
        except BaseException:
            os.close(handle)
            raise
        return handle, found


def _open_file(way: Way, path: PathLike, flags: int, mode: int) -> int:
    try:
        return os.open(way.name, flags | _FILE, mode, dir_fd=way.parent)
    except OSError as error:
        if error.errno not in _NOT_AS_IT_SHOULD_BE:
            raise
        found = os.stat(way.name, dir_fd=way.parent, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            raise
        raise _no_file(path, found) from None


def _refuse_other(path: str, found: os.stat_result, parent: int | None, *, sole: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _no_file(path, found)
    if sole and found.st_nlink > 1:
        why = "has another name elsewhere, which would be changed with it (a hard link)"
        raise Obstructed(path, why, errno.EMLINK)
    if parent is not None and is_ours(path):
        _refuse_foreign(path, found, os.fstat(parent))


def _no_file(path: PathLike, found: os.stat_result) -> Obstructed:
    code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ELOOP
    return Obstructed(path, f"is {_kind(found)}, not a regular file", code)


def find_status(path: PathLike) -> os.stat_result | None:
    """Return what has a name, None when nothing does; follows no symlink.

    Raises:
        OSError: It cannot be told now.
    """
    try:
        return get_status(path)
    except Obstructed:
        raise
    except (FileNotFoundError, NotADirectoryError):
        return None


def get_status(path: PathLike) -> os.stat_result:
    """Return what has a name; follows no symlink.

    Raises:
        OSError: Nothing has it, or it cannot be told now.
    """
    if not _here.held:
        try:
            return os.lstat(path)  # asked at every question
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    with Way(path, strict=False) as way:
        return os.stat(way.name, dir_fd=way.parent, follow_symlinks=False)


def find_stat(path: PathLike) -> os.stat_result:
    """Return what a path leads to, through a symlink too.

    Raises:
        OSError: Nothing, or it cannot be told now.
    """
    if not _here.held:
        try:
            return os.stat(path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    with Way(path, strict=False) as way:
        return os.stat(way.name, dir_fd=way.parent)


def read_link(path: PathLike) -> str:
    """Return what a symlink leads to."""
    with Way(path, strict=False) as way:
        return os.readlink(way.name, dir_fd=way.parent)


@contextmanager
def listed(path: PathLike) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a directory, whose entries are good for as long as that is not left.

    Raises:
        OSError: It cannot be listed, or it is deeper than anybody goes.
    """
    try:
        listing = None if _here.held else os.scandir(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        listing = None
    if listing is not None:
        with listing:
            yield listing
        return
    with opened(path, follow=True) as handle, os.scandir(handle) as listing:
        yield listing


def walk(top: PathLike) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield the path below ``top`` of every directory (first its own, "") with its entries.

    Follows no symlink. The entries are good until the next directory is asked for.

    Raises:
        OSError: One cannot be listed, or is deeper than anybody goes.
    """
    pending = [""]
    while pending:
        below = pending.pop()
        if below.count("/") > MOST_LEVELS or len(below) > LONGEST:
            why = f"it is more than {MOST_LEVELS} levels or {LONGEST} letters deep"
            raise OSError(errno.ENAMETOOLONG, why, os.fspath(top))
        # Without its last slash: an error names it as people write it.
        with listed(f"{os.fspath(top)}/{below[:-1]}") as listing:
            entries = list(listing)
            yield below, entries
            pending += [f"{below}{e.name}/" for e in entries if e.is_dir(follow_symlinks=False)]


@contextmanager
def opened(path: PathLike, *, follow: bool = False) -> Iterator[int]:
    """Open a directory, or anything else, to read it: a handle for ``os.scandir`` or ``os.fsync``.

    Args:
        path: Its path.
        follow: Also what a symlink leads to.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    with Way(path, strict=not follow) as way:
        # "." is the directory that is held, which may have been reached through a symlink.
        nofollow = 0 if follow or way.name == "." else os.O_NOFOLLOW
        try:
            handle = os.open(way.name, flags | nofollow, dir_fd=way.parent)
        except OSError as error:
            if error.errno != errno.ELOOP or follow:
                raise
            raise Obstructed(path, "is a symlink", errno.ELOOP) from None
    try:
        yield handle
    finally:
        os.close(handle)


def check_folder(path: PathLike) -> None:
    """Make sure that a folder of ours, and all of ours that it is in, are what they should be.

    Raises:
        Obstructed: One is not.
        OSError: It is not there, or it cannot be told now.
    """
    with Way(f"{os.fspath(path)}/-"):
        pass


def list_folders(path: PathLike) -> list[str]:
    """Return the names of the directories in one of ours, sorted; none when it is not there.

    What has another type is not among them, whatever it is called.
    """
    try:
        with opened(path) as handle, os.scandir(handle) as listing:
            return sorted(e.name for e in listing if e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_names(path: PathLike) -> list[str]:
    """Return all names in a directory, sorted."""
    with opened(path) as handle:
        return sorted(os.listdir(handle))


def make(path: PathLike, mode: int = 0o777) -> None:
    """Make a directory.

    Raises:
        FileExistsError: Something has the name.
    """
    with Way(path) as way, way.around() as around:
        os.mkdir(way.name, mode, dir_fd=way.parent)
        is_shared, folder = lies_in_ours(path), os.fstat(around)
        if is_shared or ownership.helps_in(folder):
            flags = _FILE | os.O_RDONLY | os.O_DIRECTORY
            handle = os.open(way.name, flags, dir_fd=way.parent)
            try:
                ownership.settle(handle, folder)
                if is_shared:
                    ownership.share(handle, around, with_readers=True)
            finally:
                os.close(handle)


def give_back(path: PathLike) -> None:
    """Give a directory that the superuser has left in the tree of a user to that user."""
    if os.geteuid() != 0:
        return
    with Way(path) as way, way.around() as around:
        flags = _FILE | os.O_RDONLY | os.O_DIRECTORY
        handle = os.open(way.name, flags, dir_fd=way.parent)
        try:
            ownership.give_back(handle, os.fstat(around))
        finally:
            os.close(handle)


def unlink(path: PathLike, *, missing_ok: bool = False) -> None:
    """Take away the name of what is no directory."""
    try:
        with Way(path) as way:
            os.unlink(way.name, dir_fd=way.parent)
    except FileNotFoundError:
        if not missing_ok:
            raise


def remove_folder(path: PathLike) -> None:
    """Remove an empty directory."""
    with Way(path) as way:
        os.rmdir(way.name, dir_fd=way.parent)


def set_mode(path: PathLike, mode: int) -> None:
    """Change the mode of a directory, no link to one."""
    with Way(path) as way:
        set_mode_at(way.parent, way.name, mode)


def set_mode_at(parent: int | None, name: str, mode: int) -> None:
    """Change the mode of a directory, no link to one, which may be one that is not to be read."""
    try:
        handle = os.open(name, _FILE | os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
    except PermissionError:
        handle = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        place = f"/proc/self/fd/{handle}"  # fchmod refuses a handle that only stands for a place
    else:
        place = ""
    try:
        os.chmod(place or handle, mode)
    finally:
        os.close(handle)


def touch(path: PathLike) -> None:
    """Set the times of something of ours, no link to it, to now."""
    with Way(path) as way:
        os.utime(way.name, dir_fd=way.parent, follow_symlinks=way.name == ".")


def replace(source: PathLike, target: PathLike) -> None:
    """Give a file another name, which another one may have had until then."""
    with Way(source) as old, Way(target) as new:
        os.replace(old.name, new.name, src_dir_fd=old.parent, dst_dir_fd=new.parent)
