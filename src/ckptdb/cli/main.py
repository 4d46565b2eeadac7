"""The command ``ckptdb``: its options, its subcommands, and the exit code of each error."""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from gc import freeze
from typing import Final, TextIO

import click

from ckptdb.cli import (
    annotate,
    db,
    demo,
    diff,
    gc,
    init,
    ls,
    plot,
    ranking,
    reconcile,
    report,
    rm,
    schema,
    serve,
    show,
    sql,
    terminal,
    verify,
    watch,
)
from ckptdb.cli.options import PARTLY_DONE, Session
from ckptdb.cli.printing import echo_error, echo_traceback, say
from ckptdb.core.text import clean
from ckptdb.errors import (
    CatalogForeign,
    CatalogLocked,
    CatalogMissing,
    CatalogTooNew,
    CkptdbError,
    DeletionIncomplete,
    DeletionNotConfirmed,
    RunLocked,
    RunsNotNamed,
)

EXIT_CODES: Final[dict[type[CkptdbError], int]] = {
    CatalogMissing: 10,
    CatalogLocked: 11,
    RunLocked: 11,
    CatalogTooNew: 12,
    CatalogForeign: 12,
    RunsNotNamed: 2,
    DeletionNotConfirmed: 2,
}
"""Exit code of each error; every other error has 1, wrong usage 2."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 error, 2 wrong usage, 3 drift found, 4 partly done, "
    "10 no catalog here, 11 locked, 12 catalog too new or not ours.",
)
@click.option("-C", "directory", default=".", metavar="DIR", help="Run as if started in DIR.")
@click.option("--catalog", metavar="PATH|URL", help="Use this catalog instead of the one found.")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
@click.version_option(package_name="ckptdb", prog_name="ckptdb")
@click.pass_context
def cli(context: click.Context, directory: str, catalog: str | None, *, debug: bool) -> None:
    """Query, verify and clean up the checkpoints of training runs.

    Works from inside a run or a root, like git.
    """
    del debug  # main() looks for it before anything can fail
    context.obj = Session(directory, catalog)


for module in (
    ls, show, ranking, sql, schema, diff, plot, annotate, gc, rm, reconcile, init, verify, watch,
    report, serve, db, demo,
):  # fmt: skip
    for command in module.COMMANDS:
        cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if arguments is None:
        _restart_in_utf8()
        # Imported modules stay until the end: no garbage collection needs to look at them.
        freeze()
        _escape_unwritable()
        terminal.guard()
        threading.excepthook = _print_thread_error
    given = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _print_warning
    try:
        code = cli.main(given, prog_name="ckptdb", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001  # the one place where every error ends
        code = _report(error, debug="--debug" in given)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, *, debug: bool) -> int:
    if debug:
        echo_traceback(error)
    if isinstance(error, click.Abort):
        say("Stopped.", err=True)
        return 1
    if isinstance(error, click.ClickException):
        # The message repeats what was typed; other line ends are those of click.
        vars(error)["message"] = clean(error.message)
        text = io.StringIO()
        error.show(text)
        for line in text.getvalue().rstrip("\n").split("\n"):
            say(line, err=True)
        return error.exit_code
    if isinstance(error, CkptdbError):
        echo_error(error, prefix="ckptdb: ")
        if isinstance(error, DeletionIncomplete) and error.is_partial:
            return PARTLY_DONE
        return next((c for kind, c in EXIT_CODES.items() if isinstance(error, kind)), 1)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        say(f"ckptdb: {where}{error.strerror or error}.", err=True)
        return 1
    say(
        f"ckptdb: This is a bug in ckptdb ({error!r}); run again with --debug and report it.",
        err=True,
    )
    return 1


def _restart_in_utf8() -> None:
    """Start this process again with UTF-8 for names and arguments, as in the catalog.

    Output to a terminal or a pipe keeps the encoding of the locale.
    """
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    if sys.stdout is not None:
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    # A process that cannot be started again goes on as it is.
    with suppress(OSError):
        os.execv(sys.executable, command)  # noqa: S606  # no shell


def _escape_unwritable() -> None:
    """Write a character that the encoding lacks as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_thread_error(end: threading.ExceptHookArgs) -> None:
    if end.exc_value is not None and not isinstance(end.exc_value, SystemExit):
        echo_traceback(end.exc_value)


def _print_warning(  # noqa: PLR0917  # the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    say(f"warning: {message}", err=True)
