"""The one table, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.results import Row

_HEAD = ("what", "target", "measured", "verdict", "note")


def plain(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    cells = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for the page."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    lines += ["| " + " | ".join(_bold(cells)) + " |" for cells in map(_cells, rows)]
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Return how many targets are met."""
    judged = [row for row in rows if row.verdict in ("met", "missed")]
    met = sum(row.verdict == "met" for row in judged)
    unmeasured = sum(row.verdict == "not measured" for row in rows)
    more = f"; {unmeasured} not measured" if unmeasured else ""
    return f"{met} of {len(judged)} targets met{more}."


def _cells(row: Row) -> tuple[str, ...]:
    return (row.what, row.target, row.measured, row.verdict, row.note)


def _bold(cells: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("**missed**" if cell == "missed" else cell for cell in cells)
