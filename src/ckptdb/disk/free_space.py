"""Free space: whether another checkpoint fits, before anything of it is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptdb.errors import NotEnoughSpace

_logger = logging.getLogger("ckptdb")


def find_free_bytes(directory: Path) -> int | None:
    """Return how much may still be written to a directory's file system; None if it can't tell."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    # Some network file systems answer, and know nothing.
    known = found.f_blocks > 0 and found.f_frsize > 0
    return found.f_bavail * found.f_frsize if known else None


def make_sure(
    directory: Path, step: int, *, needed_bytes: int, remedies: Sequence[Callable[[], None]]
) -> None:
    """Return when a checkpoint fits, or nothing is known against it.

    Args:
        directory: The run.
        step: Step to be saved, for the error.
        needed_bytes: Largest expected size of the checkpoint.
        remedies: Functions that free space, tried one after the other while there is too little.

    Raises:
        NotEnoughSpace: There still is too little.
    """
    free = find_free_bytes(directory)
    for remedy in remedies:
        if free is None or free >= needed_bytes:
            return
        _logger.info("%d bytes are free below %s, %d needed", free, directory, needed_bytes)
        remedy()
        free = find_free_bytes(directory)
    if free is not None and free < needed_bytes:
        raise NotEnoughSpace(directory, step, needed_bytes=needed_bytes, free_bytes=free)
