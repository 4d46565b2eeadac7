"""Commands that compare disk and index: init, check, reconcile, verify; and the demo."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from ckptdb.cli.ls import Session, run_option
from ckptdb.cli.printing import (
    console,
    echo_json,
    output_option,
    print_table,
    say,
)
from ckptdb.core.text import clean
from ckptdb.core.units import human_age
from ckptdb.disk import manifest
from ckptdb.disk.verified import VerifyDepth
from ckptdb.reconcile.report import ReconcileReport, RunReport
from ckptdb.registry import Registry
from ckptdb.registry.verification import Verification

DRIFT = 3
PARTLY = 4
_SHOWN = 20
"""Differences of one kind and run that are listed one by one."""
_NAMED = 5
"""Checkpoints of one kind that are named in the last line."""


@click.command()
@click.argument("directory", default=".", type=click.Path(file_okay=False))
@click.pass_obj
def init(session: Session, directory: str) -> None:
    """Mark DIRECTORY as a root: one catalog for all runs below it."""
    registry, report = Registry.init(Path(session.directory, directory))
    with registry:
        _print_report(report, dry_run=False)
    say(f"{registry.location} is the catalog of {len(report.runs)} run(s).")


@click.command()
@click.argument("path", required=False)
@click.option("--full", is_flag=True, help="Also compare every file with its manifest.")
@output_option("table", "json")
@click.pass_obj
def check(session: Session, path: str | None, form: str, *, full: bool) -> int:
    """Say how disk and catalog differ; change nothing.

    Exits 3 when they do, and as long as a checkpoint is lost or cannot be trusted.
    """
    return _reconcile(session, path, form, full=full, dry_run=True)


@click.command()
@click.argument("path", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would be done; exits 3 on drift.")
@click.option("--full", is_flag=True, help="Also compare every file with its manifest.")
@output_option("table", "json")
@click.pass_obj
def reconcile(session: Session, path: str | None, form: str, *, dry_run: bool, full: bool) -> int:
    """Make the catalog true to the disk, and finish what a crash interrupted.

    Never deletes a published checkpoint. Exits 3 when something is left that only a person can
    settle (a checkpoint that is lost or cannot be trusted), 4 when something could not be done.
    """
    return _reconcile(session, path, form, full=full, dry_run=dry_run)


@click.command()
@run_option
@click.option("--sizes-only", is_flag=True, help="Read no file, also not those with checksums.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(0),
    metavar="S",
    help="Stop after so long, also within a file; the next time goes on with what was verified "
    "longest ago.",
)
@output_option("table", "json")
@click.pass_obj
def verify(
    session: Session, run: str | None, max_seconds: float | None, form: str, *, sizes_only: bool
) -> int:
    """Compare every file of every checkpoint with its manifest. Exits 1 when one is damaged.

    A file that is missing or of another size is damage, and so is a link to nothing; with
    checksums the content is compared, too. What was written without a manifest, by NeMo-RL for
    example, cannot be compared: it is counted apart. Exits 4 when a run could not be looked at.
    """
    depth: VerifyDepth = "sizes" if sizes_only else "contents"
    with session.open() as registry, _progress("verifying") as (_, count):
        found = registry.verify(run=run, depth=depth, max_seconds=max_seconds, on_checkpoint=count)
    if form == "json":
        why = found.not_verifiable
        echo_json([cp.as_dict() | {"not_verifiable": why.get(cp.uuid)} for cp in found])
    elif rows := _find_problems(found):
        print_table(["run", "step", "problem"], rows)
    say(_sum_up(found, partly=max_seconds is not None), err=True)
    for run_directory, reason in found.not_seen.items():
        say(f"ckptdb: {run_directory} was not verified: it {reason}.", err=True)
    for stopped in found.stopped.values():
        say(
            f"ckptdb: {stopped} in that time: it is verified with a longer --max-seconds, or "
            "without one.",
            err=True,
        )
    if found.unrecorded:
        say(f"When this was verified could not be recorded: {found.unrecorded}.", err=True)
    if found.damaged:
        return 1
    return PARTLY if found.not_seen else 0


@click.command()
@click.argument("directory", default="ckptdb-demo", type=click.Path(file_okay=False))
@click.pass_context
def demo(context: click.Context, directory: str) -> int:
    """Train a small model, kill it while it saves, recover, finish; in a few seconds."""
    from ckptdb.cli import demo as training

    def run(arguments: Sequence[str]) -> None:
        group = context.find_root().command
        group.main(list(arguments), prog_name="ckptdb", standalone_mode=False)

    return training.main(Path(context.obj.directory, directory), run)


def _find_problems(found: Verification) -> list[list[str]]:
    """Return what there is to say of single checkpoints; of those without a manifest nothing is."""
    rows = []
    for checkpoint in found:
        doubt = found.not_verifiable.get(checkpoint.uuid, manifest.WITHOUT)
        said = "" if doubt == manifest.WITHOUT else f"not verifiable: {doubt}"
        if checkpoint.problem or said:
            rows.append([checkpoint.run, str(checkpoint.step), checkpoint.problem or said])
    return rows


def _sum_up(found: Verification, *, partly: bool) -> str:
    bad, rest = len(found.damaged), _count_not_verifiable(found)
    if not partly:
        what = f", {bad} damaged" if bad else ", all whole" if found.done else ""
        left = len(found) - found.done - len(found.not_verifiable)
        gone = f"; {left} gone or replaced meanwhile" if left > 0 else ""
        return f"{found.done} checkpoint(s) verified{what}{rest}{gone}."
    oldest = ""
    if found.never:
        oldest = f"; {found.never} never yet"
    elif found.oldest_at is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(found.oldest_at)
        oldest = f"; the oldest verification is {human_age(age.total_seconds())} old"
    return (
        f"{found.done} of {len(found)} checkpoint(s) verified, {bad or 'none'} known to be "
        f"damaged{rest}{oldest}."
    )


def _count_not_verifiable(found: Verification) -> str:
    without = sum(why == manifest.WITHOUT for why in found.not_verifiable.values())
    others = len(found.not_verifiable) - without
    said = f"; {without} not verifiable: {manifest.WITHOUT}" if without else ""
    return said + (f"; {others} not verifiable in every file" if others else "")


COMMANDS = (init, check, reconcile, verify, demo)


def _reconcile(session: Session, path: str | None, form: str, *, full: bool, dry_run: bool) -> int:
    top = None if path is None else Path(session.directory, path)
    what = "checking" if dry_run else "reconciling"
    with session.open() as registry, _progress(what) as (run, count):
        report = registry.reconcile(
            top, dry_run=dry_run, full=full, on_run=run, on_checkpoint=count
        )
    if form == "json":
        echo_json(report.as_dict())
    else:
        _print_report(report, dry_run=dry_run)
    if report.blocked:
        return PARTLY
    return DRIFT if report.has_lasting or (dry_run and report.has_drift) else 0


def _print_report(report: ReconcileReport, *, dry_run: bool) -> None:
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
    """Say what differs and what is not well; what a person has put aside, apart from that."""
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
    shown: Counter[str] = Counter()
    for action in run.actions:
        shown[action.kind] += 1
        if shown[action.kind] > _SHOWN:
            continue
        step = "" if action.step is None else f" step {action.step}"
        say(f"{run.name}{step}: {action.kind}: {action.what}")
    for kind, count in kinds.items():
        if count > _SHOWN:
            say(f"{run.name}: … and {count - _SHOWN} more {kind}")


@contextmanager
def _progress(what: str) -> Iterator[tuple[Callable[[Path], None], Callable[[], None]]]:
    """Yield what to call before each run and after each checkpoint."""
    if not sys.stderr.isatty():
        yield (lambda _: None), (lambda: None)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,} checkpoints", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield (
            lambda run: bar.update(task, description=f"{what} {clean(run.name)}"),
            lambda: bar.advance(task),
        )
