"""Output formats: rows and records as tables, JSON, CSV, TSV and Markdown.

Names, paths and reasons come from anybody's disk: characters that a terminal would obey are shown,
not sent.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import click

from ckptdb.cli.printing import echo_lines, echo_parts, get_width, is_coloured
from ckptdb.cli.table_layout import lay_out
from ckptdb.core.frames import unique_names
from ckptdb.core.text import clean, inert, number
from ckptdb.errors import QueryTooLarge

FORMATS = ("table", "json", "jsonl", "csv", "tsv", "md")
_TABLE_CHARACTERS: Final = 32 << 20
"""Most characters of a table, which is laid out in memory."""
_CELL_CHARACTERS: Final = 16
"""Characters that each cell of a table counts for, beside its width."""
_SLOW_CHARACTER: Final = 4
"""Times that a character outside ASCII counts: its width is looked up."""
_MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "&": "&amp;"})
"""Characters that would end a cell, or be HTML."""

TableRow = Sequence[Any]


def echo_json(content: object) -> None:
    """Print an indented JSON document."""
    echo_parts([_dump_json(content, indent=2), "\n"])


def print_rows(columns: Sequence[str], rows: Iterable[TableRow], form: str) -> None:
    """Print rows in one of `FORMATS`; bytes as hexadecimal digits."""
    rows = (list(map(_as_hexadecimal, row)) for row in rows)
    if form in ("json", "jsonl"):
        names = unique_names(columns)
        found = (map(_as_json, row) for row in rows)
        print_records((dict(zip(names, row, strict=True)) for row in found), form)
    elif form in ("csv", "tsv"):
        _print_separated(columns, rows, "," if form == "csv" else "\t")
    elif form == "md":
        _print_markdown(columns, rows)
    else:
        print_table(columns, _limit_table(columns, rows), exact=True)


def print_records(records: Iterable[dict[str, Any]], form: str) -> None:
    """Print mappings as a JSON list or as one JSON object a line."""
    if form == "json":
        echo_parts(_json_list(records))
    else:
        echo_parts(f"{_dump_json(record)}\n" for record in records)


def _json_list(records: Iterable[object]) -> Iterator[str]:
    """Yield the parts of a JSON list, which need not be in memory as a whole."""
    opened = False
    for record in records:
        text = _dump_json(record, indent=2).replace("\n", "\n  ")
        yield f"{',' if opened else '['}\n  {text}"
        opened = True
    yield "\n]\n" if opened else "[]\n"


def _dump_json(content: object, *, indent: int | None = None) -> str:
    # DEL: the one control character that Python does not escape.
    return json.dumps(content, indent=indent).replace("\x7f", "\\u007f")


def _limit_table(columns: Sequence[str], rows: Iterable[TableRow]) -> Iterator[list[str]]:
    """Yield the rows of a table; each cell is printed as wide as the widest of its column.

    Raises:
        QueryTooLarge: The table would be too large to read.
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
        rows: The cells of each row, as many as columns.
        first_colours: Colour of the first cell in each row, among the 256 of a terminal.
        exact: Drop no column and shorten no cell, however narrow the terminal is.
    """
    found = [[clean(value) for value in row] for row in rows]
    names = [clean(name) for name in columns]
    limit = get_width() if sys.stdout.isatty() else None
    header, lines = lay_out(names, found, limit=limit, exact=exact)
    if any(columns):
        echo_lines([click.style(header, bold=True) if is_coloured() else header])
    if first_colours and is_coloured():
        # No row takes two lines: the last cell of a legend is short.
        starts = (len(row[0]) for row in found)
        lines = [
            click.style(line[:end], fg=colour) + line[end:]
            for line, end, colour in zip(lines, starts, first_colours, strict=True)
        ]
    echo_lines(lines)


def _as_hexadecimal(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _as_json(value: object) -> object:
    """Return a value that JSON can hold; an infinite number and NaN become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def _print_separated(columns: Sequence[str], rows: Iterable[TableRow], delimiter: str) -> None:
    # On a terminal, a cell with a line break must not look like two rows.
    spell = _make_inert_line if sys.stdout.isatty() else inert

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
        for row in chain([columns], rows):
            writer.writerow(map(spell, row))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()

    echo_parts(lines())


def _make_inert_line(value: object) -> object:
    return inert(clean(value) if isinstance(value, str) else value)


def _print_markdown(columns: Sequence[str], rows: Iterable[TableRow]) -> None:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(clean(cell).translate(_MARKDOWN) for cell in cells) + " |\n"

    echo_parts(map(line, chain([columns, ["---"] * len(columns)], rows)))
