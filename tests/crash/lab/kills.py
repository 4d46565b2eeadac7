"""SIGKILL before every operation that changes something, SQLite's own included.

The last operation of each workload is killed; what comes before it is the last operation of a
shorter workload. Every tenth point has a process of its own that dies there. The others share
one, which is stopped before each of them while its files are copied, and killed at the last: what
a SIGKILL leaves are the files as they stand. Then the run is recovered, and for a share of the
points the recovery itself is killed twice at each of its own operations before it may finish.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lab import check, loop, shim, speed
from lab.check import Verdict, Way
from lab.ledger import Ledger, Workload, quota, share
from lab.report import Row, Size
from lab.shim import Strike
from lab.subject import CKPTDB, PLAIN
from lab.world import World

# On any number of cores: then a shard has enough.
ENOUGH: dict[Size, int | None] = {"smoke": None, "ci": 10_000, "exhaustive": None}
# One in how many at most: of the workloads, of their operations, of these to be recovered under
# fire, and to be rebuilt from nothing and trained on.
SHARES: dict[Size, tuple[int, float, int, int]] = {
    "smoke": (150, 20, 12, 4), "ci": (8, 1.15, 1500, 100), "exhaustive": (1, 1.75, 1000, 40),
}  # fmt: skip
_CONTROL = (4, 4, 1, 1)
_ALONE_ONE_IN = 10


def run(size: Size, seed: int, shard: int, shards: int) -> Iterator[Row]:
    """Kill the share of this shard."""
    rng = random.Random(f"{seed} {shard}")
    for subject in (CKPTDB, PLAIN):
        row, recovering = Row(f"{subject.prefix}kills"), Row("kills while recovering")
        with tempfile.TemporaryDirectory(dir=shim.scratch(), prefix="ckptdb-kills-") as folder:
            world = World(Path(folder), subject)
            speed.settle()
            shares = SHARES[size] if subject is CKPTDB else _CONTROL
            laboratory = Kills(world, rng, shares[1:], row, recovering)
            enough = quota(ENOUGH[size], shards)
            for workload in share(subject.workloads(), rng, shares[0], shard, shards):
                laboratory.strike(workload, most=enough - row.points)
        yield row
        if subject is CKPTDB:
            yield recovering


class Kills:
    """One shard's work."""

    def __init__(
        self, world: World, rng: random.Random, shares: tuple[float, int, int], row: Row,
        recovering: Row,
    ) -> None:  # fmt: skip
        self._world = world
        self._rng = rng
        self._one_in, self._fire_one_in, self._rest_one_in = shares
        self._row = row
        self._recovering = recovering
        self._started = time.monotonic()

    def strike(self, workload: Workload, *, most: float) -> None:
        """Kill a workload at its share of operations."""
        if most <= 0:
            return
        before = self._world.prepare(workload)
        count = self._count(workload, before)
        points = [n for n in range(1, count + 1) if self._rng.random() * self._one_in < 1]
        points = points[: int(min(most, len(points)))]
        self._row.workloads += bool(points)
        self._row.points += len(points)
        alone = points[::_ALONE_ONE_IN]
        for point in alone:
            self._world.prepare(workload)
            self._kill_at(workload, before, point)
        together = [point for point in points if point not in alone]
        if together:
            self._world.prepare(workload)
            self._stop_at(workload, before, together)
        now = time.monotonic() - self._started
        self._row.seconds = self._recovering.seconds = now

    def _count(self, workload: Workload, before: Ledger) -> int:
        reading, writing = os.pipe()

        def work() -> None:
            with shim.armed(self._world.root, self._strike(workload, shim.NOTHING, 0)) as armed:
                self._do_last(workload, before)
                armed.stop()
                os.write(writing, str(armed.counted).encode())

        status = loop.in_child(work)
        os.close(writing)
        with os.fdopen(reading) as answer:
            counted = answer.read()
        if status != 0 or not counted:
            raise RuntimeError(f"{workload} fails without a fault")
        return int(counted)

    def _kill_at(self, workload: Workload, before: Ledger, point: int) -> None:
        def work() -> None:
            with shim.armed(self._world.root, self._strike(workload, shim.KILL, point)):
                self._do_last(workload, before)

        if _was_killed(loop.in_child(work)):
            self._struck(workload, before, point)

    def _stop_at(self, workload: Workload, before: Ledger, points: list[int]) -> None:
        """Copy what is there before each of these operations, and kill at the last."""

        def work() -> None:
            strike = replace(self._strike(workload, shim.STOP, 1), persistent=True)
            with shim.armed(self._world.root, strike):
                self._do_last(workload, before)

        copies: dict[int, Path] = {}
        child = loop.begin_child(work)
        for operation in itertools.count(1):
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            if operation in points:
                copies[operation] = self._world.snapshot(f"stopped-{operation}")
            os.kill(child, signal.SIGKILL if operation == points[-1] else signal.SIGCONT)
        for point, copy in copies.items():
            if _was_killed(status):
                self._world.restore(copy)
                self._struck(workload, before, point)
            shutil.rmtree(copy)

    def _struck(self, workload: Workload, before: Ledger, point: int) -> None:
        """Recover, perhaps under fire, and judge."""
        where = f"{workload} killed before operation {point}"
        self._row.struck += 1
        after = before.after(workload.operations[-1])
        way: Way = "question" if self._rng.randrange(2) else "reconcile"
        if self._world.subject is CKPTDB and self._rng.randrange(self._fire_one_in) == 0:
            self._recover_under_fire(workload, before, after, point, way)
        rest = self._rng.randrange(self._rest_one_in) == 0
        self._judge(self._row, where, (workload, before, after, way), rest=rest)

    def _recover_under_fire(
        self, workload: Workload, before: Ledger, after: Ledger, point: int, way: Way
    ) -> None:
        """Kill the recovery at its every operation, each time twice in a row."""
        left = self._world.snapshot("left")
        self._recovering.workloads += 1
        for operation in itertools.count(1):
            self._world.restore(left)
            first = self._recover_killed(workload, way, operation)
            second = self._recover_killed(workload, way, operation)
            if not first:
                break  # it has no operation of that number, so all have been struck
            self._recovering.points += 1
            self._recovering.struck += 1
            where = f"{workload} killed before {point}, {way} killed before {operation}"
            where += " twice" if second else ""
            self._judge(self._recovering, where, (workload, before, after, way), rest=False)
        self._world.restore(left)
        shutil.rmtree(left)

    def _recover_killed(self, workload: Workload, way: Way, operation: int) -> bool:
        def work() -> None:
            with shim.armed(self._world.root, self._strike(workload, shim.KILL, operation)):
                check.recover(Verdict(), self._world.root, way)

        return _was_killed(loop.in_child(work))

    def _judge(
        self, row: Row, where: str, case: tuple[Workload, Ledger, Ledger, Way], *, rest: bool
    ) -> None:
        workload, before, after, way = case
        verdict = Verdict()
        self._world.subject.judge(
            verdict, self._world.root, (before, after), many=workload.many, way=way, rest=rest
        )
        for kind, what in verdict.found:
            row.fail(kind, f"{where}, recovered by {way}: {what}")

    def _do_last(self, workload: Workload, before: Ledger) -> None:
        with loop.quiet():
            running = self._world.subject.begin(self._world.root, before, many=workload.many)
            running.do(workload.operations[-1])
            running.close()

    @staticmethod
    def _strike(workload: Workload, action: int, at: int) -> Strike:
        return Strike(action=action, at=at, no_exchange=not workload.native)


def _was_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
