"""A catalog with a million checkpoints, a tenth of them alive, through ckptdb's own writes.

The runs take turns, as runs that train at the same time do, so that the file is as fragmented as
theirs. Of the checkpoints themselves only what is alive has a directory, and that is empty.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks import trees

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.changes import Changes
from ckptdb.core.records import Checkpoint, Run
from ckptdb.core.times import utc
from ckptdb.disk import root_marker, run_stamp
from ckptdb.reconcile.location import find_location

METRICS = (
    trees.METRIC, "val:accuracy", "train:loss", "train:reward", "train:kl", "train:grad_norm",
    "consumed_samples", "step",
)  # fmt: skip
_ALIVE = 10
"""One of so many."""
_AT_ONCE = 500
_BEGIN = 1_760_000_000.0


@dataclass(frozen=True, slots=True)
class Large:
    """The catalog, and what is in it.

    Attributes:
        information_bytes: What the values of all records are long.
        best: Step with the lowest loss of all, its run, and the best step of each run.
    """

    root: Path
    file: Path
    checkpoints: int
    information_bytes: int
    best: dict[str, tuple[float, int]]


def build(root: Path, *, checkpoints: int, runs: int) -> Large:
    """Make a root with that many runs and checkpoints."""
    root_marker.mark_root(root, make_durable=False)
    location = find_location(root)
    assert location.file is not None
    numbers = random.Random(3)
    known = [_run(root, number) for number in range(runs)]
    each = checkpoints // runs
    information = 0
    best: dict[str, tuple[float, int]] = {}
    with closing(Database.open(location, create=True, durable=False)) as database:
        catalog = Catalog(database)
        for begin in range(0, each, _AT_ONCE):
            for run in known:
                steps = range(begin, min(begin + _AT_ONCE, each))
                stored = [_checkpoint(run, 100 * (n + 1), n, numbers) for n in steps]
                catalog.apply(Changes(run=run, checkpoints=stored, config=_config(run)))
                information += sum(map(_information_bytes, stored))
                _note_best(best, stored)
        for run in known:
            _settle(catalog, run, each)
    return Large(root, location.file, each * runs, information, best)


def _run(root: Path, number: int) -> Run:
    name = f"run-{number:03}"
    (root / name).mkdir()
    return Run(
        uuid=str(uuid.uuid4()), name=name, directory=root / name, created_at=utc(_BEGIN + number),
        metric_name=trees.METRIC,
    )  # fmt: skip


def _config(run: Run) -> dict[str, object]:
    """Return a configuration of 75 values, of which runs differ in some twenty."""
    numbers = random.Random(run.name)
    return {
        "optimizer": {f"option_{n}": numbers.choice([0.1, 0.01, n]) for n in range(20)},
        "model": {f"layer_{n}": f"kind {n}" for n in range(30)},
        "data": {"files": ["a", "b", "c"], "seed": numbers.randrange(1000), "shuffle": True},
        "trainer": {f"limit_{n}": n * 100 for n in range(20)},
    }


def _checkpoint(run: Run, step: int, number: int, numbers: random.Random) -> Checkpoint:
    metrics = {name: round(numbers.random(), 6) for name in METRICS}
    metrics |= {"step": float(step), "consumed_samples": step * 512.0}
    at = _BEGIN + step * 17.3
    live = Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=str(uuid.UUID(int=numbers.getrandbits(128), version=4)),
        step=step,
        path=run.directory / f"step_{step}",
        status="final",
        created_at=utc(at),
        finalized_at=utc(at + 4),
        size_bytes=numbers.randrange(10**9, 10**11),
        file_count=13,
        info=metrics,
        metrics=metrics,
        fingerprint=f"{int(at * 1e9)}:{int(at * 1e9) - 10**6}:240:{10**7 + number}",
    )
    if number % _ALIVE == _ALIVE - 1:
        return live
    reason = f"not among the 3 best by {trees.METRIC}, nor the latest"
    ended = utc(at + 3600)
    return replace(
        live, status="deleted", deleted_at=ended, deleted_reason=reason, fingerprint=None
    )


def _settle(catalog: Catalog, run: Run, each: int) -> None:
    for number in range(_ALIVE - 1, each, _ALIVE):
        os.mkdir(f"{run.directory}/step_{100 * (number + 1)}")
    trees.settle(run.directory)
    catalog.apply(Changes(run=run, stamp=str(run_stamp.find_stamp(run.directory))))


def _note_best(best: dict[str, tuple[float, int]], stored: Sequence[Checkpoint]) -> None:
    for checkpoint in stored:
        loss = checkpoint.metrics[trees.METRIC]
        if checkpoint.status == "final" and loss is not None:
            best[checkpoint.run] = min(best.get(checkpoint.run, (2.0, 0)), (loss, checkpoint.step))


def _information_bytes(checkpoint: Checkpoint) -> int:
    return sum(_value_bytes(checkpoint))


def _value_bytes(checkpoint: Checkpoint) -> Iterator[int]:
    """Yield the length of each value: text as UTF-8, a number 8 bytes, what was told as JSON.

    Where a metric comes from, and when, is only information when it did not come with the save.
    """
    cp = checkpoint
    texts = (
        cp.uuid, f"{cp.run}/{cp.path.name}", cp.status, cp.created_at, cp.finalized_at,
        cp.deleted_at, cp.deleted_reason, cp.fingerprint,
    )  # fmt: skip
    yield from (len(text.encode()) for text in texts if text is not None)
    yield 8 * sum(number is not None for number in (cp.step, cp.size_bytes, cp.file_count))
    yield len(json.dumps(dict(cp.info)))
    for name in cp.metrics:
        yield len(name.encode()) + 8
