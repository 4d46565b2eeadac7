"""Completion of a query at the prompt: tables, columns, keywords and runs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ckptdb.catalog.relations import Relation

KEYWORDS: Final = (
    "ABS", "ALL", "AND", "AS", "ASC", "AVG", "BETWEEN", "BY", "CASE", "CAST", "COALESCE", "COUNT",
    "CROSS", "DESC", "DISTINCT", "ELSE", "END", "EXCEPT", "EXISTS", "EXPLAIN", "FROM", "GLOB",
    "GROUP", "HAVING", "IN", "INTERSECT", "IS", "JOIN", "LEFT", "LIKE", "LIMIT", "MAX", "MIN",
    "NOT", "NULL", "OFFSET", "ON", "OR", "ORDER", "OVER", "PARTITION", "QUERY", "PLAN",
    "RECURSIVE", "ROUND", "SELECT", "SUM", "THEN", "UNION", "USING", "VALUES", "WHEN", "WHERE",
    "WITH", "abspath",
)  # fmt: skip

_QUALIFIED: Final = re.compile(r"(\w+)\.(\w*)$")
_WORD: Final = re.compile(r"\w*$")
_ALIAS: Final = re.compile(
    r"(?:\b(?:FROM|JOIN)|,)\s+(\w+)(?:\s+(?:AS\s+)?"
    r"(?!(?:CROSS|GROUP|JOIN|LEFT|LIMIT|ON|ORDER|UNION|USING|WHERE)\b)(\w+))?",
    re.IGNORECASE,
)
_ARGUMENT: Final = re.compile(r"\.(\w+)\s+(\w*)$")


class Words:
    """The words that a query may be made of."""

    def __init__(
        self,
        relations: Iterable[Relation],
        runs: Iterable[str],
        commands: dict[str, Sequence[str]],
    ) -> None:
        """Collect the words; names with control characters are left out.

        Args:
            relations: Tables and views.
            runs: Names of runs.
            commands: Commands that begin with a dot, each with its possible arguments.
        """
        self._columns = {
            relation.name: tuple(c.name for c in relation.columns if c.name.isprintable())
            for relation in relations
            if relation.name.isprintable()
        }
        self._runs = sorted({run for run in runs if run.isprintable()})
        self._commands = commands

    def complete(self, text: str) -> tuple[int, tuple[str, ...]]:
        """Return the completions of a text, and how many characters at its end they replace."""
        if text.startswith("."):
            return self._complete_command(text)
        # An odd number of them: within a string, and the strings of a query are mostly runs.
        if text.count("'") % 2:
            begun = text[text.rindex("'") + 1 :]
            found = (run.replace("'", "''") for run in self._runs)
            return len(begun), tuple(f"{run}'" for run in found if run.startswith(begun))
        if qualified := _QUALIFIED.search(text):
            columns = self._columns.get(self._relation_of(qualified[1], text), ())
            return _matching(qualified[2], columns)
        begun = _WORD.search(text)[0]  # type: ignore[index]  # it matches the empty string, too
        if not begun:
            return 0, ()
        return _matching(begun, self._candidates(text))

    def _complete_command(self, text: str) -> tuple[int, tuple[str, ...]]:
        if argument := _ARGUMENT.fullmatch(text):
            return _matching(argument[2], self._commands.get(f".{argument[1]}", ()))
        return len(text), tuple(name for name in self._commands if name.startswith(text))

    def _candidates(self, text: str) -> Iterator[str]:
        named = {name for name, _ in _ALIAS.findall(text)}
        # Columns of what the query names come first, then those of all others.
        here = [c for name in self._columns if name in named for c in self._columns[name]]
        yield from here
        yield from self._columns
        yield from KEYWORDS
        if not here:
            yield from (c for columns in self._columns.values() for c in columns)

    def _relation_of(self, alias: str, text: str) -> str:
        for name, short in _ALIAS.findall(text):
            if alias in (short, name):
                return str(name)
        return alias


def _matching(begun: str, candidates: Iterable[str]) -> tuple[int, tuple[str, ...]]:
    low = begun.lower()
    found = dict.fromkeys(c for c in candidates if c.lower().startswith(low))
    # Keywords follow the case of what was typed.
    kept = (c.lower() if begun.islower() and c.isupper() else c for c in found)
    return len(begun), tuple(kept)
