"""Absorbing runs that have a catalog of their own into the catalog of their root."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import FILE, Location, locate
from ckptdb.core import warnings
from ckptdb.disk import identity, paths, root_marker
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogMissing,
    CatalogOutdated,
    CatalogTampered,
)
from ckptdb.reconcile.action import OF_THE_JOURNAL
from ckptdb.reconcile.report import ReconcileReport, RunReport
from ckptdb.reconcile.run import reconcile_run


@dataclass(slots=True)
class Absorption:
    """Absorption of runs with a catalog of their own by the root above them.

    Attributes:
        absorbed: Runs whose own catalog is to be removed.
        own: Differences of each run from its own catalog.
    """

    root: Path | None
    absorbed: list[Path] = field(default_factory=list)
    own: dict[Path, RunReport] = field(default_factory=dict)

    def compare(self, run: Path) -> None:
        """Record how a run differs from its own catalog; changes nothing."""
        if self.has_own(run):
            with suppress(CatalogError, OSError):  # then it is not taken over either
                self._reconcile_own(run, dry_run=True)

    def take(self, run: Path) -> None:
        """Make a run part of the root, before it is indexed in the root's catalog."""
        try:
            why = self._reconcile_own(run, dry_run=False)
            if why is None:
                root_marker.unmark_root(run)
                self.absorbed.append(run)
        except CatalogError as error:
            why = str(error)
        except OSError as error:
            why = error.strerror or str(error)
        if why is not None:
            warnings.warn(f"{run} keeps a catalog of its own: {why}")

    def remove_own(self) -> None:
        """Remove the catalogs whose content is in the root's catalog now."""
        for run in self.absorbed:
            # Both were only ever an index.
            for name in (f"{FILE}-journal", FILE):
                with suppress(FileNotFoundError):
                    paths.unlink(identity.hidden(run) / name)

    def complete(self, report: ReconcileReport) -> ReconcileReport:
        """Return a report of the root with the differences from the runs' own catalogs."""
        return replace(report, runs=tuple(_joined(run, self.own) for run in report.runs))

    def has_own(self, run: Path) -> bool:
        """Tell whether a run below the root is a root of its own."""
        root = self.root
        return root is not None and root in run.parents and root_marker.is_root(run)

    def _reconcile_own(self, run: Path, *, dry_run: bool) -> str | None:
        """Compare a run with its own catalog; return why that catalog cannot be removed yet.

        Facts that only that catalog holds, because the journal has lost lines, go back into the
        journal, from which every other catalog is filled.
        """
        try:
            database = Database.open(
                locate(identity.hidden(run) / FILE), create=False, upgrade=not dry_run
            )
        except CatalogTampered:
            raise  # it may hold facts that nothing else holds, and cannot be read
        except (CatalogMissing, CatalogBroken, CatalogOutdated):
            return None  # it holds nothing, or nothing before it is upgraded
        with closing(database):
            try:
                report = reconcile_run(Catalog(database), run, dry_run=dry_run, restore=True)
            except CatalogBroken:
                return None
        self.own[run] = report
        return report.blocked or report.doubt


def find_own_doubt(run: Path, used: Location) -> str | None:
    """Return why a run's own catalog forbids deletions in it; changes nothing.

    Args:
        run: Its directory.
        used: The catalog that is in use already; its doubts are known.
    """
    own = locate(identity.hidden(root_marker.find_root(run) or run) / FILE)
    if own.file == used.file:
        return None
    try:
        with closing(Database.open(own, create=False, upgrade=False)) as database:
            return reconcile_run(Catalog(database), run, dry_run=True).doubt
    except (CatalogError, OSError):
        return None  # it cannot be read now


@contextmanager
def absorbing(
    root: Path | None, database: Database
) -> Iterator[tuple[Absorption, Callable[[Path], None]]]:
    """Absorb the runs below a root that were roots of their own.

    Yields the absorption, and a function to call before each run is indexed in the root's catalog.
    """
    found = Absorption(root)

    def take(run: Path) -> None:
        if found.has_own(run):
            database.ensure_sound()
            found.take(run)

    yield found, take
    found.remove_own()


def _joined(run: RunReport, own: Mapping[Path, RunReport]) -> RunReport:
    before = own.get(run.directory)
    if before is None:
        return run
    actions = tuple(action for action in before.actions if action.kind in OF_THE_JOURNAL)
    return replace(
        run,
        actions=(*actions, *run.actions),
        journal_aside=run.journal_aside or before.journal_aside,
        doubt=run.doubt or before.doubt,
    )
