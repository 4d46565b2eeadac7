"""The plain way of keeping checkpoints, as NeMo-RL does it: list, parse, rename, remove.

Operation by operation the work of its manager, through the same parts of the standard library
(`glob`, `pathlib`, `json`, `shutil`), in lines of our own. Not the control of the fault
laboratory: that one has to be guilty of certain faults, whatever it costs.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save(run: Path, step: int, info: Mapping[str, Any], weights: bytes) -> None:
    """Write a checkpoint beside its name, and give it that."""
    staged = run / f"tmp_step_{step}"
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir(parents=True, exist_ok=True)
    with open(staged / "training_info.json", "w") as file:
        json.dump(dict(info), file)
    with open(staged / "weights.bin", "wb") as weighty:
        weighty.write(weights)
    final = run / f"step_{step}"
    if not final.exists():
        os.rename(staged, final)


def prune(run: Path, metric: str, keep: int) -> None:
    """Remove all but the best ones and the latest."""
    history = load_history(run)
    kept = {max(step for step, _, _ in history)}
    ranked = sorted(history, key=lambda found: (found[2].get(metric, float("inf")), -found[0]))
    kept.update(step for step, _, _ in ranked[:keep])
    for step, path, _ in history:
        if step not in kept:
            shutil.rmtree(path)


def best(run: Path, metric: str) -> str | None:
    """Return the checkpoint with the lowest value."""
    found = top(run, metric, 1)
    return found[0] if found else None


def top(run: Path, metric: str, count: int) -> list[str]:
    """Return the checkpoints with the lowest values."""
    history = [found for found in load_history(run) if metric in found[2]]
    history.sort(key=lambda found: (found[2][metric], -found[0]))
    return [path for _, path, _ in history[:count]]


def latest(run: Path) -> str | None:
    """Return the checkpoint with the highest step."""
    folders = _folders(run)
    folders.sort(key=_step)
    return folders[-1] if folders else None


def load_history(run: Path) -> list[tuple[int, str, dict[str, Any]]]:
    """Read every training_info.json."""
    history = []
    for path in _folders(run):
        told = Path(path) / "training_info.json"
        if told.exists():
            with open(told) as file:
                history.append((_step(path), path, json.load(file)))
    return history


def _folders(run: Path) -> list[str]:
    found = glob.glob(str(run / "step_*"))
    return [path for path in found if re.fullmatch(r"step_\d+", Path(path).name)]


def _step(path: str) -> int:
    return int(Path(path).name.split("_")[1])
