"""Names of runs: which run a name, a path or the beginning of a uuid means."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ckptdb.core.recorded import IndexedRun
from ckptdb.disk import identity, root_marker
from ckptdb.errors import AmbiguousRun, RunOutside, UnknownRun
from ckptdb.reconcile.run_location import find_there
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.completeness import Completeness
from ckptdb.registry.healing import Healing
from ckptdb.registry.opened import OpenedPlace, PathLike
from ckptdb.registry.scope import Below, Bounds

_SHORTEST_UUID_PREFIX = 4


class RunNames:
    """Finds the run that a name means, among those that the catalog knows and those on disk."""

    def __init__(
        self,
        place: OpenedPlace,
        catalogs: CatalogAccess,
        bounds: Bounds,
        healing: Healing,
        completeness: Completeness,
    ) -> None:
        self._place = place
        self._catalogs = catalogs
        self._bounds = bounds
        self._healing = healing
        self._completeness = completeness

    def get(self, name: PathLike | None) -> IndexedRun:
        """Return the run that a name means, brought up to date.

        Args:
            name: Name, path or uuid prefix; None for the only run at or below what was opened.

        Raises:
            UnknownRun: There is none.
            AmbiguousRun: There are several.
            RunOutside: It lies outside what was opened.
        """
        if name is None and self._place.run is not None:
            return self._get_opened(self._place.run)
        seen = self.match(name)
        directory = seen.run.directory
        if not self._bounds.contain(directory):
            raise RunOutside(seen.run.name, directory, str(self._place.location))
        settled = self._healing.find_settled_run(directory)
        if settled is not None and settled.id == seen.id:
            return settled
        self._healing.heal(directory)
        return self._catalogs.get().runs.find(seen.run.uuid) or seen

    def match(self, name: PathLike | None) -> IndexedRun:
        """Return the run that a name means as the catalog has it; see `get`."""
        self._completeness.ensure()
        if name is None:
            return self._match_only_one()
        text = os.fspath(name)
        places = self._list_places(text)
        called = self._catalogs.get().runs.find_named(text, places)
        if not all(self._bounds.contain(seen.run.directory) for seen in called):
            return self._match_outside(text, called)
        found = self._match_path(text, places, called) or self._match_name(text, called)
        return found or self._match_uuid(text)

    def _get_opened(self, directory: Path) -> IndexedRun:
        seen = self._healing.find_run(directory)
        if seen is None:
            known = self._catalogs.get().runs.list_all()
            raise UnknownRun(str(directory), [other.run.name for other in known])
        return seen

    def _match_only_one(self) -> IndexedRun:
        known = self._bounds.find_runs()
        if not known:
            raise self._bounds.explain_no_runs()
        found = known if len(known) == 1 else self._bounds.find_present(known) or known
        return _find_only(None, found) or found[0]

    def _match_outside(self, name: str, called: Sequence[IndexedRun]) -> IndexedRun:
        """Return one of some runs, of which not all are inside what was opened."""
        inside = [seen for seen in called if self._bounds.contain(seen.run.directory)]
        found = _find_only(name, inside or called)
        if found is None:
            raise UnknownRun(name, {seen.run.name for seen in called})
        return found

    def _match_path(
        self, name: str, places: Sequence[Path], called: Sequence[IndexedRun]
    ) -> IndexedRun | None:
        found = [
            seen
            for place in places
            if (seen := self._find_in(place, [s for s in called if s.run.directory == place]))
        ]
        here = [seen for seen in found if seen.run.directory.is_dir()]
        # As if the command had been started in the directory that -C names.
        nearest = [seen for seen in here if seen.run.directory == places[0]]
        return _find_only(name, nearest or here or found)

    def _match_name(self, name: str, called: Sequence[IndexedRun]) -> IndexedRun | None:
        named: dict[Path, list[IndexedRun]] = {}
        for seen in called:
            if seen.run.name == name:
                named.setdefault(seen.run.directory, []).append(seen)
        each = (self._find_in(directory, seen) for directory, seen in named.items())
        found = list({seen.id: seen for seen in each if seen}.values())
        here = [seen for seen in found if seen.run.directory.is_dir()]
        top = self._place.scope
        below = [seen for seen in here if top and Below(top).contains(seen.run.directory)]
        return _find_only(name, below or here or found)

    def _match_uuid(self, name: str) -> IndexedRun:
        known = self._catalogs.get().runs.list_all()
        found = _find_only(name, [seen for seen in known if _is_uuid_prefix(name, seen.run.uuid)])
        if found is None:
            raise UnknownRun(name, {seen.run.name for seen in known})
        return found

    def _find_in(self, place: Path, rows: Sequence[IndexedRun]) -> IndexedRun | None:
        """Return the run that a directory means: the one that is there, else the last that was.

        Args:
            place: The directory.
            rows: The runs that the catalog has there.
        """
        last = max(rows, key=lambda seen: seen.id, default=None)
        try:
            who = identity.find(place)
        except OSError:
            return last
        if who is None:
            return last
        known = self._catalogs.get().runs.find(who.run.uuid)
        if known is not None and known.run.directory == place:
            return known
        if not who.marked or who.problem:
            return last
        base = self._place.location.base
        if known is None and last is None and root_marker.find_root(place) != base:
            return None  # it belongs to another root
        self._healing.heal(place)
        if find_there(self._catalogs.get(), place) is None:
            self._healing.heal(place, strict=True)  # raises why it cannot be indexed
        return find_there(self._catalogs.get(), place)

    def _list_places(self, name: str) -> list[Path]:
        """Return the directories that a name may mean: below what was opened first."""
        tops = (self._place.scope, Path.cwd(), self._place.location.base)
        found = (Path(os.path.abspath(top / name)) for top in tops if top is not None)
        return list(dict.fromkeys(found))


def _find_only(name: str | None, matches: Sequence[IndexedRun]) -> IndexedRun | None:
    """Return the only one of some runs, None when there is none.

    Raises:
        AmbiguousRun: There are several.
    """
    if len(matches) < 2:  # noqa: PLR2004  # no choice
        return matches[0] if matches else None
    times = Counter(seen.run.directory for seen in matches)
    raise AmbiguousRun(
        name,
        [
            str(seen.run.directory)
            if times[seen.run.directory] == 1
            else f"{seen.run.uuid} (was {seen.run.directory})"
            for seen in matches
        ],
    )


def _is_uuid_prefix(name: str, uuid: str) -> bool:
    return len(name) >= _SHORTEST_UUID_PREFIX and uuid.startswith(name)
