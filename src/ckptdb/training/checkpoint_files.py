"""Checkpoint files that a loop reads without a manager: the history of a run, a warm start."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ckptdb.disk import names, published_name, run_listing
from ckptdb.disk.training_info import load_info
from ckptdb.errors import NoCheckpointHere, UnreadableInfo
from ckptdb.training import load_history

PathLike = str | os.PathLike[str]
_logger = logging.getLogger("ckptdb")


def validate_warm_start_checkpoint(warm_start: PathLike, model_component: str = "value") -> None:
    """Check that a checkpoint to start from holds the weights of a component.

    Raises:
        NoCheckpointHere: There are none; training would silently start cold.
    """
    weights = Path(warm_start) / model_component / "weights"
    if not str(warm_start).strip() or not weights.exists():
        why = "does not exist; point the warm start at a step_N directory"
        raise NoCheckpointHere(weights, why)


def load_checkpoint_history(checkpoint_dir: PathLike) -> list[tuple[int, str, dict[str, Any]]]:
    """Return step, path and training_info of every readable checkpoint, by step."""
    load_history.note_look(Path(checkpoint_dir))
    history = []
    for step, path in run_listing.list_finals(Path(checkpoint_dir)):
        try:
            history.append((step, str(path), load_info(path)[0]))
        except UnreadableInfo as error:
            _logger.info("skipped: %s", error)
    return history


def load_published_info(folder: Path) -> dict[str, Any]:
    """Return training_info of a checkpoint; note that training continues from it.

    Raises:
        NoCheckpointHere: There is no such file.
        UnreadableInfo: The file is not a JSON object.
    """
    found = published_name.find_published_info(folder)
    if found is None:
        raise NoCheckpointHere(folder, f"has no {names.INFO}; it is not a checkpoint")
    load_history.note_load(folder, has_weights=False)
    return found
