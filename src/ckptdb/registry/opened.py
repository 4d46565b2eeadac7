"""The place that a registry was opened at: a root, a run, a directory between, or a catalog."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ckptdb.catalog.location import Location, locate
from ckptdb.disk import root_marker, run_listing
from ckptdb.errors import DirectoryMissing, RootRefused
from ckptdb.reconcile.location import find_location, fix_choice

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class OpenedPlace:
    """The place that `Registry.open` was given, and the catalog that belongs to it.

    Attributes:
        location: Of the catalog.
        directory: The run that was opened or that the directory lies in, else the directory; None
            for a database URL.
        run: The run that was opened; None for a root or a catalog.
        is_chosen: The catalog was named by the caller or by ``CKPTDB_CATALOG``.
        is_catalog: A catalog was opened, so that questions are about all of its runs.
        refused: Why the root that was found cannot be used; None when it can.
    """

    location: Location
    directory: Path | None
    run: Path | None = None
    is_chosen: bool = False
    is_catalog: bool = False
    refused: RootRefused | None = None

    @property
    def scope(self) -> Path | None:
        """The directory whose runs are meant where none is named; None for all of a catalog."""
        return None if self.is_catalog else self.directory


def find_place(location: PathLike, catalog: PathLike | None) -> OpenedPlace:
    """Return the place that a path or URL names; see `Registry.open`."""
    name = os.fspath(location)
    if "://" in name:
        return OpenedPlace(locate(name), None, is_chosen=True, is_catalog=True)
    path = Path(os.path.abspath(name))
    if path.is_file():
        found = locate(path)
        return OpenedPlace(found, found.base, is_chosen=True, is_catalog=True)
    if not path.is_dir():
        raise DirectoryMissing(path)
    path = _resolve_into_root(path)
    choice = fix_choice(catalog)
    run = find_enclosing_run(path)
    top = run or path
    try:
        return OpenedPlace(find_location(top, choice), top, run, is_chosen=bool(choice))
    except RootRefused as error:
        return OpenedPlace(Location("sqlite://", None, top), top, run, refused=error)


def find_enclosing_run(path: Path) -> Path | None:
    """Return the run that a directory is or lies in; the search ends at the next root."""
    for folder in (path, *path.parents):
        if run_listing.is_run(folder):
            return folder
        marker = root_marker.find_marker(folder, below=path)
        if marker is not None and marker.counts:
            return None
    return None


def _resolve_into_root(path: Path) -> Path:
    """Return the real path of a directory when only that one lies in a root."""
    if root_marker.find_root(path) is None and not run_listing.is_run(path):
        real = Path(os.path.realpath(path))
        if real != path and root_marker.find_root(real) is not None:
            return real
    return path
