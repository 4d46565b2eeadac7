"""How answers are printed: tables for people, JSON, CSV and Markdown for everything else.

Names, paths and reasons come from anybody's disk: what a terminal would obey is shown, not sent.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ckptdb.cli import terminal
from ckptdb.cli.table_layout import lay_out
from ckptdb.core.frames import unique_names
from ckptdb.core.records import Ancestor, Checkpoint
from ckptdb.core.text import (
    clean,
    copyable,
    inert,
    number,
)
from ckptdb.core.units import human_bytes
from ckptdb.errors import CkptdbError, QueryFailed, QueryTooLarge

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "json", "jsonl", "csv", "tsv", "md")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_UNWRAPPED_COLUMNS = 100_000
_NARROW = 100
_ECHOED_CHARACTERS: Final = 1 << 18
"""Of a long answer, at a time."""
_TABLE_CHARACTERS: Final = 32 << 20
"""Of a table, which is laid out in memory."""
_CELL_CHARACTERS: Final = 16
"""What each cell of it counts for, beside its width."""
_SLOW_CHARACTER: Final = 4
_FIELDS = (
    "run", "step", "status", "path", "size_bytes", "file_count", "created_at", "finalized_at",
    "deleted_at", "deleted_reason", "pinned", "tags", "notes", "problem", "rejected",
)  # fmt: skip

_MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "&": "&amp;"})
"""What would end a cell, or be HTML."""

Row = Sequence[Any]


def output_option(*forms: str) -> Callable[[_Function], _Function]:
    """Add ``-o FORM`` to a command; the first form is the default."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="How to print the answer.",
    )


def console(*, stderr: bool = False, fold: bool = True) -> Console:
    """Return a console without colour, and without line breaks, where nobody looks.

    Args:
        stderr: For standard error.
        fold: Break lines where a terminal ends.
    """
    from rich.console import Console  # only for tables and progress: a path needs no 25 ms

    stream = terminal.behind(sys.stderr if stderr else sys.stdout)
    looked_at = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        no_color=bool(os.environ.get("NO_COLOR")) or not looked_at,
        width=None if looked_at and fold else _UNWRAPPED_COLUMNS,
        soft_wrap=False,
    )


def say(sentence: object = "", *, err: bool = False) -> None:
    """Print a line for people, in which nothing is for a terminal to obey."""
    click.echo(clean(sentence), err=err)


def echo_error(error: CkptdbError, *, prefix: str = "") -> None:
    """Print an error's sentence and, of a query, the place, to standard error."""
    say(f"{prefix}{error}", err=True)
    if isinstance(error, QueryFailed) and error.excerpt:
        for line in error.excerpt.splitlines():
            say(line, err=True)


