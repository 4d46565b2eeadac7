"""Published checkpoints whose fingerprint has changed, read a few at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ckptdb.core.observed import Identity
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    names,
    read_checkpoint,
)
from ckptdb.disk.parallel import ParallelReader


@dataclass(slots=True)
class ReadBatch:
    """Result of reading some published checkpoints.

    Attributes:
        same: Steps of those that are exactly as the caller knows them.
        read: The others.
        bare: Steps of those that have no configuration, as far as they were read.
        deleting: Steps of those that are being deleted where they stand.
        failed: Errors of those that could be neither compared nor read.
        doubts: By step, why files could not be compared with a manifest, if that was asked.
    """

    same: list[int] = field(default_factory=list)
    read: list[Checkpoint] = field(default_factory=list)
    bare: list[int] = field(default_factory=list)
    deleting: list[int] = field(default_factory=list)
    failed: list[tuple[int, OSError]] = field(default_factory=list)
    doubts: dict[int, str] = field(default_factory=dict)


def read_changed(
    who: Identity,
    steps: Sequence[int],
    known: Mapping[int, tuple[str, str | None]],
    *,
    verify: bool = False,
    reader: ParallelReader | None = None,
) -> Iterator[ReadBatch]:
    """Look at published checkpoints of a run, a few at a time.

    Args:
        who: The run.
        steps: Theirs.
        known: By step, uuid and fingerprint; what has that fingerprint is not read again.
        verify: Also compare every listed file of what is read with its manifest.
        reader: Reader that already knows whether the file system is slow.
    """
    directory = who.run.directory
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def look_at(some: Sequence[int]) -> ReadBatch:
        found = ReadBatch()
        for step in some:
            name = names.final_name(step)
            before = known.get(step)
            try:
                if before and before[1] and read_checkpoint.is_unchanged(name, before[1], folder):
                    found.same.append(step)
                else:
                    one = read_checkpoint.read(who, directory / name, step, verify=verify)
                    found.read.append(one.checkpoint)
                    if not one.has_config:
                        found.bare.append(step)
                    if one.doubt:
                        found.doubts[step] = one.doubt
            except read_checkpoint.BeingDeleted:
                found.deleting.append(step)
            except OSError as error:
                found.failed.append((step, error))
        return found

    try:
        yield from (reader or ParallelReader()).through(steps, look_at)
    finally:
        os.close(folder)
