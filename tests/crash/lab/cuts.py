"""Real power cuts: the file system is shut down, its journal unwritten, and mounted again.

Nothing but the beginning is flushed for ckptdb: what one operation has acknowledged must be on
disk by its own doing when the power goes during the next one, whether or not somebody else has
flushed something in between.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdb import Registry
from ckptdb.disk import root_marker
from lab import check, control, loop, mounts, outage, shim, speed
from lab.check import Verdict, Way
from lab.ledger import METRIC, OPERATIONS, Ledger, Workload, workloads
from lab.mounts import Disk
from lab.outage import Tell, Told
from lab.report import NOT_TRIED, Row, Size
from lab.shim import Strike
from lab.world import World

# How many in all, of ckptdb and of the control.
CUTS: dict[Size, tuple[int, int]] = {"smoke": (24, 12), "ci": (516, 48), "exhaustive": (5760, 240)}
REST_ONE_IN = 10
_GUESS = 40
"""How many changes an operation makes, until one has been seen."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is done, and what is around it.

    Attributes:
        operations: A workload's, or ``root`` (marking it) and ``keep`` (pinning the newest).
        begins: There is nothing yet, not even a root.
        killed: A kill comes first; it is the recovery from it that is cut.
        foreign: Somebody else flushes a file just before the cut.
        elsewhere: The catalog is on another disk, which keeps its power.
    """

    operations: Sequence[str]
    native: bool
    many: bool
    begins: bool = False
    killed: bool = False
    foreign: bool = False
    elsewhere: bool = False

    def __str__(self) -> str:
        names = ("native", "many", "begins", "killed", "foreign", "elsewhere")
        told = ", ".join(name for name in names if getattr(self, name))
        return f"{'+'.join(self.operations)} ({told})"


def run(size: Size, seed: int, shard: int, shards: int) -> Iterator[Row]:
    """Cut the share of this shard: on each kind of file system as often."""
    guilty = Row("control: cuts")
    with tempfile.TemporaryDirectory(dir=shim.scratch(), prefix="ckptdb-cuts-") as folder:
        for kind in mounts.KINDS:
            row = Row(f"cuts {kind.name}")
            rng = random.Random(f"{seed} {shard} {kind.name}")
            ours, theirs = (-(-n // (shards * len(mounts.KINDS))) for n in CUTS[size])
            try:
                with mounts.mounted(kind, Path(folder)) as disk:
                    _strike_ours(disk, row, rng, ours)
                    _strike_theirs(disk, guilty, rng, theirs)
            except mounts.CannotMount as reason:
                sys.stderr.write(f"{NOT_TRIED}cuts of {kind.name}: {reason}.\n")
            else:
                yield row
    if guilty.points:
        yield guilty


def _strike_ours(disk: Disk, row: Row, rng: random.Random, count: int) -> None:
    started = time.monotonic()
    cuts = Cuts(disk, rng, row)
    speed.settle()
    for case in itertools.islice(_cases(rng), count):
        cuts.strike(case)
    row.seconds += time.monotonic() - started


def _strike_theirs(disk: Disk, row: Row, rng: random.Random, count: int) -> None:
    started = time.monotonic()
    plain = Control(disk, rng, row)
    for number in range(count):
        plain.strike(many=bool(number % 2))
    row.seconds += time.monotonic() - started


def _cases(rng: random.Random) -> Iterator[Case]:
    """Yield cases without end."""
    # Of three operations there are eight times as many workloads; they show little more.
    plain = [Case(w.operations, w.native, w.many) for w in workloads((1, 2, 2, 2, 2, 3))]
    modes = list(itertools.product((True, False), repeat=2))
    special = [Case(("keep", "replace", last), *mode) for mode in modes for last in OPERATIONS]
    special += [Case(("root", "save", "save", "replace"), *m, begins=True) for m in modes] * 4
    rng.shuffle(plain)
    rng.shuffle(special)
    ordinary, rare = itertools.cycle(plain), itertools.cycle(special)
    for number in itertools.count():
        case = next(rare) if number % 4 == 0 else next(ordinary)
        elsewhere = rng.randrange(2) == 0 and not case.begins
        yield replace(
            case, killed=number % 4 == 1, foreign=number % 8 > 3, elsewhere=elsewhere
        )  # fmt: skip


class Loop(loop.Loop):
    """A training loop that can also pin what it is about to save again."""

    def do(self, operation: str) -> None:
        """Do one operation; on return it is acknowledged."""
        if operation == "keep":
            with Registry.open(self.root) as registry:
                registry.pin(loop.RUN, self.ledger.newest)
            self.ledger = after(self.ledger, operation)
        else:
            super().do(operation)


def after(ledger: Ledger, *operations: str) -> Ledger:
    """Return what holds when these operations have been acknowledged."""
    for operation in operations:
        if operation == "keep":
            ledger = replace(ledger, pinned=ledger.pinned | {ledger.live[ledger.newest]})
        elif operation != "root":
            ledger = ledger.after(operation)
    return ledger


@dataclass(frozen=True, slots=True)
class Scene:
    """A case where it is played: its root, and what is acknowledged to begin with."""

    case: Case
    root: Path
    before: Ledger

    @property
    def run(self) -> Path:
        """Its only run."""
        return self.root / loop.RUN

    def play(self, strike: Strike, tell: Tell) -> None:
        """Do all operations; tell after each."""
        case = self.case
        with shim.armed(self.root.parent, strike) as armed, loop.quiet():
            if case.begins:
                root_marker.mark_root(self.root)
                tell(counted=armed.counted)
            running = Loop(self.root, self.before, many=case.many)
            for operation in case.operations[case.begins :]:
                running.do(operation)
                tell(counted=armed.counted)
            running.close()

    def recover(self, strike: Strike, tell: Tell) -> None:
        """Do what the first one does who comes after a kill; tell what there is then."""
        verdict = Verdict()
        with shim.armed(self.root.parent, strike) as armed:
            check.recover(verdict, self.root, self.way)
            tell(counted=armed.counted, live=list(self.live(verdict).items()))
        if verdict.found:
            raise RuntimeError(str(verdict.found))

    @property
    def way(self) -> Way:
        """How it is recovered; about as often in one way as in the other."""
        return "reconcile" if self.case.begins or self.case.foreign else "question"

    def live(self, verdict: Verdict) -> dict[int, str]:
        """Return the token of each published step."""
        return check.check_names(verdict, self.run, many=self.case.many)


class Cuts:
    """One file system's work in one shard."""

    def __init__(self, disk: Disk, rng: random.Random, row: Row) -> None:
        self._disk = disk
        self._rng = rng
        self._row = row
        self._world = World(disk.path / "world")
        self._outside = disk.path.with_suffix(".outside")
        self._sizes: dict[tuple[str, bool, bool], int] = {}
        self._fresh = itertools.count()

    def strike(self, case: Case) -> None:
        """Cut the power once in a case, somewhere in it or right after it."""
        try:
            self._strike(case)
        finally:
            self._disk.uncover()

    def _strike(self, case: Case) -> None:
        self._row.workloads += 1
        scene = self._prepare(case)
        killed_after = self._kill(scene) if case.killed else None
        names = (f"recovery by {scene.way}",) if case.killed else case.operations
        # Every other one right when something has been acknowledged, before anything follows.
        after_told = self._rng.randint(1, len(names)) if self._rng.randrange(2) else 0
        point = 0 if after_told else self._point(case, names)
        strike = Strike(shim.STOP, at=point, no_exchange=not case.native)
        where = f"{case} cut " + (f"after {after_told}" if after_told else f"before change {point}")
        work = scene.recover if case.killed else scene.play
        told = outage.cut(
            self._disk, self._row, where, lambda tell: work(strike, tell), foreign=case.foreign,
            after_told=after_told,
        )  # fmt: skip
        if told is None:
            return
        self._learn(case, names, told)
        done = len(told) if killed_after is None else killed_after
        verdict = Verdict()
        if not case.begins or done:
            answered = told[-1] if case.killed and told else None
            self._judge(verdict, scene, done, answered)
        for kind, what in verdict.found:
            self._row.fail(kind, f"{where}, {done} acknowledged: {what}")

    # --- before the cut -------------------------------------------------------------------

    def _prepare(self, case: Case) -> Scene:
        if case.begins:
            folder = self._disk.path / f"begins-{next(self._fresh)}"
            folder.mkdir()
            self._disk.flush()
            return Scene(case, folder / "all" / "results", Ledger())
        ledger = self._world.prepare(Workload(OPERATIONS[:1], many=case.many))
        if case.elsewhere:
            folder = self._world.root / ".ckptdb"
            shutil.rmtree(self._outside, ignore_errors=True)
            shutil.copytree(folder, self._outside)
            # Not by a link: no catalog is opened through one.
            self._disk.cover(folder, self._outside)
        self._disk.flush()
        return Scene(case, self._world.root, ledger)

    def _kill(self, scene: Scene) -> int:
        """Kill the process alone, somewhere; return how many operations were acknowledged."""
        case = scene.case
        point = self._point(case, case.operations)
        strike = Strike(shim.STOP, at=point, no_exchange=not case.native)
        told = outage.in_child(lambda tell: scene.play(strike, tell))[1]
        self._learn(case, case.operations, told)
        return len(told)

    def _point(self, case: Case, names: Sequence[str]) -> int:
        # The last one lies behind all of them: everything is acknowledged then.
        sizes = [self._sizes.get((name, case.native, case.many), _GUESS) for name in names]
        return self._rng.randint(1, sum(sizes) + 1)

    def _learn(self, case: Case, names: Sequence[str], told: Sequence[Told]) -> None:
        reached = 0
        for name, line in zip(names, told, strict=False):
            self._sizes[name, case.native, case.many] = max(line["counted"] - reached, 1)
            reached = line["counted"]

    # --- after it -------------------------------------------------------------------------

    def _judge(self, verdict: Verdict, scene: Scene, done: int, answered: Told | None) -> None:
        case, root, many = scene.case, scene.root, scene.case.many
        sure, maybe = (after(scene.before, *case.operations[:n]) for n in (done, done + 1))
        way: Way = "reconcile" if case.begins or self._rng.randrange(2) else "question"
        _check_names(verdict, scene, sure, maybe)
        answers = check.recover(verdict, root, way)
        check.check_facts(verdict, root, sure, maybe, many=many, answers=answers)
        _check_kept(verdict, scene, sure)
        if answered is not None:
            _check_answered(verdict, scene, answered)
        if self._rng.randrange(REST_ONE_IN) == 0:
            check.check_rest(verdict, root)
            _check_kept(verdict, scene, sure)
            check.check_life(verdict, root, many=many)
        if case.killed:
            # Killed before its metadata was written, cut before anything of it was on disk.
            unknown = "None is recorded as 'vanished: not on disk any more'"
            verdict.found = [found for found in verdict.found if found[1] != unknown]


