"""Notes in a root about runs that changed while its catalog could not be written.

The catalog knows of such a change only after the run has been compared with its directory. Answers
over all runs compare none of them, so they read these notes first: ``.ckptdb/unindexed/<uuid>`` for
each such run, with its directory in it. A note is only a hint, what it names may be gone.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ckptdb.disk import durable, identity
from ckptdb.disk.info import read_regular
from ckptdb.errors import UnreadableInfo

_FOLDER = "unindexed"
_UUID_LENGTH = 36
_LONGEST = 16384
"""Bytes; the longest path, each of its bytes written as ``%XX``."""


@dataclass(frozen=True, slots=True)
class Note:
    """One run whose changes the catalog may lack.

    Attributes:
        path: Where the note is.
        directory: The run's.
    """

    path: Path
    directory: Path

    def claim(self) -> Note:
        """Set it apart from a later note about the same run, which `remove` must not take along.

        Raises:
            OSError: It may not be changed here, or somebody else has just claimed it.
        """
        name = f"{self.path.name[:_UUID_LENGTH]}.{uuid.uuid4()}"
        return Note(self.path.rename(self.path.with_name(name)), self.directory)

    def remove(self) -> None:
        """Say that the catalog has these changes now."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def note(root: Path, directory: Path, run_uuid: str, *, make_durable: bool = False) -> None:
    """Note that the catalog of a root lacks changes of a run; one that is there already stays.

    Raises:
        OSError: It cannot be written.
    """
    path = _folder(root) / run_uuid
    if durable.is_there(path):
        return
    # Relative, so that the root may be moved.
    where = directory.relative_to(root) if directory.is_relative_to(root) else directory
    path.parent.mkdir(exist_ok=True)
    staging = path.with_name(f".{run_uuid}.{uuid.uuid4()}")
    durable.write_new(staging, quote_from_bytes(os.fsencode(where)).encode(), durable=make_durable)
    os.replace(staging, path)


def find(root: Path, run_uuid: str = "") -> tuple[Note, ...]:
    """Return the notes of a root, or about one of its runs; none where they cannot be read."""
    try:
        found = sorted(os.listdir(_folder(root)))
    except OSError:
        return ()
    notes: list[Note] = []
    for name in found:
        if not name.startswith(run_uuid):
            continue
        path = _folder(root) / name
        with suppress(UnreadableInfo, ValueError):
            uuid.UUID(name[:_UUID_LENGTH])
            text = os.fsdecode(unquote_to_bytes(read_regular(path, _LONGEST)))
            if text and "\0" not in text:
                notes.append(Note(path, root / text))
    return tuple(notes)


def _folder(root: Path) -> Path:
    return identity.hidden(root) / _FOLDER
