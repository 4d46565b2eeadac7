"""Whom a file of ours belongs to, and who may read and write it.

A user's own files follow the umask and the directory's setgid bit, as everybody's do. The superuser
helps in trees of others: what it makes there belongs to the owner and the group of the directory
that it is made in, with the permissions of that directory, for the superuser's own umask says
nothing about them. What is replaced by a new file of the same name keeps its owner, group and
permissions.

All of it is done by descriptor, before the file has its name.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_FILE: Final = 0o666
_FOLDER: Final = 0o777
NOBODY: Final = 65534
"""Whom files seem to belong to whose owner is not known here."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owner, group and permissions, as `os.stat` gives them."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Ownership:
        """Return that of a file or directory."""
        return cls(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


def decide(
    me: int, made: Ownership, folder: Ownership, before: Ownership | None, *, most: int
) -> Ownership:
    """Return what a new file or directory is to have.

    Args:
        me: Effective user id of this process.
        made: What it has been created with.
        folder: That of the directory that it is made in.
        before: That of the file that it replaces.
        most: The permissions that it may have at all.
    """
    helps = me == 0 and folder.uid not in (0, NOBODY)
    if before is not None:
        # What the superuser has left in the tree of a user goes to that user.
        is_stray = before.uid == 0 and helps
        uid, gid = (folder.uid, folder.gid) if is_stray else (before.uid, before.gid)
        return Ownership(uid if me == 0 else made.uid, gid, before.mode & most)
    if not helps:
        return made
    # The owner's own bits are no matter of the directory's: it may be protected for the moment.
    kept = made.mode & (stat.S_ISGID | stat.S_IRWXU)
    return Ownership(folder.uid, folder.gid, folder.mode & most | kept)


def settle(
    handle: int,
    folder: os.stat_result,
    before: os.stat_result | None = None,
    *,
    mode: int | None = None,
) -> None:
    """Give a new file or directory, which has no name yet, the owner and permissions that it needs.

    Where that is not permitted it has what it was created with, or less.

    Args:
        handle: It, open.
        folder: The directory that it is made in.
        before: The file that it replaces.
        mode: Permissions that it is to have in any case, see `mode_for_writers`.
    """
    found = os.fstat(handle)
    made = Ownership.of(found)
    most = _FOLDER if stat.S_ISDIR(found.st_mode) else _FILE
    wanted = decide(
        os.geteuid(), made, Ownership.of(folder), before and Ownership.of(before), most=most
    )
    has_group = _change_owner(handle, made, wanted)
    if mode is None:
        # What one group was to see is not for another.
        mode = wanted.mode if has_group else wanted.mode & made.mode
    set_mode(handle, mode)


def set_mode(handle: int, mode: int) -> None:
    """Set permissions, where they are others and this user may."""
    # Left alone where they are right: to set them may cost a directory its setgid bit.
    if mode != stat.S_IMODE(os.fstat(handle).st_mode):
        with suppress(OSError):
            os.fchmod(handle, mode)


def _change_owner(handle: int, made: Ownership, wanted: Ownership) -> bool:
    """Tell whether it has the wanted group afterwards."""
    if (wanted.uid, wanted.gid) == (made.uid, made.gid):
        return True
    uid = wanted.uid if wanted.uid != made.uid else -1
    try:
        os.fchown(handle, uid, wanted.gid)
    except OSError:  # not in that group, or on a file system without owners
        return wanted.gid == made.gid
    return True


def mode_for_writers(folder: os.stat_result) -> int:
    """Return the permissions of a file that only those can open who may write its directory."""
    mode = 0o600
    if folder.st_mode & stat.S_IWGRP:
        mode |= 0o060
    if folder.st_mode & stat.S_IWOTH:
        mode |= 0o006
    return mode


def mode_for_readers(folder: os.stat_result) -> int:
    """Return the permissions of a file that those can read who may look into its directory."""
    return folder.st_mode & _FILE | 0o600
