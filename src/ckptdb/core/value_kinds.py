"""Kinds of values in a condition: numbers and texts, which must not be compared.

A database compares them without an error and always with the same answer: in SQLite every number
is less than every text. A condition that does so is therefore refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

ValueKind = Literal["number", "text"]

TEXT_COLUMNS: Final = frozenset({"created_at", "finalized_at", "status", "problem", "notes"})
"""Columns of a checkpoint that hold texts; all metrics are numbers."""

_OF_FUNCTIONS: Final[Mapping[str, ValueKind]] = {
    "abs": "number", "julianday": "number", "length": "number", "round": "number",
    "date": "text", "lower": "text", "strftime": "text", "substr": "text", "trim": "text",
    "upper": "text",
}  # fmt: skip
"""Kinds that functions return; other functions return the kind of their arguments."""

_SAME_KIND: Final = frozenset({"max", "min", "nullif"})
"""Functions that compare their arguments."""

# Precedence of operators, as in SQLite: higher numbers bind tighter.
_OR, _AND, _NOT, _EQUAL, _LESS, _ADD, _MULTIPLY, _JOIN, _SIGN = range(1, 10)
_BINDS: Final[Mapping[str, int]] = {
    "or": _OR, "and": _AND, "=": _EQUAL, "==": _EQUAL, "!=": _EQUAL, "<>": _EQUAL, "is": _EQUAL,
    "in": _EQUAL, "like": _EQUAL, "between": _EQUAL, "not": _EQUAL, "<": _LESS, "<=": _LESS,
    ">": _LESS, ">=": _LESS, "+": _ADD, "-": _ADD, "*": _MULTIPLY, "/": _MULTIPLY, "%": _MULTIPLY,
    "||": _JOIN,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """A word, number, name or sign of a condition.

    Attributes:
        kind: Name of the group in the pattern of `conditions`.
        start: Position in the text.
    """

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a condition; its kind is None when it may be either."""

    kind: ValueKind | None
    start: int
    end: int
    literal: str | None = None


class _Stray(Exception):  # a signal within this file, not an error
    """The expression is not understood here; the database will report the error."""


class Mixed(Exception):  # a signal to the caller, who makes an error of it
    """A comparison of a number with a text; ``str()`` says where, and what to write instead."""


def check(text: str, tokens: list[Token]) -> None:
    """Refuse a condition that compares a number with a text.

    Args:
        text: The condition.
        tokens: Its tokens.

    Raises:
        Mixed: It does.
    """
    reader = _KindParser(text, tokens)
    try:
        reader.read(_OR)
    except (_Stray, RecursionError):  # a database has a limit of its own
        return


