"""Published checkpoints, from their files to their records.

There may be very many, and all of them are read when an index is built anew: what stands here
is done a hundred thousand times, and asks the file system for nothing twice.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ckptdb.core import stamp
from ckptdb.core.metrics import metrics_of
from ckptdb.core.observed import Identity, Manifest
from ckptdb.core.records import Checkpoint, CheckpointProblem
from ckptdb.core.times import utc
from ckptdb.disk import (
    identity,
    json_file,
    json_values,
    manifest,
    names,
    paths,
)
from ckptdb.disk.config_file import CONFIGS
from ckptdb.disk.json_file import MAX_BYTES
from ckptdb.disk.manifest import Compared
from ckptdb.errors import UnreadableInfo

DELETING_MODE = stat.S_ISUID | stat.S_ISVTX | stat.S_IRWXU
"""Mode of a checkpoint's directory that is being deleted where it stands.

Nobody gives it to a directory by chance, and to set it takes no space on a full disk.
"""


class BeingDeleted(FileNotFoundError):
    """A checkpoint is being deleted where it stands: to whoever reads, it is gone."""


def is_being_deleted(status: os.stat_result) -> bool:
    """Tell whether a directory is a checkpoint that is being deleted where it stands."""
    return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == DELETING_MODE


class Reading(NamedTuple):
    """A checkpoint as it was read.

    Attributes:
        has_config: True if a configuration is among its files.
        doubt: Why its files could not be compared with a manifest, if that was asked.
    """

    checkpoint: Checkpoint
    has_config: bool
    doubt: str | None


def load(
    who: Identity, path: Path, step: int, *, verify: bool = False, strict: bool = False
) -> Checkpoint:
    """Read one published checkpoint: its manifest when it has one, else its file times.

    What cannot be trusted ends up in ``problem``; only I/O errors are raised.

    Args:
        who: The run.
        path: Its directory.
        step: Step in its name.
        verify: Also compare every listed file with the manifest.
        strict: Raise the I/O error too when a manifest says which one it is, and only its
            training_info.json cannot be read now. Otherwise it is read again at the next look.

    Raises:
        BeingDeleted: It is there, and counts as deleted.
    """
    return read(who, path, step, verify=verify, strict=strict).checkpoint


def read(
    who: Identity, path: Path, step: int, *, verify: bool = False, strict: bool = False
) -> Reading:
    """Return what `load` does, and what else was seen on the way."""
    folder = paths.find_stat(path)  # one behind a symlink is read through it
    if is_being_deleted(folder):
        raise BeingDeleted(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return read_files(who, path, step, folder, verify=verify, strict=strict)


def read_files(
    who: Identity,
    path: Path,
    step: int,
    folder: os.stat_result,
    *,
    verify: bool = False,
    strict: bool = False,
) -> Reading:
    """Do what `read` does for a directory of that status, even of one that is being deleted."""
    # A directory of others is listed before anything is read: that also tells whether it has a
    # manifest, and a configuration.
    files = None if who.marked else _find_files(path)
    file: os.stat_result | None = None
    problem: CheckpointProblem | None = None
    raw, content = b"", dict[str, Any]()
    found: Manifest | None = None
    try:
        if files is None or names.MANIFEST in files:
            found = manifest.find(path)
    except UnreadableInfo as error:
        json_file.raise_if_unknown(error)
        problem = CheckpointProblem("unreadable", f"{names.MANIFEST} {error.why}")
    try:
        raw, file = json_file.read_with_status(f"{path}/{names.INFO}", MAX_BYTES)
        content = json_file.parse_object(f"{path}/{names.INFO}", raw)
        fingerprint = _fingerprint(folder, file)
    except UnreadableInfo as error:
        if found is None or strict:
            json_file.raise_if_unknown(error)
        file = file or _find_lstat(f"{path}/{names.INFO}")
        fingerprint = None if json_file.find_unknown(error) else _fingerprint(folder, file)
        problem = CheckpointProblem("unreadable", f"{names.INFO} {error.why}")
    doubt: str | None = None
    if verify and problem is None:
        compared = manifest.verify(path, found) if found else Compared(doubt=manifest.WITHOUT)
        problem = compared.problem
        doubt = compared.doubt if problem is None else None
    if found:
        sizes = tuple(found.files.values())
        created_at, finalized_at = found.created_at, found.finalized_at
    else:
        files = manifest.stat_files(path) if files is None else files
        sizes = tuple(file.st_size for name, file in files.items() if name not in manifest.OWN)
        created_at, finalized_at = utc((file or folder).st_mtime), utc(folder.st_mtime)
    checkpoint = Checkpoint(
        run_uuid=who.run.uuid,
        run=who.run.name,
        uuid=derive_uuid(who, found, step, raw),
        step=step,
        path=path,
        status="final",
        created_at=created_at,
        finalized_at=finalized_at,
        size_bytes=sum(sizes),
        file_count=len(sizes),
        parent=found.parent if found and found.step == step else None,
        problem=problem.text if problem else None,
        problem_kind=problem.kind if problem else None,
        info=json_values.for_catalog(content),
        metrics=metrics_of(content),
        fingerprint=fingerprint,
    )
    listed = found.files if found else files or ()
    return Reading(checkpoint, any(name in listed for name in CONFIGS), doubt)


def is_unchanged(path: str | Path, fingerprint: str, folder: int | None = None) -> bool:
    """Tell whether a checkpoint has a fingerprint that `load` gave it before.

    Args:
        path: Its directory.
        fingerprint: As it was; that it was settled then makes it so now.
        folder: Descriptor of what ``path`` is relative to.
    """
    found = os.stat(path, dir_fd=folder)
    if is_being_deleted(found):
        return False
    try:
        file = os.lstat(f"{path}/{names.INFO}", dir_fd=folder)
    except FileNotFoundError:
        return fingerprint == str(found.st_mtime_ns)
    return fingerprint == (f"{found.st_mtime_ns}:{file.st_mtime_ns}:{file.st_size}:{file.st_ino}")


def derive_uuid(
    who: Identity, found: Manifest | None, step: int, raw: bytes, kind: str = ""
) -> str:
    """Return the uuid that a checkpoint's manifest, or else its training_info.json, gives it.

    Args:
        who: The run.
        found: Its manifest.
        step: Step in its name.
        raw: The bytes of its training_info.json.
        kind: Kind of directory, if not a published checkpoint.
    """
    if found is None:
        digest = hashlib.sha256(raw).hexdigest()
        return identity.derive_checkpoint_uuid(who.origin, kind, step, digest)
    if found.step != step:
        # Renamed or copied by hand under another step: another checkpoint than the original.
        return identity.derive_checkpoint_uuid(found.uuid, step)
    return found.uuid


def _fingerprint(folder: os.stat_result, file: os.stat_result | None) -> str | None:
    if file is None:
        return str(folder.st_mtime_ns) if stamp.is_settled(folder.st_mtime_ns) else None
    if not stamp.is_settled(max(file.st_mtime_ns, folder.st_mtime_ns)):
        return None
    return f"{folder.st_mtime_ns}:{file.st_mtime_ns}:{file.st_size}:{file.st_ino}"


def _find_lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _find_files(path: Path) -> Mapping[str, os.stat_result] | None:
    try:
        return manifest.stat_files(path)
    except OSError:
        return None  # with a manifest it can be read all the same
