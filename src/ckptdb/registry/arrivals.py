"""Checkpoints as they arrive, each once; shared with other evaluators where a lease is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ckptdb.core import warnings
from ckptdb.core.records import Checkpoint
from ckptdb.disk import identity, leases
from ckptdb.disk.evaluator import Evaluator, Turn

_NAP_SECONDS = 0.1
"""Seconds between two calls of a function that tells whether to stop."""


class Event(Protocol):
    """An event of `threading` or `multiprocessing`, set by another thread or process."""

    def is_set(self) -> bool:
        """Tell whether it is set."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait until it is set, but not longer than some seconds."""


Stop = Callable[[], bool] | Event


@dataclass(frozen=True, slots=True)
class Waiting:
    """A published, trusted checkpoint whose turn may come."""

    directory: Path
    run_uuid: str
    step: int
    uuid: str

    @property
    def identity(self) -> tuple[str, str]:
        """The uuids of run and checkpoint; checkpoints of a copied run have the same uuids."""
        return self.run_uuid, self.uuid


class Arrivals:
    """Yields checkpoints; made by `Registry.watch`.

    Requesting the next checkpoint marks the last one as done. Leaving the loop by ``break`` or by
    an exception, or calling `close`, leaves it undone and ends its lease.
    """

    def __init__(self, queue: ArrivalQueue) -> None:
        self._queue = queue
        # The generator has no reference to this object, and so ends together with it.
        self._served = queue.serve()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Checkpoint:
        return next(self._served)

    def give_up(self) -> None:
        """Leave the last checkpoint to other processes; it is not yielded here again."""
        self._queue.give_up()

    def close(self) -> None:
        """Stop, and leave the last checkpoint undone."""
        self._served.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Share:
    """The part of this process in an evaluation that several processes share.

    Args:
        evaluation: Its name.
        lease_seconds: Time for which a lease holds after its last renewal.
    """

    def __init__(self, evaluation: str, lease_seconds: float) -> None:
        self._evaluation = evaluation
        self._seconds = lease_seconds
        self._evaluators: dict[Path, Evaluator] = {}

    def find_taken(self, directory: Path) -> frozenset[str]:
        """Return the uuids of a run that are done or leased at the moment."""
        current = leases.find(identity.hidden(directory))
        leased = (claim.uuid for claim in current if claim.evaluation == self._evaluation)
        return self._of(directory).find_done().union(leased)

    def take(self, one: Waiting) -> Turn | None:
        """Lease a checkpoint, unless it is deleted, done or leased by another process."""
        return self._of(one.directory).take(one.step, one.uuid)

    def _of(self, directory: Path) -> Evaluator:
        if directory not in self._evaluators:
            self._evaluators[directory] = Evaluator(
                directory, self._evaluation, lease_seconds=self._seconds
            )
        return self._evaluators[directory]


class ArrivalQueue:
    """The checkpoints that are still to be yielded.

    Args:
        look: Returns the published checkpoints, run by run, by step.
        load: Returns the record of one of them, None when it was deleted meanwhile.
        share: The part in a shared evaluation; None when nothing is shared.
        poll_seconds: Time to wait when nothing is left; None to end then.
        stop: Ends the queue in any case.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[tuple[Waiting, ...]]],
        load: Callable[[Waiting], Checkpoint | None],
        *,
        share: Share | None,
        poll_seconds: float | None,
        stop: Stop | None,
    ) -> None:
        self._look = look
        self._load = load
        self._share = share
        self._poll_seconds = poll_seconds
        self._stop = stop
        self._turn: Turn | None = None
        self._passed: set[tuple[str, str]] = set()

    def pass_over(self) -> None:
        """Never yield the checkpoints that are there now."""
        self._passed |= {one.identity for here in self._look() for one in here}

    def serve(self) -> Generator[Checkpoint, None, None]:
        """Yield the checkpoints one after the other."""
        while not self._is_over():
            has_come = False
            for one in self._find_waiting():
                if self._is_over():
                    return
                checkpoint = self._take(one)
                if checkpoint is None:
                    continue
                has_come = True
                try:
                    yield checkpoint
                except BaseException:
                    self.give_up()
                    raise
                self._finish(checkpoint)
            if has_come:
                continue
            if self._poll_seconds is None:
                return
            self._wait(self._poll_seconds)

    def give_up(self) -> None:
        """Give back the lease of the checkpoint that was yielded last."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give_up()

    def _find_waiting(self) -> Iterator[Waiting]:
        for here in self._look():
            left = [one for one in here if one.identity not in self._passed]
            if left and self._share is not None:
                taken = self._share.find_taken(left[0].directory)
                left = [one for one in left if one.uuid not in taken]
            yield from left

    def _take(self, one: Waiting) -> Checkpoint | None:
        if self._share is not None:
            self._turn = self._share.take(one)
            if self._turn is None:
                return None
        try:
            checkpoint = self._load(one)
        except BaseException:
            self.give_up()
            raise
        if checkpoint is None:
            self.give_up()
        else:
            self._passed.add(one.identity)
        return checkpoint

    def _finish(self, checkpoint: Checkpoint) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and not turn.finish():
            warnings.warn(
                f"Step {checkpoint.step} of {checkpoint.run!r} does not count as evaluated here: "
                "its lease had ended, and somebody else has it, or the run is gone."
            )

    # --- waiting ------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._stop is None:
            return False
        return self._stop() if callable(self._stop) else self._stop.is_set()

    def _wait(self, seconds: float) -> None:
        if self._stop is not None and not callable(self._stop):
            self._stop.wait(seconds)
            return
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._is_over():
            time.sleep(left if self._stop is None else min(left, _NAP_SECONDS))
