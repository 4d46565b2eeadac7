"""The uuid of the checkpoint at a path."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from ckptdb.core.observed import Identity, Manifest
from ckptdb.disk import (
    json_file,
    manifest,
    names,
    paths,
    read_checkpoint,
    symlinks,
    training_info,
    writer,
)
from ckptdb.disk.read_checkpoint import derive_uuid
from ckptdb.errors import UnreadableInfo


def find_manifest(path: Path) -> Manifest | None:
    """Return the manifest of a checkpoint; raises the I/O error when it cannot be read now."""
    try:
        return manifest.find(path)
    except UnreadableInfo as error:
        json_file.raise_if_unknown(error)
        raise


def find_uuid(who: Identity, path: Path, step: int, *, through_link: bool = False) -> str | None:
    """Return the uuid of the checkpoint published at ``path``, or None when nothing is.

    Args:
        who: The run.
        path: Where.
        step: Step in its name.
        through_link: Also of one behind a symlink, which may be read and not be changed.
    """
    status = paths.find_status(path)
    if through_link and status is not None and stat.S_ISLNK(status.st_mode):
        return None if symlinks.find_obstruction(path) else derive_at(who, path, step)
    if (
        status is None
        or not stat.S_ISDIR(status.st_mode)
        or read_checkpoint.is_being_deleted(status)
    ):
        return None
    return derive_at(who, path, step)


def derive_at(who: Identity, path: Path, step: int) -> str:
    """Return the uuid that the files of a checkpoint give it."""
    found: Manifest | None = None
    with suppress(UnreadableInfo):
        found = find_manifest(path)
    raw = b""
    if found is None:
        try:
            raw = training_info.load_info(path)[1]
        except UnreadableInfo as error:
            json_file.raise_if_unknown(error)
    return derive_uuid(who, found, step, raw)


def is_identified(folder: Path) -> bool:
    """Tell whether a directory says by a file that it is a checkpoint, or holds nothing to lose.

    Such a file is a manifest, without one a training_info.json, and of an unfinished save also
    what says who writes it. One that is damaged or cannot be read now says nothing.
    """
    entries = set(os.listdir(folder))
    if not entries:
        return True
    # Killed while these were written, a save of ours has nothing else yet.
    is_begun = writer.find(folder) or entries <= {*names.RECORD, names.CONFIG}
    if names.find_tmp_step(folder.name) is not None and is_begun:
        return True
    try:
        return manifest.find(folder) is not None or bool(training_info.load_info(folder))
    except UnreadableInfo:
        return False
