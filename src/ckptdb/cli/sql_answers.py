"""Queries that the commands of SQL answer, from the command line or at the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ckptdb.cli.formats import print_rows
from ckptdb.cli.printing import say
from ckptdb.errors import QueryFailed
from ckptdb.registry import Registry


@dataclass(slots=True)
class SqlAnswers:
    """Answers queries to one registry, with the options of the command."""

    registry: Registry
    parameters: dict[str, object]
    limit: int
    timeout_seconds: float
    form: str

    def answer(self, query: str) -> None:
        """Print the answer of a query."""
        if not is_text(query):
            raise QueryFailed("it holds bytes that are no UTF-8")
        with self.registry.query_apart(
            query, self.parameters, limit=self.limit, timeout_seconds=self.timeout_seconds
        ) as rows:
            print_rows(rows.columns, rows, self.form)
            if rows.truncated:
                say(f"Only the first {len(rows)} rows; --limit shows more.", err=True)


def is_text(text: str) -> bool:
    """Tell whether a text from a terminal or a command line was valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
