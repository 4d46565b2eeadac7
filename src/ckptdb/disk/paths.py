"""Files and directories by path, without following a symlink below a run; see `safe_path`.

What is asked here of a path below a run follows no symlink that somebody has put there, and uses
nothing that is not what it should be.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdb.disk import ownership
from ckptdb.disk.safe_path import (
    FOLDER,
    NOT_AS_IT_SHOULD_BE,
    DirectoryId,
    PathLike,
    ResolvedPath,
    anchored,
    as_directory_id,
    describe_kind,
    is_anchored,
    is_ours,
    lies_in_ours,
    refuse_foreign,
)
from ckptdb.errors import Obstructed

_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MOST_LEVELS = 2000
LONGEST = 128 * 1024
"""Letters of a path; what is deeper is not gone through: its paths alone would fill any memory."""


def find_directory_id(directory: Path, *, below: Path | None = None) -> DirectoryId | None:
    """Return which directory has a name now, None when there is none.

    Args:
        directory: Its path.
        below: A directory that it is in, from which on no symlink is followed; None follows all.

    Raises:
        Obstructed: There is one.
    """
    try:
        if below is None:
            return as_directory_id(find_stat(directory))
        with (
            anchored(below),
            ResolvedPath(directory / "-") as resolved,
            resolved.around() as handle,
        ):
            return as_directory_id(os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return None


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
    with ResolvedPath(path, strict=flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0) as resolved:
        handle = _open_file(resolved, path, flags, mode)
        try:
            _refuse_other(os.fspath(path), os.fstat(handle), resolved.parent, sole=sole)
            if flags & os.O_CREAT or sole:
                with resolved.around() as around:
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
    with ResolvedPath(path, strict=False) as resolved:
        handle = _open_file(resolved, path, os.O_RDONLY, 0)
        try:
            # Asked once: there may be very many.
            found = os.fstat(handle)
            _refuse_other(os.fspath(path), found, resolved.parent, sole=False)
        except BaseException:
            os.close(handle)
            raise
        return handle, found


def _open_file(resolved: ResolvedPath, path: PathLike, flags: int, mode: int) -> int:
    try:
        return os.open(resolved.name, flags | _FILE, mode, dir_fd=resolved.parent)
    except OSError as error:
        if error.errno not in NOT_AS_IT_SHOULD_BE:
            raise
        found = os.stat(resolved.name, dir_fd=resolved.parent, follow_symlinks=False)
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
        refuse_foreign(path, found, os.fstat(parent))


def _no_file(path: PathLike, found: os.stat_result) -> Obstructed:
    code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ELOOP
    return Obstructed(path, f"is {describe_kind(found)}, not a regular file", code)


def find_status(path: PathLike) -> os.stat_result | None:
    """Return what has a name, None when nothing does; follows no symlink.

    Raises:
        OSError: It cannot be read now.
    """
    try:
        return get_status(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def get_status(path: PathLike) -> os.stat_result:
    """Return what has a name; follows no symlink.

    Raises:
        OSError: Nothing has it, or it cannot be read now.
    """
    if not is_anchored():
        try:
            return os.lstat(path)  # asked at every question
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    with ResolvedPath(path, strict=False) as resolved:
        return os.stat(resolved.name, dir_fd=resolved.parent, follow_symlinks=False)


def find_stat(path: PathLike) -> os.stat_result:
    """Return what a path leads to, through a symlink too.

    Raises:
        OSError: Nothing, or it cannot be read now.
    """
    if not is_anchored():
        try:
            return os.stat(path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    with ResolvedPath(path, strict=False) as resolved:
        return os.stat(resolved.name, dir_fd=resolved.parent)


def read_link(path: PathLike) -> str:
    """Return what a symlink leads to."""
    with ResolvedPath(path, strict=False) as resolved:
        return os.readlink(resolved.name, dir_fd=resolved.parent)


@contextmanager
def listed(path: PathLike) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a directory, whose entries are good for as long as that is not left.

    Raises:
        OSError: It cannot be listed, or it is deeper than anybody goes.
    """
    try:
        listing = None if is_anchored() else os.scandir(path)
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
    with ResolvedPath(path, strict=not follow) as resolved:
        # "." is the directory that is held, which may have been reached through a symlink.
        nofollow = 0 if follow or resolved.name == "." else os.O_NOFOLLOW
        try:
            handle = os.open(resolved.name, flags | nofollow, dir_fd=resolved.parent)
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
        OSError: It is not there, or it cannot be read now.
    """
    with ResolvedPath(f"{os.fspath(path)}/-"):
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
    with ResolvedPath(path) as resolved, resolved.around() as around:
        os.mkdir(resolved.name, mode, dir_fd=resolved.parent)
        is_shared, folder = lies_in_ours(path), os.fstat(around)
        if is_shared or ownership.helps_in(folder):
            flags = _FILE | os.O_RDONLY | os.O_DIRECTORY
            handle = os.open(resolved.name, flags, dir_fd=resolved.parent)
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
    with ResolvedPath(path) as resolved, resolved.around() as around:
        flags = _FILE | os.O_RDONLY | os.O_DIRECTORY
        handle = os.open(resolved.name, flags, dir_fd=resolved.parent)
        try:
            ownership.give_back(handle, os.fstat(around))
        finally:
            os.close(handle)


def unlink(path: PathLike, *, missing_ok: bool = False) -> None:
    """Take away the name of what is no directory."""
    try:
        with ResolvedPath(path) as resolved:
            os.unlink(resolved.name, dir_fd=resolved.parent)
    except FileNotFoundError:
        if not missing_ok:
            raise


def remove_folder(path: PathLike) -> None:
    """Remove an empty directory."""
    with ResolvedPath(path) as resolved:
        os.rmdir(resolved.name, dir_fd=resolved.parent)


def set_mode(path: PathLike, mode: int) -> None:
    """Change the mode of a directory, no link to one."""
    with ResolvedPath(path) as resolved:
        set_mode_at(resolved.parent, resolved.name, mode)


def set_mode_at(parent: int | None, name: str, mode: int) -> None:
    """Change the mode of a directory, no link to one, which may be one that is not to be read."""
    try:
        handle = os.open(name, _FILE | os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
    except PermissionError:
        handle = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        place = f"/proc/self/fd/{handle}"  # fchmod refuses a handle that only stands for a place
    else:
        place = ""
    try:
        os.chmod(place or handle, mode)
    finally:
        os.close(handle)


def touch(path: PathLike) -> None:
    """Set the times of something of ours, no link to it, to now."""
    with ResolvedPath(path) as resolved:
        os.utime(resolved.name, dir_fd=resolved.parent, follow_symlinks=resolved.name == ".")


def replace(source: PathLike, target: PathLike) -> None:
    """Give a file another name, which another one may have had until then."""
    with ResolvedPath(source) as old, ResolvedPath(target) as new:
        os.replace(old.name, new.name, src_dir_fd=old.parent, dst_dir_fd=new.parent)
