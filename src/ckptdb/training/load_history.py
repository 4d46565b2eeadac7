"""Load history of this process: checkpoints that it has loaded, looked for or saved, by run.

A loop may load by hand and save with a manager that it makes later, from another thread or after a
fork, so the history belongs to the process. A run is identified by the inode of its directory,
whatever path leads there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ckptdb.core import fork
from ckptdb.disk import manifest, names
from ckptdb.errors import UnreadableInfo

MOST_RUNS: Final = 256
"""Number of runs, and of relative directories, that are remembered."""
MOST_LOADED: Final = 8
"""Number of loads that are remembered of one run: the last ones."""

_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint that was loaded.

    Attributes:
        inode: Inode of its directory.
        uuid: uuid of its manifest at that time; None without a manifest.
        has_weights: The weights were requested, not only the training_info.
    """

    step: int
    inode: int
    uuid: str | None
    has_weights: bool


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """Loads, queries and saves of one run by this process.

    Attributes:
        base: Checkpoints loaded before the first save; training continues from one of them.
        weights: The last checkpoint that was loaded with its weights.
        loaded: Checkpoints loaded since the last save, the latest last.
        pending: The one of these that the next save continues from, if any.
        has_looked: The process has queried the checkpoints of the run.
        has_saved: The process has saved into the run.
    """

    base: tuple[LoadedCheckpoint, ...] = ()
    weights: LoadedCheckpoint | None = None
    loaded: tuple[LoadedCheckpoint, ...] = ()
    pending: LoadedCheckpoint | None = None
    has_looked: bool = False
    has_saved: bool = False


_NOTHING: Final = LoadHistory()


class _Runs:
    """Load histories by run; safe in threads and forked children."""

    def __init__(self) -> None:
        self._known: dict[_Key, LoadHistory] = {}
        self._guard = threading.Lock()
        fork.AFTER_FORK.add(self)

    def after_fork(self) -> None:
        """Keep the histories: a child continues from checkpoints that its parent has loaded."""
        self._guard = threading.Lock()

    def find(self, key: _Key) -> LoadHistory:
        return self._known.get(key, _NOTHING)

    def change(self, key: _Key, change: Callable[[LoadHistory], LoadHistory]) -> None:
        with self._guard:
            known = change(self._known.pop(key, _NOTHING))
            while len(self._known) >= MOST_RUNS:
                del self._known[next(iter(self._known))]
            self._known[key] = known


_runs = _Runs()
_relative: dict[str, Path] = {}


def find(run: Path) -> LoadHistory:
    """Return the history of a run."""
    key = _find_key(run)
    return _NOTHING if key is None else _runs.find(key)


def note_look(run: Path) -> None:
    """Note that this process has queried the checkpoints of a run."""
    key = _find_key(run)
    if key is not None and not _runs.find(key).has_looked:
        _runs.change(key, lambda known: replace(known, has_looked=True))


def note_save(run: Path, *, has_gone_back: bool) -> None:
    """Note that this process saves into a run.

    Args:
        run: Its directory.
        has_gone_back: The save continues from what was loaded last, not from the save before.
    """
    key = _find_key(run)
    if key is not None and (_runs.find(key).loaded or not _runs.find(key).has_saved):
        _runs.change(key, lambda known: _saved(known, has_gone_back=has_gone_back))


def note_load(folder: Path, *, has_weights: bool) -> None:
    """Note that this process loads a checkpoint; nothing, when it is none.

    Args:
        folder: Its directory.
        has_weights: Its weights were asked for: one whose training_info was read afterwards is
            not what training continues from.
    """
    with suppress(OSError, UnreadableInfo):
        path = Path(os.path.abspath(folder))
        if names.find_final_step(path.name) is None:
            path = Path(os.path.realpath(path))  # e.g. a link of somebody's, called "latest"
        step, key = names.find_final_step(path.name), _find_key(path.parent)
        if step is None or key is None:
            return
        inode = os.lstat(path).st_ino
        found = manifest.find(path)
        uuid = None if found is None or found.step != step else found.uuid
        one = LoadedCheckpoint(step, inode, uuid, has_weights)
        _runs.change(key, lambda known: _with(known, one))


def note_relative(given: Path, run: Path) -> None:
    """Note the absolute path of a relative directory, in case the working directory changes."""
    while len(_relative) >= MOST_RUNS:
        _relative.pop(next(iter(_relative), ""), None)
    _relative[os.path.normpath(given)] = run


def find_absolute(folder: Path) -> Path:
    """Return a path as it is, or, when nothing is there, as it was meant before a ``chdir``."""
    if folder.is_absolute() or folder.exists():
        return folder
    run = _relative.get(os.path.normpath(folder.parent))
    return folder if run is None else run / folder.name


def forget(run: Path, uuid: str) -> None:
    """Note that training does not continue from a checkpoint that was loaded."""
    key = _find_key(run)
    if key is not None and _runs.find(key) is not _NOTHING:
        _runs.change(key, lambda known: _without(known, uuid))


def _with(known: LoadHistory, one: LoadedCheckpoint) -> LoadHistory:
    others = [other for other in known.loaded if (other.inode, other.uuid) != (one.inode, one.uuid)]
    pending = known.pending
    keeps = pending is not None and pending.has_weights and not one.has_weights
    return replace(
        known,
        weights=one if one.has_weights else known.weights,
        loaded=(*others, one)[-MOST_LOADED:],
        pending=pending if keeps else one,
        has_looked=True,
    )


def _without(known: LoadHistory, uuid: str) -> LoadHistory:
    pending = known.pending
    return replace(
        known,
        base=tuple(one for one in known.base if one.uuid != uuid),
        weights=None if known.weights is not None and known.weights.uuid == uuid else known.weights,
        loaded=tuple(one for one in known.loaded if one.uuid != uuid),
        pending=None if pending is not None and pending.uuid == uuid else pending,
    )


def _saved(known: LoadHistory, *, has_gone_back: bool) -> LoadHistory:
    base = known.loaded if has_gone_back and known.loaded else known.base
    return replace(known, base=base, loaded=(), pending=None, has_saved=True)


def _find_key(run: Path) -> _Key | None:
    try:
        found = os.stat(run)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
