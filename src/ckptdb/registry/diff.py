"""Two checkpoints side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ckptdb.core.compare import Difference, Side, compare
from ckptdb.core.records import Checkpoint
from ckptdb.disk import config_file, manifest, names
from ckptdb.errors import NotACheckpoint, UnknownRun
from ckptdb.registry.opened import PathLike
from ckptdb.registry.tree import Tree

_LONGEST_STEP: Final = 100
"""Digits, leading zeros among them."""


class DiffMethods(Tree):
    """Methods of `Registry` that compare two checkpoints."""

    def diff(
        self, a: int | PathLike, b: int | PathLike, *, run: PathLike | None = None
    ) -> Difference:
        """Return how two checkpoints differ: configuration, metrics, files and their sizes.

        Args:
            a: A step, ``"RUN:STEP"``, or the path of a checkpoint, which may lie elsewhere.
            b: Likewise; the difference leads from ``a`` to it.
            run: Run of the steps; None for the run that was opened.

        Raises:
            NotACheckpoint: An argument is none of these.
            UnknownCheckpoint: There never was a checkpoint at that step.
            UnknownRun: No run has that name.
        """
        return compare(self._side(a, run), self._side(b, run))

    def _side(self, which: int | PathLike, run: PathLike | None) -> Side:
        checkpoint = self._find_named(which, run)
        # A deleted checkpoint has no files, and no configuration.
        if not checkpoint.path.is_dir():
            return Side(checkpoint, None, None)
        config = config_file.find_config(checkpoint.path)
        return Side(checkpoint, config, manifest.list_files(checkpoint.path))

    def _find_named(self, which: int | PathLike, run: PathLike | None) -> Checkpoint:
        text = os.fspath(which) if not isinstance(which, int) else str(which)
        if _is_step(text):
            return self._get_at(self._run_names.get(run), int(text))
        path = Path(os.path.abspath(text))
        step = names.find_final_step(path.name)
        if step is not None and path.is_dir():
            return self._find_at_path(path, step)
        name, colon, last = text.rpartition(":")
        if not colon or not _is_step(last):
            raise NotACheckpoint(text)
        return self._get_at(self._run_names.get(name), int(last))

    def _find_at_path(self, path: Path, step: int) -> Checkpoint:
        try:
            return self._get_at(self._run_names.get(path.parent), step)
        except UnknownRun:
            # It belongs to another root.
            with type(self).open(path.parent) as other:
                return other._get_at(other._run_names.get(path.parent), step)  # noqa: SLF001  # a twin's


def _is_step(text: str) -> bool:
    # Python converts no text of very many digits; a step that is too large has its own error.
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_STEP
