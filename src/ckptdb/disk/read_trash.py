"""Retired checkpoints: the trash of a run, and their records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckptdb.core.facts import Facts
from ckptdb.core.observed import Identity, Leftover
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    journal,
    leases,
    names,
    paths,
    read_checkpoint,
    read_tmp,
)


def read_facts(who: Identity, unrecorded: Sequence[Leftover] | None = None) -> Facts:
    """Read what a run's journal says, and its trash where that had no space for it.

    Args:
        who: The run.
        unrecorded: Entries of the trash that the journal lacks, when they have just been listed.

    Raises:
        OSError: It is there and cannot be read.
    """
    if unrecorded is None:
        unrecorded = [left for left in list_trash(who.run.directory) if not left.recorded]
    facts = journal.read(identity.hidden(who.run.directory), who.run)
    return replace(facts, gone={**_ends(who, unrecorded), **facts.gone})


def load_retired(who: Identity, left: Leftover) -> Checkpoint:
    """Read from the trash how a checkpoint ended that no line in the journal tells of.

    Whatever its files were, only those are sure to be there that make up the record.
    """
    if fsutil.is_there(left.path / names.WRITER):
        found = read_tmp.load_tmp(who, left.path, left.step).checkpoint
    else:
        found = read_checkpoint.read_files(
            who, left.path, left.step, os.lstat(left.path)
        ).checkpoint
    if not fsutil.is_there(left.path / names.MANIFEST):
        found = replace(found, size_bytes=None, file_count=None)
    return replace(
        found,
        uuid=left.uuid,
        path=who.run.directory / names.final_name(left.step),
        status="deleted",
        deleted_at=utc(os.lstat(left.path).st_mtime),
        deleted_reason="deleted on a full disk, which had no space for the reason",
        deleted_kind="unknown",
        fingerprint=None,
    )


def find_deleting(who: Identity, path: Path, step: int) -> Leftover | None:
    """Return a checkpoint that is being deleted where it stands; None when it is not."""
    try:
        if not read_checkpoint.is_being_deleted(os.lstat(path)):
            return None
        # What tells which one it is goes last, when its end is recorded.
        has_record = any(fsutil.is_there(path / name) for name in names.RECORD)
        return Leftover(
            path, step, checkpoint_identity.derive_at(who, path, step), recorded=not has_record
        )
    except FileNotFoundError:
        return None


def list_deleting(who: Identity, steps: Iterable[int]) -> list[Leftover]:
    """Return the checkpoints of these steps that are being deleted in place."""
    directory = who.run.directory
    found = (find_deleting(who, directory / names.final_name(step), step) for step in steps)
    return [left for left in found if left]


def _ends(who: Identity, unrecorded: Sequence[Leftover]) -> dict[str, Checkpoint]:
    ends = {}
    for left in unrecorded:
        with suppress(FileNotFoundError):  # recorded and removed while we looked
            ends[left.uuid] = load_retired(who, left)
    return ends


def find_leased(directory: Path, trash: Sequence[Leftover]) -> frozenset[str]:
    """Return the uuids in the trash that an evaluator still uses, all if leases are unreadable."""
    if not trash:
        return frozenset()
    try:
        return frozenset(leases.find_leased(identity.hidden(directory)))
    except OSError:
        return frozenset(left.uuid for left in trash)  # it may be: nothing of it is removed now


def list_trash(directory: Path) -> tuple[Leftover, ...]:
    """Return what a run has retired and not yet removed."""
    trash = identity.hidden(directory) / names.TRASH
    parsed = ((name, names.find_trash(name)) for name in paths.list_folders(trash))
    return tuple(
        Leftover(
            trash / name,
            *found,
            recorded=names.is_recorded(name),
            until=names.find_until(name),
            identified=names.is_identified(name),
        )
        for name, found in parsed
        if found
    )
