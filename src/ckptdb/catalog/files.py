"""The files of a SQLite catalog: looked at before each use, made, opened and copied.

SQLite opens whatever has the name of a catalog, waits for ever for the other end of a named pipe,
writes through links, and plays back whatever has the name of the journal: one that names a
super-journal makes it remove any file that this process may remove. A catalog lies where others may
write, too; so nothing here or elsewhere in `catalog` opens one but through `connect`.

What happens between the look and SQLite's own opening, nobody can see: who may write into the
folder, and strikes within those microseconds, is not kept out.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote_from_bytes

from ckptdb.catalog.location import FOLDER
from ckptdb.errors import CatalogBroken, CatalogTampered, CatalogUnusable

_Raw = TypeVar("_Raw", bound=sqlite3.Connection)

_SMALLEST_BYTES: Final = 512
"""A SQLite database has at least one page."""

READING: Final = "ro"
"""The mode of a connection that writes nothing, not even what a journal says."""

JOURNAL: Final = "-journal"
WAL: Final = "-wal"
SHM: Final = "-shm"
BESIDE: Final = (JOURNAL, WAL, SHM)
"""What SQLite has beside a database, as endings of its name."""

_KINDS: Final = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)

_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_TRAILER_BYTES: Final = 16
"""What a journal that names a super-journal ends with: length of that name, checksum, magic."""


class FileState(
    NamedTuple
):  # made before every question, and a dataclass takes three times as long
    """A file from outside, to be compared with a later look."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def look_at(file: Path) -> FileState | None:
    """Return what a file looks like from outside, None when it is not there; follows no link."""
    try:
        found = os.lstat(file)
    except OSError:
        return None
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def identity_of(file: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, None when it is not there."""
    look = look_at(file)
    return None if look is None else (look.device, look.inode)


def size_on_disk(file: Path | None) -> int:
    """Return the bytes that a file takes; what a sparse one only claims does not count."""
    try:
        return 0 if file is None else os.lstat(file).st_blocks * 512
    except OSError:
        return 0


def exists(file: Path) -> bool:
    """Whether there is a file; one without a byte was never more than opened.

    Only looks from outside: closing a descriptor of ours on a database file would drop the
    locks that SQLite holds on it in this process.

    Raises:
        CatalogUnusable: What is there must not be opened: no regular file, a link, one of several
            names of a file, or a stranger's.
        CatalogBroken: It is shorter than any database.
    """
    found = _find_own(file, "", "it")
    if found is None:
        return False
    if (why := _find_obstacle_of_folder(file.parent)) is not None:
        raise CatalogUnusable(str(file), f"it {why}")
    if 0 < found.st_size < _SMALLEST_BYTES:
        # SQLite takes it for an empty database and would write over it.
        raise CatalogBroken(str(file), "it is shorter than any database")
    return found.st_size > 0


def look_beside(file: Path) -> bool:
    """Look at the files that SQLite would play back or write; tell whether a journal holds bytes.

    Raises:
        CatalogUnusable: One of them must not be opened.
        CatalogTampered: The journal names a super-journal, which ours never do.
    """
    journal = _find_own(file, JOURNAL, "its journal")
    has_bytes = journal is not None and journal.st_size > 0
    if has_bytes and names_super_journal(file):
        raise CatalogTampered(str(file), "a journal that makes SQLite remove another file")
    if _find_own(file, WAL, "its write-ahead log") is not None:
        _find_own(file, SHM, "the index of its write-ahead log")
    return has_bytes


def connect(
    file: Path, *, mode: str, timeout_seconds: float, factory: type[_Raw], **options: Any
) -> _Raw:
    """Open a connection to a catalog's file, once that and what is beside it may be opened.

    Args:
        file: The database.
        mode: ``ro``, which also never plays back a journal, ``rw``, or ``rwc`` to create it.
        timeout_seconds: How long to wait for locks of others.
        factory: The class of the connection.
        options: Of `sqlite3.connect`.

    Raises:
        CatalogUnusable: What is there must not be opened.
        CatalogTampered: Its journal would make SQLite remove a file.
        sqlite3.Error: SQLite cannot open it.
    """
    before = identity_of(file)
    uri = find_uri(file, mode=mode)
    raw: _Raw = sqlite3.connect(
        uri, uri=True, timeout=max(timeout_seconds, 0), factory=factory, **options
    )
    if before is not None and identity_of(file) != before:
        raw.close()
        raise CatalogUnusable(str(file), "another process moved or replaced it meanwhile")
    return raw


def find_uri(file: Path, *, mode: str) -> str:
    """Return the ``file:`` URI of a catalog that may be opened, whatever bytes its name is made of.

    For those alone who cannot call `connect`, as in another process.

    Raises:
        CatalogError: As `connect`.
    """
    exists(file)
    _find_own(file, SHM, "the index of its write-ahead log")
    look_beside(file)
    return f"file:{quote_from_bytes(os.fsencode(file))}?mode={mode}"


def _find_own(file: Path, ending: str, what: str) -> os.stat_result | None:
    """Return a file of a catalog that may be opened, None when it is not there."""
    # A text: this is done before every question, and a Path takes longer than the look.
    name = os.fspath(file) + ending
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error
    is_plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    if is_plain and found.st_uid in (0, os.geteuid()):
        return found
    if (why := _find_obstacle(Path(name), found)) is not None:
        named = f"{what} {os.path.basename(name)}" if ending else what
        raise CatalogUnusable(str(file), f"{named} {why}")
    return found


def _find_obstacle(path: Path, found: os.stat_result) -> str | None:
    """Return why a file must not be opened, as the end of a sentence."""
    if stat.S_ISLNK(found.st_mode):
        return (
            "is a symbolic link, which is not followed; remove the link, or name the file that it "
            "leads to with --catalog, catalog= or CKPTDB_CATALOG"
        )
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
        return f"is {kind}, not a regular file; move that away"
    if found.st_nlink > 1:
        return (
            "has more names than this one (hard links), and writing would change them all; put a "
            "copy in its place, or remove it"
        )
    if (stranger := _find_stranger(path, found)) is not None:
        return (
            f"belongs to {stranger}, who owns nothing else here; move it away, or change its owner"
        )
    return None


def _find_obstacle_of_folder(folder: Path) -> str | None:
    # Any other folder than our own was named by a person, links and all.
    if folder.name == FOLDER and folder.is_symlink():
        return f"lies in {folder}, which is a symbolic link; put a directory in its place"
    return None


def _find_stranger(path: Path, found: os.stat_result) -> str | None:
    """Return who owns a file that nobody but the owners of this place should have put here."""
    if found.st_uid in (0, os.geteuid()):
        return None
    folder = os.lstat(path.parent)
    owners = {folder.st_uid}
    if path.parent.name == FOLDER:
        with suppress(OSError):
            owners.add(os.lstat(path.parent.parent).st_uid)
    if found.st_uid in owners or _is_shared(folder):
        return None
    try:
        import pwd

        return pwd.getpwuid(found.st_uid).pw_name
    except (ImportError, KeyError):
        return f"user {found.st_uid}"


def _is_shared(folder: os.stat_result) -> bool:
    """Whether several users write into a directory, and each may replace what another wrote."""
    mode = folder.st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX


def names_super_journal(file: Path) -> bool:
    """Tell whether the journal of a catalog would make SQLite remove another file.

    Raises:
        CatalogUnusable: It cannot be read.
    """
    journal = file.with_name(file.name + JOURNAL)
    try:
        # Not waiting: it may have been exchanged for a named pipe just now.
        opened = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # committed meanwhile
    except OSError as error:
        why = f"its journal {journal.name} cannot be read ({error.strerror})"
        raise CatalogUnusable(str(file), why) from error
    try:
        size = os.fstat(opened).st_size
        if size < _TRAILER_BYTES:
            return False
        trailer = os.pread(opened, _TRAILER_BYTES, size - _TRAILER_BYTES)
    finally:
        os.close(opened)
    return trailer.endswith(_JOURNAL_MAGIC) and any(trailer[:4])


# --- making and copying -----------------------------------------------------------------------


def make_folder(file: Path) -> None:
    """Make the folder of a catalog to come, when it is the one that is named for it; and the file.

    Made by SQLite, nobody but its owner could write it, whatever the umask says.
    """
    if exists(file):
        return
    try:
        if file.parent.name == FOLDER and not os.path.lexists(file.parent):
            file.parent.mkdir(exist_ok=True)
            _give_to_owner(file.parent)
        why = _find_obstacle_of_folder(file.parent)
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error
    if why is not None:
        raise CatalogUnusable(str(file), f"it {why}")
    with suppress(OSError):  # where it cannot be made, SQLite will say why
        _make(file, 0o666)
        _give_to_owner(file)


def _make(file: Path, mode: int) -> None:
    """Make an empty file.

    Raises:
        OSError: It cannot be made, or is there.
    """
    try:
        os.mknod(file, mode | stat.S_IFREG)  # not opened: closing it would drop SQLite's locks
    except FileExistsError:
        raise
    except OSError:  # there are file systems, and sandboxes, without that call
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode))


def _give_to_owner(path: Path) -> None:
    """Give what the superuser has just made to the owner of the directory that it is in.

    With the permissions of that one: the superuser's own umask says nothing about them.
    """
    if os.geteuid() != 0:
        return
    folder, made = os.lstat(path.parent), os.lstat(path)
    if folder.st_uid != made.st_uid:
        own = stat.S_IMODE(made.st_mode) & (stat.S_ISGID | stat.S_IRWXU)
        most = 0o777 if stat.S_ISDIR(made.st_mode) else 0o666
        _settle(path, folder.st_uid, folder.st_gid, folder.st_mode & most | own)


def replace_empty(file: Path, aside: Path) -> None:
    """Put an empty file in the place of a catalog that was set aside, as private as that one."""
    try:
        was = os.lstat(aside)
        _make(file, 0o600)
    except OSError:
        return  # then it is made by whoever needs it
    _make_alike(file, was)


def _make_alike(path: Path, model: os.stat_result) -> None:
    """Give a file that was just made the owner, group and mode of another one."""
    _settle(path, model.st_uid, model.st_gid, stat.S_IMODE(model.st_mode) & 0o666)


def _settle(path: Path, uid: int, gid: int, mode: int) -> None:
    """Give what was just made an owner, a group and permissions, as far as this user may."""
    # No ordinary descriptor: closing that would drop the locks that SQLite may hold by now.
    opened = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        through = f"/proc/self/fd/{opened}"  # whatever has the name meanwhile
        with suppress(OSError):
            os.chown(through, uid, gid)
        # What one group was to see is not for another.
        is_of_group = os.fstat(opened).st_gid == gid
        with suppress(OSError):
            os.chmod(through, mode if is_of_group else mode & ~0o070)
    finally:
        os.close(opened)


def copy(source: sqlite3.Connection, file: Path, target: Path) -> Path:
    """Copy a catalog under another name beside it, with its owner and mode; return where it is.

    Args:
        source: A connection to it.
        file: Where it is.
        target: Replaced, whatever it is.

    Raises:
        OSError, sqlite3.Error: It cannot be copied; nothing is left behind.
    """
    # Under a name that nobody can have foreseen: SQLite follows links, and reads journals.
    unfinished = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    try:
        # Not shutil: closing any descriptor on the file drops SQLite's locks on it.
        with closing(
            connect(unfinished, mode="rw", timeout_seconds=0, factory=sqlite3.Connection)
        ) as opened:
            opened.execute("PRAGMA journal_mode = MEMORY")
            source.backup(opened)
        _make_alike(unfinished, os.lstat(file))
        return unfinished.replace(target)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def may_undo(file: Path) -> bool:
    """Whether a question of this process may undo what a crashed writer left in a catalog.

    That is writing: into its own catalog and that of a group, but for nobody else.
    """
    try:
        found, folder = os.lstat(file), os.lstat(file.parent)
    except OSError:
        return False
    is_own = found.st_uid == os.geteuid() or (os.geteuid() != 0 and _is_shared(folder))
    return is_own and os.access(file, os.W_OK) and os.access(file.parent, os.W_OK | os.X_OK)
