"""The command serve."""

from __future__ import annotations

from functools import partial

import click

from ckptdb.cli.extras import require
from ckptdb.cli.options import Session
from ckptdb.cli.printing import say


@click.command()
@click.argument("path", default="")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535),
              help="Port to listen on; 0 for a free one.")  # fmt: skip
@click.option("--token", envvar="CKPTDB_TOKEN", metavar="TEXT|auto",
              help="Token that visitors must know; `auto` makes one. [default: `auto` where other "
              "people use the machine or can reach it, else none]")  # fmt: skip
@click.option("--no-token", is_flag=True, help="Let in everybody on this machine, without a token.")
@click.pass_context
def serve(
    context: click.Context, path: str, host: str, port: int, token: str | None, *, no_token: bool
) -> None:
    """Serve the report as a web page, with tables and SQL.

    The page is current at every load. PATH is a root, a run or a catalog, and is only read.
    Ctrl-C ends the server.
    """
    session: Session = context.obj
    by_hand = context.get_parameter_source("token") is click.core.ParameterSource.COMMANDLINE
    if no_token and by_hand:
        raise click.UsageError("--token and --no-token contradict each other.")
    require("serve", "web", "datasette", "jinja2", "plotly", "uvicorn")
    from ckptdb.web.serve import NO_TOKEN, open_door, serve
    from ckptdb.web.users import why_shared

    # An empty variable is none.
    wanted = NO_TOKEN if no_token else token or None
    shared = why_shared() if wanted is None else None
    with open_door(host, port, wanted, shared=shared) as door:
        if door.why_token is not None:
            reason = f"Because {door.why_token}, the page asks for a token, which this address has"
            say(f"{reason}; --no-token lets in everybody.", err=True)
        reopen = partial(session.open, path)
        serve(reopen, door, lambda: say(door.address))


COMMANDS = (serve,)
