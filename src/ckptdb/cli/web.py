"""Commands for people who want to look: report, serve."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click

from ckptdb.cli.ls import Session
from ckptdb.cli.printing import echo_bytes, say
from ckptdb.errors import FileUnusable, LibraryMissing


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
    _need("report", "report", "jinja2", "plotly")
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


@click.command()
@click.argument("path", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535),
              help="Which port; 0 for any that is free.")  # fmt: skip
@click.option("--token", envvar="CKPTDB_TOKEN", metavar="TEXT|auto",
              help="Let in only who knows it; `auto` makes one up. [default: `auto` where other "
              "people use the machine or can reach it, else none]")  # fmt: skip
@click.option("--no-token", is_flag=True, help="Let in everybody on this machine.")
@click.pass_context
def serve(
    context: click.Context, path: str, host: str, port: int, token: str | None, *, no_token: bool
) -> None:
    """Serve the report as a page, fresh at every load, with tables and SQL beside it.

    PATH is a root, a run or a catalog. Only reads. Ends with Ctrl-C.
    """
    session: Session = context.obj
    by_hand = context.get_parameter_source("token") is click.core.ParameterSource.COMMANDLINE
    if no_token and by_hand:
        raise click.UsageError("--token and --no-token contradict each other.")
    _need("serve", "web", "datasette", "jinja2", "plotly", "uvicorn")
    from ckptdb.web.serve import NO_TOKEN, open_door, serve
    from ckptdb.web.users import why_shared

    # An empty variable is none.
    wanted = NO_TOKEN if no_token else token or None
    shared = why_shared() if wanted is None else None
    with open_door(host, port, wanted, shared=shared) as door:
        if door.why_token is not None:
            told = f"Because {door.why_token}, the page asks for a token, which this address has"
            say(f"{told}; --no-token lets in everybody.", err=True)
        reopen = partial(session.open, path)
        serve(reopen, door, lambda: say(door.address))


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


def _need(command: str, extra: str, *libraries: str) -> None:
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise LibraryMissing(f"`ckptdb {command}`", " and ".join(missing), f"ckptdb[{extra}]")


COMMANDS = (report, serve)
