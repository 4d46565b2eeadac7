"""What the schema of a catalog may hold: what we have made, and what does nothing by itself.

Whoever could write the file may have put anything there: a trigger with an endless query runs
within a save, a view in the place of a table within every question. So tables, views and indexes
with names of ours must be as the revision makes them, and what people have added besides (a table
of notes, an index, a view) must not run unless somebody names it. What is missing is no danger:
the question that needs it says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

MOST: Final = 1000
"""How many tables, views and indexes a catalog has at most; ours are thirty."""

_TOKEN: Final = re.compile(
    r"""
      (?P<blank> \s+ | --[^\n]* | /\*.*?(?:\*/|\Z) )
    | (?P<text> '(?:[^']|'')*' )
    | (?P<quoted> "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] )
    | (?P<word> [\w$\x80-\U0010ffff]+ )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)

# A table of such a name would be read instead of the function.
_SHADOWING: Final = re.compile(r"pragma_.*|json_each|json_tree|generate_series|dbstat", re.DOTALL)
_QUOTES: Final = '"`['
_OF_SQLITE: Final = re.compile(r"sqlite_(sequence|stat\d)")
_AUTOMATIC: Final = re.compile(r"sqlite_autoindex_.+", re.DOTALL)

# What SQLite would compute when it checks the whole file, or when a row goes that is referred to.
_COMPUTING: Final = frozenset({"AS", "CHECK", "GENERATED"})
# Operators that are functions, and take time with the length of both sides.
_MATCHING: Final = frozenset({"LIKE", "GLOB", "REGEXP", "MATCH"})


@dataclass(frozen=True, slots=True)
class Definition:
    """A row of ``sqlite_schema``.

    Attributes:
        kind: ``table``, ``index``, ``view`` or ``trigger``.
        table: The one that it belongs to.
        sql: None for the indexes that SQLite makes by itself.
    """

    kind: str
    name: str
    table: str
    sql: str | None

    def __str__(self) -> str:
        name = self.name if len(self.name) < 40 else f"{self.name[:40]}…"  # noqa: PLR2004  # a line
        return f"the {self.kind} {name!r}"


def fingerprint(found: Iterable[Definition]) -> str:
    """Return a hash of a schema, the same whatever blanks it was written with."""
    parts = sorted(
        f"{one.kind}\0{one.name}\0{one.table}\0{' '.join((one.sql or '').split())}" for one in found
    )
    return hashlib.sha256("\0\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def find_intruder(found: Sequence[Definition], ours: Mapping[str, Definition]) -> str | None:
    """Return what must not be in a catalog, in words; None when all may.

    Args:
        found: What is there.
        ours: By name, what the revision makes.
    """
    if len(found) > MOST:
        return f"more than {MOST} tables and indexes"
    for one in found:
        known = ours.get(one.name.lower())
        if known is None:
            what = _judge_added(one, ours)
        elif one == known or _is_alike(one, known):
            what = None
        else:
            what = f"{one} in a form of its own"
        if what is not None:
            return what
    return None


def _is_alike(one: Definition, known: Definition) -> bool:
    same = (one.kind, one.name, one.table) == (known.kind, known.name, known.table)
    return same and _tokens(one.sql or "") == _tokens(known.sql or "")


def _judge_added(one: Definition, ours: Mapping[str, Definition]) -> str | None:
    """Return why something that is not ours must not be there."""
    if _SHADOWING.fullmatch(one.name.lower()):
        return f"{one}, which has the name of a function"
    if one.kind == "index":
        return _judge_index(one, ours)
    tokens = _tokens(one.sql or "")
    # What SQLite makes of it is what the text says, whatever the columns beside it say.
    made = (one.kind, *(token.upper() for token in tokens[:2]))
    if made == ("table", "CREATE", "TABLE"):
        return None if _is_plain_table(one, tokens) else f"{one}, which computes something"
    if made == ("view", "CREATE", "VIEW") and _is_named(one, tokens[2:]):
        return None  # it runs only when it is queried
    return f"{one} on {one.table!r}" if one.kind == "trigger" else str(one)


def _judge_index(one: Definition, ours: Mapping[str, Definition]) -> str | None:
    tokens = _tokens(one.sql or "")
    words = [token.upper() for token in tokens[:2]]
    if one.sql is None and _AUTOMATIC.fullmatch(one.name.lower()):
        return None
    if words not in (["CREATE", "INDEX"], ["CREATE", "UNIQUE"]):
        return str(one)
    if one.table.lower() not in ours or (words[1] == "INDEX" and _is_plain_index(tokens)):
        return None
    does = "computes something" if words[1] == "INDEX" else "forbids rows"
    return f"{one} on {one.table}, which {does}"


def _is_named(one: Definition, tokens: Sequence[str]) -> bool:
    """Tell whether a statement makes what the row beside it says."""
    if not tokens:
        return False
    first = tokens[0]
    if first[0] in _QUOTES:
        first = first[1:-1].replace(first[-1] * 2, first[-1])
    return first.lower() == one.name.lower()


def _is_plain_table(one: Definition, tokens: Sequence[str]) -> bool:
    if _OF_SQLITE.fullmatch(one.name):
        return True
    upper = [token.upper() for token in tokens]
    sets_default = ("SET", "DEFAULT") in pairwise(upper)
    return _is_named(one, tokens[2:]) and _COMPUTING.isdisjoint(upper[3:]) and not sets_default


def _is_plain_index(tokens: Sequence[str]) -> bool:
    """Tell whether an index holds columns alone, under a condition that calls nothing."""
    upper = [token.upper() for token in tokens]
    return upper.count("(") == 1 and _MATCHING.isdisjoint(upper)


def _tokens(sql: str) -> list[str]:
    """Return the words of a statement; quoted names as if they were not, where that is the same."""
    found = []
    for match in _TOKEN.finditer(sql):
        token = match.group()
        if match.lastgroup == "blank":
            continue
        if match.lastgroup == "quoted":
            bare = token[1:-1]
            # In capitals it would be taken for a keyword, which it is not.
            token = bare if bare == bare.lower() and bare.isidentifier() else token
        found.append(token)
    return found
