"""Sixteen processes on one root, killed at random, and a check of the history they write.

Half of them have a run of their own, the others share two runs; all of them ask, annotate and
reconcile everywhere. Each notes every call before it is made and every return after it, so that
what was in flight when it died is known. `history` says what must be true of all that.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import mmap
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ckptdb import CheckpointManager, Registry
from ckptdb.core.records import Checkpoint
from ckptdb.disk import names, root_marker, run_listing
from ckptdb.errors import CkptdbError, NoCheckpointHere
from ckptdb.retention import Policy
from lab import history, payload, readers
from lab.dump import dump_catalog
from lab.history import NEVER, Found, Op
from lab.payload import METRIC
from lab.report import Row, Size
from lab.shim import scratch

ALONE = True
"""It keeps every core busy by itself."""

PROCESSES = 16
ROUNDS: Mapping[Size, int] = {"smoke": 1, "ci": 10, "exhaustive": 100}
OPERATIONS: Mapping[Size, int] = {"smoke": 300, "ci": 2_000, "exhaustive": 2_000}
"""In each round, which begins with a new root."""

# keep_top_k and ft_keep_latest_k of each run; the last two are saved into by eight processes.
POLICIES: Mapping[str, history.Policy] = {
    "own0": (3, None),
    "own1": (None, 4),
    "own2": (2, 2),
    "own3": (None, None),
    "own4": (4, 3),
    "own5": (1, None),
    "own6": (None, None),
    "own7": (3, 1),
    "both0": (4, None),
    "both1": (None, None),
}
GC_POLICY = (6, 2)
"""What is given to gc in runs that have no limits of their own."""
SHARED = ("both0", "both1")
STEPS = 30
"""Steps lie below this where nothing is pruned, or where several processes choose them."""
STRIKE_EVERY = (10, 60)
"""After so many operations; not after so much time, or a slow machine would kill more often."""
TERMINATED = 143
PATIENCE_SECONDS = 300.0
"""A round that takes longer hangs."""


def run(size: Size, seed: int, shard: int, shards: int) -> Iterable[Row]:
    """Let the crowd loose, then hammer one step with readers."""
    if shard:
        return
    warm()
    for number in range(ROUNDS[size]):
        yield from in_child(partial(_round, OPERATIONS[size], seed * 1000 + number))
    yield from readers.run(size, seed)


def in_child(work: Callable[[], Iterable[Row]]) -> list[Row]:
    """Do something in a fork of this process, which stays free of managers and threads."""
    return readers.in_child(work)


def warm() -> None:
    """Do everything a few times: whoever is forked then has his SQL compiled already."""
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="ckptdb-crowd-") as folder:
        worker = Worker(_begin(Path(folder), seed=0, operations=0), slot=0, incarnation=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for kind, _ in _MIX * 3:
                getattr(worker, f"_{kind}")()
            worker.close()
    if threading.active_count() > 1:
        raise RuntimeError("a process with threads is not to be forked")


# --- one round --------------------------------------------------------------------------


@dataclass(slots=True)
class Round:
    """What the processes of one round share."""

    folder: Path
    seed: int
    operations: int
    counters: mmap.mmap
    gate: tuple[int, int] = (-1, -1)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def notes(self) -> Path:
        return self.folder / "history"

    def begun(self) -> int:
        """How many operations have been begun, by all."""
        return sum(struct.unpack_from(f"{PROCESSES}q", self.counters))

    def count(self, slot: int) -> None:
        """Count one more."""
        (value,) = struct.unpack_from("q", self.counters, 8 * slot)
        struct.pack_into("q", self.counters, 8 * slot, value + 1)

    def idle(self, slot: int) -> bool:
        """Whether a process has nothing more to do."""
        return self.counters[8 * PROCESSES + slot] == 1

    def set_idle(self, slot: int, *, idle: bool) -> None:
        """Say that a process has nothing more to do."""
        self.counters[8 * PROCESSES + slot] = int(idle)


def _begin(folder: Path, seed: int, operations: int) -> Round:
    this = Round(folder, seed, operations, mmap.mmap(-1, 9 * PROCESSES))
    this.root.mkdir()
    this.notes.mkdir()
    root_marker.mark_root(this.root)
    return this


def _round(operations: int, seed: int) -> Iterator[Row]:
    started = time.monotonic()
    row = Row("crowd", workloads=1)
    kills = Row("crowd kills", workloads=1)
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="ckptdb-crowd-") as folder:
        this = _begin(Path(folder), seed, operations)
        clock = time.time() - time.monotonic()
        deaths = Supervisor(this, kills).work()
        ops = read_notes(this.notes, deaths)
        _judge(row, this, ops, clock)
        row.points, row.struck = len(ops), sum(op.ended < NEVER for op in ops)
        keep = os.environ.get("CKPTDB_LAB_KEEP")
        if keep and row.failures:
            shutil.copytree(folder, Path(keep) / str(seed), symlinks=True, dirs_exist_ok=True)
    row.failures = [f"{failure} (round {seed})" for failure in row.failures]
    row.seconds = kills.seconds = time.monotonic() - started
    yield row
    yield kills


def _judge(row: Row, this: Round, ops: list[Op], clock: float) -> None:
    for kind, what in _printed(this.notes):
        row.fail(kind, what)
    try:
        for kind, what in _settled(this.root):
            row.fail(kind, what)
        for kind, what in history.check(ops, find_state(this.root, clock)):
            row.fail(kind, what)
        for kind, what in _rebuilt(this.root):
            row.fail(kind, what)
    except Exception:  # noqa: BLE001  # whatever the last questions raise is a finding
        row.fail("not_recovered", traceback.format_exc())


def _printed(notes: Path) -> Iterator[history.Violation]:
    for file in sorted(notes.glob("*.err")):
        told = file.read_text()
        if "Traceback" in told and "Terminated" not in told:
            yield history.Violation("not_recovered", f"{file.name} printed: {told[-3000:]}")


def _settled(root: Path) -> Iterator[history.Violation]:
    """Reconcile for the last time, and ask what a naive look would answer."""
    with Registry.open(root) as registry:
        first = registry.reconcile()
        if first.blocked:
            yield history.Violation("not_recovered", f"reconcile is blocked: {first.blocked}")
        second = registry.reconcile()
        if second.has_changes or second.blocked:
            yield history.Violation("not_recovered", f"drift remains: {second.as_dict()}")
        for checkpoint in registry.verify():
            if checkpoint.problem:
                what = f"{checkpoint.path}: {checkpoint.problem}"
                yield history.Violation("half_visible", what)
    for name in POLICIES:
        best, latest = naive(root / name)
        with warnings.catch_warnings(), manager_of(root, name) as manager:
            warnings.simplefilter("ignore", UserWarning)
            told = manager.get_best_checkpoint_path(), manager.get_latest_checkpoint_path()
        if told != (best, latest):
            what = f"{name}: best and latest are {told}, should be {(best, latest)}"
            yield history.Violation("not_recovered", what)


def _rebuilt(root: Path) -> Iterator[history.Violation]:
    """Empty the trash, then delete the catalog and build it anew."""
    with Registry.open(root) as registry:
        registry.gc(all_runs=True)
        registry.reconcile()
    # One that died before it could say who it was may belong to a living process elsewhere.
    left = [str(p.relative_to(root)) for p in root.glob("*/*_step_*") if (p / names.WRITER).exists()
            or p.name.startswith("old_") or (p / names.MANIFEST).exists()]  # fmt: skip
    if left:
        yield history.Violation("not_recovered", f"gc left {left}")
    catalog = root / ".ckptdb" / "catalog.db"
    before = dump_catalog(catalog)
    catalog.unlink()
    with Registry.open(root) as registry:
        registry.reconcile()
    after = dump_catalog(catalog)
    for table, rows in before.items():
        if rows != after[table]:
            lost, new = (set(a) - set(b) for a, b in ((rows, after[table]), (after[table], rows)))
            what = f"rebuilt {table} differ: {sorted(lost)[:3]} are now {sorted(new)[:3]}"
            yield history.Violation("lost", what)


def naive(run: Path) -> tuple[str | None, str | None]:
    """Return best and latest of a run by listing and parsing."""
    found = {}
    for path in run.glob("step_*"):
        found[int(path.name[5:])] = json.loads((path / "training_info.json").read_text())[METRIC]
    best = min(found, key=lambda step: history.rank(found[step], step), default=None)
    latest = max(found, default=None)
    return tuple(None if step is None else str(run / f"step_{step}") for step in (best, latest))


def find_state(root: Path, clock: float) -> history.State:
    """Return what is left in a root.

    Args:
        root: Reconciled.
        clock: What the time of day is ahead of the history's clock.
    """
    live = {}
    for run in POLICIES:
        for step, path in run_listing.list_finals(root / run):
            try:
                live[run, step] = payload.read(path)
            except (payload.Half, FileNotFoundError) as error:
                live[run, step] = f"half: {error}"
    with Registry.open(root) as registry:
        found = [_found(checkpoint, clock) for checkpoint in registry.checkpoints()]
    return history.State(found, live)


def _found(checkpoint: Checkpoint, clock: float) -> Found:
    ended = NEVER
    if checkpoint.deleted_at is not None:
        ended = datetime.fromisoformat(checkpoint.deleted_at).timestamp() - clock
    return Found(
        run=checkpoint.run,
        step=checkpoint.step,
        token=checkpoint.info.get("token"),
        status=checkpoint.status,
        reason=checkpoint.deleted_reason,
        ended=ended,
        pinned=checkpoint.pinned,
        tags=frozenset(checkpoint.tags),
        late={name: metric.value for name, metric in checkpoint.late.items()},
    )


# --- the supervisor ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """When a process was told to die, and when it was known to be dead."""

    hit_at: float
    known_at: float


@dataclass(slots=True)
class Process:
    """One of the sixteen, as long as it lives.

    Attributes:
        hit: The signal it is to die of.
        hit_at: Until when it is sure to have lived, when it does not end in good order.
        woken: When it is to go on, while it is stopped.
    """

    slot: int
    incarnation: int
    pid: int
    hit: int = 0
    hit_at: float = 0.0
    woken: float = 0.0


class Supervisor:
    """Starts the processes, kills and stops some, and starts them anew."""

    def __init__(self, this: Round, kills: Row) -> None:
        self.this = this
        self.kills = kills
        self.chance = random.Random(this.seed)
        self.alive: dict[int, Process] = {}
        self.deaths: dict[str, Death] = {}
        self.starts = 0

    def work(self) -> dict[str, float]:
        """Return when each process died that was killed, by the name of its notes."""
        self.this.gate = os.pipe()
        # What is there now is not to be looked at by every child's garbage collector.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000)
        for slot in range(PROCESSES):
            self._start(slot)
        next_strike = STRIKE_EVERY[0]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._all_idle():
            if time.monotonic() > deadline:
                self._give_up()
            self._reap()
            now = time.monotonic()
            self._wake(now)
            if next_strike <= (begun := self.this.begun()) < self.this.operations:
                self._strike(now)
                next_strike = begun + self.chance.randint(*STRIKE_EVERY)
            time.sleep(0.003)
        self._wake(NEVER)
        os.close(self.this.gate[1])
        while self.alive:
            self._reap()
            time.sleep(0.002)
        os.close(self.this.gate[0])
        return self.deaths

    def _give_up(self) -> None:
        """End a crowd that hangs; that is a finding, with who it was."""
        hung = [p for p in self.alive.values() if p.hit or not self.this.idle(p.slot)]
        for process in hung:
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1)  # until they have written where they are
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        told = [f"still at work after {PATIENCE_SECONDS} s:"]
        for process in hung:
            name = f"{process.slot}.{process.incarnation}"
            where = (self.this.notes / f"{name}.err").read_text(errors="replace")
            told.append(f"{name}, hit by {process.hit}:\n{where[-6000:]}")
        raise TimeoutError("\n".join(told))

    def _all_idle(self) -> bool:
        return len(self.alive) == PROCESSES and all(
            self.this.idle(process.slot) and not process.hit for process in self.alive.values()
        )

    def _start(self, slot: int) -> None:
        self.this.set_idle(slot, idle=False)
        self.starts += 1
        number = self.starts
        pid = os.fork()
        if pid == 0:
            _be_worker(self.this, slot, number)
        self.alive[pid] = Process(slot, number, pid)

    def _strike(self, now: float) -> None:
        process = self.chance.choice([p for p in self.alive.values() if not p.hit])
        what = self.chance.choices(
            (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP), weights=(6, 3, 3)
        )[0]
        if what == signal.SIGSTOP:
            if not process.woken:
                # Now and then for longer than a save waits for the catalog.
                process.woken = now + (2.5 if self.chance.random() < 0.03 else 0.05)
                os.kill(process.pid, signal.SIGSTOP)
            return
        process.hit, process.hit_at = what, time.monotonic()
        self.kills.points += 1
        os.kill(process.pid, what)

    def _wake(self, now: float) -> None:
        for process in self.alive.values():
            if process.woken and process.woken <= now:
                process.woken = 0.0
                os.kill(process.pid, signal.SIGCONT)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            process = self.alive.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            died_of_it = code == -process.hit or (
                process.hit == signal.SIGTERM and code == TERMINATED
            )
            if process.hit and died_of_it:
                self.kills.struck += 1
            elif code:
                what = f"process {process.slot}.{process.incarnation} ended with {code}"
                self.kills.fail("not_recovered", what)
            if process.hit or code:
                died = Death(process.hit_at, time.monotonic())
                self.deaths[f"{process.slot}.{process.incarnation}"] = died
                self._start(process.slot)


# --- one process ------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):  # as Ctrl-C does, in a query too
    """What a loop that is told to end by SIGTERM raises."""

    told = False
    """Python swallows what is raised in a finalizer: then the loop has to look."""


class Deliberate(Exception):  # what it is
    """The body of a save raises this to have it discarded."""


class Touched(Exception):  # what it is
    """Somebody changed what a living process was still writing."""


def _be_worker(this: Round, slot: int, incarnation: int) -> None:
    name = f"{slot}.{incarnation}"
    with suppress(OSError):
        os.close(this.gate[1])
    errors = os.open(this.notes / f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115  # until it ends
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    code = 1
    try:
        # Half of them end in good order when they are told to, the others on the spot.
        signal.signal(signal.SIGTERM, _terminate if incarnation % 2 else signal.SIG_DFL)
        warnings.simplefilter("ignore", UserWarning)
        worker = Worker(this, slot, incarnation)
        try:
            worker.work()
            code = 0
        except KeyboardInterrupt:
            code = TERMINATED
            worker.close()
    except KeyboardInterrupt:
        code = TERMINATED
    except BaseException:  # noqa: BLE001  # the supervisor reads it
        traceback.print_exc()
    finally:
        if Terminated.told:
            # Whoever looks at it may take it for dead from now on, before its parent has asked.
            with open(this.notes / name, "a") as notes:
                notes.write(json.dumps({"last": time.monotonic()}) + "\n")
        os._exit(code)


def _terminate(_signal: int, _frame: object) -> None:
    Terminated.told = True
    raise Terminated


class Worker:
    """One process: does what chance says, and notes every call and return."""

    def __init__(self, this: Round, slot: int, incarnation: int) -> None:
        self.this = this
        self.slot = slot
        self.name = f"{slot}.{incarnation}"
        self.chance = random.Random(f"{this.seed} {self.name}")
        own = slot < PROCESSES // 2
        self.run = f"own{slot}" if own else SHARED[slot % 2]
        self.own = own
        self.registry = Registry.open(this.root)
        self.saver: CheckpointManager | None = None
        self.askers: dict[str, CheckpointManager] = {}
        self.calls = 0
        self.next_step: int | None = None
        self._notes = os.open(this.notes / self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work(self) -> None:
        """Go on until all have done enough together."""
        kinds, weights = zip(*_MIX, strict=True)
        while self.this.begun() < self.this.operations:
            getattr(self, f"_{self.chance.choices(kinds, weights)[0]}")()
            if Terminated.told:
                raise Terminated
        self.close()
        self.this.set_idle(self.slot, idle=True)
        while not select.select([self.this.gate[0]], [], [], 0.05)[0]:
            if Terminated.told:
                raise Terminated

    def close(self) -> None:
        """End in good order."""
        for manager in (self.saver, *self.askers.values()):
            if manager is not None:
                with suppress(RuntimeError):
                    manager.shutdown()
        self.registry.close()

    @contextmanager
    def _op(self, kind: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Note a call and its return; what the body puts into the mapping goes with it."""
        self.calls += 1
        name = f"{self.name}.{self.calls}"
        self._note(id=name, kind=kind, called=time.monotonic(), **facts)
        self.this.count(self.slot)
        told: dict[str, Any] = {}
        try:
            yield told
        except (payload.Missing, NoCheckpointHere) as error:
            missing = kind == "open"
            told |= {"error": "missing" if missing else type(error).__name__, "answer": str(error)}
        except payload.Emptied as error:
            told |= {"error": "emptied", "answer": str(error)}
        except (payload.Half, Touched) as error:
            told |= {"error": type(error).__name__.lower(), "answer": str(error)}
        except (CkptdbError, Deliberate) as error:
            told |= {"error": type(error).__name__, "answer": _shown(error)}
        except Exception as error:  # noqa: BLE001  # judged with the history
            told |= {"error": type(error).__name__, "answer": traceback.format_exc()}
        self._note(id=name, ended=time.monotonic(), **told)

    def _note(self, **facts: Any) -> None:
        os.write(self._notes, json.dumps(facts).encode() + b"\n")

    # --- saving -------------------------------------------------------------------------

    def _manager(self) -> CheckpointManager:
        if self.saver is None:
            self.saver = manager_of(self.this.root, self.run, shared=not self.own, saves=True)
        return self.saver

    @contextmanager
    def _save_op(self, step: int, **facts: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        token = f"t{self.name}.{self.calls + 1}"
        loss = round(self.chance.random(), 2)
        if self.chance.random() < 0.04:
            loss = float("nan")
        policy = POLICIES[self.run]
        facts |= {"policy": policy} if any(policy) else {}
        with self._op("save", run=self.run, step=step, token=token, loss=loss, **facts) as told:
            yield told, {METRIC: loss, "step": step, "token": token}

    def _new_step(self) -> int:
        if not self.own or not any(POLICIES[self.run]):
            return self.chance.randrange(STEPS)
        if self.next_step is None:
            steps = [step for step, _ in run_listing.list_finals(self.this.root / self.run)]
            self.next_step = max(steps, default=0)
        self.next_step += self.chance.randint(1, 3)
        return self.next_step

    def _old_step(self, run: str) -> int:
        steps = [step for step, _ in run_listing.list_finals(self.this.root / run)]
        return self.chance.choice(steps) if steps else self.chance.randrange(STEPS)

    def _save(self) -> None:
        self._sync(self._new_step())

    def _replace(self) -> None:
        self._sync(self._old_step(self.run))

    def _sync(self, step: int, *, lingers: bool = False) -> None:
        with self._save_op(step) as (told, info):
            config = {"by": self.slot} if self.chance.random() < 0.2 else None
            with self._manager().save(step, info, config=config) as folder:
                payload.write(folder, info["token"])
                if lingers:
                    self._linger(folder)
            told["acked"] = time.monotonic()

    def _hold(self) -> None:
        """Stay inside a save while others reconcile; nobody may touch what is being written."""
        self._sync(self._old_step(self.run), lingers=True)

    def _linger(self, folder: Path) -> None:
        before = _pictured(folder)
        deadline = time.monotonic() + self.chance.uniform(0.02, 0.15)
        while time.monotonic() < deadline:
            time.sleep(0.01)
        if _pictured(folder) != before:
            raise Touched(f"{folder} has changed under its writer")

    def _discard(self) -> None:
        step = self.chance.choice((self._new_step, partial(self._old_step, self.run)))()
        with (
            self._save_op(step, publishes=False) as (_, info),
            self._manager().save(step, info) as folder,
        ):
            payload.write(folder, info["token"])
            raise Deliberate

    def _async(self) -> None:
        manager = self._manager()
        with self._save_op(self._new_step()) as (told, info):
            folder = manager.init_tmp_checkpoint(info["step"], info)
            payload.write(folder, info["token"])
            manager.begin_finalization(folder, partial(time.sleep, self.chance.uniform(0, 0.01)))
            for _ in range(self.chance.randrange(3)):
                self._ask()
            try:
                manager.finalize_pending()
            except RuntimeError as error:
                raise error.__cause__ or error from None
            told["acked"] = time.monotonic()
            # The prune goes on behind it; this waits for that too.
            manager.shutdown()

    def _prune(self) -> None:
        with self._op("prune", run=self.run, policy=POLICIES[self.run]):
            self._manager().remove_old_checkpoints()

    # --- asking -------------------------------------------------------------------------

    def _any_run(self) -> str:
        return self.chance.choice((self.run, self.chance.choice(list(POLICIES))))

    def _ask(self) -> None:
        """Ask a manager for best or latest, and read every file of what it answers."""
        run = self._any_run()
        manager = self.askers.get(run)
        if manager is None:
            manager = self.askers[run] = manager_of(self.this.root, run)
        kind = self.chance.choice(("best", "latest"))
        ask = getattr(manager, f"get_{kind}_checkpoint_path")
        path = None
        with self._op(kind, run=run) as told:
            path = ask()
            told["answer"] = None if path is None else int(path.rpartition("_")[2])
        if path is not None:
            self._open(run, Path(path), manager)

    def _open(self, run: str, path: Path, manager: CheckpointManager | None = None) -> None:
        with self._op("open", run=run, step=int(path.name[5:])) as told:
            if manager is not None and self.chance.random() < 0.5:
                told["answer"] = (manager.load_training_info(path) or {}).get("token")
            else:
                told["answer"] = payload.read(path)

    def _look(self) -> None:
        """Read a step without asking anybody."""
        run = self._any_run()
        self._open(run, self.this.root / run / f"step_{self._old_step(run)}")

    def _question(self) -> None:
        run = self._any_run()
        kind = self.chance.choice(("top", "latest", "get", "list"))
        step = self._old_step(run) if kind == "get" else None
        found: Checkpoint | None = None
        with self._op(kind, run=run, step=step) as told:
            if kind == "list":
                listed = self.registry.checkpoints(run=run, status="final")
                told["answer"] = [checkpoint.info["token"] for checkpoint in listed]
            elif step is not None:
                found = self.registry.get(step, run=run)
                told["answer"] = found.info["token"] if found.status == "final" else None
            else:
                ask = self.registry.best if kind == "top" else self.registry.latest
                found = ask(run=run)
                told["answer"] = found and found.info["token"]
        if found is not None and found.status == "final":
            self._open(run, found.path)

    def _query(self) -> None:
        sql = self.chance.choice(_QUERIES)
        with self._op("query") as told:
            told["answer"] = len(self.registry.query(sql))

    # --- tending ------------------------------------------------------------------------

    def _reconcile(self) -> None:
        run = self._any_run() if self.chance.random() < 0.8 else ""
        with self._op("reconcile", run=run):
            if (self.this.root / run).is_dir():
                self.registry.reconcile(self.this.root / run)

    def _gc(self) -> None:
        run = self._any_run()
        limited = POLICIES[run] == (None, None) and self.chance.random() < 0.3
        policy = Policy(keep_top_k=GC_POLICY[0], ft_keep_latest_k=GC_POLICY[1])
        facts = {"policy": GC_POLICY} if limited else {}
        with self._op("gc", run=run, **facts):
            self.registry.gc(policy if limited else Policy(), run=run)

    def _rm(self) -> None:
        run = self._any_run()
        step = self._old_step(run)
        with self._op("rm", run=run, step=step):
            self.registry.remove([step], run=run)

    def _pin(self) -> None:
        kind = self.chance.choice(("pin", "pin", "unpin"))
        value = True if kind == "pin" else None
        self._annotate(kind, "pin", value, getattr(self.registry, kind))

    def _tag(self) -> None:
        name = self.chance.choice(("good", "bad"))
        kind = self.chance.choice(("tag", "tag", "untag"))
        value = True if kind == "tag" else None

        def act(run: str, step: int) -> Checkpoint:
            return getattr(self.registry, kind)(run, step, name)

        self._annotate(kind, f"tag {name}", value, act)

    def _metric(self) -> None:
        name, value = self.chance.choice(("mmlu", "gsm8k")), round(self.chance.random(), 9)

        def act(run: str, step: int) -> Checkpoint:
            return self.registry.log_metrics(run, step, {name: value}, source="crowd")

        self._annotate("metric", f"metric {name}", value, act)

    def _annotate(
        self, kind: str, key: str, value: Any, act: Callable[[str, int], Checkpoint]
    ) -> None:
        run = self._any_run()
        step = self._old_step(run)
        with self._op(kind, run=run, step=step, key=key, value=value) as told:
            found = act(run, step)
            told["about"] = found.info["token"]


_QUERIES = (
    "SELECT run, step, value FROM leaderboard WHERE rank = 1",
    "SELECT * FROM run_summary",
    "SELECT count(*) FROM checkpoints WHERE status = 'deleted'",
)
# More than a third of all writes; an `ask` is two operations.
_MIX = (
    ("save", 10), ("replace", 6), ("hold", 2), ("discard", 3), ("async", 5), ("prune", 3),
    ("ask", 20), ("look", 70), ("question", 8), ("query", 16),
    ("reconcile", 3), ("gc", 3), ("rm", 2), ("pin", 3), ("tag", 2), ("metric", 2),
)  # fmt: skip


def manager_of(
    root: Path, run: str, *, shared: bool = False, saves: bool = False
) -> CheckpointManager:
    """Return a manager of a run; one that does not save has no limits, and prunes nothing."""
    top, newest = POLICIES[run] if saves else (None, None)
    options: dict[str, Any] = {"exclusive": False} if shared else {}
    return CheckpointManager(
        {"checkpoint_dir": root / run, "metric_name": METRIC, "higher_is_better": False},
        keep_top_k=top,
        ft_keep_latest_k=newest,
        **options,
    )


def _pictured(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found[str(path)] = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
    return found


def _shown(error: BaseException) -> str:
    return f"{error} / {error.__cause__!r}"


# --- reading the notes ------------------------------------------------------------------


def read_notes(notes: Path, deaths: Mapping[str, Death]) -> list[Op]:
    """Put the notes of all processes together."""
    ops: list[Op] = []
    for file in sorted(path for path in notes.iterdir() if path.suffix != ".err"):
        ops += _read_one(file, deaths.get(file.name, Death(NEVER, NEVER)))
    return sorted(ops, key=lambda op: op.called)


def _read_one(file: Path, death: Death) -> list[Op]:
    found: dict[str, Op] = {}
    alive_until = death.hit_at
    for line in file.read_bytes().splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue  # the last one, torn when its process was killed
        if "last" in facts:
            alive_until = facts["last"]
        elif "called" in facts:
            policy = facts.pop("policy", None)
            found[facts["id"]] = Op(**facts, policy=policy and tuple(policy))
        else:
            _returned(found[facts["id"]], facts)
    for op in found.values():
        if op.ended == NEVER:
            op.ended, op.alive_until, op.error = death.known_at, alive_until, "cut"
    return list(found.values())


def _returned(op: Op, facts: Mapping[str, Any]) -> None:
    op.ended, op.error, op.answer = facts["ended"], facts.get("error"), facts.get("answer")
    # A save is acknowledged before its pruning is done, when that goes on in the background.
    op.acked = facts.get("acked", NEVER if op.error else op.ended)
    if op.kind in ("pin", "unpin", "tag", "untag", "metric"):
        op.token = facts.get("about")
