"""Healing: the index of a run is brought to what its directory holds, before every answer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ckptdb.core import warnings
from ckptdb.core.recorded import IndexedRun
from ckptdb.disk import identity, run_stamp
from ckptdb.disk.pending_index import Note, Notes
from ckptdb.errors import CatalogError, RunLocked
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.options import ReconcileDepth
from ckptdb.reconcile.report import RunReport
from ckptdb.reconcile.run import index_run, reconcile_run
from ckptdb.reconcile.run_location import find_there
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.opened import OpenedPlace
from ckptdb.registry.scope import Bounds


class Healing:
    """Brings the index of single runs to what is on disk.

    Attributes:
        notes: Notes about runs that changed while the catalog could not be written.
    """

    def __init__(self, place: OpenedPlace, catalogs: CatalogAccess, bounds: Bounds) -> None:
        self.notes = Notes(place.location.notes, place.location.base)
        self._catalogs = catalogs
        self._bounds = bounds

    def heal(self, directory: Path, *, strict: bool = False) -> RunReport | None:
        """Bring one run up to date, as far as that is possible without a usable catalog.

        Args:
            directory: The run's.
            strict: Raise what makes it impossible: nothing may be deleted by an old index.
        """
        if not self._bounds.contain(directory) or not directory.is_dir():
            return None
        seen = self._find_by_identity(directory)
        if _is_settled(seen, directory):
            return None
        return self._index(directory, seen, strict=strict)

    def find_run(self, directory: Path) -> IndexedRun | None:
        """Return the run in a directory, brought up to date as far as that is possible."""
        seen = self._find_by_identity(directory)
        if _is_settled(seen, directory):
            return seen
        if directory.is_dir():
            self._index(directory, seen)
        return find_there(self._catalogs.get(), directory)

    def find_settled_run(self, directory: Path) -> IndexedRun | None:
        """Return the run in a directory that has surely not changed since it was indexed."""
        seen = self._find_by_identity(directory)
        return seen if _is_settled(seen, directory) else None

    def index_changes(self, changed: Iterable[Path], *, depth: ReconcileDepth = "changes") -> bool:
        """Bring the index to what was just done to some runs; return whether that worked."""
        catalogs = self._catalogs
        if catalogs.is_doubted or catalogs.is_copy:
            catalogs.close()  # a disk that was full has space now
        for directory in changed:
            notes = self.claim_notes(directory)
            try:
                reconcile_run(catalogs.get_for_writing(), directory, depth=depth)
            except (CatalogError, OSError) as error:
                self._leave_note(directory)
                if not catalogs.is_doubted:
                    warnings.warn(f"Recorded in {directory}; the index follows later: {error}")
                return False
            for note in notes:
                note.remove()
        return True

    def claim_notes(self, top: Path) -> list[Note]:
        """Take the notes about runs at or below a directory, before these are looked at."""
        notes: list[Note] = []
        for note in self.notes.find():
            with suppress(OSError):
                if note.directory.is_relative_to(top):
                    notes.append(note.claim())
        return notes

    def _index(
        self, directory: Path, seen: IndexedRun | None, *, strict: bool = False
    ) -> RunReport | None:
        before = None if seen is None else seen.run.directory
        try:
            report = index_run(self._catalogs.get(), directory, depth="changes")
        except CatalogError as error:
            if strict:
                raise
            if not self._catalogs.copy_to_memory(error):
                return None
        except (RunLocked, OSError):
            if strict:
                raise
            return None
        else:
            if before is not None and before != directory:
                self.heal(before)  # another run may be where this one came from
            return report
        return self.heal(directory)

    def _find_by_identity(self, directory: Path) -> IndexedRun | None:
        """Return the run whose uuid a directory names, wherever the catalog has that run."""
        try:
            who = identity.find(directory)
        except OSError:
            return None  # not readable for this user, or not mounted
        return None if who is None else self._catalogs.get().runs.find(who.run.uuid)

    def _leave_note(self, directory: Path) -> None:
        """Leave a note for later processes that the catalog is behind on a run."""
        with suppress(OSError):
            self.notes.add(directory, identity.identify(directory).run.uuid)


def _is_settled(seen: IndexedRun | None, directory: Path) -> bool:
    """Tell whether a run has surely not changed since it was indexed, in that directory."""
    if seen is None or seen.run.directory != directory:
        return False
    return is_exact(seen, run_stamp.find_stamp(directory))
