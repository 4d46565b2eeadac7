"""Whether a run is where the index has it: what counts is the uuid that its directory tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.observed import Identity
from ckptdb.core.recorded import IndexedRun
from ckptdb.disk import identity

Whereabouts = Literal["here", "unclear", "replaced", "missing"]
"""Of a run's directory: it is the run's; it does not tell whose it is; it is another run's by now;
there is none."""


def judge(uuid: str, who: Identity | None, is_known: Callable[[str], bool]) -> Whereabouts:
    """Say whether a run is in a directory.

    Args:
        uuid: The run's.
        who: What the directory tells; None when there is none.
        is_known: Whether the index has a run with some uuid.
    """
    if who is None:
        return "missing"
    if who.run.uuid == uuid:
        return "here"
    if not who.marked or who.problem:
        return "unclear"
    # A copied tree, or a run that came back from a backup: the index has had nothing else in mind.
    is_copy = who.run.forked_from == uuid and not is_known(who.run.uuid)
    return "here" if is_copy else "replaced"


def find_whereabouts(catalog: Catalog, uuid: str, directory: Path) -> Whereabouts:
    """Look where a run is that the index has in a directory."""
    try:
        who = identity.find(directory)
    except OSError:
        return "unclear"  # not for us to see now
    return judge(uuid, who, lambda known: catalog.find_run(known) is not None)


def find_there(catalog: Catalog, directory: Path) -> IndexedRun | None:
    """Return the run of the index that is in a directory, else the last one that was.

    None when another run is there by now, which the index does not know.
    """
    try:
        who = identity.find(directory)
    except OSError:
        who = None
    seen = None if who is None else catalog.find_run(who.run.uuid)
    if seen is not None and seen.run.directory == directory:
        return seen
    last = catalog.find_run_at(directory)
    if last is None or find_whereabouts(catalog, last.run.uuid, directory) == "replaced":
        return None
    return last
