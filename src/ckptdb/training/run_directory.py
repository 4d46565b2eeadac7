"""Directory of a manager's run: fixed when the manager is made, and answered as it was given."""

from __future__ import annotations

import os
from pathlib import Path

from ckptdb.disk import names
from ckptdb.errors import NoCheckpointHere
from ckptdb.training import load_history


class RunDirectory:
    """The directory of a run, as a path that a later ``chdir`` does not move.

    Args:
        given: ``checkpoint_dir``; it may be relative.

    Attributes:
        path: The directory as an absolute path. Only the text is changed: links stay links.
    """

    def __init__(self, given: Path) -> None:
        self._given = given
        self.path = Path(os.path.abspath(given))
        self._cwd = None if given.is_absolute() else _find_cwd()
        if self._cwd is not None:
            load_history.note_relative(given, self.path)

    def get_tmp(self, checkpoint_path: str | os.PathLike[str]) -> Path:
        """Return the absolute path of a staged checkpoint of this run.

        Raises:
            NoCheckpointHere: The path is not one of a staged checkpoint, or is in another run.
        """
        path = Path(checkpoint_path)
        path = self.find_moved(path) or Path(os.path.abspath(path))
        names.get_tmp_step(path)
        if path.parent != self.path:
            raise NoCheckpointHere(path, f"is not in this run's directory {self.path}")
        return path

    def find_moved(self, path: Path) -> Path | None:
        """Return the absolute form of a path that was relative to this run before a ``chdir``."""
        if path.is_absolute() or self._is_in_same_cwd:
            return None
        is_own = os.path.normpath(path.parent) == os.path.normpath(self._given)
        return self.path / path.name if is_own else None

    def find_existing(self, path: Path) -> Path:
        """Return a path as it is, or its absolute form when that is where the checkpoint is."""
        moved = self.find_moved(path)
        return moved if moved is not None and moved.exists() else path

    @property
    def answered(self) -> Path:
        """The directory as it was given; the absolute path after a ``chdir``."""
        return self._given if self._is_in_same_cwd else self.path

    def format_path(self, step: int | None) -> str | None:
        """Return the path of a published checkpoint for the loop."""
        return None if step is None else str(self.answered / names.final_name(step))

    @property
    def _is_in_same_cwd(self) -> bool:
        return self._cwd is None or self._cwd == _find_cwd()


def _find_cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # the directory was removed; relative paths lead nowhere
