"""The command ls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ckptdb.cli.checkpoint_tables import print_checkpoints, short_time
from ckptdb.cli.formats import FORMATS, print_rows, print_table
from ckptdb.cli.options import Session, output_option
from ckptdb.cli.printing import say
from ckptdb.core.records import Checkpoint, Status
from ckptdb.core.rows import Rows
from ckptdb.core.text import number
from ckptdb.core.units import human_bytes
from ckptdb.registry import Registry


@click.command()
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="Also deleted and unfinished checkpoints.")
@click.option(
    "--status",
    type=click.Choice(["tmp", "final", "deleted"]),
    help="Only checkpoints of this status.",
)
@click.option("--limit", type=click.IntRange(1), help="Only this many, the newest.")
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
    """List the runs at or below here, or the checkpoints of RUN.

    Inside a run, its checkpoints; --all and --status list checkpoints of all these runs.
    """
    with session.open() as registry:
        if run is None and registry.run is None and not everything and status is None:
            _print_runs(registry, form)
            return
        wanted = status or (None if everything else "final")
        found = registry.checkpoints(run=run, status=wanted, limit=limit)
        runs = {checkpoint.run_uuid: checkpoint.run for checkpoint in found}
        where = registry.whereabouts(runs)
        names = {uuid: called(runs[uuid], uuid, place) for uuid, place in where.items()}
        print_checkpoints(found, form, metrics=metric_of(registry, found), names=names)
        say_passed_over(registry, found, run)


COMMANDS = (ls,)


def say_passed_over(registry: Registry, answer: Sequence[Checkpoint], run: str | None) -> None:
    """Name directories that are newer than an answer, and cannot be read as a checkpoint."""
    for path, why in registry.passed_over(answer, run=run):
        say(f"{path} is passed over: {why}.", err=True)


def _print_runs(registry: Registry, form: str) -> None:
    rows = registry.summary()
    at = rows.columns.index("uuid")
    where = registry.whereabouts(row[at] for row in rows)
    # A column of the answer, not of the view: it comes from the disk.
    columns = (*rows.columns, "whereabouts")
    rows = Rows(columns, tuple((*row, where.get(row[at])) for row in rows))
    if form != "table":
        print_rows(rows.columns, rows.rows, form)
        return
    found = rows.as_dicts()
    metrics = {row["metric_name"] for row in found}
    # A metric that all runs share is named once, in the header.
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
        called(row["run"], row["uuid"], row["whereabouts"]),
        live + (f" (+ {', '.join(extras)})" if extras else ""),
        str(row["deleted"]),
        human_bytes(row["bytes_on_disk"]),
        *([] if common else [row["metric_name"] or ""]),
        number(row["best_value"]),
        number(row["best_step"]),
        number(row["latest_step"]),
        short_time(row["last_activity"]),
    ]


def called(name: str, uuid: str, whereabouts: str | None) -> str:
    """Return the label of a run in a list: its name, and its uuid when only history is left."""
    if whereabouts == "replaced":
        return f"{name} (gone, {uuid[:8]})"
    return f"{name} (not there)" if whereabouts == "missing" else name


def metric_of(registry: Registry, found: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return the metric that the runs of these checkpoints share, if there is one."""
    name = registry.own_metric(found)
    return () if name is None else (name,)