def width(*, otherwise: int = 100) -> int:
    """Return how many columns there are to print to; ``otherwise`` where nobody looks."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else otherwise


def echo_traceback(error: BaseException) -> None:
    """Print where an error and its causes come from, to standard error."""
    for line in _trace(error, set()):
        say(line, err=True)


def _trace(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__
    how = "The above exception was the direct cause of the following exception:"
    if before is None and not error.__suppress_context__:
        before = error.__context__
        how = "During handling of the above exception, another exception occurred:"
    if before is not None and id(before) not in seen:
        yield from _trace(before, seen)
        yield from ("", how, "")
    yield "Traceback (most recent call last):"
    for frame in traceback.format_tb(error.__traceback__):
        yield from frame.rstrip("\n").split("\n")
    yield f"{type(error).__qualname__}: {error}"
    yield from getattr(error, "__notes__", ())


def echo_path(path: object) -> None:
    """Print one path alone: byte for byte where a program reads it, so that a shell can use it.

    On a terminal it stands in quotes that a shell understands where it would obey any of it.
    """
    click.echo(_for_terminal(path) if sys.stdout.isatty() else os.fsencode(str(path)))


def echo_paths(paths: Iterable[object]) -> None:
    """Print paths, one a line. One that would be two lines stands in quotes, as on a terminal."""
    for path in paths:
        if "\n" in str(path) and not sys.stdout.isatty():
            click.echo(copyable(Path(str(path))))
        else:
            echo_path(path)


def _for_terminal(path: object) -> str:
    # Where letters are not UTF-8, copying them from a terminal would give another name.
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return copyable(Path(str(path)), only_ascii=encoding != "utf-8")


def echo_bytes(content: bytes) -> None:
    """Print a document as it is."""
    click.echo(content, nl=False)


_OF_ALL: Final = frozenset({"utf-8", "utf-16", "utf-32", "gb18030"})
"""Encodings that lack no character."""
_PLAIN: Final = {
    **dict.fromkeys(map(ord, "┌┐└┘├┤┬┴┼"), "+"), ord("│"): "|", ord("─"): "-",
    **dict.fromkeys(map(ord, "●■▲◆"), "o"), **dict.fromkeys(range(0x2801, 0x2900), "."),
    0x2800: " ",
}  # fmt: skip
"""What a drawing is made of where there are only letters."""


def echo_drawing(drawing: str) -> None:
    """Print lines of our own making, escapes for colour included.

    Each character that cannot be written here becomes one other, so that all stay in their places.
    """
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    if encoding not in _OF_ALL:
        drawing = drawing.translate(_PLAIN)
    if encoding not in (*_OF_ALL, "ascii"):  # which click takes for an UTF-8 that was forgotten
        drawing = drawing.encode(encoding, "replace").decode(encoding)
    with terminal.in_colour():
        click.echo(drawing)


def echo_json(content: object) -> None:
    """Print an indented JSON document."""
    click.echo(_spell_json(content, indent=2))


def print_rows(columns: Sequence[str], rows: Iterable[Row], form: str) -> None:
    """Print rows in one of `FORMATS`; bytes as hexadecimal digits."""
    rows = (list(map(_spelled, row)) for row in rows)
    if form in ("json", "jsonl"):
        names = unique_names(columns)
        found = (map(_jsonable, row) for row in rows)
        print_records((dict(zip(names, row, strict=True)) for row in found), form)
    elif form in ("csv", "tsv"):
        _print_separated(columns, rows, "," if form == "csv" else "\t")
    elif form == "md":
        _print_markdown(columns, rows)
    else:
        print_table(columns, _bounded(columns, rows), exact=True)


def print_records(records: Iterable[dict[str, Any]], form: str) -> None:
    """Print mappings as a JSON list or as one JSON object a line."""
    if form == "json":
        _echo_all(_json_list(records))
    else:
        _echo_all(f"{_spell_json(record)}\n" for record in records)


def _json_list(records: Iterable[object]) -> Iterator[str]:
    """Yield the parts of what `echo_json` prints of a list, which need not be in memory."""
    opened = False
    for record in records:
        text = _spell_json(record, indent=2).replace("\n", "\n  ")
        yield f"{',' if opened else '['}\n  {text}"
        opened = True
    yield "\n]\n" if opened else "[]\n"


def _spell_json(content: object, *, indent: int | None = None) -> str:
    # The one control character that Python takes for a letter of ASCII.
    return json.dumps(content, indent=indent).replace("\x7f", "\\u007f")


def _echo_all(parts: Iterable[str]) -> None:
    """Print texts, many at a time."""
    waiting, length = list[str](), 0
    for part in parts:
        waiting.append(part)
        length += len(part)
        if length >= _ECHOED_CHARACTERS:
            click.echo("".join(waiting), nl=False)
            waiting, length = [], 0
    click.echo("".join(waiting), nl=False)


def _bounded(columns: Sequence[str], rows: Iterable[Row]) -> Iterator[list[str]]:
    """Yield the cells of a table; every one is printed as wide as the widest of its column.

    Raises:
        QueryTooLarge: That becomes more than anybody can look at.
    """
    widths = list(map(_weight, columns))
    for count, row in enumerate(rows, 1):
        cells = [number(value) for value in row]
        widths = list(map(max, widths, map(_weight, cells)))
        if count * (sum(widths) + _CELL_CHARACTERS * len(widths)) > _TABLE_CHARACTERS:
            most = _TABLE_CHARACTERS >> 20
            why = f"as a table its answer is longer than {most} million characters, see -o"
            raise QueryTooLarge(why)
        yield cells


def _weight(cell: str) -> int:
    # How wide others than those of ASCII are is looked up for each of them.
    return len(cell) * (1 if cell.isascii() else _SLOW_CHARACTER)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    first_colours: Sequence[int | None] | None = None,
    exact: bool = False,
) -> None:
    """Print a table for people; empty column names make no header.

    Args:
        columns: Their names.
        rows: As long as that.
        first_colours: Of the first cell in each row, of the 256 of a terminal.
        exact: Leave out and cut nothing, however little room there is.
    """
    found = [[clean(value) for value in row] for row in rows]
    looked_at = sys.stdout.isatty()
    names = [clean(name) for name in columns]
    header, lines = lay_out(names, found, limit=width() if looked_at else None, exact=exact)
    if any(columns):
        header = click.style(header, bold=True) if is_coloured() else header
        with terminal.in_colour():
            click.echo(header)
    if first_colours and is_coloured():
        # No row is in two lines: a legend has nothing long at its end.
        starts = (len(row[0]) for row in found)
        lines = [
            click.style(line[:end], fg=colour) + line[end:]
            for line, end, colour in zip(lines, starts, first_colours, strict=True)
        ]
    with terminal.in_colour():
        for line in lines:
            click.echo(line)


def is_coloured() -> bool:
    """Tell whether standard output takes colours: a terminal, and nobody has said no."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_checkpoints(
    found: Sequence[Checkpoint],
    form: str,
    *,
    metrics: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Print checkpoints: whole records as JSON, the columns people look for in a table.

    Args:
        found: In this order.
        form: One of `FORMATS`.
        metrics: What a table shows; every other form has all of them.
        names: What a table calls runs, by uuid, where that is not their name.
    """
    if form in ("json", "jsonl"):
        print_records([checkpoint.as_dict() for checkpoint in found], form)
        return
    if form == "table":
        _print_checkpoint_table(found, metrics, names or {})
        return
    every = sorted({name for checkpoint in found for name in checkpoint.metrics})
    # Loops like to note the step among the metrics too; two columns need two names.
    named = (f"metric {name}" if name in _FIELDS else name for name in every)
    columns = (*_FIELDS, *named)
    rows = (
        [
            *(_flat(getattr(checkpoint, name)) for name in _FIELDS),
            *(checkpoint.metrics.get(name) for name in every),
        ]
        for checkpoint in found
    )
    print_rows(columns, rows, form)


def print_lineage(found: Sequence[Ancestor], form: str) -> None:
    """Print a checkpoint and its ancestors, one a line."""
    if form == "json":
        print_records([one.as_dict() for one in found], form)
        return
    rows = (
        [
            str(one.step),
            one.status,
            short_time(one.finalized_at or one.created_at),
            short_time(one.resumed_at),
            one.deleted_reason or "",
        ]
        for one in found
    )
    print_table(["step", "status", "saved", "resumed from", "why it is gone"], rows)


def describe(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return what there is to say about a checkpoint, one line each."""
    lines = [
        ("run", checkpoint.run),
        ("step", str(checkpoint.step)),
        ("status", checkpoint.status),
        ("path", str(checkpoint.path)),
        ("uuid", checkpoint.uuid),
        ("size", f"{human_bytes(checkpoint.size_bytes)} in {checkpoint.file_count} files"),
        ("created", checkpoint.created_at),
        ("finalized", checkpoint.finalized_at or ""),
        ("deleted", checkpoint.deleted_at or ""),
        ("reason", checkpoint.deleted_reason or ""),
        ("parent", checkpoint.parent or ""),
        ("pinned", "yes" if checkpoint.pinned else ""),
        ("tags", ", ".join(checkpoint.tags)),
        ("notes", checkpoint.notes or ""),
        ("problem", checkpoint.problem or ""),
        ("rejected", checkpoint.rejected or ""),
    ]
    if checkpoint.size_bytes is None:
        lines = [line for line in lines if line[0] != "size"]
    for name, value in checkpoint.metrics.items():
        late = checkpoint.late.get(name)
        origin = f"  ({late.source}, {late.reported_at})" if late else ""
        shown = "not finite" if value is None else number(value)
        lines.append((f"metric {name}", f"{shown}{origin}"))
    return [(name, text) for name, text in lines if text]


