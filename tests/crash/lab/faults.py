"""Every operation fails once, and from then on for ever, with each error a disk can give.

After every sixth the same process saves again, as a training loop does that catches the error: what
was refused is not acknowledged, what was acknowledged is there, and the next save works.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdb.errors import CkptdbError
from lab import loop, shim, speed
from lab.check import Verdict, Way
from lab.ledger import Ledger, Workload, quota, share
from lab.report import Row, Size
from lab.shim import Strike
from lab.subject import CKPTDB, PLAIN, Training
from lab.world import World

# On any number of cores: then a shard has enough.
ENOUGH: dict[Size, int | None] = {"smoke": None, "ci": 5_000, "exhaustive": None}
# One in how many: of the workloads, and of the operations that can fail in a way.
SHARES: dict[Size, tuple[int, float]] = {
    "smoke": (300, 60),
    "ci": (30, 14.3),
    "exhaustive": (3, 25),
}
_CONTROL = (6, 6)
_GOES_ON_ONE_IN = 6
REST_ONE_IN = 100
_PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which an operation fails.

    Attributes:
        classes: Which operations it can happen to.
        persistent: Whether all later ones fail too.
    """

    name: str
    action: int
    code: int
    classes: int
    persistent: bool


@dataclass(frozen=True, slots=True)
class Point:
    """Where it happens, and whether the same process then saves once more."""

    fault: Fault
    number: int
    goes_on: bool

    def __str__(self) -> str:
        again = " and from then on" if self.fault.persistent else ""
        return f"{self.fault.name} at operation {self.number}{again}"


def _faults() -> list[Fault]:
    changing, all_of_them = shim.MUTATING, shim.MUTATING | shim.READING | shim.LOCKING
    found = [
        Fault(errno.errorcode[code], shim.FAIL, code, classes, persistent)
        for code, classes in (
            (errno.ENOSPC, shim.GROWING), (errno.EDQUOT, shim.GROWING),
            (errno.EIO, all_of_them), (errno.ESTALE, all_of_them), (errno.EROFS, changing),
        )
        for persistent in (False, True)
    ]  # fmt: skip
    # A signal interrupts one call, and the next one goes through.
    interrupted = Fault("EINTR", shim.FAIL, errno.EINTR, all_of_them, persistent=False)
    short = [Fault("short write", shim.SHORT, 0, shim.GROWING, p) for p in (False, True)]
    return [*found, interrupted, *short]


FAULTS = _faults()


def run(size: Size, seed: int, shard: int, shards: int) -> Iterator[Row]:
    """Inject the share of this shard."""
    rng = random.Random(f"{seed} {shard}")
    for subject in (CKPTDB, PLAIN):
        rows = {fault.name: Row(f"faults {fault.name}") for fault in FAULTS}
        if subject is PLAIN:
            rows = dict.fromkeys(rows, Row("control: faults"))
        distinct = list({row.harness: row for row in rows.values()}.values())
        in_workloads, in_points = SHARES[size] if subject is CKPTDB else _CONTROL
        with tempfile.TemporaryDirectory(dir=shim.scratch(), prefix="ckptdb-faults-") as folder:
            world = World(Path(folder), subject)
            speed.settle()
            enough = quota(ENOUGH[size], shards)
            for workload in share(subject.workloads(), rng, in_workloads, shard, shards):
                if sum(row.points for row in distinct) >= enough:
                    break
                _strike(world, workload, rng, in_points, rows)
        yield from distinct


def _strike(
    world: World, workload: Workload, rng: random.Random, one_in: float, rows: dict[str, Row]
) -> None:
    counts: dict[int, list[str]] = {}
    for fault in FAULTS:
        started = time.monotonic()
        if fault.classes not in counts:
            before = world.prepare(workload)
            counts[fault.classes] = _operations(world, workload, before, fault.classes)
        row = rows[fault.name]
        points = [
            number
            for number, name in enumerate(counts[fault.classes], start=1)
            if rng.random() * one_in < 1 and (fault.action != shim.SHORT or name == "write")
        ]
        row.workloads += bool(points)
        for point in points:
            before = world.prepare(workload)
            goes_on = rng.randrange(_GOES_ON_ONE_IN) == 0
            _fail_at(world, workload, before, Point(fault, point, goes_on), row, rng)
        row.seconds += time.monotonic() - started


