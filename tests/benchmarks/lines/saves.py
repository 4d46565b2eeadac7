"""Saving one more, and pruning one, without flushing; against scan-and-parse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count as counting
from pathlib import Path

from tests.benchmarks import plain, trees
from tests.benchmarks.results import Findings, Row, Series, at_most, duration, faster
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians, wait_until
from tests.benchmarks.trees import METRIC

NO_LIMIT = 1_000_000
"""What NeMo-RL ships as keep_top_k: no limit that binds."""
_IN_A_ROW = 4
"""The removal of bytes goes on behind a save; so it competes with those that follow."""
_WEIGHTS = b"w" * 512


def measure(size: Size, scratch: Path) -> Findings:
    """Save at every size, once with a limit that prunes one each time and once without."""
    found = {count: _save(scratch / f"saved-{count}", count, size) for count in size.saved}
    return Findings(rows=list(_judge(found)), series=list(_series(found)))


def _save(scratch: Path, count: int, size: Size) -> dict[str, float]:
    with ExitStack() as stack:
        ways = {
            "ckptdb": _ours(stack, scratch / "ours", count, keep=count),
            "ckptdb, no limit": _ours(stack, scratch / "free", count, keep=NO_LIMIT),
            "scan": _scanning(scratch / "plain", count),
        }
        taken = medians(ways, rounds=size.rounds, seconds=size.seconds)
    shutil.rmtree(scratch)
    return taken


def _ours(stack: ExitStack, run: Path, count: int, *, keep: int) -> Way:
    trees.write_run(run, count)
    trees.index(run)
    manager = stack.enter_context(trees.manager(run, keep_top_k=keep))
    saved = count

    def save() -> None:
        nonlocal saved
        for _ in range(_IN_A_ROW):
            saved += 1
            # Each better than all before: the worst of them goes.
            trees.save(manager, saved, -float(saved))

    def check() -> None:
        wait_until(partial(trees.quiet, run))
        kept = sum(name.startswith("step_") for name in os.listdir(run))
        assert kept == min(saved, keep)

    return Way(save, after=check, actions=_IN_A_ROW)


def _scanning(run: Path, count: int) -> Way:
    trees.write_plain(run, count)
    steps = counting(count + 1)
    in_a_row = _IN_A_ROW if count < 1000 else 1

    def save() -> None:
        for _ in range(in_a_row):
            step = next(steps)
            plain.save(run, step, trees.info(step, -float(step)), _WEIGHTS)
            plain.prune(run, METRIC, count)

    return Way(save, actions=in_a_row)


def _judge(found: Mapping[int, Mapping[str, float]]) -> Iterator[Row]:
    few, many = min(found), max(found)
    least = found[few]
    yield at_most(
        f"save and prune, N = {few}, against scan-and-parse", 3.0, least["ckptdb"] / least["scan"],
        note=f"{duration(least['ckptdb'])} against {duration(least['scan'])}", medians=least,
    )  # fmt: skip
    for count, limit in ((50, 1.0), (1000, 20.0)):
        nearest = min(found, key=lambda n, at=count: abs(n - at))  # type: ignore[misc]
        at = found[nearest]
        yield faster(
            f"save and prune, N = {nearest:,}, against scan-and-parse",
            max(1.0, limit * nearest / count),
            at["scan"] / at["ckptdb"], medians=at,
        )  # fmt: skip
    for way, what in (("ckptdb", "save and prune"), ("ckptdb, no limit", "save, no limit binds")):
        yield at_most(
            f"{what}, N = {many:,} against N = {few}", 1.5, found[many][way] / found[few][way],
            note="" if way == "ckptdb" else f"keep_top_k = {NO_LIMIT:,}",
            medians={str(count): m[way] for count, m in found.items()},
        )  # fmt: skip


def _series(found: Mapping[int, Mapping[str, float]]) -> Iterator[Series]:
    for way in ("ckptdb", "ckptdb, no limit", "scan"):
        points = {count: taken[way] for count, taken in found.items()}
        yield Series(panel="save and prune", way=way, points=points)
