"""Who is hurt: ckptdb, or the plain way of saving that has to be found guilty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ckptdb import Registry
from lab import check, control, loop
from lab.check import Verdict, Way
from lab.ledger import METRIC, SEEDS, Ledger, Operation, Workload, seeded, workloads


class Training(Protocol):
    """A training loop in this process."""

    ledger: Ledger

    def save_at(self, step: int) -> None:
        """Save a step."""

    def do(self, operation: Operation) -> None:
        """Do one operation; on return it is acknowledged."""

    def close(self) -> None:
        """End in an orderly way."""


class Subject(Protocol):
    """What a harness needs to know of whom it hurts."""

    prefix: str

    def workloads(self) -> list[Workload]:
        """Return every workload."""

    def seed(self, root: Path, *, many: bool) -> None:
        """Make a root with a run that holds the seeds."""

    def begin(self, root: Path, ledger: Ledger, *, many: bool) -> Training:
        """Open a training loop where so much has been acknowledged."""

    def settle(self, root: Path) -> None:
        """Let the index know what is there."""

    def judge(
        self, verdict: Verdict, root: Path, ledgers: tuple[Ledger, Ledger], *, many: bool,
        way: Way, rest: bool,
    ) -> None:  # fmt: skip
        """Recover, and compare what is there with what must be there, before or after.

        Args:
            rest: Also rebuild the index from nothing, and train on.
        """


class Ckptdb:
    """The product."""

    prefix = ""

    def workloads(self) -> list[Workload]:
        """Return all sequences of one to three operations."""
        return workloads()

    def seed(self, root: Path, *, many: bool) -> None:
        """Save the seeds."""
        loop.seed(root, many=many)

    def begin(self, root: Path, ledger: Ledger, *, many: bool) -> Training:
        """Open a manager."""
        return loop.Loop(root, ledger, many=many)

    def settle(self, root: Path) -> None:
        """Reconcile."""
        with Registry.open(root) as registry:
            registry.reconcile()

    def judge(
        self, verdict: Verdict, root: Path, ledgers: tuple[Ledger, Ledger], *, many: bool,
        way: Way, rest: bool,
    ) -> None:  # fmt: skip
        """Recover by the next question or by reconciling."""
        check.check_names(verdict, root / loop.RUN, many=many)
        answers = check.recover(verdict, root, way)
        check.check_facts(verdict, root, *ledgers, many=many, answers=answers)
        if rest:
            check.check_rest(verdict, root)
            check.check_life(verdict, root, many=many)


class Plain:
    """The control: what it saves is never flushed, replaced by two renames, removed in place."""

    prefix = "control: "
    _OPERATIONS: Sequence[Operation] = ("save", "replace", "prune")

    def workloads(self) -> list[Workload]:
        """Return all sequences of what it can do."""
        known = set(self._OPERATIONS)
        return [w for w in workloads() if w.native and known.issuperset(w.operations)]

    def seed(self, root: Path, *, many: bool) -> None:
        """Save the seeds."""
        running = PlainLoop(root, Ledger(), many=many)
        for step in SEEDS:
            running.save_at(step)
        assert running.ledger == seeded()

    def begin(self, root: Path, ledger: Ledger, *, many: bool) -> Training:
        """Nothing has to be opened."""
        return PlainLoop(root, ledger, many=many)

    def settle(self, root: Path) -> None:
        """There is no index."""

    def judge(
        self, verdict: Verdict, root: Path, ledgers: tuple[Ledger, Ledger], *, many: bool,
        way: Way, rest: bool,
    ) -> None:  # fmt: skip
        """Ask for the best and the latest, and look whether all is whole."""
        del way, rest  # there is one way, and no index to rebuild
        run = root / loop.RUN
        before, after = ledgers
        with verdict.doing("asking"):
            control.best(run)
            control.latest(run)
        found = {step: whole(folder, many=many) for step, folder in check.published(run).items()}
        for step in {*found, *before.live, *after.live}:
            if step in found and found[step] is None:
                verdict.say("half_visible", f"step_{step} is not whole")
            elif found.get(step) not in {before.live.get(step), after.live.get(step)}:
                verdict.say("lost", f"step {step} is {found.get(step)}")


class PlainLoop:
    """A training loop that keeps its checkpoints in the plain way."""

    def __init__(self, root: Path, ledger: Ledger, *, many: bool) -> None:
        self.ledger = ledger
        self._run = root / loop.RUN
        self._many = many

    def do(self, operation: Operation) -> None:
        """Do one operation."""
        if operation == "save":
            control.save(self._run, self.ledger.next_step, self._files(self.ledger.next_step))
        elif operation == "replace":
            control.replace(self._run, self.ledger.newest, self._files(self.ledger.newest))
        else:
            control.prune(self._run, 1)
        self.ledger = self.ledger.after(operation)

    def save_at(self, step: int) -> None:
        """Save a step."""
        control.save(self._run, step, self._files(step))
        self.ledger = self.ledger.saved(step)

    def close(self) -> None:
        """Nothing is open."""

    def _files(self, step: int) -> dict[str, bytes]:
        token = self.ledger.token(step)
        info = json.dumps({METRIC: self.ledger.loss(step), "token": token}).encode()
        return {"training_info.json": info, **loop.payload(token, many=self._many)}


def whole(folder: Path, *, many: bool) -> str | None:
    """Return the one token that all files hold, None when it is not whole."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        token = str(json.loads((folder / "training_info.json").read_bytes())["token"])
        files = loop.payload(token, many=many).items()
        if all((folder / name).read_bytes() == content for name, content in files):
            return token
    return None


CKPTDB, PLAIN = Ckptdb(), Plain()
