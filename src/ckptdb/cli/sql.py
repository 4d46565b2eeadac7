"""Commands for people who ask in SQL: sql, schema."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from ckptdb.catalog.query import Relation
from ckptdb.cli.ls import Session
from ckptdb.cli.printing import (
    FORMATS,
    output_option,
    print_records,
    print_rows,
    say,
    width,
)
from ckptdb.errors import FileUnusable, QueryFailed, UnknownRelation
from ckptdb.registry import Registry

_WHOLE: Final = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d+\.\d+", re.ASCII)
_LONGEST: Final = 20
"""Characters of a whole number of 64 bits, with its sign."""
_COMMENT: Final = re.compile(r"--(\s|[^=\s]*\n)")


@dataclass(slots=True)
class Asker:
    """Answers queries to one registry, as the options of the command say."""

    registry: Registry
    parameters: dict[str, object]
    limit: int
    timeout_seconds: float
    form: str

    def answer(self, query: str) -> None:
        """Print what a query says."""
        if not is_text(query):
            raise QueryFailed("it holds bytes that are no UTF-8")
        with self.registry.query_apart(
            query, self.parameters, limit=self.limit, timeout_seconds=self.timeout_seconds
        ) as rows:
            print_rows(rows.columns, rows, self.form)
            if rows.truncated:
                say(f"Only the first {len(rows)} rows; --limit shows more.", err=True)


class _Query(click.Command):
    """A command whose argument may begin with a comment of SQL, which is no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {a}" if _COMMENT.match(a) else a for a in args])


@click.command(cls=_Query)
@click.argument("query", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the query from FILE.")
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", help="VALUE of :NAME.")
@click.option(
    "--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Rows at most."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="In seconds.",
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
    """Answer a SELECT over the whole catalog, wherever one stands; it cannot change anything.

    It may take 256 MiB of memory, as much of an answer, and --timeout.

    Without a QUERY on a terminal, a prompt. With "-", or where nobody types, QUERY is read from
    standard input. Paths in the tables are relative to the root; abspath(path) makes them absolute.

    A VALUE is a number if a number is written just so: 7, 0.5, -3. All others are texts, 007 and
    1e-4 too; columns are compared with these as with numbers where they hold numbers.
    """
    if query is not None and file is not None:
        raise click.UsageError("Pass a query or --file, not both.")
    values = dict(_named(text) for text in parameters)
    asks = query is None and file is None and sys.stdin.isatty()
    if asks and not sys.stdout.isatty():
        raise click.UsageError('Pass a query: ckptdb sql "SELECT * FROM leaderboard"')
    text = "" if asks else _read(session, query, file)
    with session.open() as registry:
        asker = Asker(registry, values, limit, timeout, form)
        if not asks:
            asker.answer(text)
            return
        from ckptdb.cli import prompt

        prompt.run(asker)


@click.command()
@click.argument("name", required=False)
@output_option("table", "json")
@click.pass_obj
def schema(session: Session, name: str | None, form: str) -> None:
    """Print the tables and views that SQL can name, or one of them, each with an example."""
    with session.open() as registry:
        relations = select(registry.schema(), name)
    if form == "json":
        print_records(
            [
                {
                    "name": relation.name,
                    "kind": relation.kind,
                    "purpose": relation.purpose,
                    "columns": {column.name: column.type for column in relation.columns},
                    "example": relation.example,
                }
                for relation in relations
            ],
            form,
        )
        return
    for relation in relations:
        echo_relation(relation)


COMMANDS = (sql, schema)


def select(relations: tuple[Relation, ...], name: str | None) -> tuple[Relation, ...]:
    """Return the table or view of a name, or all of them.

    Raises:
        UnknownRelation: None is called so.
    """
    found = tuple(relation for relation in relations if name in (None, relation.name))
    if not found and name is not None:
        raise UnknownRelation(name, [relation.name for relation in relations])
    return found


def echo_relation(relation: Relation) -> None:
    """Print a table or view for people: purpose, columns with their types, an example."""
    # A column stays on one line with its type.
    columns = ", ".join("\u00a0".join(filter(None, (c.name, c.type))) for c in relation.columns)
    say(f"{relation.name} ({relation.kind}): {relation.purpose}")
    told = click.wrap_text(columns, width() - 1, "    ", "    ")
    for line in told.split("\n"):
        say(line.replace("\u00a0", " "))
    say(f"    e.g. {relation.example}")
    say()


def is_text(text: str) -> bool:
    """Tell whether what came from a terminal or a command line was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(session: Session, query: str | None, file: str | None) -> str:
    if file not in (None, "-"):
        # As -C says: as if started there.
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
    # A run may be called nan, 007 or 1e-4: what would be written otherwise is no number.
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
