"""Errors about SQL queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckptdb.errors.base import CkptdbError


class QueryRefused(CkptdbError):
    """A query would write, or would reach outside the catalog."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The query was refused: {why}. Only SELECT and WITH are answered.")
        self.why = why


class QueryFailed(CkptdbError, ValueError):
    """A query is wrong SQL.

    Attributes:
        excerpt: Its lines that may be at fault, with marks below; empty when nobody knows.
    """

    def __init__(self, why: str, *, where: str = "", excerpt: str = "") -> None:
        """Write the sentence; ``where`` is like ``"line 1, column 8"``."""
        at = f" at {where}" if where else ""
        super().__init__(f"The query failed{at}: {why}. `ckptdb schema` lists tables and columns.")
        self.why = why
        self.excerpt = excerpt


class QueryTimeout(CkptdbError, TimeoutError):
    """A query ran longer than its timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The query was stopped after {seconds:g} s; narrow it, or raise --timeout."
        )
        self.why = f"it was stopped after {seconds:g} s"


class QueryTooLarge(CkptdbError):
    """A query or its answer exceeds the limits of memory or disk."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The query was stopped: {why}; ask for fewer columns or rows.")
        self.why = why


class UnknownRelation(CkptdbError, LookupError):
    """No table or view has that name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"No table or view is called {name!r}; there are {', '.join(known)}.")


class ParameterMissing(CkptdbError, LookupError):
    """A query has a parameter without a value."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The query asks for :{name}; pass -p {name}=...")


class FileUnusable(CkptdbError):
    """A file named for a query or a report cannot be read or written."""

    def __init__(self, path: Path, how: str, why: str) -> None:
        super().__init__(f"{path} cannot be {how}: {why}.")
