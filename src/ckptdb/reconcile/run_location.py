"""Whereabouts of a run: whether it is in the directory that the index has, by its uuid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.observed import Identity
from ckptdb.core.recorded import IndexedRun
from ckptdb.disk import identity

Whereabouts = Literal["here", "unclear", "replaced", "missing"]
"""State of the directory that the index has for a run.

``"here"``: it holds the run. ``"unclear"``: its uuid cannot be read. ``"replaced"``: it holds
another run by now. ``"missing"``: there is no such directory.
"""


def judge_whereabouts(
    uuid: str, who: Identity | None, is_known: Callable[[str], bool]
) -> Whereabouts:
    """Tell whether a run is in a directory.

    Args:
        uuid: The run's.
        who: The directory's identity; None when there is no directory.
        is_known: Tells whether the index has a run with a uuid.
    """
    if who is None:
        return "missing"
    if who.run.uuid == uuid:
        return "here"
    if not who.marked or who.problem:
        return "unclear"
    # A copied tree, or a run from a backup: the index has the copy under the uuid of the original.
    is_copy = who.run.forked_from == uuid and not is_known(who.run.uuid)
    return "here" if is_copy else "replaced"


def find_whereabouts(catalog: Catalog, uuid: str, directory: Path) -> Whereabouts:
    """Return whether a run is in the directory that the index has for it."""
    try:
        who = identity.find(directory)
    except OSError:
        return "unclear"  # not readable for this user, or not mounted
    return judge_whereabouts(uuid, who, lambda known: catalog.runs.find(known) is not None)


def find_there(catalog: Catalog, directory: Path) -> IndexedRun | None:
    """Return the run of the index that is in a directory, else the last one that was.

    None when the directory holds another run by now, which the index does not have.
    """
    try:
        who = identity.find(directory)
    except OSError:
        who = None
    indexed = None if who is None else catalog.runs.find(who.run.uuid)
    if indexed is not None and indexed.run.directory == directory:
        return indexed
    last = catalog.runs.find_at(directory)
    if last is None or find_whereabouts(catalog, last.run.uuid, directory) == "replaced":
        return None
    return last
