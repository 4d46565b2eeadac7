"""Broken catalogs, set aside under another name so that a new one can take their place."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ckptdb.catalog import files
from ckptdb.catalog.files import BESIDE, JOURNAL, names_super_journal
from ckptdb.catalog.location import Location
from ckptdb.errors import CatalogMissing, CatalogUnusable


def set_aside(location: Location) -> Path:
    """Rename a broken catalog, so that a new one can take its place; return where it went.

    Raises:
        CatalogMissing: There is nothing to rename.
        CatalogUnusable: It cannot be renamed, or is not a file of ours.
    """
    file = location.file
    if file is None:
        raise CatalogUnusable(str(location), "only a SQLite file can be set aside")
    target = _unused(file)
    try:
        # Leftover journals go first: beside a new database they would be played back into it.
        for suffix in BESIDE:
            # One that makes SQLite remove a file does so whoever opens what was set aside.
            kept = ".refused" if suffix == JOURNAL and names_super_journal(file) else suffix
            with suppress(FileNotFoundError):
                file.with_name(file.name + suffix).rename(f"{target}{kept}")
        aside = file.rename(target)
    except FileNotFoundError as error:
        raise CatalogMissing(file) from error
    except OSError as error:
        raise CatalogUnusable(str(file), error.strerror or str(error)) from error
    files.replace_empty(file, aside)
    return aside


def _unused(file: Path) -> Path:
    while True:
        now = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = file.with_name(f"{file.name}.broken-{now}")
        if not os.path.lexists(target):
            return target
