"""The runs below a directory, looked for again and again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptdb.disk import identity, read_checkpoint, scan


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a directory held when it was listed."""

    mtime_ns: int
    is_settled: bool
    is_run: bool
    below: list[str]


class Runs:
    """Finds the runs at or below a directory; what has not changed since is not listed again.

    Args:
        top: Where to begin; it need not be there yet.
        other_roots: Also search the trees of other roots.
    """

    def __init__(self, top: Path, *, other_roots: bool = False) -> None:
        self._top = top
        self._other_roots = other_roots
        self._folders: dict[Path, _Folder] = {}

    def find(self) -> tuple[Path, ...]:
        """Return them as `scan.find_runs` does, in order of path."""
        before, self._folders = self._folders, {}
        return tuple(self._search(before))

    def _search(self, before: Mapping[Path, _Folder]) -> Iterator[Path]:
        # No recursion: a tree may be deeper than Python's own calls.
        pending = [self._top]
        while pending:
            path = pending.pop()
            folder = _look(path, before.get(path))
            if folder is None:
                continue
            self._folders[path] = folder
            if folder.is_run:
                yield path
            elif path != self._top and not self._other_roots and _is_root(path):
                continue
            pending += [path / name for name in reversed(folder.below)]


def _is_root(path: Path) -> bool:
    try:
        return identity.is_root(path)
    except OSError:
        return False  # nothing below it is for us to see, either


def _look(path: Path, before: _Folder | None) -> _Folder | None:
    try:
        mtime_ns = os.stat(path).st_mtime_ns
        if before is not None and before.is_settled and before.mtime_ns == mtime_ns:
            return before
        is_settled = read_checkpoint.is_settled(mtime_ns)
        return _Folder(mtime_ns, is_settled, *scan.sort_folders(path))
    except OSError:
        return None  # removed meanwhile, or not for us to see
