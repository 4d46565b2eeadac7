"""Runs below a directory, searched once or repeatedly."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptdb.core import stamp
from ckptdb.disk import (
    names,
    root_marker,
    run_listing,
)
from ckptdb.disk.run_listing import Listing


@dataclass(frozen=True, slots=True)
class _Folder:
    """Contents of a directory when it was listed."""

    mtime_ns: int
    is_settled: bool
    is_run: bool
    below: list[str]


class Runs:
    """Finds the runs at or below a directory; unchanged directories are not listed again.

    Args:
        top: Where to begin; it need not be there yet.
        other_roots: Also search the trees of other roots.
    """

    def __init__(self, top: Path, *, other_roots: bool = False) -> None:
        self._top = top
        self._other_roots = other_roots
        self._folders: dict[Path, _Folder] = {}

    def find(self) -> tuple[Path, ...]:
        """Return them as `run_finder.find_runs` does, in order of path."""
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
        return root_marker.is_root(path)
    except OSError:
        return False  # nothing below it is for us to see, either


def _look(path: Path, before: _Folder | None) -> _Folder | None:
    try:
        mtime_ns = os.stat(path).st_mtime_ns
        if before is not None and before.is_settled and before.mtime_ns == mtime_ns:
            return before
        is_settled = stamp.is_settled(mtime_ns)
        return _Folder(mtime_ns, is_settled, *run_listing.sort_folders(path))
    except OSError:
        return None  # removed meanwhile, or not for us to see


def find_runs(top: Path, *, other_roots: bool = False) -> Iterator[Path]:
    """Yield every run at or below ``top``, in order of path.

    A run has a run.json of ours, or a ``step_N`` or ``tmp_step_N`` with a training_info.json.
    Not searched are checkpoints, symlinks and what `names.is_searched` denies: git's own folder,
    snapshots, installed packages; hidden folders are. A run that is a root only of its own is a
    run like all others; a root of several is somebody else's tree.

    Args:
        top: Where to begin.
        other_roots: Also search the trees of other roots.
    """
    return (found.directory for found in list_runs(top, other_roots=other_roots))


def list_runs(top: Path, *, other_roots: bool = False) -> Iterator[Listing]:
    """Yield the listing of every run that `find_runs` would."""
    # No recursion: a tree may be deeper than Python's own calls.
    pending: list[Iterator[Path]] = [iter((top,))]
    while pending:
        folder = next(pending[-1], None)
        if folder is None:
            pending.pop()
            continue
        try:
            if folder != top and not other_roots and _is_other_root(folder):
                continue
            listing = run_listing.list_folder(folder)
            below = listing.where_to_search()
            is_one = listing.is_run
        except OSError as error:
            if _keeps_from_searching(error, folder, top):
                continue
            raise
        pending.append(map(folder.joinpath, below))
        if is_one:
            yield listing
        del listing  # it may be large, and what is below has one of its own


def _is_other_root(folder: Path) -> bool:
    return root_marker.is_root(folder) and not run_listing.is_run(folder)


def _keeps_from_searching(error: OSError, folder: Path, top: Path) -> bool:
    """Tell whether an error means that a directory of a tree is skipped."""
    if isinstance(error, PermissionError):
        return True
    # Removed while we looked, or so deep that nobody saves there by a path.
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    return folder != top and (gone or error.errno == errno.ENAMETOOLONG)


def find_unsearched(top: Path, run: Path) -> Path | None:
    """Return the directory between two that keeps `find_runs` from the lower one, if one does."""
    for folder in (*reversed(run.parents), run):
        if top not in folder.parents:
            continue
        if folder.is_symlink():
            return folder
        if folder == run:
            break
        is_step = names.find_final_step(folder.name), names.find_tmp_step(folder.name)
        in_checkpoint = is_step != (None, None) and run_listing.is_run(folder.parent)
        if in_checkpoint or not names.is_searched(folder.name):
            return None if run_listing.has_identity(folder) else folder
    return None
