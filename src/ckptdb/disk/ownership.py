"""Owners and permissions of our files.

A user's own files follow the umask and the directory's setgid bit, as everybody's do; what lies in
a folder ``.ckptdb`` has the permissions of that folder, for all who may write there write it in
turns, each with a umask of their own. The superuser helps in trees of others: what it makes there
belongs to the owner and the group of the directory that it is made in, with the permissions of that
directory. What is replaced by a new file of the same name keeps its owner, group and permissions.

All of it is done by descriptor, before the file has its name.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_FILE: Final = 0o666
_FOLDER: Final = 0o777
NOBODY: Final = 65534
"""Owner that files seem to have whose owner is not known here."""
# A POSIX ACL as the kernel hands it out: a version, then tag, permissions and id of each entry.
_ACL: Final = "system.posix_acl_access"
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _NAMED_USER, _GROUP, _NAMED_GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_VERSION, _NO_ID = 2, 0xFFFFFFFF
_READ, _WRITE = 4, 2


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
    most: int = _FILE,
) -> Ownership:
    """Return what a new file or directory is to have.

    Args:
        me: Effective user id of this process.
        made: What it has been created with.
        folder: That of the directory that it is made in.
        before: That of the file that it replaces.
        most: The permissions that it may have at all.
    """
    helps = _helps(me, folder.uid)
    if before is not None:
        # What the superuser has left in the tree of a user goes to that user.
        is_stray = before.uid == 0 and helps
        uid, gid = (folder.uid, folder.gid) if is_stray else (before.uid, before.gid)
        return Ownership(uid if me == 0 else made.uid, gid, before.mode & most)
    if not helps:
        return made
    # The owner's own bits are no matter of the directory's: it may be protected for the moment.
    kept = made.mode & stat.S_ISGID | most & stat.S_IRWXU
    return Ownership(folder.uid, folder.gid, folder.mode & most | kept)


def may_write(folder: str | os.PathLike[str], *, within: int | None = None) -> bool:
    """Tell whether this process may make and remove names in a directory.

    Args:
        folder: Its path.
        within: Handle of the directory that the path is relative to.
    """
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, dir_fd=within, effective_ids=effective)


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
    most: int = _FOLDER,
) -> None:
    """Give a new file or directory, which has no name yet, the owner and permissions that it needs.

    Where that is not permitted it has what it was created with, or less. See `decide`.

    Args:
        handle: It, open.
        folder: The directory that it is made in.
        before: The file that it replaces.
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
    # Of a file that has another name elsewhere nothing is changed; and what only the superuser may
    # read may be something else, to which the user has given this name.
    is_only_here = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
    if found.st_uid == 0 and is_only_here and found.st_mode & stat.S_IROTH:
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


def share(handle: int, folder: int, *, with_readers: bool) -> None:
    """Let something of ours be opened by those who may write its directory, whatever the umask.

    They may take it away as well. Whoever can open a file for reading can hold its lock. Where it
    is not this user's, it stays as it is.

    Args:
        handle: It, open.
        folder: Its directory, open.
        with_readers: Who may only look into the directory may read it; else nobody else may.
    """
    around, found = os.fstat(folder), os.fstat(handle)
    if os.geteuid() not in (0, found.st_uid) or (found.st_uid == 0 and helps_in(around)):
        return
    if around.st_mode & stat.S_IWGRP and found.st_gid != around.st_gid:
        with suppress(OSError):  # not in that group
            os.fchown(handle, -1, around.st_gid)
            found = os.fstat(handle)
    acl, is_told = None, False
    with suppress(_Untold):
        # A handle that only stands for a place is asked by its path.
        acl, is_told = _find_acl(f"/proc/self/fd/{folder}"), True
    wanted = Access.to(around, acl).grant(found, with_readers=with_readers)
    if is_told:
        with suppress(_Untold):
            if wanted.acl != _find_acl(handle):
                _set_acl(handle, wanted.acl)
            if wanted.acl is not None:
                return
    set_mode(handle, wanted.mode)


@dataclass(frozen=True, slots=True)
class Grant:
    """The permissions of one file or directory.

    Attributes:
        mode: As far as these can say it.
        acl: Where they cannot, and None where they can.
    """

    mode: int
    acl: bytes | None


@dataclass(frozen=True, slots=True)
class Access:
    """Permissions on a directory, by user: 4 to list, 2 to write, 1 to enter.

    Attributes:
        users: By user id.
        groups: By group id.
        others: Everybody else.
    """

    users: Mapping[int, int]
    groups: Mapping[int, int]
    others: int

    @classmethod
    def to(cls, folder: os.stat_result, acl: bytes | None) -> Access:
        """Return that of a directory, which may have an ACL."""
        mode = folder.st_mode
        if acl is None:
            users, groups = {folder.st_uid: mode >> 6 & 7}, {folder.st_gid: mode >> 3 & 7}
            return cls(users, groups, mode & 7)
        entries = list(_ENTRY.iter_unpack(acl[_HEAD.size :]))
        # The mask is for all but the owner and those whom no entry is about.
        most = next((allowed for tag, allowed, _ in entries if tag == _MASK), 7)
        users, groups, others = {}, {}, 0
        for tag, allowed, who in entries:
            if tag in (_GROUP, _NAMED_GROUP):
                groups[folder.st_gid if tag == _GROUP else who] = allowed & most
            elif tag == _NAMED_USER:
                users[who] = allowed & most
            elif tag == _OTHERS:
                others = allowed
        users[folder.st_uid] = mode >> 6 & 7
        return cls(users, groups, others)

    def grant(self, found: os.stat_result, *, with_readers: bool) -> Grant:
        """Return the permissions of something in the directory that has an owner and a group."""
        whole = 7 if stat.S_ISDIR(found.st_mode) else 6

        def allow(allowed: int) -> int:
            if allowed & _WRITE:
                return whole
            return whole & ~_WRITE if with_readers and allowed & _READ else 0

        group, others = allow(self.groups.get(found.st_gid, self.others)), allow(self.others)
        users = {who: allow(may) for who, may in self.users.items() if who not in (0, found.st_uid)}
        groups = {who: allow(may) for who, may in self.groups.items() if who != found.st_gid}
        setgid = found.st_mode & stat.S_ISGID
        mode = setgid | whole << 6 | group << 3 | others
        if not (users or groups):
            return Grant(mode, None)
        lines = [
            (_OWNER, whole, _NO_ID),
            *((_NAMED_USER, may, who) for who, may in sorted(users.items())),
            (_GROUP, group, _NO_ID),
            *((_NAMED_GROUP, may, who) for who, may in sorted(groups.items())),
            (_MASK, whole, _NO_ID),
            (_OTHERS, others, _NO_ID),
        ]
        acl = _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*line) for line in lines)
        return Grant(mode, acl)


class _Untold(Exception):  # a signal to the caller, not an error
    """An ACL cannot be read or set."""


def _find_acl(file: int | str) -> bytes | None:
    try:
        return os.getxattr(file, _ACL)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise _Untold from error
    except AttributeError as error:
        raise _Untold from error


def _set_acl(handle: int, acl: bytes | None) -> None:
    try:
        if acl is None:
            os.removexattr(handle, _ACL)
        else:
            os.setxattr(handle, _ACL, acl)
    except OSError as error:
        raise _Untold from error
