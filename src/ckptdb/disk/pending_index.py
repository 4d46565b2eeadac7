"""Notes beside a catalog about runs that changed while it could not be written.

The catalog knows of such a change only after the run has been compared with its directory. Answers
over all runs compare none of them, so they read these notes first: a file for each such run, named
by its uuid, with its directory in it. A note is only a hint: what it names may be gone, and anybody
who may write there may have left it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ckptdb.disk import fsutil, paths
from ckptdb.disk.json_file import read_regular
from ckptdb.errors import UnreadableInfo

_UUID_LENGTH = 36
_LONGEST = 16384
"""Bytes; the longest path, each of its bytes written as ``%XX``."""


@dataclass(frozen=True, slots=True)
class Note:
    """A run whose changes the catalog may lack.

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
        target = self.path.with_name(name)
        paths.replace(self.path, target)
        return Note(target, self.directory)

    def remove(self) -> None:
        """Say that the catalog has these changes now."""
        with suppress(OSError):
            paths.unlink(self.path, missing_ok=True)
            paths.remove_folder(self.path.parent)  # the last one


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes about the runs of a catalog.

    Attributes:
        folder: Where they are; None where there is no place for them.
        base: The root of which all of these runs are; None when they may lie anywhere.
    """

    folder: Path | None
    base: Path | None

    def add(self, directory: Path, run_uuid: str, *, make_durable: bool = True) -> None:
        """Note that the catalog lacks changes of a run; a note that is there already stays.

        Raises:
            OSError: It cannot be written.
        """
        if self.folder is None or fsutil.is_there(self.folder / run_uuid):
            return
        # Relative, so that the root may be moved.
        is_below = self.base is not None and directory.is_relative_to(self.base)
        where = directory.relative_to(self.base) if self.base and is_below else directory
        text = quote_from_bytes(os.fsencode(where)).encode()
        for is_last in (False, True):
            try:
                _write(self.folder, run_uuid, text, make_durable=make_durable)
            except FileNotFoundError:  # somebody has just removed the last note, and the folder
                if is_last:
                    raise
            else:
                return

    def find(self, run_uuid: str = "") -> tuple[Note, ...]:
        """Return all of them, or those about one run; none where they cannot be read."""
        if self.folder is None:
            return ()
        try:
            found = paths.list_names(self.folder)
        except OSError:
            return ()
        return tuple(self._read(self.folder, [n for n in found if n.startswith(run_uuid)]))

    def _read(self, folder: Path, found: list[str]) -> Iterator[Note]:
        for name in found:
            with suppress(UnreadableInfo, ValueError):
                uuid.UUID(name[:_UUID_LENGTH])
                raw = unquote_to_bytes(read_regular(folder / name, _LONGEST))
                directory = Path(os.path.abspath((self.base or folder) / os.fsdecode(raw)))
                if b"\0" not in raw and (self.base is None or directory.is_relative_to(self.base)):
                    yield Note(folder / name, directory)


def _write(folder: Path, name: str, text: bytes, *, make_durable: bool) -> None:
    fsutil.make_folder(folder, durable=make_durable)
    staging = folder / f".{name}.{uuid.uuid4()}"
    fsutil.write_new(staging, text, durable=make_durable)
    paths.replace(staging, folder / name)
    if make_durable:
        # A catalog that keeps what it was told over a power cut must not lose that it lacks some.
        fsutil.fsync(folder)
