"""Connections and forks: a child must neither use nor close what it inherited.

SQLite keeps a process's locks in memory; a child has that memory and none of the locks. Of
Python's own it has the locks, and none of the threads that would release them.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from ckptdb.errors import CatalogUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator


class Forked(Protocol):
    """What has connections, locks or threads to drop in a child."""

    def after_fork(self) -> None:
        """Drop what was inherited."""


HEIRS: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()
"""Everything that has to be told of a fork."""

CONNECTIONS: Final[weakref.WeakSet[FileConnection]] = weakref.WeakSet()

_INHERITED: Final[list[object]] = []
"""What a child may neither use nor close. Closing it would roll back the parent's
transaction, and collecting it would close it."""

_IN_USE: Final[dict[object, Path]] = {}
"""The files that connections of this process may hold locks on at this moment."""

_LOST: Final[set[Path]] = set()
"""The files that were in use at the fork that made this process. SQLite keeps a process's
locks in memory, and a child inherits that memory but no lock: it would read without one and
wait for ever to write."""


@contextmanager
def in_use(file: Path | None) -> Iterator[None]:
    """Mark a file as possibly locked by this process, as `begin_use` does."""
    mark = begin_use(file)
    try:
        yield
    finally:
        end_use(mark)


def begin_use(file: Path | None) -> object:
    """Mark a file as possibly locked by this process, for children forked meanwhile.

    Returns:
        For `end_use`.

    Raises:
        CatalogUnusable: This process was itself forked while the file was in use.
    """
    mark = object()
    if file is None:
        return mark
    if file in _LOST:
        why = "it was in use when this process was forked; use it in the parent"
        raise CatalogUnusable(str(file), why)
    _IN_USE[mark] = file
    return mark


def end_use(mark: object) -> None:
    """Take a mark away."""
    _IN_USE.pop(mark, None)


class TimedConnection(sqlite3.Connection):
    """A connection whose statements end in time.

    Attributes:
        ends: When (monotonic), as the only entry: what looks there must be no code of Python.
    """

    ends: list[float]


class FileConnection(TimedConnection):
    """A connection to a file; in a child that inherited it, it no longer does anything."""

    inherited = False

    def commit(self) -> None:
        if self.inherited:
            raise sqlite3.ProgrammingError("the transaction belongs to the parent process")
        super().commit()

    def rollback(self) -> None:
        if not self.inherited:
            super().rollback()

    def close(self) -> None:
        if not self.inherited:
            super().close()


def _forget_inherited() -> None:
    _LOST.update(_IN_USE.values())
    _IN_USE.clear()
    for connection in list(CONNECTIONS):
        connection.inherited = True
        keep_for_ever(connection)
    for heir in list(HEIRS):
        heir.after_fork()


def keep_for_ever(inherited: object) -> None:
    """Keep something from being collected, in this process, even at its end."""
    # The interpreter empties even global lists when it ends, and would close what is in them.
    _INHERITED.append(inherited)
    with suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


os.register_at_fork(after_in_child=_forget_inherited)