def _print_checkpoint_table(
    found: Sequence[Checkpoint], metrics: Sequence[str], names: Mapping[str, str]
) -> None:
    several = len({checkpoint.run_uuid for checkpoint in found}) > 1
    columns = [
        *(["run"] if several else []), "step", "status", *metrics,
        "size", "finalized", "marks", "path",
    ]  # fmt: skip
    rows = [
        [
            *([names.get(checkpoint.run_uuid, checkpoint.run)] if several else []),
            str(checkpoint.step),
            checkpoint.status,
            *(number(checkpoint.metrics.get(name)) for name in metrics),
            human_bytes(checkpoint.size_bytes),
            short_time(checkpoint.finalized_at or checkpoint.created_at),
            _marks(checkpoint),
            checkpoint.deleted_reason or _shown_path(checkpoint.path),
        ]
        for checkpoint in found
    ]
    print_table(columns, rows)


def _shown_path(path: Path) -> str:
    """Return a path as it can be copied from here: relative where a terminal has little room."""
    here = Path.cwd()
    return str(path.relative_to(here)) if is_narrow() and path.is_relative_to(here) else str(path)


def is_narrow() -> bool:
    """Tell whether somebody looks who has little room."""
    return width() < _NARROW


def short_time(moment: str | None) -> str:
    """Return a time for a table: to the second, or to the minute where there is little room."""
    return (moment or "")[: 16 if is_narrow() else 19].replace("T", " ")


def _marks(checkpoint: Checkpoint) -> str:
    marks = [*(["pinned"] if checkpoint.pinned else []), *checkpoint.tags]
    if checkpoint.problem:
        # In short; `ckptdb show` has all of it.
        marks.append("PROBLEM " + re.split(r": | \(", checkpoint.problem, maxsplit=1)[0])
    if checkpoint.rejected is not None:
        marks.append("REJECTED")
    return ", ".join(marks)


def _flat(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _spelled(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _jsonable(value: object) -> object:
    """Return a value that JSON can hold: it knows neither infinity nor what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def _print_separated(columns: Sequence[str], rows: Iterable[Row], delimiter: str) -> None:
    # Who looks at it is not to take one cell for two lines.
    spell = _inert_line if sys.stdout.isatty() else inert

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
        for row in chain([columns], rows):
            writer.writerow(map(spell, row))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()

    _echo_all(lines())


def _inert_line(value: object) -> object:
    return inert(clean(value) if isinstance(value, str) else value)


def _print_markdown(columns: Sequence[str], rows: Iterable[Row]) -> None:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(clean(cell).translate(_MARKDOWN) for cell in cells) + " |\n"

    _echo_all(map(line, chain([columns, ["---"] * len(columns)], rows)))
