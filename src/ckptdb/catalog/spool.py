"""Spool: an answer in a temporary file, which may be larger than memory."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any, Final, Self

from ckptdb.catalog.bounded_query import Outcome, QueryRow
from ckptdb.errors import QueryTooLarge

_IN_MEMORY_BYTES: Final = 1 << 20
"""What needs no file yet."""


class Spool:
    """The rows of one answer, to be gone through any number of times.

    Attributes:
        columns: Their names, once it is finished.
        truncated: Whether the limit cut the answer, once it is finished.
    """

    def __init__(self) -> None:
        self.columns: tuple[str, ...] = ()
        self.truncated = False
        self._count = 0
        self._file = SpooledTemporaryFile[bytes](_IN_MEMORY_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: list[QueryRow]) -> None:
        """Append some rows.

        Raises:
            QueryTooLarge: The disk is full.
        """
        try:
            pickle.dump(rows, self._file)
            self._file.flush()
        except OSError as error:
            why = f"its answer does not fit into {gettempdir()} ({error.strerror or error})"
            raise QueryTooLarge(why) from error
        self._count += len(rows)

    def clear(self) -> None:
        """Remove all rows."""
        self._file.seek(0)
        self._file.truncate()
        self._count = 0

    def finish(self, outcome: Outcome) -> None:
        """Note what is known after the last row."""
        self.columns, self.truncated = outcome.columns, outcome.truncated

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        self._file.seek(0)
        left = self._count
        while left:
            rows = pickle.load(self._file)  # noqa: S301  # which only `add` has written
            left -= len(rows)
            yield from rows
