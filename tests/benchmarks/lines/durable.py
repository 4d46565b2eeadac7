"""Saving one and pruning one, durably; against the same flushes and commits alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from tests.benchmarks import replay, trees
from tests.benchmarks.results import Findings, at_most, duration
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians, wait_until

from ckptdb import CheckpointManager

_KEPT = 4


def measure(size: Size, scratch: Path) -> Findings:
    """Save with four kept, so that each save prunes one."""
    run = scratch / "durable"
    trees.write_run(run, _KEPT)
    trees.index(run)
    steps = count(_KEPT + 1)
    with trees.manager(run, keep_top_k=_KEPT, durability="full") as manager:
        sequence = _record(run, manager, steps)
        files = {path.name: path.read_bytes() for path in sorted(_newest(run).iterdir())}
        floor = replay.Replay(scratch / "floor", sequence, files)
        ways = {
            "ckptdb": Way(
                partial(_save, manager, steps), after=partial(wait_until, partial(trees.quiet, run))
            ),
            "floor": Way(floor.save),
        }
        found = medians(ways, rounds=2 * size.rounds, seconds=size.seconds)
        floor.close()
    counts = replay.counts(sequence)
    fsyncs = len(sequence) - counts.get(replay.COMMIT, 0)
    row = at_most(
        "durable save and prune, N = 4, against the same fsyncs and commits", 1.5,
        found["ckptdb"] / found["floor"],
        note=f"{fsyncs} fsyncs, {counts.get(replay.COMMIT, 0)} commits: "
        f"{duration(found['ckptdb'])} against {duration(found['floor'])}",
        medians=found,
    )  # fmt: skip
    shutil.rmtree(run)
    return Findings(rows=[row], counts={f"durable save: {k}": n for k, n in counts.items()})


def _record(run: Path, manager: CheckpointManager, steps: count[int]) -> Sequence[str]:
    # The first one also flushes what is flushed once in a process.
    for _ in range(2):
        _save(manager, steps)
        wait_until(partial(trees.quiet, run))
    with replay.recorded(run) as sequence:
        _save(manager, steps)
        wait_until(partial(trees.quiet, run))
    return sequence


def _save(manager: CheckpointManager, steps: count[int]) -> None:
    step = next(steps)
    trees.save(manager, step, -float(step))


def _newest(run: Path) -> Path:
    return max(run.glob("step_*"), key=lambda path: int(path.name[5:]))
