"""Commands that answer questions: ls, show, best, latest, top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import click

from ckptdb.cli.output import (
    FORMATS,
    clean,
    describe,
    echo_json,
    echo_path,
    human_bytes,
    number,
    output_option,
    print_checkpoints,
    print_lineage,
    print_rows,
    print_table,
    short_time,
)
from ckptdb.errors import NothingToChoose
from ckptdb.records import Checkpoint, Mode, Run, Status
from ckptdb.registry import Registry

run_option = click.option(
    "--run", metavar="RUN", help="Name, path or uuid prefix of a run; default: the one we are in."
)
mode_option = click.option(
    "--mode", type=click.Choice(["min", "max"]), help="Whether low or high is better."
)
metric_option = click.option(
    "--metric", metavar="NAME", help="Rank by this metric; default: the run's own."
)
metric_argument = click.argument("metric", required=False)


class Session(Protocol):
    """What was chosen before the subcommand."""

    directory: str

    def open(self) -> Registry:
        """Open the registry that the command is about."""


@click.command()
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Also deleted and unfinished ones.")
@click.option("--status", type=click.Choice(["tmp", "final", "deleted"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest so many.")
@output_option(*FORMATS)
@click.pass_obj
def ls(
    session: Session,
    run: str | None,
    status: Status | None,
    limit: int | None,
    form: str,
    *,
    everything: bool,
) -> None:
    """List the runs of a root, or the checkpoints of RUN.

    Inside a run, its checkpoints; --all and --status list checkpoints of every run.
    """
    with session.open() as registry:
        if run is None and registry.run is None and not everything and status is None:
            _print_runs(registry, form)
            return
        wanted = status or (None if everything else "final")
        found = registry.checkpoints(run=run, status=wanted, limit=limit)
        print_checkpoints(found, form, metric=_metric_of(registry, found))


@click.command()
@click.argument("step", type=click.IntRange(0))
@run_option
@click.option("--lineage", is_flag=True, help="What training came from, back to the first.")
@output_option("table", "json")
@click.pass_obj
def show(session: Session, step: int, run: str | None, form: str, *, lineage: bool) -> None:
    """Show everything known about the checkpoint at STEP, deleted ones too."""
    with session.open() as registry:
        if lineage:
            print_lineage(registry.lineage(step, run=run), form)
            return
        checkpoint = registry.get(step, run=run)
    if form == "json":
        echo_json(checkpoint.as_dict())
        return
    print_table(["", ""], describe(checkpoint))


@click.command()
@run_option
@metric_option
@mode_option
@click.option("--each", is_flag=True, help="The best of every run, one path a line.")
@output_option("path", "json")
@click.pass_obj
def best(
    session: Session,
    run: str | None,
    metric: str | None,
    mode: Mode | None,
    form: str,
    *,
    each: bool,
) -> None:
    """Print the path of the best checkpoint, alone: cp -r "$(ckptdb best)" elsewhere."""
    if each and run is not None:
        raise click.UsageError("--each is about every run; leave out --run.")
    with session.open() as registry:
        if each:
            _print_each(registry.best_of_runs(metric, mode=mode), form)
            return
        found = registry.best(metric, mode=mode, run=run)
        _print_one(found, form)
        if metric is None and found and _metric_of(registry, (found,)) is None:
            click.echo(f"{clean(found.run)} has no metric; this is its latest.", err=True)


@click.command()
@run_option
@output_option("path", "json")
@click.pass_obj
def latest(session: Session, run: str | None, form: str) -> None:
    """Print the path of the latest checkpoint, alone."""
    with session.open() as registry:
        _print_one(registry.latest(run=run), form)


@click.command()
@click.argument("count", type=click.IntRange(1), default=10)
@run_option
@metric_option
@mode_option
@output_option(*FORMATS)
@click.pass_obj
def top(  # noqa: PLR0917  # one parameter an option
    session: Session, count: int, run: str | None, metric: str | None, mode: Mode | None, form: str
) -> None:
    """List the COUNT best checkpoints, best first."""
    with session.open() as registry:
        found = registry.top(count, metric, mode=mode, run=run)
        print_checkpoints(found, form, metric=metric or _metric_of(registry, found))


COMMANDS = (ls, show, best, latest, top)


def _print_one(checkpoint: Checkpoint | None, form: str) -> None:
    if checkpoint is None:
        raise NothingToChoose
    if form == "json":
        echo_json(checkpoint.as_dict())
    else:
        echo_path(checkpoint.path)


def _print_each(found: Sequence[Checkpoint], form: str) -> None:
    if not found:
        raise NothingToChoose
    if form == "json":
        echo_json([checkpoint.as_dict() for checkpoint in found])
        return
    for checkpoint in found:
        echo_path(checkpoint.path)


def _print_runs(registry: Registry, form: str) -> None:
    rows = registry.summary()
    if form != "table":
        print_rows(rows.columns, rows.rows, form)
        return
    found = rows.as_dicts()
    metrics = {row["metric_name"] for row in found}
    # What is the same in all rows is told once.
    common = metrics.pop() if len(metrics) == 1 else None
    best = [common] if common else ["metric", "best"]
    print_table(
        ["run", "live", "deleted", "on disk", *best, "at step", "latest", "last active"],
        (_run_row(row, common=common) for row in found),
    )


def _run_row(row: dict[str, Any], *, common: str | None) -> list[str]:
    live = str(row["final"])
    extras = [f"{row[name]} {name}" for name in ("tmp", "problems") if row[name]]
    return [
        row["run"],
        live + (f" (+ {', '.join(extras)})" if extras else ""),
        str(row["deleted"]),
        human_bytes(row["bytes_on_disk"]),
        *([] if common else [row["metric_name"] or ""]),
        number(row["best_value"]),
        number(row["best_step"]),
        number(row["latest_step"]),
        short_time(row["last_activity"]),
    ]


def _metric_of(registry: Registry, found: tuple[Checkpoint, ...]) -> str | None:
    """The one metric that the runs of these checkpoints are judged by."""
    here = {checkpoint.run_uuid for checkpoint in found}
    runs: list[Run] = [run for run in registry.runs() if run.uuid in here]
    metrics = {run.metric_name for run in runs}
    return metrics.pop() if len(metrics) == 1 else None
