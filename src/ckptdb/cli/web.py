"""Commands for people who want to look: report, serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

import click

from ckptdb.cli.ask import Session
from ckptdb.errors import ExtraMissing


@click.command()
@click.option(
    "-o",
    "--output",
    "file",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="Where to; `-` is standard output.",
)
@click.pass_obj
def report(session: Session, file: str) -> None:
    """Write what there is to see into one HTML file that needs no network."""
    with _extra("report", "report"):
        from ckptdb.web.report import write_report
    from ckptdb.web.data import take_snapshot

    with session.open() as registry:
        snapshot = take_snapshot(registry)
    with _extra("report", "report"):
        content = write_report(snapshot)
    if file == "-":
        click.echo(content, nl=False)
        return
    path = Path(session.directory, file)
    # Whoever has the old one open in a browser sees all of it or all of the new one.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    click.echo(f"{path} shows {len(snapshot.runs)} run(s); open it in a browser.")


@click.command()
@click.argument("path", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535),
              help="Which port; 0 for any that is free.")  # fmt: skip
@click.option("--token", envvar="CKPTDB_TOKEN", metavar="TEXT|auto",
              help="Let in only who knows it; `auto` makes one up.")  # fmt: skip
@click.pass_obj
def serve(session: Session, path: str, host: str, port: int, token: str | None) -> None:
    """Serve the report as a page, fresh at every load, with tables and SQL beside it.

    PATH is a root, a run or a catalog. Only reads. Ends with Ctrl-C.
    """
    with _extra("serve", "web"):
        import_module("uvicorn")  # comes with Datasette, which `serve` imports in its own way
        import_module("ckptdb.web.report").read("plotly.min.js")
    from ckptdb.web.serve import open_door, serve

    with open_door(host, port, token) as door:
        reopen = partial(session.open, path)
        serve(reopen, door, lambda: click.echo(door.address))


@contextmanager
def _extra(command: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "ckptdb":
            raise
        raise ExtraMissing(command, extra) from error


COMMANDS = (report, serve)
