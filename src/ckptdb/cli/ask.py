"""Commands that answer questions: ls, show, best, latest, top, sql, schema."""

from __future__ import annotations

import sys
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
    print_records,
    print_rows,
    print_table,
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


@click.command()
@click.argument("query", required=False)
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="Value of :NAME.")
@click.option(
    "--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Rows at most."
)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="In seconds.")
@output_option(*FORMATS)
@click.pass_obj
def sql(  # noqa: PLR0917  # one parameter an option
    session: Session,
    query: str | None,
    parameters: tuple[str, ...],
    limit: int,
    timeout: float,
    form: str,
) -> None:
    """Answer a SELECT over the catalog; it cannot change anything.

    QUERY is read from standard input when it is "-" or missing. Paths in the tables are
    relative to the root; abspath(path) makes them absolute.
    """
    if query in (None, "-"):
        if query is None and sys.stdin.isatty():
            raise click.UsageError('Pass a query: ckptdb sql "SELECT * FROM leaderboard"')
        query = sys.stdin.read()
    values = dict(_named(text) for text in parameters)
    with session.open() as registry:
        rows = registry.query(query or "", values, limit=limit, timeout_seconds=timeout)
    print_rows(rows.columns, rows.rows, form)
    if rows.truncated:
        click.echo(f"Only the first {len(rows)} rows; --limit shows more.", err=True)


@click.command()
@output_option("table", "json")
@click.pass_obj
def schema(session: Session, form: str) -> None:
    """Print the tables and views that SQL can name."""
    with session.open() as registry:
        relations = registry.schema()
    if form == "json":
        print_records(
            [
                {
                    "name": relation.name,
                    "kind": relation.kind,
                    "purpose": relation.purpose,
                    "columns": {column.name: column.type for column in relation.columns},
                }
                for relation in relations
            ],
            form,
        )
        return
    for relation in relations:
        columns = ", ".join(column.name for column in relation.columns)
        click.echo(f"{relation.name} ({relation.kind}): {relation.purpose}\n    {columns}\n")


COMMANDS = (ls, show, best, latest, top, sql, schema)


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
    print_table(
        ["run", "live", "deleted", "on disk", "metric", "best", "at step", "latest", "last active"],
        (_run_row(row) for row in rows.as_dicts()),
    )


def _run_row(row: dict[str, Any]) -> list[str]:
    live = str(row["final"])
    extras = [f"{row[name]} {name}" for name in ("tmp", "problems") if row[name]]
    return [
        row["run"],
        live + (f" (+ {', '.join(extras)})" if extras else ""),
        str(row["deleted"]),
        human_bytes(row["bytes_on_disk"]),
        row["metric_name"] or "",
        number(row["best_value"]),
        number(row["best_step"]),
        number(row["latest_step"]),
        (row["last_activity"] or "")[:19].replace("T", " "),
    ]


def _metric_of(registry: Registry, found: tuple[Checkpoint, ...]) -> str | None:
    """The one metric that the runs of these checkpoints are judged by."""
    here = {checkpoint.run_uuid for checkpoint in found}
    runs: list[Run] = [run for run in registry.runs() if run.uuid in here]
    metrics = {run.metric_name for run in runs}
    return metrics.pop() if len(metrics) == 1 else None


def _named(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="-p")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
