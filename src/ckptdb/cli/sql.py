"""The command sql."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click

from ckptdb.cli.formats import FORMATS
from ckptdb.cli.options import Session, output_option
from ckptdb.cli.sql_answers import SqlAnswers
from ckptdb.errors import FileUnusable

_WHOLE: Final = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d+\.\d+", re.ASCII)
_LONGEST: Final = 20
"""Characters of a whole number of 64 bits, with its sign."""
_COMMENT: Final = re.compile(r"--(\s|[^=\s]*\n)")


class _Query(click.Command):
    """A command whose argument may begin with an SQL comment, which is not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {a}" if _COMMENT.match(a) else a for a in args])


@click.command(cls=_Query)
@click.argument("query", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the query from FILE.")
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="VALUE of :NAME.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Most rows of the answer.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that the query may run.",
)
@output_option(*FORMATS)
@click.pass_obj
def sql(  # noqa: PLR0917  # one parameter an option
    session: Session,
    query: str | None,
    file: str | None,
    parameters: tuple[str, ...],
    limit: int,
    timeout: float,
    form: str,
) -> None:
    """Answer a SELECT over the whole catalog; read-only.

    The answer is the same from any directory below the root. A query may use 256 MiB of memory
    and run for --timeout; an answer may have 256 MiB.

    Without QUERY a terminal gets a prompt. With "-", or without a terminal, QUERY is read from
    standard input. Paths in the tables are relative to the root; abspath(path) makes them absolute.

    A VALUE in plain notation is a number: 7, 0.5, -3. All others are texts, also 007 and 1e-4; a
    column of numbers compares with a text as with a number.
    """
    if query is not None and file is not None:
        raise click.UsageError("Pass a query or --file, not both.")
    values = dict(_named(text) for text in parameters)
    is_prompt = query is None and file is None and sys.stdin.isatty()
    if is_prompt and not sys.stdout.isatty():
        raise click.UsageError('Pass a query: ckptdb sql "SELECT * FROM leaderboard"')
    text = "" if is_prompt else _read(session, query, file)
    with session.open() as registry:
        answers = SqlAnswers(registry, values, limit, timeout, form)
        if not is_prompt:
            answers.answer(text)
            return
        from ckptdb.cli import prompt

        prompt.run(answers)


COMMANDS = (sql,)


def _read(session: Session, query: str | None, file: str | None) -> str:
    if file not in (None, "-"):
        # A relative path starts at the directory of -C.
        path = Path(session.directory, str(file))
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise FileUnusable(path, "read", error.strerror or str(error)) from error
    if query in (None, "-"):
        return sys.stdin.read()
    return query


def _named(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="-p")
    # A run may be named nan, 007 or 1e-4: a number in another notation stays a text.
    if _WHOLE.fullmatch(value):
        return name, _whole(name, value)
    return name, float(value) if _is_decimal(value) else value


def _whole(name: str, digits: str) -> int:
    if len(digits) <= _LONGEST and -(2**63) <= int(digits) < 2**63:
        return int(digits)
    why = f"{name!r} does not fit into the whole numbers of SQL, which have 64 bits"
    raise click.BadParameter(why, param_hint="-p")


def _is_decimal(text: str) -> bool:
    return _DECIMAL.fullmatch(text) is not None and repr(float(text)) == text
