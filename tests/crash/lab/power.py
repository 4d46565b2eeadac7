"""Power cuts, replayed: every state that a trace allows is made real, recovered and checked.

A workload runs once, whole, under the shim's trace, and is cut after each of its system calls.
Most states are recovered into one catalog in memory, because what is at stake are the files; a
share is recovered with the catalog's own file in the state in which the cut left it.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.reconcile.run import reconcile_run
from lab import check, loop, replay, shim, speed
from lab.check import Verdict, Way
from lab.ledger import Ledger, Workload, after_all, quota, share
from lab.replay import Disk, Mark, State, Trace
from lab.report import Row, Size
from lab.shim import Strike
from lab.subject import CKPTDB, PLAIN
from lab.world import World

# On any number of cores: then a shard has enough.
ENOUGH: dict[Size, int | None] = {"smoke": None, "ci": 20_000, "exhaustive": None}
# One in how many workloads is traced, and of each how many states at most are tried: without
# the catalog's file, and with it. The control has no catalog.
AMOUNTS: dict[Size, tuple[int, int, int]] = {
    "smoke": (400, 60, 5), "ci": (12, 250, 2), "exhaustive": (1, 95, 2),
}  # fmt: skip
_CONTROL = (6, 10)
_CATALOG = ".ckptdb/catalog.db"
_ACKNOWLEDGED = "acknowledged"


def run(size: Size, seed: int, shard: int, shards: int) -> Iterator[Row]:
    """Cut the share of this shard."""
    rng = random.Random(f"{seed} {shard}")
    for subject in (CKPTDB, PLAIN):
        started = time.monotonic()
        row = Row(f"{subject.prefix}power cuts replayed")
        whole = Row("power cuts replayed, with the catalog")
        with tempfile.TemporaryDirectory(dir=shim.scratch(), prefix="ckptdb-power-") as folder:
            world = World(Path(folder), subject)
            speed.settle()
            one_in, *most = AMOUNTS[size] if subject is CKPTDB else _CONTROL
            enough = quota(ENOUGH[size], shards)
            for workload in share(subject.workloads(), rng, one_in, shard, shards):
                if row.points >= enough:
                    break
                cutting = Cutting(world, workload, rng)
                if subject is CKPTDB:
                    cutting.cut(row, int(min(most[0], enough - row.points)), with_catalog=False)
                    cutting.cut(whole, most[1], with_catalog=True)
                else:
                    cutting.cut(row, most[0], with_catalog=True)
        row.seconds = whole.seconds = time.monotonic() - started
        yield row
        if subject is CKPTDB:
            yield whole


class Cutting:
    """One workload, traced once, and its states."""

    def __init__(self, world: World, workload: Workload, rng: random.Random) -> None:
        self._world = world
        self._workload = workload
        self._rng = rng
        self._catalog = Catalog(Database.in_memory())
        self._trace = record(world, workload)
        self._ledgers = [after_all(workload.operations[:n]) for n in range(4)]

    def cut(self, row: Row, most: int, *, with_catalog: bool) -> None:
        """Try some of the states."""
        row.workloads += 1
        skip = _nothing if with_catalog else _catalog
        for end, model, state in replay.cuts(self._trace, self._rng, skip, most):
            row.points += 1
            put(self._world.root, state)
            row.struck += 1
            verdict = Verdict()
            if with_catalog:
                self._check_whole(verdict, *self._ledgers_at(end))
            else:
                self._check_files(verdict, state, *self._ledgers_at(end))
            for kind, what in verdict.found:
                row.fail(kind, f"{self._workload} cut after event {end} ({model}): {what}")

    def _ledgers_at(self, end: int) -> tuple[Ledger, Ledger]:
        done = sum(isinstance(event, Mark) for event in self._trace.events[:end])
        last = len(self._workload.operations)
        return self._ledgers[done], self._ledgers[min(done + 1, last)]

    def _remember(self, verdict: Verdict, state: State) -> None:
        """Say what each published directory holds, without reading back what was just written."""
        for step, folder in check.published(self._world.root / loop.RUN).items():
            inside = f"{loop.RUN}/{folder.name}/"
            token = check.token_of(
                lambda name, at=inside: state[at + name], many=self._workload.many
            )
            verdict.tokens[check.known_as(step, folder)] = token

    def _check_files(self, verdict: Verdict, state: State, before: Ledger, after: Ledger) -> None:
        run_directory = self._world.root / loop.RUN
        self._remember(verdict, state)
        check.check_names(verdict, run_directory, many=self._workload.many)
        with verdict.doing("reconciling"), loop.quiet():
            report = reconcile_run(self._catalog, run_directory)
            if report.blocked:
                verdict.say("not_recovered", f"reconcile is blocked: {report.blocked}")
            rows = check.rows_of(self._catalog)
            check.check_facts(
                verdict, self._world.root, before, after, many=self._workload.many, rows=rows
            )
            for seen in self._catalog.runs.list_all():
                self._catalog.runs.delete(seen.id)

    def _check_whole(self, verdict: Verdict, before: Ledger, after: Ledger) -> None:
        way: Way = "question" if self._rng.randrange(2) else "reconcile"
        self._world.subject.judge(
            verdict, self._world.root, (before, after), many=self._workload.many, way=way, rest=True
        )


def record(world: World, workload: Workload) -> Trace:
    """Run a workload under the shim and return what it did, checked against what is there."""
    world.prepare(Workload(workload.operations[:1], workload.native, workload.many))
    before, nodes = Disk.read(world.root)
    with tempfile.TemporaryFile() as file:
        strike = Strike(trace=file.fileno(), no_exchange=not workload.native)

        def work() -> None:
            with loop.quiet(), shim.armed(world.root, strike) as armed:
                running = world.subject.begin(world.root, after_all(()), many=workload.many)
                for operation in workload.operations:
                    running.do(operation)
                    armed.mark(_ACKNOWLEDGED)
                running.close()

        if loop.in_child(work) != 0:
            raise RuntimeError(f"{workload} fails without a fault")
        file.seek(0)
        lines = file.read().decode(errors="surrogateescape").splitlines()
    trace = Trace(world.root, before, nodes, lines)
    now, _ = Disk.read(world.root)
    if replay.key(now.state(_nothing)) != replay.key(trace.end.state(_nothing)):
        raise RuntimeError(f"the trace of {workload} does not tell all that happened")
    return trace


def put(root: Path, state: State) -> None:
    """Make the root hold exactly this; the root and the run stay the directories they are."""
    for entry in os.scandir(root):
        if entry.name == loop.RUN:
            for inner in os.scandir(entry.path):
                _remove(inner)
        else:
            _remove(entry)
    for path in sorted(state):
        content = state[path]
        if content is None:
            if path != loop.RUN:
                os.mkdir(f"{root}/{path}")
        else:
            with open(f"{root}/{path}", "wb") as file:
                file.write(content)


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        os.unlink(entry.path)


def _nothing(_: str) -> bool:
    return False


def _catalog(path: str) -> bool:
    return path.startswith(_CATALOG)
