"""The commands reconcile and check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from ckptdb.cli.formats import echo_json
from ckptdb.cli.options import DRIFT, PARTLY_DONE, Session, output_option
from ckptdb.cli.printing import say
from ckptdb.cli.progress import show_progress
from ckptdb.reconcile.report import ReconcileReport, RunReport

_MOST_PRINTED = 20
"""Differences of one kind in one run that are printed one by one."""
_NAMED = 5
"""Checkpoints of one kind that are named in the last line."""


@click.command()
@click.argument("path", required=False)
@click.option("--full", is_flag=True, help="Also compare every file with its manifest.")
@output_option("table", "json")
@click.pass_obj
def check(session: Session, path: str | None, form: str, *, full: bool) -> int:
    """Print how disk and catalog differ; change nothing.

    Exits 3 when they differ, and as long as a checkpoint is lost or cannot be trusted.
    """
    return _reconcile(session, path, form, full=full, dry_run=True)


@click.command()
@click.argument("path", required=False)
@click.option("--dry-run", is_flag=True, help="Only print what would be done; exits 3 on drift.")
@click.option("--full", is_flag=True, help="Also compare every file with its manifest.")
@output_option("table", "json")
@click.pass_obj
def reconcile(session: Session, path: str | None, form: str, *, dry_run: bool, full: bool) -> int:
    """Bring the catalog to what is on disk.

    Also finishes what a crash interrupted. Never deletes a published checkpoint. Exits 3 when a
    checkpoint is lost or cannot be trusted, which only a person can settle, and 4 when
    something could not be done.
    """
    return _reconcile(session, path, form, full=full, dry_run=dry_run)


COMMANDS = (check, reconcile)


def _reconcile(session: Session, path: str | None, form: str, *, full: bool, dry_run: bool) -> int:
    top = None if path is None else Path(session.directory, path)
    what = "checking" if dry_run else "reconciling"
    with session.open() as registry, show_progress(what) as (run, count):
        report = registry.reconcile(
            top, dry_run=dry_run, full=full, on_run=run, on_checkpoint=count
        )
    if form == "json":
        echo_json(report.as_dict())
    else:
        print_report(report, dry_run=dry_run)
    if report.blocked:
        return PARTLY_DONE
    return DRIFT if report.has_unresolved or (dry_run and report.has_drift) else 0


def print_report(report: ReconcileReport, *, dry_run: bool) -> None:
    """Print the differences of each run, and a last line that sums them up."""
    if report.set_aside:
        say(f"The broken catalog was set aside as {report.set_aside}.")
    for run in report.runs:
        _print_run(run)
        if run.journal_aside:
            say(f"{run.name}: the damaged journal is kept as {run.journal_aside}")
    if report.strays:
        say(f"{report.strays} row(s) of the catalog belong to no run or checkpoint; removed.")
    for sentence in report.history:
        say(f"{sentence}.")
    for sentence in report.blocked:
        say(f"ckptdb: {sentence}.", err=True)
    say(
        f"{report.checkpoints} checkpoint(s) in {len(report.runs)} run(s) compared in "
        f"{report.seconds:.1f} s: {_conclude(report, dry_run=dry_run)}."
    )


def _conclude(report: ReconcileReport, *, dry_run: bool) -> str:
    """Return the last line: differences and damage; rejected checkpoints apart from these."""
    counts = report.counts
    differences = counts.pop("differences")
    named = {kind: _named(report, kind, count) for kind, count in counts.items() if count}
    rejected = named.pop("rejected", None)
    found = [f"{differences} difference(s) {'found' if dry_run else 'settled'}"]
    drift = [*(found if differences else ()), *named.values()]
    unknown = f"{report.not_verifiable} not verifiable" if report.not_verifiable else None
    return "; ".join(filter(None, (", ".join(drift) or "no drift", rejected, unknown)))


def _named(report: ReconcileReport, kind: str, count: int) -> str:
    which = [
        run.name if action.step is None else f"{run.name} step {action.step}"
        for run in report.runs
        for action in run.actions
        if kind == ("lost" if action.is_lost else action.kind)
    ]
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    return f"{count} {kind} ({', '.join(which[:_NAMED])}{more})"


def _print_run(run: RunReport) -> None:
    kinds = Counter(action.kind for action in run.actions)
    printed: Counter[str] = Counter()
    for action in run.actions:
        printed[action.kind] += 1
        if printed[action.kind] > _MOST_PRINTED:
            continue
        step = "" if action.step is None else f" step {action.step}"
        say(f"{run.name}{step}: {action.kind}: {action.what}")
    for kind, count in kinds.items():
        if count > _MOST_PRINTED:
            say(f"{run.name}: … and {count - _MOST_PRINTED} more {kind}")
