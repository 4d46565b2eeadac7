"""Replacing a damaged journal by one of all lines that can be read."""

from __future__ import annotations

import errno
import math
import os
import uuid as uuids
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain as joined
from pathlib import Path
from typing import BinaryIO

from ckptdb.core.facts import JOURNAL, MOST_BYTES, Fact
from ckptdb.disk import fsutil, journal_lines, paths
from ckptdb.disk.journal_lines import NO_LINE, PART_BYTES, LineChain


def rewrite(hidden: Path, more: Iterable[Fact]) -> Path:
    """Put a journal of all lines that can be read, and of more, in the place of a damaged one.

    The caller holds the run's lock. Between any two steps there is a journal: the old one, or the
    new one.

    Returns:
        Where the damaged one is kept.

    Raises:
        OSError: It cannot be done; the damaged one is the journal.
    """
    path, name = hidden / JOURNAL, uuids.uuid4()
    aside, staging = hidden / f"{JOURNAL}.damaged-{name}", hidden / f".{JOURNAL}.{name}"
    # Before anything is made: what is no file is no journal.
    os.close(journal_lines.open_journal(path, os.O_RDONLY))
    try:
        facts = joined(journal_lines.iter_facts(hidden, LineChain(), most_bytes=math.inf), more)
        _write_lines(
            staging, journal_lines.serialize(facts, NO_LINE), before=paths.find_status(path)
        )
        _keep(path, aside)
        fsutil.fsync(hidden)
        paths.replace(staging, path)
    except OSError:
        with suppress(OSError):
            paths.unlink(staging)
        raise
    fsutil.fsync(hidden)
    return aside


def _write_lines(path: Path, lines: Iterable[bytes], *, before: os.stat_result | None) -> None:
    """Write a new journal, which will replace another one; it may be larger than memory.

    Raises:
        OSError: It cannot be written, or would be too large to be read.
    """
    with _create(path, before) as file:
        for line in lines:
            file.write(line)
            if file.tell() > MOST_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES} bytes", str(path))
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path, aside: Path) -> None:
    """Copy a file, and no holes: one with two names would not be written to after a crash."""
    with (
        os.fdopen(journal_lines.open_journal(path, os.O_RDONLY), "rb", PART_BYTES) as source,
        _create(aside, paths.find_status(path)) as copy,
    ):
        while part := source.read(PART_BYTES):
            if not journal_lines.is_hole(part):
                copy.write(part)
                continue
            journal_lines.skip_hole(source)
            copy.seek(source.tell())
        copy.truncate(source.tell())
        copy.flush()
        os.fsync(copy.fileno())


def _create(path: Path, before: os.stat_result | None) -> BinaryIO:
    handle = paths.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, before=before)
    return os.fdopen(handle, "wb", PART_BYTES)
