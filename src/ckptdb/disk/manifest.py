"""manifest.json: the list of a checkpoint's files, and their comparison with it.

It is written last. Its presence says that all it lists was durable before it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from ckptdb.core.filenames import as_names, as_texts
from ckptdb.core.observed import Manifest
from ckptdb.core.records import CheckpointProblem, ProblemKind
from ckptdb.core.text import is_storable
from ckptdb.disk import fsutil, names, paths
from ckptdb.disk.json_file import MAX_BYTES, load_json
from ckptdb.errors import UnreadableInfo

OWN = frozenset({names.MANIFEST, names.WRITER})
"""Names that no manifest lists."""
WITHOUT = "written without a manifest"
"""Why a checkpoint cannot be verified that NeMo-RL has written, or whose manifest is gone."""
_LONGEST_FAULT = 400
_MOST_BYTES = 2 * MAX_BYTES
"""Largest manifest that is read: a million files with names of a hundred letters."""
_LISTED = frozenset({stat.S_IFREG, stat.S_IFLNK})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing files with a manifest; both None if they are as they were saved.

    Attributes:
        damage: Differences, in words.
        kind: ``"corrupt"`` when a content differs, ``"damaged"`` when a file or its size does.
        doubt: Reason why the files could not be compared.
    """

    damage: str | None = None
    doubt: str | None = None
    kind: ProblemKind = "damaged"

    @property
    def problem(self) -> CheckpointProblem | None:
        """The problem that a checkpoint with these files has."""
        return None if self.damage is None else CheckpointProblem(self.kind, self.damage)


_FIELDS = tuple(field.name for field in fields(Manifest))
_BY_NAME = ("files", "checksums", "targets")
_OPTIONAL = frozenset(f.name for f in fields(Manifest) if f.default_factory is not MISSING)


def list_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file of a checkpoint; symlinks count as themselves.

    Pipes, sockets and devices hold nothing, and are left out.
    """
    return _sizes(stat_files(folder))


def list_files_and_targets(folder: Path) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Return the files of a staged checkpoint, what its links lead to, and the links to nothing.

    Sizes in bytes by path below the checkpoint, as in `Manifest`.
    """
    found = stat_files(folder)
    targets, dangling = dict[str, int](), list[str]()
    for name in sorted(name for name, file in found.items() if stat.S_ISLNK(file.st_mode)):
        try:
            target = paths.find_stat(folder / name)
        except OSError as error:
            if error.errno in _NOT_THERE:
                dangling.append(name)
            continue
        if Path(paths.read_link(folder / name)).is_relative_to(folder):
            dangling.append(name)  # as soon as the directory has its final name
        elif stat.S_ISREG(target.st_mode):
            targets[name] = target.st_size
    return _sizes(found), targets, dangling


def _sizes(found: Mapping[str, os.stat_result]) -> dict[str, int]:
    return {
        name: found[name].st_size
        for name in sorted(found)
        if name not in OWN and stat.S_IFMT(found[name].st_mode) in _LISTED
    }


def stat_files(folder: Path) -> dict[str, os.stat_result]:
    """Return what every file below a directory is, by its path there; follows no symlink."""
    found = {}
    for below, entries in paths.walk(folder):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                found[below + entry.name] = entry.stat(follow_symlinks=False)
    return found


def write(folder: Path, manifest: Manifest, *, make_durable: bool) -> None:
    """Put the manifest into a checkpoint directory, replacing an earlier one in one step."""
    content = {name: getattr(manifest, name) for name in _FIELDS}
    content = {name: value for name, value in content.items() if value or name not in _OPTIONAL}
    content |= {name: as_texts(content[name]) for name in _BY_NAME if name in content}
    fsutil.write_json(folder / names.MANIFEST, content, durable=make_durable)


def is_there(folder: Path) -> bool:
    """Tell whether a checkpoint has a manifest, readable or not."""
    return os.path.lexists(f"{folder}/{names.MANIFEST}")


def find(folder: Path) -> Manifest | None:
    """Return a checkpoint's manifest, or None when it has none.

    Raises:
        UnreadableInfo: It has one that cannot be trusted.
    """
    try:
        content, _ = load_json(f"{folder}/{names.MANIFEST}", _MOST_BYTES)
    except UnreadableInfo as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        # What a newer version has to say beside is not for us.
        known = {name: content[name] for name in _FIELDS if name in content}
        known |= {name: as_names(known[name]) for name in _BY_NAME if name in known}
        manifest = Manifest(**known)
    except (TypeError, AttributeError, ValueError) as error:
        raise UnreadableInfo(
            folder / names.MANIFEST, "does not have the fields of a manifest"
        ) from error
    if not _sound(manifest):
        raise UnreadableInfo(folder / names.MANIFEST, "has fields of the wrong type")
    return manifest


