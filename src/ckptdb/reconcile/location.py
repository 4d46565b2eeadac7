"""Location of a run's catalog: the one that was chosen, else that of the nearest root."""

from __future__ import annotations

import os
from pathlib import Path

from ckptdb.catalog.location import Location, fixed, locate
from ckptdb.disk import identity, root_marker


def find_location(directory: Path, choice: str | os.PathLike[str] | None = None) -> Location:
    """Return where the catalog of a run or root is, or would be.

    An explicit choice, else ``CKPTDB_CATALOG``, else the nearest marked root at or above, else
    the directory itself.

    Raises:
        CatalogUnusable: The choice cannot be a catalog.
        RootRefused: The directory would have to be its own root, and another user owns its mark.
    """
    return find_fixed_location(directory, fix_choice(choice))


def fix_choice(choice: str | os.PathLike[str] | None) -> str | None:
    """Return the catalog that is chosen now, as a name that outlives a change of directory."""
    named = choice or os.environ.get("CKPTDB_CATALOG")
    return fixed(named) if named else None


def find_fixed_location(directory: Path, choice: str | None) -> Location:
    """Return where the catalog of a run or root is, once `fix_choice` has answered."""
    if choice is not None:
        return locate(choice)
    root = root_marker.find_root(directory)
    if root is None:
        root_marker.raise_if_refused(directory)
        root = directory
    file = identity.hidden(root) / "catalog.db"
    return Location(url=f"sqlite:///{file}", file=file, base=root)
