"""Queries of visitors: each answered by a process that the system bounds, as Datasette wants it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from math import inf
from typing import Any, Final

from datasette.database import QueryInterrupted, Results

from ckptdb.catalog.bounded_query import BoundedQuery, EmptyQuery, Failed, Late, QueryRow, TooLarge
from ckptdb.catalog.worker import Place, Workers

# Datasette switches on, for all of a process, that whatever our functions and limits raise within
# SQLite is printed with a traceback: an interrupted query would fill the log.
sqlite3.enable_callback_tracebacks(False)  # noqa: FBT003  # it takes no keyword

LARGEST_ANSWER_BYTES: Final = 8 << 20
"""Bytes of an answer; as JSON it may become six times as long, and again when it is sent."""

LARGEST_PART_BYTES: Final = 16 << 20
"""Bytes of an answer whose rows are sent one after the other."""

MOST_VALUES: Final = 40_000
"""Values of an answer: a cell in HTML takes longer than the query took for it."""

LIMITS_A_PAGE: Final = 2
"""Times the limit of one query that all queries of a page may take together."""


class Page:
    """Time that the queries of one page have left together."""

    def __init__(self, seconds: float | None) -> None:
        """Start with this time; None when the page is sent part by part."""
        self.is_whole = seconds is not None
        self.seconds_left = inf if seconds is None else seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Measure a query of the page."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds_left -= time.monotonic() - begun


_page: ContextVar[Page | None] = ContextVar("ckptdb_page", default=None)


@contextmanager
def making(page: Page) -> Iterator[None]:
    """Set the page that is being made."""
    token = _page.set(page)
    try:
        yield
    finally:
        _page.reset(token)


def current_page() -> Page:
    """Return the page that is being made."""
    return _page.get() or Page(None)


def make_question(
    page: Page, sql: str, parameters: Any, *, limit: int | None, milliseconds: float
) -> BoundedQuery:
    """Return a query within the limits of the page.

    Raises:
        QueryInterrupted: No time is left for it.
    """
    seconds = min(milliseconds / 1000, page.seconds_left)
    if seconds <= 0:
        raise QueryInterrupted(Late(), sql, parameters)
    return BoundedQuery(
        sql=sql,
        parameters={} if parameters is None else parameters,
        limit=limit,
        largest_bytes=LARGEST_ANSWER_BYTES if page.is_whole else LARGEST_PART_BYTES,
        timeout_seconds=seconds,
        most_values=MOST_VALUES if page.is_whole else None,
    )


def answer(workers: Workers, place: Place, question: BoundedQuery, page: Page) -> Results:
    """Answer a query of a page.

    Raises:
        QueryInterrupted: It ran for too long.
        sqlite3.Error: It is wrong, or too large.
    """
    rows: list[QueryRow] = []
    try:
        # In a thread by now: waiting for one is no part of what it takes.
        with page.spending():
            outcome = workers.query(place, question, rows.extend)
    except Failed as failed:
        raise _as_datasette(failed.error, question) from failed.error
    description = tuple((column, *[None] * 6) for column in outcome.columns)
    return Results(_with_names(outcome.columns, rows), outcome.truncated, description)


def _as_datasette(error: Exception, question: BoundedQuery) -> Exception:
    if isinstance(error, Late):
        interrupted: Exception = QueryInterrupted(error, question.sql, question.parameters)
        return interrupted
    if isinstance(error, TooLarge):
        return sqlite3.OperationalError(f"the query was stopped: {error}; ask for less")
    if isinstance(error, EmptyQuery):
        return sqlite3.OperationalError("there is no question in it")
    return error


def _with_names(columns: Sequence[str], rows: Sequence[QueryRow]) -> list[sqlite3.Row]:
    # Nothing but a cursor gives such a row its names.
    quoted = (column.replace('"', '""') for column in columns)
    names = ", ".join(f'NULL AS "{column}"' for column in quoted)
    with closing(sqlite3.connect(":memory:")) as raw:
        cursor = raw.execute(f"SELECT {names}")  # names alone, in quotes
        return [sqlite3.Row(cursor, row) for row in rows]