def _operations(world: World, workload: Workload, before: Ledger, classes: int) -> list[str]:
    """Return the name of every operation, in order; reading ones have none."""
    with tempfile.TemporaryFile() as trace:
        strike = Strike(classes=classes, trace=trace.fileno(), no_exchange=not workload.native)
        reading, writing = os.pipe()

        def work() -> None:
            with shim.armed(world.root, strike) as armed, loop.quiet():
                running = world.subject.begin(world.root, before, many=workload.many)
                running.do(workload.operations[-1])
                running.close()
                os.write(writing, str(armed.counted).encode())

        if loop.in_child(work) != 0:
            raise RuntimeError(f"{workload} fails without a fault")
        os.close(writing)
        with os.fdopen(reading) as answer:
            names = [""] * int(answer.read())
        trace.seek(0)
        for line in trace.read().decode(errors="replace").splitlines():
            number, name = line.split("\t")[:2]
            if 0 < int(number) <= len(names):
                names[int(number) - 1] = name
        return names


def _fail_at(
    world: World, workload: Workload, before: Ledger, point: Point, row: Row, rng: random.Random
) -> None:
    fault = point.fault
    row.points += 1
    told = _told(world, workload, before, point)
    if told and not told["struck"] and told["counted"] < point.number:
        # Reading depends a little on the clock: this time there were fewer operations.
        point = replace(point, number=rng.randint(1, told["counted"]))
        world.prepare(workload)
        told = _told(world, workload, before, point)
    where = f"{workload}: {point}"
    if told is None:
        row.struck += 1
        row.fail("not_recovered", f"{where}: the process hung or died")
        return
    if not told["struck"]:
        row.failures.append(f"{where}: did not strike")
        return
    row.struck += 1
    verdict = Verdict()
    for complaint in told["complaints"]:
        verdict.say("not_recovered", complaint)
    after = before.after(workload.operations[-1])
    # A discard that cannot be recorded is only logged: the loop's own error matters more.
    certain = told["acknowledged"] and workload.operations[-1] != "discard"
    held = after if certain else before
    if fault.classes == shim.GROWING and fault.persistent and "prune" in workload.operations[-1:]:
        # What frees a full disk must work on one.
        held = after
    way: Way = "question" if rng.randrange(2) else "reconcile"
    facts = (held, after)
    if point.goes_on:
        facts = (went_on(before, held), went_on(before, after))
    rest = rng.randrange(REST_ONE_IN) == 0
    world.subject.judge(verdict, world.root, facts, many=workload.many, way=way, rest=rest)
    for kind, what in verdict.found:
        row.fail(kind, f"{where}, {told['error']}, recovered by {way}: {what}")


def went_on(before: Ledger, held: Ledger) -> Ledger:
    """Return what holds after the same process has saved once more."""
    counted = replace(held, begun=before.begun + 2)
    return counted.saved(counted.next_step)


def _told(world: World, workload: Workload, before: Ledger, point: Point) -> dict[str, Any] | None:
    reading, writing = os.pipe()

    def work() -> None:
        signal.alarm(_PATIENCE_SECONDS)
        os.write(writing, json.dumps(_suffer(world, workload, before, point)).encode())

    status = loop.in_child(work)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    return json.loads(text) if status == 0 and text else None


def _suffer(world: World, workload: Workload, before: Ledger, point: Point) -> dict[str, Any]:
    fault = point.fault
    strike = Strike(
        action=fault.action, at=point.number, code=fault.code, persistent=fault.persistent,
        classes=fault.classes, no_exchange=not workload.native,
    )  # fmt: skip
    told: dict[str, Any] = {"acknowledged": False, "error": "no error", "complaints": []}
    with loop.quiet():
        with shim.armed(world.root, strike) as armed:
            running: Training | None = None
            try:
                running = world.subject.begin(world.root, before, many=workload.many)
                running.do(workload.operations[-1])
                told["acknowledged"] = True
                running.close()
            except (CkptdbError, OSError) as error:
                told["error"] = repr(error)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
                told["error"] = repr(error)
                if not _is_expected(error):
                    told["complaints"].append(_traceback(error))
            told["struck"] = armed.struck
            told["counted"] = armed.counted
        if not point.goes_on:
            return told
        try:
            running = running or world.subject.begin(world.root, before, many=workload.many)
            running.ledger = replace(running.ledger, begun=before.begun + 2)
            running.save_at(running.ledger.next_step)
            running.close()
        except Exception as error:  # noqa: BLE001  # likewise
            told["complaints"].append(f"the next save: {_traceback(error)}")
    return told


def _is_expected(error: Exception) -> bool:
    # What a background finalization raises: the error itself is its cause.
    return type(error) is RuntimeError and isinstance(error.__cause__, CkptdbError | OSError)


def _traceback(error: Exception) -> str:
    places = traceback.extract_tb(error.__traceback__)[-3:]
    trail = " ← ".join(f"{Path(p.filename).name}:{p.lineno}" for p in reversed(places))
    return f"{error!r} at {trail}"
