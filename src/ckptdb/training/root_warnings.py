"""Warnings about the root of a run: it is passed over, or it would not find the run."""

from __future__ import annotations

from pathlib import Path

from ckptdb.catalog.location import Location
from ckptdb.core import warnings
from ckptdb.disk import root_marker, run_finder


def warn_about_root(directory: Path, location: Location) -> None:
    """Warn of a root that is passed over, and of a run that its root would not find.

    Args:
        directory: The run.
        location: Its catalog.
    """
    root = location.base
    if root == directory:
        for marker in root_marker.find_markers(directory):
            if not marker.counts:
                warnings.warn(
                    f"{marker}: its catalog is not used, but {location}. To share that of "
                    f"{marker.root}, let a common group write to {marker.root}/.ckptdb and "
                    "nobody else, or name one catalog for both with catalog= or CKPTDB_CATALOG."
                )
    if root is not None and (where := run_finder.find_unsearched(root, directory)):
        warnings.warn(
            f"{directory} lies {'behind the link' if where.is_symlink() else 'in'} "
            f"{where}, where no runs are looked for: when the catalog is lost, only "
            f"`ckptdb reconcile {directory}` finds it again."
        )
