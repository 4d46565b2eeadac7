"""Conditions on a checkpoint: one SQL expression over its columns and its metrics.

The parser lets only known words, numbers and operators into a statement. The text is therefore
one expression, reads no other table, and a name is never read as a string.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from ckptdb.core import value_kinds
from ckptdb.core.value_kinds import Token
from ckptdb.errors import InvalidCondition

COLUMNS: Final = (
    "step", "size_bytes", "created_at", "finalized_at", "pinned", "status", "problem", "notes",
)  # fmt: skip
"""Columns that a condition can name. A column hides a metric of the same name."""

FUNCTIONS: Final = frozenset({
    "abs", "coalesce", "date", "julianday", "length", "lower", "max", "min", "nullif", "round",
    "strftime", "substr", "trim", "upper",
})  # fmt: skip

_KEYWORDS: Final = frozenset({
    "and", "between", "case", "else", "end", "escape", "false", "in", "is", "like", "not", "null",
    "or", "then", "true", "when",
})  # fmt: skip

_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<comment> -- | /\*)
    | (?P<string> '(?:[^']|'')*')
    | (?P<quoted> "(?:[^"]|"")+")
    | (?P<number> (?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<word> [^\W\d]\w*)
    | (?P<sign> <= | >= | <> | != | == | \|\| | [-+*/%<>=(),])
    | (?P<other> \S)
    )""",
    re.VERBOSE,
)

_CALL: Final = re.compile(r"\s*\(")


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition. A missing metric is NULL, so that the condition is not true.

    Attributes:
        text: The condition as it was written; also ``str()``.
        sql: Expression over a row ``known`` with `COLUMNS` and, for the metrics, ``m0``, ``m1``, …
        metrics: Names in the condition that are not columns, each once.
        strings: Values of the parameters ``:string0``, ``:string1``, …
    """

    text: str
    sql: str
    metrics: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Condition:
    """Parse a condition; the existence of its metrics is not checked here.

    Raises:
        InvalidCondition: The text is no expression, more than one, or compares a number with a
            text.
    """
    return _ConditionParser(text).read()


def check(condition: Condition) -> None:
    """Let SQLite parse a condition that is used later, over an empty row.

    Raises:
        InvalidCondition: The condition is not one complete expression.
    """
    columns = [*COLUMNS, *(f"m{number}" for number in range(len(condition.metrics)))]
    empty = ", ".join(f"NULL AS {column}" for column in columns)
    strings = {f"string{number}": text for number, text in enumerate(condition.strings)}
    statement = f"EXPLAIN SELECT 1 FROM (SELECT {empty}) AS known WHERE ({condition.sql})"  # noqa: S608  # parsed
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute(statement, strings)
        except sqlite3.Error as error:
            raise InvalidCondition(condition.text, explained(str(error))) from error


def explained(why: str) -> str:
    """Return a message of the database in words that fit a condition."""
    return "it is not one whole expression" if "syntax error" in why else why


def written(name: str) -> str:
    """Return the name of a metric as it is written in a condition, quoted where needed."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.lower() not in {*_KEYWORDS, *COLUMNS}
    return name if plain else '"' + name.replace('"', '""') + '"'


class _ConditionParser:
    """The parser of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._metrics: dict[str, str] = {}
        self._strings: list[str] = []

    def read(self) -> Condition:
        readers: Mapping[str, Callable[[str, int], str]] = {
            "string": self._string,
            "quoted": self._quoted,
            "number": lambda number, _: number,
            "word": self._word,
            "sign": self._sign,
            "comment": self._refuse_comment,
            "other": self._refuse_sign,
        }
        found = list(_TOKEN.finditer(self._text))
        if not found:
            raise self._refusal("it is empty")
        parts = [
            readers[str(token.lastgroup)](token[str(token.lastgroup)], token.end())
            for token in found
        ]
        if self._depth:
            raise self._refusal("a bracket is not closed")
        self._check_kinds(found)
        return Condition(self._text, " ".join(parts), tuple(self._metrics), tuple(self._strings))

    def _check_kinds(self, found: Sequence[re.Match[str]]) -> None:
        tokens = [
            Token(kind, token[kind], token.start(kind), token.end(kind))
            for token in found
            if (kind := str(token.lastgroup))
        ]
        try:
            value_kinds.check(self._text, tokens)
        except value_kinds.Mixed as mixed:
            raise self._refusal(str(mixed)) from None

    def _string(self, token: str, _: int) -> str:
        self._strings.append(token[1:-1].replace("''", "'"))
        return f":string{len(self._strings) - 1}"

    def _quoted(self, token: str, _: int) -> str:
        name = token[1:-1].replace('""', '"')
        return f"known.{name}" if name in COLUMNS else self._metric(name)

    def _word(self, word: str, end: int) -> str:
        low = word.lower()
        if low in _KEYWORDS:
            return low.upper()
        if _CALL.match(self._text, end):
            if low not in FUNCTIONS:
                functions = ", ".join(sorted(FUNCTIONS))
                raise self._refusal(f"{word!r} is no function of these: {functions}")
            return low
        return f"known.{low}" if low in COLUMNS else self._metric(word)

    def _metric(self, name: str) -> str:
        return self._metrics.setdefault(name, f"known.m{len(self._metrics)}")

    def _sign(self, sign: str, _: int) -> str:
        self._depth += {"(": 1, ")": -1}.get(sign, 0)
        if self._depth < 0:
            raise self._refusal("a bracket is closed that was not opened")
        if sign == "," and not self._depth:
            raise self._refusal("it is more than one expression")
        return "=" if sign == "==" else sign

    def _refuse_comment(self, sign: str, _: int) -> str:
        raise self._refusal(f"{sign!r} begins a comment")

    def _refuse_sign(self, sign: str, _: int) -> str:
        if sign in "'\"":
            raise self._refusal(f"a quote is not closed: {sign}")
        hint = "; a name such as val:loss stands in double quotes" if sign in ":." else ""
        raise self._refusal(f"{sign!r} has no meaning here{hint}")

    def _refusal(self, why: str) -> InvalidCondition:
        return InvalidCondition(self._text, why)
