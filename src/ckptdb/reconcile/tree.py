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
        depth: How much is looked at again.
        dry_run: Only say what would be done.
        on_run: Called before each run, for a progress bar.
        on_checkpoint: Called after each checkpoint.
    """
    started = time.monotonic()
    count = 0
    strays = catalog.count_strays()
    if strays and not dry_run:
        catalog.remove_strays()

    def counted() -> None:
        nonlocal count
        count += 1
        if on_checkpoint:
            on_checkpoint()

    reports: dict[Path, RunReport] = {}
    look = partial(
        reconcile_run, catalog, depth=depth, dry_run=dry_run, on_checkpoint=counted, restore=True
    )
    with_known = _with_known(run_finder.list_runs(top), catalog, top, reports)
    for directory, listing in _moved_first(with_known, catalog):
        if on_run:
            on_run(directory)
        reports[directory] = look(directory, listing=listing)
    if any(action.kind == "moved run" for run in reports.values() for action in run.actions):
        # What seemed to have lost its run.json may be another run, begun where one moved away.
        again = [directory for directory, report in reports.items() if report.blocked]
        reports |= {directory: look(directory) for directory in again}
    # One that has moved is not missing where it was.
    found = {report.uuid for report in reports.values()}
    known = (seen.run.directory for seen in catalog.runs() if seen.run.uuid not in found)
    missing = tuple(
        d for d in known if d.is_relative_to(top) and (".." in d.parts or not d.is_dir())
    )
    replaced = _find_replaced(catalog, top, reports)
    seconds = time.monotonic() - started
    return ReconcileReport(
        tuple(reports.values()),
        missing,
        replaced,
        checkpoints=count,
        seconds=seconds,
        strays=strays,
    )


def _find_replaced(catalog: Catalog, top: Path, reports: Iterable[Path]) -> tuple[Run, ...]:
    """Return the runs of the index whose directory holds another one, and that are nowhere."""
    here = set[str]()
    for directory in reports:
        with suppress(OSError):
            here.add(identity.identify(directory).run.uuid)
    return tuple(
        seen.run
        for seen in catalog.runs()
        if seen.run.uuid not in here
        and seen.run.directory.is_relative_to(top)
        and ".." not in seen.run.directory.parts
        and find_whereabouts(catalog, seen.run.uuid, seen.run.directory) == "replaced"
    )


def _with_known(
    found: Iterator[Listing], catalog: Catalog, top: Path, done: Mapping[Path, object]
) -> Iterator[tuple[Path, Listing | None]]:
    for listing in found:
        yield listing.directory, listing
    # A run behind a symlink, or emptied, is not found by looking; the catalog remembers it.
    for seen in catalog.runs():
        directory = seen.run.directory
        if ".." in directory.parts or directory in done:
            continue  # such a row of the catalog leads anywhere
        if directory.is_relative_to(top) and directory.is_dir():
            yield directory, None


def _moved_first(
    found: Iterator[tuple[Path, Listing | None]], catalog: Catalog
) -> Iterator[tuple[Path, Listing | None]]:
    """Yield last what stands where another run was: that one may be found elsewhere before."""
    there = {seen.run.directory: seen.run.uuid for seen in catalog.runs()}
    others: dict[Path, None] = {}  # the catalog names once more what has not been looked at
    for directory, listing in found:
        if there.get(directory) in (None, identity.identify(directory).run.uuid):
            yield directory, listing
        else:
            others[directory] = None
    yield from ((directory, None) for directory in others)