def _check_names(verdict: Verdict, scene: Scene, sure: Ledger, maybe: Ledger) -> None:
    """Check that what is acknowledged has its name before anybody has recovered anything."""
    live = scene.live(verdict)
    for step, token in sure.live.items():
        if maybe.live.get(step) == token != live.get(step):
            verdict.say("lost", f"right after the cut, step {step} is {live.get(step)}")


def _check_answered(verdict: Verdict, scene: Scene, told: Told) -> None:
    """Check that what the first recovery has answered from is there after the second."""
    answered = {step: token for step, token in told["live"]}  # noqa: C416  # lists, out of JSON
    live = scene.live(verdict)
    if live != answered:
        verdict.say("lost", f"answered was from {answered}, there is {live}")


def _check_kept(verdict: Verdict, scene: Scene, sure: Ledger) -> None:
    """Check that what is pinned is somewhere, and be it in the trash."""
    trash = scene.run / ".ckptdb" / "trash"
    retired = trash.iterdir() if trash.is_dir() else ()
    folders = [*check.published(scene.run).values(), *retired]
    whole = {check.whole_token(folder, many=scene.case.many) for folder in folders}
    for token in sorted(sure.pinned - whole):
        verdict.say("lost", f"{token} is pinned, and neither published nor in the trash")


