"""Layout of a table in the columns of a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_GAP: Final = "  "
_INDENT: Final = "      "
_SHORTEST: Final = 12
"""Characters of a shortened cell; shorter ones could not be told apart."""


def lay_out(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    limit: int | None = None,
    exact: bool = False,
) -> tuple[str, list[str]]:
    """Return the header and the rows as lines; numbers are on the right.

    A table that is wider than the limit first loses columns without any value. Then the widest
    text is shortened in its middle, if that is enough. Otherwise the last cell of a row, often a
    path to be copied, gets a line of its own.

    Args:
        names: Names of the columns.
        rows: Texts, one per column.
        limit: Columns of the terminal; None where output goes elsewhere.
        exact: Drop no column, and shorten no text.
    """
    if limit is not None and not exact and rows and _total(names, rows) > limit:
        used = [i for i in range(len(names)) if any(row[i] for row in rows)] or [0]
        names = [names[index] for index in used]
        rows = [[row[index] for index in used] for row in rows]
        rows = _cut(names, rows, limit)
    widths = _widths(names, rows)
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(names))]
    breaks = limit is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > limit
    if breaks:
        # Only the rows whose last cell does not fit need a second line.
        room = (limit or 0) - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
        fitting = [cells(row[-1]) for row in rows if cells(row[-1]) <= room]
        widths[-1] = max([cells(names[-1]), *fitting])
    lines: list[str] = []
    for row in rows:
        if breaks and cells(row[-1]) > widths[-1]:
            lines += [_line(row[:-1], widths, numeric), _INDENT + row[-1]]
        else:
            lines.append(_line(row, widths, numeric))
    return _line(names, widths, numeric), lines


def cells(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, width: int) -> str:
    """Return a text shortened in its middle to a width."""
    if cells(text) <= width:
        return text
    head, tail = text, text
    while cells(head) > (width - 1) - (width - 1) // 2:
        head = head[:-1]
    while cells(tail) > (width - 1) // 2:
        tail = tail[1:]
    return f"{head}…{tail}"


def _cut(
    names: Sequence[str], rows: Sequence[Sequence[str]], limit: int
) -> Sequence[Sequence[str]]:
    over = _total(names, rows) - limit
    widths = _widths(names, rows)
    if over <= 0 or len(names) == 1:
        return rows
    widest = max(range(len(names) - 1), key=widths.__getitem__)
    left = widths[widest] - over
    if left < max(_SHORTEST, cells(names[widest])):
        return rows
    return [[*row[:widest], cut(row[widest], left), *row[widest + 1 :]] for row in rows]


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cells, column)) for column in zip(names, *rows, strict=True)]


def _total(names: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(_widths(names, rows)) + len(_GAP) * (len(names) - 1)


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        " " * (width - cells(text)) + text if right else text + " " * (width - cells(text))
        for text, width, right in zip(row, widths, numeric, strict=False)
    )
    # Without the padding of the last column, which a person would copy along.
    return _GAP.join(padded).rstrip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == ""
    return True
