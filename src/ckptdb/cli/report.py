"""The command report."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ckptdb.cli.extras import require
from ckptdb.cli.options import Session
from ckptdb.cli.printing import echo_bytes, say
from ckptdb.errors import FileUnusable


@click.command()
@click.option(
    "-o",
    "--output",
    "file",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="File to write; `-` is standard output.",
)
@click.pass_obj
def report(session: Session, file: str) -> None:
    """Write an overview of the runs as one HTML file.

    The file needs no network.
    """
    require("report", "report", "jinja2", "plotly")
    from ckptdb.web.data import catch_up, take_snapshot
    from ckptdb.web.report import write_report

    with session.open() as registry:
        catch_up(registry)
        snapshot = take_snapshot(registry)
    content = write_report(snapshot)
    if file == "-":
        echo_bytes(content.encode())
        return
    path = Path("" if "://" in session.directory else session.directory, file)
    try:
        _write(path, content)
    except OSError as error:
        folder = path.parent
        why = error.strerror if folder.is_dir() else f"the folder {folder} does not exist"
        raise FileUnusable(path, "written", why or str(error)) from error
    say(f"{path} shows {len(snapshot.runs)} run(s); open it in a browser.")


COMMANDS = (report,)


def _write(path: Path, content: str) -> None:
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")  # a device or a pipe is not replaced
        return
    # Whoever opens it meanwhile sees all of the old one or all of the new one.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
