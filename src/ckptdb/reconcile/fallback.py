"""Falling back from a catalog that fails to one in memory, filled from disk by the same reconcile.

The stored catalog is left alone for a while, its failure is reported once, and then it is tried
again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core import fork
from ckptdb.errors import CatalogMissing, CatalogOutdated, CatalogReadOnly
from ckptdb.reconcile.report import RunReport
from ckptdb.reconcile.run import index_run

RETRY_SECONDS = 10.0
"""Time for which a catalog that failed is left alone."""
EXPECTED: Final = (CatalogMissing, CatalogOutdated, CatalogReadOnly)
"""Errors of a process that may only read: it cannot create, upgrade or repair a catalog."""


class Fallback:
    """Catalog in memory for the time in which the stored one fails."""

    def __init__(self) -> None:
        self._memory: Catalog | None = None
        self._retry_at = 0.0
        self._is_reported = False

    @property
    def is_active(self) -> bool:
        """Whether the stored catalog is left alone now."""
        return time.monotonic() < self._retry_at

    def activate(self, error: Exception, *, is_expected: bool = False) -> bool:
        """Leave the stored catalog alone for a while.

        Args:
            error: Its failure.
            is_expected: Whether the failure is none to report.

        Returns:
            Whether the failure is to be reported to a person; true only once.
        """
        # The next save creates or upgrades such a catalog.
        is_missing = is_expected and isinstance(error, CatalogMissing | CatalogOutdated)
        self._retry_at = 0.0 if is_missing else time.monotonic() + RETRY_SECONDS
        if is_expected or self._is_reported:
            return False
        self._is_reported = True
        return True

    def after_fork(self) -> None:
        """Drop the catalog of the parent; what was reported there is not reported again."""
        fork.keep_for_ever(self._memory)
        self._memory = None

    def find_memory(self) -> Catalog | None:
        """Return the catalog in memory, None before the first question to it."""
        return self._memory

    def get_memory(self) -> Catalog:
        """Return the catalog in memory."""
        if self._memory is None:
            self._memory = Catalog(Database.in_memory())
        return self._memory


def index_in_memory(
    directory: Path, base: Path | None, *, locked: bool = False
) -> tuple[Catalog, RunReport]:
    """Return a new catalog in memory that holds one run as it is on disk.

    Args:
        directory: The run, absolute.
        base: Directory that stored paths are relative to.
        locked: The caller holds the run's lock.

    Raises:
        OSError: The directory cannot be read at all.
    """
    catalog = Catalog(Database.in_memory(base))
    try:
        return catalog, index_run(catalog, directory, depth="changes", locked=locked)
    except BaseException:
        catalog.database.close()
        raise
