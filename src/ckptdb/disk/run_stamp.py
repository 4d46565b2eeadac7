"""The stamp of a run directory, read and followed through changes of our own."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdb.core.stamp import Stamp
from ckptdb.disk import (
    journal,
    paths,
)

_UNCOUNTED = 2


def find_stamp(directory: Path) -> Stamp | None:
    """Return a run's stamp, or None when the directory is not there."""
    try:
        found = paths.find_stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    size = journal.size(directory)
    return Stamp(found.st_mtime_ns, found.st_nlink, size, found.st_ctime_ns)


class StampWatch:
    """Follows the stamp through our own changes, to notice anybody else's between them.

    Each change is wrapped in `change`; ``span`` is then the stamp before the first and after
    the last, or None when the directory moved in between without us.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first: Stamp | None = None
        self._last: Stamp | None = None
        self._disturbed = False

    @contextmanager
    def change(self, *, links: int = 0) -> Iterator[None]:
        """Wrap one change of our own.

        Args:
            links: By how many it changes the number of directories. When it is another number,
                somebody else's change has come at the same moment.
        """
        before = find_stamp(self._directory)
        if self._last is None:
            self._first = before
        elif before != self._last:
            self._disturbed = True
        yield
        self._last = after = find_stamp(self._directory)
        # Some file systems do not count: then it is 1 or 2, in spite of our own folder.
        if before and after and before.links > _UNCOUNTED and after.links - before.links != links:
            self._disturbed = True

    @property
    def span(self) -> tuple[Stamp, Stamp] | None:
        """The stamps around all changes so far."""
        if self._disturbed or self._first is None or self._last is None:
            return None
        return self._first, self._last
