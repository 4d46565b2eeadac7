"""Paths of weights and optimizer state in a checkpoint, also of Megatron-Core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptdb.core import warnings
from ckptdb.training import load_history


def find(
    checkpoint: Path,
    component: str,
    *,
    load_common_state: Callable[[Path], dict[str, Any]],
) -> tuple[Path, Path | None]:
    """Return the paths of weights and optimizer; warn when there is no optimizer.

    Args:
        checkpoint: The checkpoint.
        component: Subdirectory of the model.
        load_common_state: Loads Megatron's common state from the directory of an iteration.
    """
    folder = load_history.find_absolute(checkpoint)
    load_history.note_load(folder, has_weights=True)
    weights, optimizer = folder / component / "weights", folder / component / "optimizer"
    if optimizer.exists() or _has_megatron_optimizer(weights / "iter_0000000", load_common_state):
        return weights, optimizer
    warnings.warn(
        f"Optimizer state not found at {optimizer}, nor among the weights in {weights}. "
        "The optimizer starts afresh.",
    )
    return weights, None


def _has_megatron_optimizer(
    iteration: Path, load_common_state: Callable[[Path], dict[str, Any]]
) -> bool:
    stored = (iteration / "common.pt", iteration / "metadata.json")
    return any(file.exists() for file in stored) and "optimizer" in load_common_state(iteration)


def load_megatron_common_state_dict(iteration_dir: Path) -> dict[str, Any]:
    """Load the state that a Megatron checkpoint keeps once for all ranks.

    Raises:
        RuntimeError: Megatron-Core is not installed.
    """
    try:
        from megatron.core.dist_checkpointing import (  # type: ignore[import-not-found]  # optional
            load_common_state_dict,
        )
    except ImportError as error:
        raise RuntimeError(
            f"Whether {iteration_dir} holds optimizer state can only be told by Megatron-Core; "
            "install megatron-core."
        ) from error
    # Megatron takes a Path too, but announces that it will not for long.
    state: dict[str, Any] = load_common_state_dict(str(iteration_dir))
    return state
