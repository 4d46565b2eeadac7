"""Reconciling one run: `reconcile_run` may change its directory, `index_run` only the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.disk.publish import Publisher
from ckptdb.disk.run_listing import Listing
from ckptdb.reconcile import journal_updates, missing_facts
from ckptdb.reconcile.action import OF_THE_JOURNAL, Action
from ckptdb.reconcile.apply import apply_plan, is_new_copy, is_worth_storing, repair
from ckptdb.reconcile.locks import lock_to_change
from ckptdb.reconcile.options import Options, ReconcileDepth
from ckptdb.reconcile.planned_run import PlannedRun, plan_run
from ckptdb.reconcile.repairs import Completing, Finishing
from ckptdb.reconcile.report import RunReport


def reconcile_run(
    catalog: Catalog,
    directory: Path,
    *,
    depth: ReconcileDepth = "files",
    dry_run: bool = False,
    assume: bool = False,
    publisher: Publisher | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    listing: Listing | None = None,
    restore: bool = False,
) -> RunReport:
    """Compare one run with the index, correct the index, and finish what a crash left half done.

    Removals that a crash interrupted are finished, and the journal records what has vanished. A
    question uses `index_run` instead.

    Args:
        catalog: The index.
        directory: The run, absolute.
        depth: Extent of the reading.
        dry_run: Only report what would be done.
        assume: Store the stamp even if it is too young to be sure, marked as not verified.
        publisher: Does the repairs, with its durability and metric.
        on_checkpoint: Called after each checkpoint that was read.
        listing: Of the directory, when it has just been made.
        restore: Also restore what a damaged journal lacks and the index knows. Otherwise the
            facts of both count, and nothing of the run may be deleted.

    Raises:
        OSError: The directory cannot be read at all.
    """
    repairs = None if dry_run else Finishing(publisher or Publisher(directory))
    options = Options(depth, repairs, assume, store=not dry_run, restore=restore)
    return _reconcile(catalog, directory, options, on_checkpoint, listing)


def index_run(
    catalog: Catalog,
    directory: Path,
    *,
    depth: ReconcileDepth = "files",
    assume: bool = False,
    completing: Completing | None = None,
    listing: Listing | None = None,
    locked: bool = False,
) -> RunReport:
    """Bring the index to what is on disk in one run, and change nothing there.

    The index then records what has vanished; the next `reconcile_run` writes it to the journal.

    Args:
        catalog: The index.
        directory: The run, absolute.
        depth: Extent of the reading.
        assume: See `reconcile_run`.
        completing: Publishes what a crash left complete; None to change nothing at all.
        listing: Of the directory, when it has just been made.
        locked: The caller holds the run's lock.

    Raises:
        OSError: The directory cannot be read at all.
    """
    options = Options(depth, completing, assume, locked=locked)
    return _reconcile(catalog, directory, options, None, listing)


def _reconcile(
    catalog: Catalog,
    directory: Path,
    options: Options,
    on_checkpoint: Callable[[], None] | None,
    listing: Listing | None,
) -> RunReport:
    # Storing a batch takes the lock itself.
    planned = plan_run(
        catalog, directory, options, on_checkpoint, in_batches=not options.locked, listing=listing
    )
    if isinstance(planned, RunReport):
        return planned
    if options.restore and options.finishing and planned.plan.doubt is not None:
        return _restore_journal(catalog, planned, options, options.finishing)
    worth_it = is_worth_storing(planned, options) or is_new_copy(planned, options)
    if not options.store or not worth_it:
        return planned.report()
    catalog.database.ensure_sound()
    repaired = ([], []) if options.repairs is None else repair(options.repairs, catalog, planned)
    return apply_plan(catalog, planned, options, repaired)


def _restore_journal(
    catalog: Catalog, first: PlannedRun, options: Options, finishing: Finishing
) -> RunReport:
    """Write to the journal what it lacks and the index knows, then reconcile as usual."""
    directory = first.directory
    again = partial(
        _reconcile,
        catalog,
        directory,
        Options(options.depth, finishing, options.assume),
        None,
        None,
    )
    aside: Path | None = None
    actions: tuple[Action, ...] = ()
    try:
        with lock_to_change(directory):
            planned = plan_run(
                catalog, directory, replace(options, depth="files"), before=first.observation
            )
            if isinstance(planned, RunReport):
                return planned
            actions = tuple(a for a in planned.plan.actions if a.kind in OF_THE_JOURNAL)
            facts = planned.observation.facts
            if actions and facts is not None:
                aside = journal_updates.restore(
                    directory,
                    actions,
                    is_damaged=facts.damage is not None,
                    longest_bytes=missing_facts.find_longest_bytes(
                        planned.observation, planned.recorded
                    ),
                )
    except OSError as error:
        report = again()
        why = f"{directory}: its journal cannot be restored ({error.strerror}); {first.plan.doubt}"
        blocked = "; ".join(filter(None, (report.blocked, why)))
        return replace(report, blocked=blocked)
    report = again()
    done = (*first.stored, *(action.without_record() for action in actions))
    return replace(report, actions=(*done, *report.actions), journal_aside=aside, applied=True)