class Control:
    """The plain way of saving, under the same cuts."""

    def __init__(self, disk: Disk, rng: random.Random, row: Row) -> None:
        self._disk = disk
        self._rng = rng
        self._row = row
        self._fresh = itertools.count()

    def strike(self, *, many: bool) -> None:
        """Save, prune and replace; cut the power with somebody else's flush before it."""
        self._row.workloads += 1
        run = self._disk.path / f"control-{next(self._fresh)}"
        run.mkdir()
        for step in (10, 20, 30):
            control.save(run, step, _files(step, "seed", many=many))
        self._disk.flush()
        strike = Strike(shim.STOP, at=self._rng.randint(1, 60 if many else 35))
        where = f"cut before change {strike.at}"
        told = outage.cut(
            self._disk, self._row, where,
            lambda tell: _play_plainly(run, strike, tell, many=many), foreign=True,
        )  # fmt: skip
        if told is not None:
            self._judge(run, f"{where}, {len(told)} acknowledged", told, many=many)

    def _judge(self, run: Path, where: str, told: Sequence[Told], *, many: bool) -> None:
        found = {step: _token(path, many=many) for step, path in check.published(run).items()}
        for step, token in found.items():
            if token is None:
                self._row.fail("half_visible", f"{where}: step_{step} is not whole")
        # Saved, pruned, replaced: while it is being replaced, it may be one or the other.
        allowed = ((), ("first",), ("first", "second"), ("second",))[len(told)]
        if allowed and found.get(40) not in allowed:
            nothing = "" if any(found.values()) else ", and nothing else is whole"
            self._row.fail("lost", f"{where}: step_40 is lost{nothing}")


def _play_plainly(run: Path, strike: Strike, tell: Tell, *, many: bool) -> None:
    with shim.armed(run, strike):
        control.save(run, 40, _files(40, "first", many=many))
        tell(done="save")
        control.prune(run, 1)
        tell(done="prune")
        control.replace(run, 40, _files(40, "second", many=many))
        tell(done="replace")


def _files(step: int, token: str, *, many: bool) -> dict[str, bytes]:
    # The newest is the best: all others go.
    info = {METRIC: 1 / step, "token": token}
    return {"training_info.json": json.dumps(info).encode(), **loop.payload(token, many=many)}


def _token(folder: Path, *, many: bool) -> str | None:
    with suppress(OSError, ValueError, KeyError):
        token = str(json.loads((folder / "training_info.json").read_bytes())["token"])
        files = loop.payload(token, many=many).items()
        if all((folder / name).read_bytes() == content for name, content in files):
            return token
    return None
