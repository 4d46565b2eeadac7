"""Parameters of a query in the form of PostgreSQL's driver, and the kind of its statement."""

from __future__ import annotations

import re
from typing import Final

from ckptdb.catalog.error_position import OPAQUE

QUESTIONS: Final = frozenset({"select", "with", "values", "table", "explain", "show"})
"""How statements begin that a read-only transaction keeps from changing anything.

Others write files in it.
"""
COMMANDS: Final = frozenset(
    (
        "alter", "analyze", "begin", "call", "commit", "copy", "create", "delete", "do", "drop",
        "grant", "insert", "lock", "merge", "revoke", "rollback", "set", "truncate", "update",
        "vacuum",
    )
)  # fmt: skip
"""How those begin that people try."""

_WORD: Final = re.compile(r"[\s(]*(\w*)")
_PARAMETER: Final = re.compile(r"(?<![:\w]):([A-Za-z_]\w*)")
_COMMENT: Final = re.compile(r"\s*(?:--[^\n]*|(?P<block>/\*))")
_EDGE: Final = re.compile(r"/\*|\*/")


def first_word(sql: str) -> str:
    """Return the word behind the comments at the beginning, in small letters; "" for none."""
    at = 0
    while comment := _COMMENT.match(sql, at):
        at, depth = comment.end(), int(comment["block"] is not None)
        while depth:  # they may stand in each other
            edge = _EDGE.search(sql, at)
            if edge is None:
                return ""
            at, depth = edge.end(), depth + (1 if edge[0] == "/*" else -1)
    found = _WORD.match(sql, at)
    return found[1].lower() if found else ""


def for_driver(sql: str) -> str:
    """Return a query with its parameters as psycopg has them; what is in quotes stays as it is."""
    parts, at = list[str](), 0
    for opaque in OPAQUE.finditer(sql):
        parts += [_named(sql[at : opaque.start()]), _doubled(opaque[0])]
        at = opaque.end()
    return "".join([*parts, _named(sql[at:])])


def _named(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", _doubled(sql))


def _doubled(sql: str) -> str:
    return sql.replace("%", "%%")
