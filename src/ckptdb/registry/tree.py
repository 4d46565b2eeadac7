"""The base of `Registry`: the place that was opened, and the parts that its methods rest on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.location import Location
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint
from ckptdb.disk import names
from ckptdb.errors import UnknownCheckpoint
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.completeness import Completeness
from ckptdb.registry.healing import Healing
from ckptdb.registry.opened import OpenedPlace, PathLike, find_place
from ckptdb.registry.published import PublishedCheckpoints
from ckptdb.registry.run_names import RunNames
from ckptdb.registry.scope import Bounds, Scope


class Tree:
    """A root, a run or a catalog, and the catalog that answers for it."""

    def __init__(self, place: OpenedPlace) -> None:
        """Use `Registry.open`."""
        self._place = place
        self._catalogs = CatalogAccess(place)
        self._bounds = Bounds(place, self._catalogs)
        self._healing = Healing(place, self._catalogs, self._bounds)
        self._completeness = Completeness(place, self._catalogs, self._bounds, self._healing)
        self._run_names = RunNames(
            place, self._catalogs, self._bounds, self._healing, self._completeness
        )
        self._published = PublishedCheckpoints(self._catalogs, self._bounds, self._healing)

    @classmethod
    def open(cls, location: PathLike = ".", *, catalog: PathLike | None = None) -> Self:
        """Open a root, a run, anything inside them, a catalog file or a database URL.

        A question that names no run is about the runs at or below the directory that was opened:
        inside a run about that one, and of a catalog about all of its runs.

        Args:
            location: Path or URL.
            catalog: Another catalog than the one found there.

        Raises:
            CatalogUnusable: The location or the chosen catalog cannot be one.
            CatalogMissing: There is no such directory.
        """
        return cls(find_place(location, catalog))

    @property
    def location(self) -> Location:
        """Where the catalog is."""
        return self._place.location

    @property
    def run(self) -> Path | None:
        """The run that was opened; None for a root or a catalog."""
        return self._place.run

    @property
    def directory(self) -> Path | None:
        """The directory whose runs are meant where none is named; None for all of a catalog."""
        return self._place.scope

    def close(self) -> None:
        """Close the catalog; the next call opens it again."""
        self._catalogs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _catalog(self) -> Catalog:
        return self._catalogs.get()

    def _find_scope(self, run: PathLike | None) -> Scope:
        """Return the runs that a question is about; a single one is compared with its directory.

        Raises:
            NoRunsBelow: No run lies at or below the directory that was opened.
        """
        self._catalogs.refresh()
        if run is not None or self.run is not None:
            return Scope(self._run_names.get(run))
        self._completeness.ensure()
        among = self._bounds.find_among()
        if among == ():
            raise self._bounds.explain_no_runs()
        return Scope(among=among)

    def _get_at(self, seen: IndexedRun, step: int, *, uuid: str | None = None) -> Checkpoint:
        """Return a run's checkpoint at a step: the last one, or the one of a uuid."""
        found = self._catalog().checkpoints.list_all(run_id=seen.id, steps=[names.as_step(step)])
        found = tuple(checkpoint for checkpoint in found if uuid in (None, checkpoint.uuid))
        if not found:
            raise UnknownCheckpoint(seen.run.name, step)
        return found[-1]
