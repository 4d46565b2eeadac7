"""Position of an error in a query.

Neither Python's driver nor all versions of SQLite give the offset, but they name the token.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

Compile = Callable[[str], str | None]
"""Compiles a query without running it; returns what is wrong with it, or None."""

TextSpan = tuple[int, int]
"""Where something begins in a text, and where it has ended."""

_NEAR: Final = re.compile(
    r'near "(?P<token>.*)": syntax error|unrecognized token: "(?P<bad>.*)"', re.DOTALL
)
_NAMED: Final = re.compile(
    r"no such (?:column|table|function|collation sequence|table-valued function): (?P<name>.+)"
    r"|ambiguous column name: (?P<twice>.+)"
    r"|misuse of (?:aggregate|window)(?: function)?:? (?P<misused>\w+)\(\)"
    r"|wrong number of arguments to (?:window )?function (?P<called>\w+)\(\)"
    # PostgreSQL
    r'|(?:column|relation|function) "?(?P<theirs>[\w.]+)"?.* does not exist'
    r'|syntax error at or near "(?P<at>.*)"'
    r'|column reference "(?P<both>.*)" is ambiguous',
    re.DOTALL,
)
OPAQUE: Final = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'", re.DOTALL)
"""Comments and strings, in which no name stands."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a text; line and column count from 1."""

    begin: int
    end: int
    line: int
    column: int


def find_spots(sql: str, why: str, compiles: Compile | None = None) -> tuple[Spot, ...]:
    """Return the places that a message may be about: one, or all where that name stands.

    Args:
        sql: The query.
        why: The message of the database.
        compiles: Compiles beginnings of the query.
    """
    if why == "incomplete input":
        end = len(sql.rstrip())
        return _spots(sql, [(end, end)])
    if near := _NEAR.fullmatch(why):
        token = near["token"] if near["token"] is not None else near["bad"]
        places = list(_occurrences(sql, token))
        if compiles is None:
            return _spots(sql, places)
        # The parser reads from left to right: the shortest beginning that fails with the same
        # message ends in the culprit, and all longer ones fail alike.
        first = bisect_left(places, 1, key=lambda place: int(compiles(sql[: place[1]]) == why))
        return _spots(sql, places[first : first + 1])
    if named := _NAMED.match(why):
        name = next(found for found in named.groups() if found is not None)
        return _spots(sql, _names(sql, name))
    return ()


def excerpt(sql: str, spots: tuple[Spot, ...]) -> str:
    """Return the lines of a query that hold the places, each with marks below; "" for none."""
    marked: list[str] = []
    by_line = defaultdict[int, list[Spot]](list)
    for spot in spots:
        by_line[spot.line].append(spot)
    lines = sql.split("\n")
    for number in sorted(by_line):
        line = lines[number - 1]
        marks = [" "] * (len(line) + 1)
        for spot in by_line[number]:
            begin = spot.column - 1
            width = max(min(spot.end - spot.begin, len(line) - begin), 1)
            marks[begin : begin + width] = "^" * width
        # What has no width, or any, would move the marks away from what they are below.
        plain = "".join(c if c.isprintable() else " " for c in line)
        marked += [plain, "".join(marks).rstrip()]
    return "\n".join(marked)


def _occurrences(sql: str, token: str) -> Iterator[TextSpan]:
    word = rf"\b{re.escape(token)}\b" if re.fullmatch(r"\w+", token) else re.escape(token)
    for found in re.finditer(word, sql):
        yield found.span()


def _names(sql: str, name: str) -> Iterator[TextSpan]:
    """Find a name, or names with dots, in whatever case or quotes, outside strings."""
    parts = (rf'["`\[]?{re.escape(part)}["`\]]?' for part in name.split("."))
    dotted = r"\s*\.\s*".join(parts)
    pattern = re.compile(rf"(?<![\w.]){dotted}(?!\w)", re.IGNORECASE)
    bare = OPAQUE.sub(lambda opaque: re.sub(r"[^\n]", "\0", opaque[0]), sql)
    for found in pattern.finditer(bare):
        yield found.span()


def _spots(sql: str, spans: Iterable[TextSpan]) -> tuple[Spot, ...]:
    starts = [0, *(found.end() for found in re.finditer("\n", sql))]
    lines = ((begin, end, bisect_right(starts, begin)) for begin, end in spans)
    return tuple(Spot(b, e, line, b - starts[line - 1] + 1) for b, e, line in lines)
