"""Runs with many checkpoints, written directly, and made to look old.

One checkpoint is saved by ckptdb itself. The others are copies of its files with other names,
uuids and numbers, so that they are what this version of ckptdb would have written.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdb import CheckpointManager, Registry
from ckptdb.core.facts import Fact
from ckptdb.disk.journal import append

METRIC = "val:loss"
AGE_SECONDS = 3600.0
_FILE = "weights.bin"
_WEIGHTS = b"w" * 512


def info(step: int, loss: float) -> dict[str, Any]:
    """Return what a loop of the kind of GRPO tells at a save."""
    return {
        "step": step,
        "consumed_samples": step * 512,
        METRIC: loss,
        "val:accuracy": round(1 - loss / 2, 6),
        "train:reward": round(loss * 3, 6),
        "epoch": step // 1000,
    }


def write_run(run: Path, count: int, *, seed: int = 1) -> None:
    """Make a run of that many checkpoints, at steps 1, 2, …, without a catalog."""
    numbers = random.Random(seed)
    save_one(run, 1, numbers.random())
    manifest = json.loads((run / "step_1" / "manifest.json").read_text())
    for step in range(2, count + 1):
        _write(run / f"step_{step}", step, numbers.random(), manifest)
    forget_catalog(run)
    _age(run / "step_1")
    settle(run)


def write_plain(run: Path, count: int, *, seed: int = 1) -> None:
    """Make the same for the plain way: training_info.json and the weights."""
    numbers = random.Random(seed)
    run.mkdir(parents=True)
    for step in range(1, count + 1):
        folder = run / f"step_{step}"
        folder.mkdir()
        _put(folder / "training_info.json", json.dumps(info(step, numbers.random())).encode())
        _put(folder / _FILE, _WEIGHTS)


def write_history(run: Path, *, live: int, deleted: int) -> None:
    """Make a run that has kept few checkpoints and deleted many."""
    numbers = random.Random(2)
    with manager(run, keep_top_k=1) as saving:
        for step, loss in ((1, 0.9), (2, 0.1)):
            save(saving, step, loss)
    journal = run / ".ckptdb" / "journal.jsonl"
    line = next(fact for fact in map(json.loads, journal.read_text().splitlines())
                if "record" in fact)  # fmt: skip
    shutil.rmtree(run)
    write_run(run, live)
    steps = range(live + 1, live + deleted + 1)
    lines = (_deleted(line, step, numbers.random()) for step in steps)
    append(journal.parent, lines, make_durable=False)
    settle(run)


def index(run: Path) -> None:
    """Give a run its catalog, and let it look old."""
    with Registry.open(run) as registry:
        registry.reconcile()
    settle(run)


def manager(run: Path, **options: Any) -> CheckpointManager:
    """Return a manager that ranks by the loss, and flushes nothing unless told to."""
    return CheckpointManager(
        {
            "checkpoint_dir": run,
            "metric_name": METRIC,
            "higher_is_better": False,
            "durability": "none",
        }
        | options
    )


def save(saving: CheckpointManager, step: int, loss: float) -> None:
    """Save one small checkpoint."""
    folder = saving.init_tmp_checkpoint(step, info(step, loss))
    _put(folder / _FILE, _WEIGHTS)
    saving.finalize_checkpoint(folder)


def save_one(run: Path, step: int, loss: float) -> None:
    """Begin a run."""
    with manager(run) as saving:
        save(saving, step, loss)


def forget_catalog(run: Path) -> None:
    """Remove a run's own catalog."""
    for path in (run / ".ckptdb").glob("catalog.db*"):
        path.unlink()


def settle(run: Path) -> None:
    """Make a run's directory look old, as its checkpoints do."""
    _age(run, past=time.time() - AGE_SECONDS / 2)


def quiet(run: Path) -> bool:
    """Tell whether nothing is left in the trash of a run."""
    return not os.listdir(run / ".ckptdb" / "trash")


def _write(folder: Path, step: int, loss: float, manifest: Mapping[str, Any]) -> None:
    os.mkdir(folder)
    told = json.dumps(info(step, loss)).encode()
    _put(folder / "training_info.json", told)
    _put(folder / _FILE, _WEIGHTS)
    sizes = {"training_info.json": len(told), _FILE: len(_WEIGHTS)}
    known = {**manifest, "uuid": str(uuid.uuid4()), "step": step, "files": sizes}
    _put(folder / "manifest.json", json.dumps(known, indent=1).encode() + b"\n")
    _age(folder)


def _deleted(line: Mapping[str, Any], step: int, loss: float) -> Fact:
    told = info(step, loss)
    record = line["record"] | {"step": step, "parent": None, "info": told, "metrics": told}
    more = {"reason": line["reason"], "record": record}
    return Fact(line["at"], line["fact"], str(uuid.uuid4()), more)


def _put(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(handle, content)
    finally:
        os.close(handle)


def _age(folder: Path, past: float | None = None) -> None:
    past = time.time() - AGE_SECONDS if past is None else past
    for path in (folder / "training_info.json", folder):
        if path.exists():
            os.utime(path, (past, past))
