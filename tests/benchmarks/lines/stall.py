"""How long a training loop stands still for a save in the background."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks import trees
from tests.benchmarks.results import Findings, duration, within
from tests.benchmarks.sizes import Size

from ckptdb import CheckpointManager

_MIB = 1 << 20


def measure(size: Size, scratch: Path) -> Findings:
    """Begin finalizations of several payloads while none is pending."""
    payloads = {
        "1 small file": {"weights.bin": 512},
        f"{size.files:,} small files": {f"part_{i}.bin": 4096 for i in range(size.files)},
        f"{size.shard_bytes // _MIB} MiB": {"weights.bin": size.shard_bytes},
    }
    run = scratch / "stall"
    taken = {what: _stalls(run, files, 4 * size.rounds) for what, files in payloads.items()}
    medians = {what: statistics.median(found) for what, found in taken.items()}
    worst = max(medians, key=medians.__getitem__)
    longest = max(max(found) for found in taken.values())
    row = within(
        "stall of begin_finalization, durable, none pending", 1e-3, medians[worst],
        note=f"worst payload: {worst}; longest of all {duration(longest)}", medians=medians,
    )  # fmt: skip
    return Findings(rows=[row])


def _stalls(run: Path, files: Mapping[str, int], rounds: int) -> list[float]:
    with trees.manager(run, durability="full") as manager:
        found = [_stall(manager, step, files) for step in range(rounds + 1)]
    shutil.rmtree(run)
    return found[1:]


def _stall(manager: CheckpointManager, step: int, files: Mapping[str, int]) -> float:
    folder = manager.init_tmp_checkpoint(step, trees.info(step, 0.5))
    for name, size_bytes in files.items():
        (folder / name).write_bytes(os.urandom(size_bytes))
    started = time.perf_counter()
    manager.begin_finalization(folder)
    spent = time.perf_counter() - started
    manager.finalize_pending()
    # Not what is measured, and a lot.
    shutil.rmtree(manager.get_latest_checkpoint_path() or folder)
    return spent