def verify(folder: Path, manifest: Manifest) -> Compared:
    """Compare the files of a checkpoint with its manifest, as far as their sizes tell.

    A listed file that is missing, or of another size, is damage; files beyond the list are not.
    """
    return join([compare_file(folder, name, manifest) for name in manifest.files])


def compare_file(folder: Path, name: str, manifest: Manifest) -> Compared:
    """Compare a file of a checkpoint with its manifest, as far as its size tells.

    A link has to lead to something. A listed file may have been moved elsewhere and linked, and a
    link to a file may have been replaced by that file: what counts is the size of what is read.
    """
    path = folder / name
    try:
        found = paths.get_status(path)
        if stat.S_ISLNK(found.st_mode):
            return _compare_link(folder, name, manifest, own_size=found.st_size)
    except OSError as error:
        return unreadable(name, error)
    return _compare(name, found, manifest.targets.get(name, manifest.files[name]))


def unreadable(name: str, error: OSError) -> Compared:
    """Return the result for a file that cannot be read: a doubt without permission, else damage.

    Args:
        name: Name of the file.
        error: Error of reading it.
    """
    fault = f"{name}: {error.strerror}"
    return Compared(doubt=fault) if error.errno in _FORBIDDEN else Compared(damage=fault)


def _compare(name: str, found: os.stat_result, size: int) -> Compared:
    if stat.S_ISDIR(found.st_mode):
        return Compared(f"{name}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(found.st_mode):
        return Compared(f"{name}: is no regular file any more")
    if found.st_size < size:
        return Compared(f"{name}: {found.st_size} of {size} bytes")
    if found.st_size > size:
        return Compared(f"{name}: {found.st_size} bytes instead of {size}")
    return Compared()


def _compare_link(folder: Path, name: str, manifest: Manifest, *, own_size: int) -> Compared:
    path, size = folder / name, manifest.targets.get(name)
    try:
        found = paths.find_stat(path)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return Compared(f"{name}: leads to {paths.read_link(path)}, which is not there")
        return unreadable(name, error)
    listed = manifest.files[name]
    if size is None and own_size != listed:
        size = listed  # a file when it was saved, and a link to it since
    if size is not None:
        return _compare(f"{name} (a link)", found, size)
    if stat.S_ISREG(found.st_mode) and found.st_size == listed:
        return Compared()
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return Compared()  # what lies in the checkpoint is listed under its own name
    return Compared(doubt=f"{name} leads out of it, to what the manifest does not list")


def join(found: Sequence[Compared]) -> Compared:
    """Merge the results of comparing several files."""
    faults = [one for one in found if one.damage]
    is_corrupt = any(one.kind == "corrupt" for one in faults)
    return Compared(
        damage([one.damage for one in faults if one.damage]),
        next((one.doubt for one in found if one.doubt), None),
        "corrupt" if is_corrupt else "damaged",
    )


def damage(faults: Sequence[str]) -> str | None:
    """Return the problem of a checkpoint whose files have some faults; None without any."""
    if not faults:
        return None
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""  # noqa: PLR2004  # a line
    text = "damaged: " + "; ".join(map(_shorten, faults[:3])) + more
    return text.encode(errors="backslashreplace").decode()  # names may be bytes of any kind


def _shorten(fault: str) -> str:
    """Leave out the middle of what is too long for a line: a name may be thousands of levels."""
    if len(fault) <= _LONGEST_FAULT:
        return fault
    half = _LONGEST_FAULT // 2
    return f"{fault[:half]}…{fault[-half:]}"


def _sound(manifest: Manifest) -> bool:
    times = (manifest.created_at, manifest.finalized_at)
    optional = (manifest.parent, manifest.replaces)
    return (
        _is_uuid(manifest.uuid)
        and all(_is_text(text) for text in times)
        and all(text is None or _is_text(text) for text in optional)
        and _is_size(manifest.step)
        and isinstance(manifest.files, dict)
        and all(_safe(name) and _is_size(size) for name, size in manifest.files.items())
        and _is_size(manifest.size_bytes)
        and isinstance(manifest.checksums, dict)
        and all(_is_text(checksum) for checksum in manifest.checksums.values())
        and isinstance(manifest.targets, dict)
        and all(_is_size(size) for size in manifest.targets.values())
    )


def _is_text(text: object) -> bool:
    return isinstance(text, str) and is_storable(text)


def _is_uuid(text: object) -> bool:
    # It becomes part of a directory's name in the trash.
    return isinstance(text, str) and _UUID.fullmatch(text) is not None


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63


def _safe(name: str) -> bool:
    # A listed name is joined to the directory: it must be a path, and not lead out of it.
    try:
        if not name.isascii():
            os.fsencode(name)
    except UnicodeEncodeError:
        return False
    if len(name) > paths.LONGEST:
        return False
    inside = not name.startswith("/") and ".." not in name.split("/")
    return bool(name) and "\0" not in name and inside
