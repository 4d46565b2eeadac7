"""Forked processes: a child must neither use nor close the connections of its parent.

SQLite keeps the locks of a process in memory; a child inherits that memory, but no lock. Locks of
Python are inherited, but not the threads that would release them.
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
    """An object that drops connections, locks or threads in a forked child."""

    def after_fork(self) -> None:
        """Drop inherited connections, locks and threads."""


AFTER_FORK: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()
"""Objects whose `after_fork` is called in every forked child."""

CONNECTIONS: Final[weakref.WeakSet[FileConnection]] = weakref.WeakSet()

_INHERITED: Final[list[object]] = []
"""Inherited connections, never used, closed or collected: closing one would roll back the
transaction of the parent."""

_IN_USE: Final[dict[object, Path]] = {}
"""Files that connections of this process may hold locks on now."""

_LOST: Final[set[Path]] = set()
"""Files that the parent had in use when it forked this process. Here, SQLite would read them
without a lock and wait for ever to write."""


@contextmanager
def in_use(file: Path | None) -> Iterator[None]:
    """Mark a file as possibly locked by this process, as `begin_use` does."""
    mark = begin_use(file)
    try:
        yield
    finally:
        end_use(mark)


def begin_use(file: Path | None) -> object:
    """Mark a file as possibly locked by this process, for children forked before `end_use`.

    Returns:
        The mark, for `end_use`.

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
    """Remove a mark."""
    _IN_USE.pop(mark, None)


class TimedConnection(sqlite3.Connection):
    """A connection whose statements have a deadline.

    Attributes:
        ends: The deadline (monotonic seconds), as the only entry of a list.
    """

    ends: list[float]


class FileConnection(TimedConnection):
    """A connection to a file; in a forked child it does nothing any more."""

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
    for registered in list(AFTER_FORK):
        registered.after_fork()


def keep_for_ever(inherited: object) -> None:
    """Keep an object from being collected, even when the interpreter exits."""
    # At exit, the interpreter empties even global lists, and would close the objects in them.
    _INHERITED.append(inherited)
    with suppress(ImportError, AttributeError):
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


os.register_at_fork(after_in_child=_forget_inherited)
