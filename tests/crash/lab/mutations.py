"""The protocol with one step missing: each has to be caught, or to be known for redundant.

Every mutant is played in the stories where it should show, until it does. The product as it is
is played in the same stories, at as many points, and nothing may be found.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from lab import mutants, shim, speed
from lab.mutants import MUTANTS, Mutant
from lab.report import Row, Size
from lab.stories import STORIES, Stage

POINTS: dict[Size, int] = {"smoke": 40, "ci": 60, "exhaustive": 1000}
"""How many points of a story are tried at most."""
_SMOKE = ("the commit point", "`deleted` after the move into the trash", "no lock of the run")


def run(size: Size, seed: int, shard: int, shards: int) -> Iterator[Row]:
    """Try the share of this shard: its stories with the product, its mutants in all of them."""
    chosen = [mutant for mutant in MUTANTS if size != "smoke" or mutant.name in _SMOKE]
    with tempfile.TemporaryDirectory(dir=shim.scratch(), prefix="ckptdb-mutations-") as folder:
        stage = Stage(Path(folder))
        speed.settle()
        yield try_product(stage, chosen, seed, POINTS[size], shard, shards)
        yield try_mutants(stage, chosen[shard::shards], seed, POINTS[size])


def try_product(
    stage: Stage, chosen: Sequence[Mutant], seed: int, most: int, shard: int, shards: int
) -> Row:
    """Play every story that a mutant is played in with the product as it is."""
    row, started = Row("mutations: none"), time.monotonic()
    names = list(dict.fromkeys(name for mutant in chosen for name in mutant.stories))
    for name in names[shard::shards]:
        row.workloads += 1
        for verdict in stage.play(STORIES[name], nullcontext, seed, most):
            row.points += 1
            row.struck += 1
            for kind, what in verdict.found:
                row.fail(kind, f"{name}: {what}")
    row.seconds = time.monotonic() - started
    return row


def try_mutants(stage: Stage, chosen: Sequence[Mutant], seed: int, most: int) -> Row:
    """Play mutants: a point is a mutant, struck when its place was come to, lost when missed."""
    row, started = Row("mutations of the protocol"), time.monotonic()
    for mutant in chosen:
        row.points += 1
        row.workloads += len(mutant.stories)
        mutants.begin()
        caught, points = _catch(stage, mutant, seed, most)
        row.struck += mutants.was_executed()
        if caught and mutant.redundant is None:
            row.notes.append(f"{mutant.name} | caught by {caught} | {points}")
        elif mutant.redundant is not None and not caught:
            row.notes.append(f"{mutant.name} | redundant: {mutant.redundant} | {points}")
        elif caught:
            row.fail("not_recovered", f"{mutant.name} is not redundant: {caught}")
        else:
            row.fail("not_recovered", f"{mutant.name} was missed at {points} points")
        if not mutants.was_executed():
            row.failures.append(f"{mutant.name} was never come to")
    row.seconds = time.monotonic() - started
    return row


def _catch(stage: Stage, mutant: Mutant, seed: int, most: int) -> tuple[str | None, int]:
    """Return by what a mutant was caught, None when it was not, and after how many points."""
    points = 0
    for name in mutant.stories:
        lives, dies = mutant.living, nullcontext
        mutation, recovery = (dies, lives) if mutant.recovers else (lives, dies)
        story = STORIES[name]
        for verdict in stage.play(story, mutation, seed, most, recovery=recovery):
            points += 1
            if verdict.found:
                return f"{story.harness}: {name}", points
    return None, points
