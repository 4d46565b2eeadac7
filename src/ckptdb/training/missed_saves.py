"""Saves that a failing catalog has missed: a note is left, and the catalog catches up later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptdb.catalog.location import Location
from ckptdb.disk.pending_index import Note, Notes
from ckptdb.errors import CatalogError

_logger = logging.getLogger("ckptdb")


class MissedSaves:
    """Notes that the catalog is behind on one run.

    Questions over all runs compare no run with its directory; a note names one that they must.

    Attributes:
        is_behind: Whether the catalog has missed a save, as far as this process knows.
    """

    def __init__(self, directory: Path, find_uuid: Callable[[], str]) -> None:
        self.is_behind = False
        self._directory = directory
        self._find_uuid = find_uuid
        self._has_searched = False

    def leave_note(self, find_location: Callable[[], Location], *, make_durable: bool) -> None:
        """Leave a note that the catalog is behind on the run."""
        self.is_behind = True
        try:
            location = find_location()
            notes = Notes(location.notes, location.base)
            notes.add(self._directory, self._find_uuid(), make_durable=make_durable)
        except (CatalogError, OSError) as error:
            _logger.info("no note that the catalog is behind: %s", error)

    def search(self, location: Location) -> None:
        """Search once for a note that another process has left about the run."""
        if self._has_searched:
            return
        self._has_searched = True
        self.is_behind |= bool(self._find(location))

    @contextmanager
    def catching_up(self, location: Location) -> Iterator[None]:
        """Take the notes away once the catalog has been brought to the run."""
        notes: Sequence[Note] = self._find(location)
        with suppress(OSError):
            notes = [note.claim() for note in notes]
        yield
        self.is_behind = False
        for note in notes:
            note.remove()

    def _find(self, location: Location) -> Sequence[Note]:
        return Notes(location.notes, location.base).find(self._find_uuid())
