"""Marks of roots: root.json, and whose mark counts."""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptdb.core.times import utc
from ckptdb.disk import (
    fsutil,
    identity,
    ownership,
    paths,
)
from ckptdb.errors import RootRefused

_ROOT = "root.json"


@dataclass(frozen=True, slots=True)
class Marker:
    """The mark of a root, and whether this process goes by it.

    Attributes:
        root: The directory that is marked.
        owner: User id of whoever marked it.
        counts: True if the root is used. The same for every process: a trainer, the command
            line, a reader.
        why: Why it counts or does not, as the end of a sentence.
    """

    root: Path
    owner: int
    counts: bool
    why: str

    @property
    def owner_name(self) -> str:
        """Name of the owner, for people."""
        return ownership.name_of(self.owner)

    def __str__(self) -> str:
        return f"{self.root} is marked as a root by {self.owner_name}, {self.why}"


def find_root(directory: Path) -> Path | None:
    """Return the nearest directory at or above ``directory`` whose mark as a root counts.

    Raises:
        OSError: It cannot be read now; taking that for a no would begin another root.
    """
    return next((m.root for m in find_markers(directory) if m.counts), None)


def find_markers(directory: Path) -> Iterator[Marker]:
    """Yield the marks of roots at and above a directory, the nearest first; see `find_root`."""
    for folder in (directory, *directory.parents):
        marker = find_marker(folder, below=directory)
        if marker is not None:
            yield marker


def find_marker(root: Path, *, below: Path | None = None) -> Marker | None:
    """Return the mark of a directory as a root, judged by who may write there.

    A mark decides where the history of runs goes. It counts when it was made by somebody who could
    do anything to them anyway: this user, the superuser, the owner of the root or of a directory on
    the way down. Else it counts where this user may write into the root's folder and strangers may
    not, as in a directory of a group. What anybody may have put there, e.g. into ``/tmp``, does
    not.

    Args:
        root: The directory.
        below: Directory in it that is concerned.

    Raises:
        OSError: It cannot be read now.
    """
    folder = identity.hidden(root)
    try:
        mark = os.lstat(folder / _ROOT)
        found, place = os.lstat(folder), os.stat(root)
        owners = {mark.st_uid, found.st_uid, os.stat(folder).st_uid}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    me = os.geteuid()
    if owners <= {me, 0}:
        return Marker(root, mark.st_uid, counts=True, why="which is this user or the superuser")
    if owners <= {me, 0, *_owners_between(root, below or root)}:
        return Marker(root, mark.st_uid, counts=True, why="who owns a directory on the way there")
    refused = _find_doubt(root, place, found)
    why = refused or "and this user may write there, too"
    return Marker(root, mark.st_uid, counts=refused is None, why=why)


def _owners_between(root: Path, below: Path) -> set[int]:
    """Return who owns a root or a directory on the way down from it to a run."""
    owners = set()
    for folder in (below, *below.parents):
        with suppress(OSError):  # not made yet
            owners.add(os.stat(folder).st_uid)
        if folder == root:
            break
    # In a container all users of the host that it does not know are one.
    return owners - {ownership.NOBODY}


def _find_doubt(root: Path, place: os.stat_result, found: os.stat_result) -> str | None:
    """Return why the mark of another user does not count, or None."""
    folder = identity.hidden(root)
    if place.st_mode & (stat.S_IWOTH | stat.S_ISVTX):
        return f"and {root} is open to users who have no say over its runs"
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_IWOTH:
        return f"and {folder} is open to everybody"
    if not ownership.may_write(folder):
        return f"and this user may not write into {folder}"
    return None


def mark_root(directory: Path, *, make_durable: bool = True) -> None:
    """Mark a directory as a root; marking it again changes nothing.

    Raises:
        RootRefused: Somebody has marked it whose mark does not count.
    """
    raise_if_refused(directory)
    if fsutil.is_there(identity.hidden(directory) / _ROOT):
        return
    fsutil.make_directories(identity.hidden(directory), durable=make_durable)
    content = {"uuid": str(uuid.uuid4()), "created_at": utc(time.time())}
    fsutil.write_json(identity.hidden(directory) / _ROOT, content, durable=make_durable)


def raise_if_refused(directory: Path) -> None:
    """Refuse to use the folder of a root that somebody has marked whose mark does not count."""
    marker = find_marker(directory)
    if marker is not None and not marker.counts:
        raise RootRefused(directory, marker.owner_name, marker.why)


def unmark_root(directory: Path) -> None:
    """Take a root's mark away."""
    paths.unlink(identity.hidden(directory) / _ROOT, missing_ok=True)


def is_root(directory: Path) -> bool:
    """Tell whether this very directory is marked as a root, by a mark that counts."""
    marker = find_marker(directory)
    return marker is not None and marker.counts
