"""Whom a file of ours belongs to, and who may read and write it.

A user's own files follow the umask and the directory's setgid bit, as everybody's do; what lies in
a folder ``.ckptdb`` has the permissions of that folder, for all who may write there write it in
turns, each with a umask of their own. The superuser helps in trees of others: what it makes there
belongs to the owner and the group of the directory that it is made in, with the permissions of that
directory. What is replaced by a new file of the same name keeps its owner, group and permissions.

All of it is done by descriptor, before the file has its name.
"""

from __future__ import annotations

import os
import pwd
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_FILE: Final = 0o666
_FOLDER: Final = 0o777
NOBODY: Final = 65534
"""Whom files seem to belong to whose owner is not known here."""
# A POSIX ACL as the kernel hands it out: a version, then tag, permissions and id of each entry.
_ACL: Final = "system.posix_acl_access"
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _NAMED_USER, _GROUP, _NAMED_GROUP, _MASK = 0x01, 0x02, 0x04, 0x08, 0x10
_WRITE, _READ_AND_WRITE = 2, 6


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
    me: int,
    made: Ownership,
    folder: Ownership,
    before: Ownership | None = None,
    *,
    follows: bool = False,
    most: int = _FILE,
) -> Ownership:
    """Return what a new file or directory is to have.

    Args:
        me: Effective user id of this process.
        made: What it has been created with.
        folder: That of the directory that it is made in.
        before: That of the file that it replaces.
        follows: Its permissions are those of the directory, whatever the umask.
        most: The permissions that it may have at all.
    """
    helps = _helps(me, folder.uid)
    if before is not None:
        # What the superuser has left in the tree of a user goes to that user.
        is_stray = before.uid == 0 and helps
        uid, gid = (folder.uid, folder.gid) if is_stray else (before.uid, before.gid)
        return Ownership(uid if me == 0 else made.uid, gid, before.mode & most)
    uid, gid = (folder.uid, folder.gid) if helps else (made.uid, made.gid)
    if not (helps or follows):
        return made
    # The owner's own bits are no matter of the directory's: it may be protected for the moment.
    kept = made.mode & stat.S_ISGID | most & stat.S_IRWXU
    return Ownership(uid, gid, folder.mode & most | kept)


def may_write(folder: str | os.PathLike[str]) -> bool:
    """Tell whether this process may make and remove names in a directory."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def name_of(uid: int) -> str:
    """Return the name of a user, for people."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def helps_in(folder: os.stat_result) -> bool:
    """Tell whether this process is the superuser's, and a directory is a user's."""
    return _helps(os.geteuid(), folder.st_uid)


def _helps(me: int, owner: int) -> bool:
    return me == 0 and owner not in (0, NOBODY)


def settle(
    handle: int,
    folder: os.stat_result,
    before: os.stat_result | None = None,
    *,
    follows: bool = False,
    most: int = _FOLDER,
) -> None:
    """Give a new file or directory, which has no name yet, the owner and permissions that it needs.

    Where that is not permitted it has what it was created with, or less. See `decide`.

    Args:
        handle: It, open.
        folder: The directory that it is made in.
        before: The file that it replaces.
        follows: Its permissions are those of the directory, whatever the umask.
        most: The permissions that it may have at all.
    """
    found = os.fstat(handle)
    made = Ownership.of(found)
    wanted = decide(
        os.geteuid(),
        made,
        Ownership.of(folder),
        # A symlink has permissions that say nothing.
        Ownership.of(before) if before and stat.S_ISREG(before.st_mode) else None,
        follows=follows,
        most=most if stat.S_ISDIR(found.st_mode) else most & _FILE,
    )
    has_group = _change_owner(handle, made, wanted)
    # What one group was to see is not for another.
    set_mode(handle, wanted.mode if has_group else wanted.mode & made.mode)


def give_back(handle: int, folder: os.stat_result) -> None:
    """Give a file or directory that the superuser has left in the tree of a user to that user."""
    if not helps_in(folder):
        return
    found = os.fstat(handle)
    # Of a file that has another name elsewhere nothing is changed.
    if found.st_uid == 0 and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
        _change_owner(handle, Ownership.of(found), Ownership.of(folder))


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


def let_writers_open(handle: int, folder: int) -> None:
    """Let a file be opened by those who may write its directory, and by nobody else.

    Whoever can open a file for reading can hold its lock. Whatever the umask says: who may write
    the directory may take it as well. Where it is not this user's, it stays as it is.

    Args:
        handle: The file, open.
        folder: Its directory, open.
    """
    found = os.fstat(handle)
    if os.geteuid() not in (0, found.st_uid):
        return
    acl = _find_acl(f"/proc/self/fd/{folder}")  # a handle that only stands for a place has none
    wanted = None if acl is None else acl_for_writers(acl)
    if wanted != _find_acl(handle):
        with suppress(OSError):
            _set_acl(handle, wanted)
    if wanted is None:
        set_mode(handle, mode_for_writers(os.fstat(folder)))


def mode_for_writers(folder: os.stat_result) -> int:
    """Return the permissions of a file that only those can open who may write its directory."""
    mode = 0o600
    if folder.st_mode & stat.S_IWGRP:
        mode |= 0o060
    if folder.st_mode & stat.S_IWOTH:
        mode |= 0o006
    return mode


def acl_for_writers(acl: bytes) -> bytes:
    """Return the ACL of a file that only those can open who may write a directory with an ACL."""
    entries = list(_ENTRY.iter_unpack(acl[_HEAD.size :]))
    most = next((allowed for tag, allowed, _ in entries if tag == _MASK), 7)
    lines = [acl[: _HEAD.size]]
    for tag, allowed, who in entries:
        # The mask is for all but the owner and those whom no entry is about.
        counts = allowed & most if tag in (_NAMED_USER, _GROUP, _NAMED_GROUP) else allowed
        may = tag in (_OWNER, _MASK) or counts & _WRITE
        lines.append(_ENTRY.pack(tag, _READ_AND_WRITE if may else 0, who))
    return b"".join(lines)


def _find_acl(file: int | str) -> bytes | None:
    with suppress(AttributeError, OSError):  # not on every system, nor on every file system
        return os.getxattr(file, _ACL)
    return None


def _set_acl(handle: int, acl: bytes | None) -> None:
    if acl is None:
        os.removexattr(handle, _ACL)
    else:
        os.setxattr(handle, _ACL, acl)