class _KindParser:
    """A parser that reads a condition from left to right."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._place = 0

    def read(self, least: int) -> _Part:
        """Parse an expression whose operators bind at least so tightly."""
        left = self._read_first()
        while (sign := self._peek()) in _BINDS and _BINDS[sign] >= least:
            left = self._read_rest(left, sign)
        return left

    def _read_rest(self, left: _Part, sign: str) -> _Part:
        self._place += 1
        if sign == "not":
            sign = self._peek()
            if sign not in ("in", "like", "between"):
                raise _Stray
            self._place += 1
        others: Mapping[str, Callable[[_Part], _Part]] = {
            "in": self._read_in, "between": self._read_between, "like": self._read_like,
        }  # fmt: skip
        if sign in others:
            return self._over(left, others[sign](left))
        if sign == "is" and self._peek() == "not":
            self._place += 1
        right = self.read(_BINDS[sign] + 1)
        if _BINDS[sign] in (_EQUAL, _LESS):
            self._compare(left, right)
        return self._over(left, right, "text" if sign == "||" else "number")

    def _read_in(self, left: _Part) -> _Part:
        parts, last = self._read_list()
        for part in parts:
            self._compare(left, part, end=last.end)
        return last

    def _read_between(self, left: _Part) -> _Part:
        low = self.read(_LESS)
        self._take("and")
        high = self.read(_LESS)
        self._compare(left, low)
        self._compare(left, high)
        return high

    def _read_like(self, _: _Part) -> _Part:
        pattern = self.read(_LESS)
        if self._peek() == "escape":
            self._place += 1
            return self.read(_LESS)
        return pattern

    def _read_first(self) -> _Part:
        token = self._next()
        word = token.text.lower()
        if token.kind == "string":
            return _Part("text", token.start, token.end, token.text)
        if token.kind == "number":
            return _Part("number", token.start, token.end, token.text)
        if token.kind == "quoted":
            return self._named(token, token.text[1:-1])
        if word in ("+", "-"):
            return self._over(token, self.read(_SIGN), "number")
        if word == "(":
            inner = self.read(_OR)
            end = self._take(")").end
            return _Part(inner.kind, token.start, end, inner.literal)
        return self._read_word(token, word)

    def _read_word(self, token: Token, word: str) -> _Part:
        if token.kind != "word":
            raise _Stray
        if word == "not":
            return self._over(token, self.read(_NOT), "number")
        if word == "case":
            return self._read_case(token)
        if word == "null":
            return _Part(None, token.start, token.end)
        if word in ("true", "false"):
            return _Part("number", token.start, token.end, token.text)
        if self._peek() == "(":
            return self._read_call(token, word)
        return self._named(token, word)

    def _read_call(self, token: Token, function: str) -> _Part:
        parts, last = self._read_list()
        if function in _SAME_KIND:
            for one, other in pairwise(parts):
                self._compare(one, other)
        kind = _OF_FUNCTIONS.get(function) or _common(part.kind for part in parts)
        return _Part(kind, token.start, last.end)

    def _read_case(self, token: Token) -> _Part:
        subject = None if self._peek() == "when" else self.read(_OR)
        given: list[_Part] = []
        while self._peek() == "when":
            self._place += 1
            when = self.read(_OR)
            if subject is not None:
                self._compare(subject, when)
            self._take("then")
            given.append(self.read(_OR))
        if self._peek() == "else":
            self._place += 1
            given.append(self.read(_OR))
        return _Part(_common(part.kind for part in given), token.start, self._take("end").end)

    def _read_list(self) -> tuple[list[_Part], _Part]:
        """Parse the content of brackets; return also the closing token."""
        self._take("(")
        parts: list[_Part] = []
        while self._peek() != ")":
            parts.append(self.read(_OR))
            if self._peek() == ",":
                self._place += 1
            elif self._peek() != ")":
                raise _Stray
        end = self._take(")")
        return parts, _Part(None, end.start, end.end)

    def _named(self, token: Token, name: str) -> _Part:
        kind: ValueKind = "text" if name in TEXT_COLUMNS else "number"
        return _Part(kind, token.start, token.end)

    def _over(self, first: Token | _Part, last: _Part, kind: ValueKind | None = "number") -> _Part:
        return _Part(kind, first.start, last.end)

    def _compare(self, left: _Part, right: _Part, *, end: int = 0) -> None:
        if {left.kind, right.kind} != {"number", "text"}:
            return
        first, last = (left, right) if left.start < right.start else (right, left)
        where = self._text[first.start : max(last.end, end)]
        number, text = (left, right) if left.kind == "number" else (right, left)
        raise Mixed(f"{where!r} compares a number with a text{_advice(number, text)}")

    def _peek(self) -> str:
        if self._place == len(self._tokens):
            return ""
        token = self._tokens[self._place]
        return token.text.lower() if token.kind in ("word", "sign") else f"a {token.kind}"

    def _next(self) -> Token:
        if self._place == len(self._tokens):
            raise _Stray
        self._place += 1
        return self._tokens[self._place - 1]

    def _take(self, text: str) -> Token:
        if self._peek() != text:
            raise _Stray
        return self._next()


def _common(kinds: Iterator[ValueKind | None]) -> ValueKind | None:
    found = set(kinds)
    return found.pop() if len(found) == 1 else None


def _advice(number: _Part, text: _Part) -> str:
    if text.literal is not None:
        inner = text.literal[1:-1].strip()
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", inner, re.ASCII):
            return f"; write {inner} without quotes"
        return "; a number is compared with a number, without quotes"
    if number.literal is not None:
        return f"; write '{number.literal}' in quotes"
    return ""
