"""manifest.json: which files a checkpoint is made of, and whether they are still there.

It is written last. Its presence says that all it lists was durable before it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from ckptdb.disk import durable, names
from ckptdb.disk.info import load_json
from ckptdb.errors import UnreadableInfo
from ckptdb.records import is_storable

OWN = frozenset({names.MANIFEST, names.WRITER})
"""What no manifest lists."""
DIFFERS = "differs from its checksum"
"""What is said of a file with the size, but not the content, that was saved."""
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What manifest.json holds.

    Attributes:
        parent: uuid of the checkpoint that training continued from.
        replaces: uuid of the published checkpoint that this one takes the place of.
        files: Size in bytes by path below the checkpoint, POSIX style; the manifest itself
            is not among them.
        checksums: By the same names, ``algorithm:hexadecimal digits``; of none when nobody wanted
            them, or whoever did has not come to it.
    """

    uuid: str
    step: int
    created_at: str
    finalized_at: str
    parent: str | None
    replaces: str | None
    files: Mapping[str, int]
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Sum over the listed files."""
        return sum(self.files.values())


_FIELDS = tuple(field.name for field in fields(Manifest))
_OPTIONAL = frozenset(f.name for f in fields(Manifest) if f.default_factory is not MISSING)


def list_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file of a checkpoint; symlinks count as themselves."""
    found = stat_files(folder)
    return {name: found[name].st_size for name in sorted(found) if name not in OWN}


def stat_files(folder: Path) -> dict[str, os.stat_result]:
    """Return what every file below a directory is, by its path there; follows no symlink."""
    found = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(f"{folder}/{below}") as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{below}{entry.name}/")
                else:
                    found[below + entry.name] = entry.stat(follow_symlinks=False)
    return found


def write(folder: Path, manifest: Manifest, *, make_durable: bool) -> None:
    """Put the manifest into a checkpoint directory, replacing an earlier one in one step."""
    content = {name: getattr(manifest, name) for name in _FIELDS}
    content = {name: said for name, said in content.items() if said or name not in _OPTIONAL}
    durable.write_json(folder / names.MANIFEST, content, durable=make_durable)


def find(folder: Path) -> Manifest | None:
    """Return a checkpoint's manifest, or None when it has none.

    Raises:
        UnreadableInfo: It has one that cannot be trusted.
    """
    try:
        content, _ = load_json(f"{folder}/{names.MANIFEST}")
    except UnreadableInfo as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        # What a newer version has to say beside is not for us.
        manifest = Manifest(**{name: content[name] for name in _FIELDS if name in content})
    except TypeError as error:
        raise UnreadableInfo(
            folder / names.MANIFEST, "does not have the fields of a manifest"
        ) from error
    if not _sound(manifest):
        raise UnreadableInfo(folder / names.MANIFEST, "has fields of the wrong type")
    return manifest


def verify(folder: Path, manifest: Manifest) -> str | None:
    """Say what is wrong with the files of a checkpoint, or None.

    A listed file that is missing or has shrunk is damage; files beyond the list are not.
    """
    faults = (find_fault(folder, name, size) for name, size in manifest.files.items())
    return damage([fault for fault in faults if fault])


def find_fault(folder: Path, name: str, size: int) -> str | None:
    """Say what is wrong with a file of a checkpoint as far as its size tells, or None."""
    try:
        found = os.lstat(folder / name)
    except OSError as error:
        return f"{name}: {error.strerror}"
    if stat.S_ISDIR(found.st_mode):
        return f"{name}: {os.strerror(errno.EISDIR)}"
    if found.st_size < size:
        return f"{name}: {found.st_size} of {size} bytes"
    return None


def damage(faults: Sequence[str]) -> str | None:
    """Return the problem of a checkpoint whose files have some faults; None without any."""
    if not faults:
        return None
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""  # noqa: PLR2004  # a line
    return "damaged: " + "; ".join(faults[:3]) + more


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
    inside = not name.startswith("/") and ".." not in name.split("/")
    return bool(name) and "\0" not in name and inside
