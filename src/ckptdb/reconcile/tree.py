"""Reconciling every run of a tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.records import Run
from ckptdb.disk import identity, run_finder
from ckptdb.disk.run_listing import Listing
from ckptdb.reconcile.options import ReconcileDepth
from ckptdb.reconcile.report import ReconcileReport, RunReport
from ckptdb.reconcile.run import reconcile_run
from ckptdb.reconcile.run_location import find_whereabouts


def reconcile_tree(
    catalog: Catalog,
    top: Path,
    *,
    depth: ReconcileDepth = "files",
    dry_run: bool = False,
    on_run: Callable[[Path], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> ReconcileReport:
    """Reconcile every run at or below ``top``.

    Args:
        catalog: The index to bring up to date.
        top: A run, a root, or any directory between.
        depth: Extent of the reading.
        dry_run: Only report what would be done.
        on_run: Called before each run, for a progress bar.
        on_checkpoint: Called after each checkpoint.
    """
    started = time.monotonic()
    count = 0
    strays = catalog.strays.count()
    if strays and not dry_run:
        catalog.strays.remove()

    def count_checkpoint() -> None:
        nonlocal count
        count += 1
        if on_checkpoint:
            on_checkpoint()

    reconcile = partial(
        reconcile_run,
        catalog,
        depth=depth,
        dry_run=dry_run,
        on_checkpoint=count_checkpoint,
        restore=True,
    )
    reports = _reconcile_all(catalog, top, reconcile, on_run or (lambda _: None))
    return ReconcileReport(
        tuple(reports.values()),
        _find_missing(catalog, top, reports.values()),
        _find_replaced(catalog, top, reports),
        checkpoints=count,
        seconds=time.monotonic() - started,
        strays=strays,
    )


def _reconcile_all(
    catalog: Catalog,
    top: Path,
    reconcile: Callable[..., RunReport],
    on_run: Callable[[Path], None],
) -> dict[Path, RunReport]:
    reports: dict[Path, RunReport] = {}
    found = _add_indexed(run_finder.list_runs(top), catalog, top, reports)
    for directory, listing in _sort_moved_first(found, catalog):
        on_run(directory)
        reports[directory] = reconcile(directory, listing=listing)
    if any(action.kind == "moved run" for run in reports.values() for action in run.actions):
        # A run that seems to have lost its run.json may be another run, begun where one moved away.
        again = [directory for directory, report in reports.items() if report.blocked]
        reports |= {directory: reconcile(directory) for directory in again}
    return reports


def _find_missing(catalog: Catalog, top: Path, reports: Iterable[RunReport]) -> tuple[Path, ...]:
    """Return the directories below a tree that the index has for runs that are nowhere."""
    # A run that has moved is not missing where it was.
    found = {report.uuid for report in reports}
    known = (row.run.directory for row in catalog.runs.list_all() if row.run.uuid not in found)
    return tuple(d for d in known if d.is_relative_to(top) and (".." in d.parts or not d.is_dir()))


def _find_replaced(catalog: Catalog, top: Path, reports: Iterable[Path]) -> tuple[Run, ...]:
    """Return the runs of the index whose directory holds another run, and that are nowhere."""
    here = set[str]()
    for directory in reports:
        with suppress(OSError):
            here.add(identity.identify(directory).run.uuid)
    return tuple(
        row.run
        for row in catalog.runs.list_all()
        if row.run.uuid not in here
        and row.run.directory.is_relative_to(top)
        and ".." not in row.run.directory.parts
        and find_whereabouts(catalog, row.run.uuid, row.run.directory) == "replaced"
    )


def _add_indexed(
    found: Iterator[Listing], catalog: Catalog, top: Path, done: Mapping[Path, object]
) -> Iterator[tuple[Path, Listing | None]]:
    """Yield the runs that were found on disk, then those that only the index knows."""
    for listing in found:
        yield listing.directory, listing
    # A search does not find a run behind a symlink, nor an emptied one; the index has its row.
    for row in catalog.runs.list_all():
        directory = row.run.directory
        if ".." in directory.parts or directory in done:
            continue  # a path with ".." may lead anywhere
        if directory.is_relative_to(top) and directory.is_dir():
            yield directory, None


def _sort_moved_first(
    found: Iterator[tuple[Path, Listing | None]], catalog: Catalog
) -> Iterator[tuple[Path, Listing | None]]:
    """Yield last the runs that stand where another run was, which may be found elsewhere first."""
    there = {row.run.directory: row.run.uuid for row in catalog.runs.list_all()}
    others: dict[Path, None] = {}  # a directory may come twice: from the disk and from the index
    for directory, listing in found:
        if there.get(directory) in (None, identity.identify(directory).run.uuid):
            yield directory, listing
        else:
            others[directory] = None
    yield from ((directory, None) for directory in others)
