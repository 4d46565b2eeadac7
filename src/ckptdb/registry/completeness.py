"""Completeness: the catalog knows all runs before a question that may be about any of them.

A catalog that a save has begun knows only that run, and one that could not be written for a while
lacks what was saved then.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.disk import fsutil, run_finder, run_listing, run_stamp
from ckptdb.errors import CatalogError, RunLocked
from ckptdb.reconcile.run import index_run
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.healing import Healing
from ckptdb.registry.opened import OpenedPlace
from ckptdb.registry.scope import Bounds, list_some

_COMPARED_SECONDS = 2.0
"""Time for which a reader relies on one comparison of all runs: a page has many queries."""


class Completeness:
    """Indexes the runs that the catalog lacks or is behind on."""

    def __init__(
        self, place: OpenedPlace, catalogs: CatalogAccess, bounds: Bounds, healing: Healing
    ) -> None:
        self._place = place
        self._catalogs = catalogs
        self._bounds = bounds
        self._healing = healing
        self._compared_at = -math.inf

    def ensure(self) -> None:
        """Let the catalog know all runs, each as it is on disk."""
        base = self._place.location.base
        if self._catalogs.get().database.location.in_memory and not self._catalogs.is_copy:
            return
        self._heal_for_readers()
        self._heal_interrupted_saves()
        self._heal_noted()
        catalog = self._catalogs.get()
        if base is None:
            self._warn_of_unknown_runs(catalog)
        elif not catalog.database.is_complete():
            self._index_everything(base)

    def _heal_for_readers(self) -> None:
        """Compare all runs with their directories where this user may not write the catalog.

        A trainer that cannot write it leaves a note beside it, which is enough for whoever may.
        But one that may not write to the root either, as of another user, can leave none.
        """
        file = self._place.location.file
        now = time.monotonic()
        if file is None or now < self._compared_at + _COMPARED_SECONDS or _may_write(file):
            return
        for seen in self._catalogs.get().runs.list_all():
            if not self._bounds.contain(seen.run.directory):
                continue
            stamp = run_stamp.find_stamp(seen.run.directory)
            if stamp is not None and seen.stamp != str(stamp):
                self._healing.heal(seen.run.directory)
        self._compared_at = time.monotonic()

    def _heal_interrupted_saves(self) -> None:
        """Compare the runs whose trainer was killed between a save and its record."""
        staged = self._catalogs.get().checkpoints.list_all(status="tmp")
        inside = (cp.path for cp in staged if self._bounds.contain(cp.path.parent))
        for directory in {path.parent for path in inside if not fsutil.is_folder(path)}:
            self._healing.heal(directory)

    def _heal_noted(self) -> None:
        """Compare the runs that the catalog was behind on; whoever acts removes the notes."""
        for note in self._healing.notes.find():
            directory = note.directory
            # One that was moved, or is not mounted, `reconcile` of the whole tree reports.
            if (
                self._bounds.contain(directory)
                and directory.is_dir()
                and run_listing.is_run(directory)
            ):
                self._healing.heal(directory)

    def _index_everything(self, base: Path) -> None:
        try:
            self._index_tree(base)
        except CatalogError as error:
            if self._catalogs.copy_to_memory(error):
                self._index_tree(base)
            else:
                self._catalogs.warn_once(
                    f"{error} It has not seen all runs yet: those are left out."
                )

    def _index_tree(self, base: Path) -> None:
        """Index every run of a tree that the catalog does not know; nothing else is written."""
        failed: list[str] = []
        for listing in run_finder.list_runs(base):
            directory = listing.directory
            catalog = self._catalogs.get()
            try:
                if catalog.runs.find_at(directory) is not None:
                    self._healing.heal(directory)
                    continue
                index_run(catalog, directory, depth="changes", listing=listing)
            except (RunLocked, OSError) as error:
                failed.append(f"{directory}: {error}")
        if failed:
            self._catalogs.warn_once(
                f"{self._place.location} has not seen all runs yet ({'; '.join(failed)}); "
                "`ckptdb reconcile` completes it."
            )
        else:
            self._catalogs.get().database.set_complete()

    def _warn_of_unknown_runs(self, catalog: Catalog) -> None:
        """Name the runs here that a catalog elsewhere has never indexed."""
        top = None if self._place.run is not None else self._place.directory
        if top is None or catalog.database.is_complete():
            return
        unknown = [run for run in run_finder.find_runs(top) if catalog.runs.find_at(run) is None]
        if not unknown:
            with suppress(CatalogError):
                catalog.database.set_complete()
            return
        location, listed = self._place.location, list_some(run.name for run in unknown)
        self._catalogs.warn_once(
            f"{location} has not seen {len(unknown)} runs below {top} ({listed}); "
            f"`ckptdb --catalog {location} reconcile {top}` adds them."
        )


def _may_write(file: Path) -> bool:
    """Tell whether this process may write a catalog, and the journal beside it."""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK | os.X_OK)
