"""A training loop that does one operation after the other on a real run, as its user would."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import root_marker
from lab.ledger import METRIC, SEEDS, Ledger, Operation, seeded

RUN = "run"


class Interrupted(Exception):  # what a loop's own failure looks like
    """The body of a save raises this to have it discarded."""


def payload(token: str, *, many: bool) -> dict[str, bytes]:
    """Return the files of a checkpoint by relative path; each holds the token."""
    if not many:
        return {"weights.bin": token.encode() * 8}
    names = [f"shards/{i}/part-{j}.bin" for i in range(3) for j in range(3)]
    files = {name: f"{token} {name}".encode() for name in [*names, "optimizer/state.bin"]}
    return {**files, "weights.bin": token.encode() * 700}


def write_payload(folder: Path, token: str, *, many: bool) -> None:
    """Write it, unflushed, as a training loop does."""
    for name, content in payload(token, many=many).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class Loop:
    """One process's training loop on the run ``root/run``."""

    def __init__(self, root: Path, ledger: Ledger, *, many: bool) -> None:
        self.root = root
        self.ledger = ledger
        self.many = many
        self.manager = open_manager(root)

    def do(self, operation: Operation) -> None:
        """Do one operation; on return it is acknowledged."""
        getattr(self, f"_{operation}")()
        self.ledger = self.ledger.after(operation)

    def close(self) -> None:
        """End the loop in an orderly way."""
        self.manager.shutdown()

    def save_at(self, step: int) -> None:
        """Save a step and count it as acknowledged."""
        self._save_step(step)
        self.ledger = self.ledger.saved(step)

    def _save_step(self, step: int) -> None:
        with self.manager.save(step, self._info(step), config={"lr": step}) as folder:
            write_payload(folder, self.ledger.token(step), many=self.many)

    def _info(self, step: int) -> dict[str, object]:
        return {METRIC: self.ledger.loss(step), "token": self.ledger.token(step)}

    def _save(self) -> None:
        self._save_step(self.ledger.next_step)

    def _replace(self) -> None:
        self._save_step(self.ledger.newest)

    def _async(self) -> None:
        step = self.ledger.next_step
        folder = self.manager.init_tmp_checkpoint(step, self._info(step))
        write_payload(folder, self.ledger.token(step), many=self.many)
        self.manager.begin_finalization(folder)
        self.manager.finalize_pending()

    def _discard(self) -> None:
        step = self.ledger.next_step
        with suppress(Interrupted), self.manager.save(step, self._info(step)) as folder:
            write_payload(folder, self.ledger.token(step), many=self.many)
            raise Interrupted

    def _prune(self) -> None:
        self.manager.keep_top_k = 1
        try:
            self.manager.remove_old_checkpoints()
        finally:
            self.manager.keep_top_k = None

    def _reconcile(self) -> None:
        with Registry.open(self.root) as registry:
            registry.reconcile()

    def _pin(self) -> None:
        with Registry.open(self.root) as registry:
            registry.pin(RUN, self.ledger.oldest)

    def _late(self) -> None:
        with Registry.open(self.root) as registry:
            registry.log_metrics(RUN, self.ledger.oldest, {METRIC: 0.01}, source="eval")


def open_manager(root: Path) -> CheckpointManager:
    """Return a manager of the run that prunes only when told to."""
    return CheckpointManager(
        {"checkpoint_dir": root / RUN, "metric_name": METRIC, "higher_is_better": False}
    )


def seed(root: Path, *, many: bool) -> None:
    """Make a root with a run that holds the seeds."""
    root.mkdir(exist_ok=True)
    root_marker.mark_root(root)
    loop = Loop(root, Ledger(), many=many)
    for step in SEEDS:
        loop.save_at(step)
    loop.close()
    assert loop.ledger == seeded()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what ckptdb warns of, on purpose, out of the laboratory's output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; return its wait status (0: it came to its end)."""
    return os.waitpid(begin_child(work), 0)[1]


def begin_child(work: Callable[[], None]) -> int:
    """Begin ``work`` in a forked process; return its pid."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child
