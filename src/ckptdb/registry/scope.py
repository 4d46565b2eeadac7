"""The runs that a question is about: those at or below what was opened, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckptdb.core.recorded import IndexedRun
from ckptdb.disk import root_marker, run_finder
from ckptdb.disk.paths import find_directory_id
from ckptdb.disk.safe_path import DirectoryId
from ckptdb.errors import NoRuns, NoRunsBelow, RunNotHere
from ckptdb.reconcile.run_location import Whereabouts, find_whereabouts
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.opened import OpenedPlace

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Scope:
    """The runs that a question is about.

    Attributes:
        seen: The one run, when it is about one.
        among: Ids of the runs when it is about some; None for all of the catalog.
    """

    seen: IndexedRun | None = None
    among: tuple[int, ...] | None = None

    @property
    def run_id(self) -> int | None:
        """Id of the one run."""
        return None if self.seen is None else self.seen.id


@dataclass(slots=True)
class Below:
    """The directories at or below another one, whatever links lead there.

    Names are compared part by part: ``exp10`` is not below ``exp1``.
    """

    top: Path
    _real: dict[str, str] = field(default_factory=dict)

    def find(self, places: Mapping[int, Path]) -> tuple[int, ...]:
        """Return the ids of those at or below."""
        return tuple(number for number, place in places.items() if self.contains(place))

    def contains(self, place: Path) -> bool:
        """Tell whether a directory is or lies below the top, by its name or by its real path."""
        named, top = str(place), str(self.top)
        if _is_below(named, top):
            return True
        return _is_below(self._resolve(named), self._resolve(top))

    def _resolve(self, name: str) -> str:
        parent, _, last = name.rpartition("/")
        if not parent:
            return os.path.realpath(name)
        # Runs have few parents, and each of these has many parents of its own to be looked at.
        if parent not in self._real:
            self._real[parent] = os.path.realpath(parent)
        return os.path.realpath(os.path.join(self._real[parent], last))


class Bounds:
    """The bounds of an opened place: its root and its directory, which no answer leaves.

    A catalog may have rows of runs anywhere; those outside are left out, with one warning.
    """

    def __init__(self, place: OpenedPlace, catalogs: CatalogAccess) -> None:
        self._place = place
        self._catalogs = catalogs
        self._marked_root: Path | None = None

    def contain(self, directory: Path) -> bool:
        """Tell whether a row's directory lies in the catalog's root or in what was opened.

        A catalog that belongs to no root has its runs anywhere, by their absolute paths.
        """
        if not directory.is_absolute() or ".." in directory.parts or "\0" in str(directory):
            return False
        root = self._find_root()
        tops = [top for top in (root, self._place.directory) if top is not None]
        return root is None or any(directory.is_relative_to(top) for top in tops)

    def find_among(self) -> tuple[int, ...] | None:
        """Return the ids of the runs at or below what was opened; None for all of the catalog."""
        top = self._place.scope
        if top is None or top == self._place.location.base:
            if self._find_root() is None or not self.find_outside():
                return None
            return tuple(self._find_inside())
        return Below(top).find(self._find_inside())

    def find_runs(self) -> tuple[IndexedRun, ...]:
        """Return the runs at or below what was opened, by name."""
        return self._catalogs.get().runs.list_all(among=self.find_among())

    def find_outside(self) -> tuple[IndexedRun, ...]:
        """Return the runs that the catalog has out of bounds; warn of them once."""
        catalog, location = self._catalogs.get(), self._place.location
        places = catalog.runs.directories(perhaps_outside=True).items()
        ids = [number for number, place in places if not self.contain(place)]
        if not ids:
            return ()
        outside = catalog.runs.list_all(among=ids)
        listed = list_some(f"{seen.run.uuid[:8]} at {seen.run.directory}" for seen in outside)
        self._catalogs.warn_once(
            f"{location} has {len(outside)} run(s) outside {location.base} ({listed}): "
            "those are left out. `ckptdb forget` drops one; -C DIR with --catalog asks about it."
        )
        return outside

    def find_whereabouts(self, seen: IndexedRun) -> Whereabouts:
        """Return whether a run is where the catalog has it."""
        if not self.contain(seen.run.directory):
            return "missing"
        return find_whereabouts(self._catalogs.get(), seen.run.uuid, seen.run.directory)

    def find_present(self, known: Iterable[IndexedRun]) -> list[IndexedRun]:
        """Return those of some runs that are where the catalog has them, as far as is known."""
        return [seen for seen in known if self.find_whereabouts(seen) in ("here", "unclear")]

    def link_leads_outside(self, directory: Path) -> bool:
        """Tell whether a link leads out of bounds."""
        if self._find_root() is None:
            return False
        return self._find_real_top(os.path.realpath(directory)) is None

    def get_place_inside(self, directory: Path) -> DirectoryId:
        """Return the directory of a run as it is now, with all links followed, within bounds.

        Raises:
            RunNotHere: There is no such directory, or it lies out of bounds.
        """
        place = find_directory_id(directory)
        if place is None:
            raise RunNotHere(directory.name, directory, "for there is no such directory")
        if self._find_root() is None:
            return place
        real = os.path.realpath(directory)
        top = self._find_real_top(real)
        # Once more, and through no link: the directory may have been swapped for one in between.
        if top is None or find_directory_id(Path(real), below=top) != place:
            raise RunNotHere(directory.name, directory, "where a link leads out of the root")
        return place

    def explain_no_runs(self) -> NoRuns:
        """Return the error that says that there is no run at or below what was opened."""
        top, location = self._place.scope, self._place.location
        if top is None or top == location.base:
            return NoRuns(str(location))
        return NoRunsBelow(top, str(location), indexed=not any(run_finder.find_runs(top)))

    def _find_inside(self) -> dict[int, Path]:
        places = self._catalogs.get().runs.directories().items()
        return {number: place for number, place in places if self.contain(place)}

    def _find_root(self) -> Path | None:
        """Return the root that the catalog belongs to; None when it was put anywhere else."""
        base = self._place.location.base
        if base is None or not self._place.is_chosen:
            return base
        if self._marked_root is None and root_marker.is_root(base):
            self._marked_root = base
        return self._marked_root

    def _find_real_top(self, real: str) -> Path | None:
        """Return the part of what was opened that a path without links lies in."""
        tops = (self._find_root(), self._place.directory)
        found = (Path(os.path.realpath(top)) for top in tops if top is not None)
        return next((top for top in found if Path(real).is_relative_to(top)), None)


def list_some(names: Iterable[object]) -> str:
    """Return the first few of some names for a sentence, with dots when there are more."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:_MOST_NAMED]) + ", …" * (len(texts) > _MOST_NAMED)


def _is_below(name: str, top: str) -> bool:
    return name == top or name.startswith(top if top.endswith("/") else f"{top}/")
