"""Bounded query: a statement of a person, answered within limits of time, rows and bytes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ckptdb.catalog.error_position import Spot, find_spots
from ckptdb.catalog.sandbox import Authorizer, confine

QueryRow = tuple[Any, ...]
Sink = Callable[[list[QueryRow]], None]
"""Takes some rows of an answer."""

STEPS: Final = 100
"""Of SQLite's machine, between two looks at the clock: a few microseconds, unless a step calls a
function on something huge."""

_BATCH_BYTES: Final = 1 << 18
_ROW_BYTES, _VALUE_BYTES = 64, 8
"""What a row counts for beside names and values, and a value that is neither text nor blob."""

_LONG: Final = (str, bytes)

OUT_OF_MEMORY: Final = "it needs more memory than it may take"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedQuery:
    """One statement with its limits.

    Attributes:
        parameters: Values by name, or in order.
        limit: Rows after which the answer is cut.
        largest_bytes: Size of the answer at which it is refused.
        most_values: Number of its values likewise.
        timeout_seconds: Bounds it from the moment it is sent.
    """

    sql: str
    parameters: Any
    limit: int | None
    largest_bytes: int
    timeout_seconds: float
    most_values: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an answer; ``truncated`` when the limit cut it."""

    columns: tuple[str, ...]
    truncated: bool


class EmptyQuery(Exception):
    """The statement has no answer: it is empty, or a comment."""


class TooLarge(Exception):
    """The query needs more of something than it may take; the only argument says of what."""


class Late(Exception):
    """The query ran for too long."""


@dataclass(slots=True)
class Failed(Exception):
    """A query that SQLite did not answer.

    Attributes:
        error: What was raised: the driver's, `EmptyQuery`, `TooLarge` or `Late`.
        refusal: What the query is not allowed to do, if it was that.
        spots: Where in the query the fault is, as far as that is known.
    """

    error: Exception
    refusal: str | None = None
    spots: tuple[Spot, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.error, self.refusal, self.spots)


def answer(
    raw: sqlite3.Connection, base: Path | None, question: BoundedQuery, sink: Sink
) -> Outcome:
    """Answer a query on a connection of its own, which is fit for nothing else afterwards.

    Args:
        raw: Just opened.
        base: What ``abspath(path)`` prepends.
        question: The query.
        sink: Gets the rows.

    Raises:
        Failed: There is no answer.
        KeyboardInterrupt: A signal's handler raised while SQLite called us back.
    """
    late = partial(is_late, time.monotonic() + question.timeout_seconds)
    authorizer = Authorizer()
    confine(raw, base, authorizer)
    raw.set_progress_handler(late, STEPS)
    try:
        cursor = raw.execute(question.sql, question.parameters)
        return collect(cursor, iter(cursor.fetchone, None), question, late, sink)
    except (sqlite3.Error, sqlite3.Warning) as error:
        if _lost_something(error, authorizer, late()):
            raise KeyboardInterrupt from error
        if code_of(error) == sqlite3.SQLITE_INTERRUPT:
            raise Failed(Late()) from error
        raise _explain(error, authorizer, raw, question.sql) from error
    except MemoryError as error:
        raise Failed(TooLarge(OUT_OF_MEMORY)) from error
    except (EmptyQuery, TooLarge, Late, ValueError, OverflowError) as error:
        raise Failed(error) from error


def collect(
    cursor: Any, rows: Iterable[Any], question: BoundedQuery, late: Callable[[], bool], sink: Sink
) -> Outcome:
    """Pass on the rows of an answer, as many and as long as they may be.

    Args:
        cursor: Has a ``description`` after its first row.
        rows: Of it.
        question: The query.
        late: Whether its time is over.
        sink: Gets the rows.

    Raises:
        EmptyQuery: It has no columns.
        TooLarge: It is longer than ``largest_bytes``, or has more than ``most_values``.
        Late: Its time is over.
    """
    batch, size, room, truncated = list[QueryRow](), 0, question.largest_bytes, False
    row_bytes, most_values = _ROW_BYTES, question.most_values
    for number, row in enumerate(rows):
        if late():
            raise Late
        if number == question.limit:
            truncated = True
            break
        if not number:
            # The printed answer may repeat the names of columns in each row.
            row_bytes += sum(len(column[0]) for column in cursor.description)
        if most_values is not None and (number + 1) * len(row) > most_values:
            raise TooLarge(f"its answer has more than {most_values} values")
        size += row_bytes
        # A loop: a generator and a union of types for each of very many rows take as long
        # as SQLite does.
        for value in row:
            size += len(value) if isinstance(value, _LONG) else _VALUE_BYTES
        if size > room:
            raise TooLarge(f"its answer is longer than {question.largest_bytes >> 20} MiB")
        batch.append(tuple(row))
        if size >= _BATCH_BYTES:
            sink(batch)
            batch, size, room = [], 0, room - size
    if cursor.description is None:
        raise EmptyQuery
    sink(batch)
    return Outcome(tuple(str(column[0]) for column in cursor.description), truncated)


def is_late(deadline: float) -> bool:
    """Return whether a time of the monotonic clock has passed."""
    return time.monotonic() > deadline


def code_of(error: Exception) -> int:
    """Return the kind of error that SQLite's driver reports."""
    return (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF


def _lost_something(error: Exception, authorizer: Authorizer, late: bool) -> bool:  # noqa: FBT001
    """Return whether a signal's handler raised while SQLite called us back.

    SQLite takes that for a refusal and loses the exception: Ctrl-C, or something as final.
    """
    stopped = code_of(error) == sqlite3.SQLITE_INTERRUPT and not late
    # For a function that is not allowed, SQLite sets no code, only a message.
    denied = code_of(error) == sqlite3.SQLITE_AUTH or str(error).startswith("not authorized")
    return stopped or (denied and authorizer.refusal is None)


def _explain(error: Exception, authorizer: Authorizer, raw: sqlite3.Connection, sql: str) -> Failed:
    if authorizer.refusal is not None:
        return Failed(error, authorizer.refusal)
    if "one statement at a time" in str(error):
        return Failed(error, "it holds more than one statement")
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY:  # not what a crashed writer has left: that is another code
        return Failed(error, "it would write")
    # The catalog itself is open for reading only, so what cannot be written are temporary files.
    if code_of(error) == sqlite3.SQLITE_FULL:
        return Failed(TooLarge("its temporary files do not fit on their disk"))
    if code == sqlite3.SQLITE_IOERR_WRITE:
        return Failed(TooLarge("its temporary files cannot grow any further"))
    return Failed(error, spots=find_spots(sql, str(error), partial(_complaint, raw)))


def _complaint(raw: sqlite3.Connection, sql: str) -> str | None:
    """Return what SQLite says about a query that it only compiles."""
    explained = sql.lstrip().upper().startswith("EXPLAIN")
    try:
        raw.execute(sql if explained else f"EXPLAIN {sql}").close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        return str(error)
    return None
