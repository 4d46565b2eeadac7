"""Evaluators, which share the evaluation of a run's checkpoints."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from ckptdb.core import process
from ckptdb.core.facts import Fact
from ckptdb.core.threads import Task
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    leases,
    names,
    read_trash,
)
from ckptdb.disk.journal_pins import Evaluated
from ckptdb.disk.leases import Lease
from ckptdb.disk.publish import Publisher
from ckptdb.errors import CkptdbError, JournalInDoubt

RENEWALS = 5
"""Number of renewals in the time that a lease lasts."""

_logger = logging.getLogger("ckptdb")


class Evaluator:
    """Leases checkpoints of a run for an evaluation that other processes may share.

    Args:
        directory: The run.
        evaluation: Its name, the same for all who share it; see `names.can_name_a_lease`.
        lease_seconds: Time that a lease lasts after its last renewal.
    """

    def __init__(
        self, directory: Path, evaluation: str, *, lease_seconds: float = leases.SECONDS
    ) -> None:
        self._directory = directory
        self._evaluation = evaluation
        self._seconds = lease_seconds
        self._publisher = Publisher(directory)
        self._evaluated = Evaluated(identity.hidden(directory))

    def find_done(self) -> frozenset[str]:
        """Return the uuids of the checkpoints that somebody has evaluated.

        Raises:
            OSError: It cannot be read now.
        """
        return self._evaluated.find(self._evaluation)

    def take(self, step: int, uuid: str) -> Turn | None:
        """Lease a checkpoint; None when it is done, or gone, or somebody else has it.

        Raises:
            OSError: The lease cannot be written.
            RunLocked: Another process keeps the run's lock.
        """
        final = self._directory / names.final_name(step)
        if not final.is_dir():
            return None
        hidden = identity.hidden(self._directory)
        with self._publisher.alone() as (who, _):
            active = leases.settle(hidden)
            if any((c.uuid, c.evaluation) == (uuid, self._evaluation) for c in active):
                return None
            if uuid in self.find_done():
                return None
            if checkpoint_identity.find_uuid(who, final, step, through_link=True) != uuid:
                return None
            lease = leases.write(
                hidden, uuid, self._evaluation, seconds=self._seconds, since=utc(time.time())
            )
        return Turn(self, lease)

    def finish(self, lease: Lease) -> bool:
        """Record that the evaluation is done, unless somebody else has had it meanwhile."""
        if not fsutil.is_folder(identity.hidden(self._directory)):
            return False  # the run has been moved or removed
        with self._publisher.alone() as (_, record):
            current = leases.find_current(lease)
            if current is None:
                # It has ended, say while this process was suspended; perhaps nobody has noticed.
                is_ours = lease.uuid not in self.find_done()
            else:
                is_ours = current.token == lease.token
            if is_ours:
                details = {"name": self._evaluation, **process.this_process()}
                record([Fact(utc(time.time()), "evaluated", lease.uuid, details)])
                leases.remove(lease)
        self._free(lease)
        return is_ours

    def give_up(self, lease: Lease) -> None:
        """Let somebody else have it."""
        if not fsutil.is_folder(identity.hidden(self._directory)):
            return
        with self._publisher.alone():
            current = leases.find_current(lease)
            if current is not None and current.token == lease.token:
                leases.remove(lease)
        self._free(lease)

    def _free(self, lease: Lease) -> None:
        """Remove the bytes of what was replaced, and was kept only as long as it was leased."""
        with suppress(OSError, JournalInDoubt):  # whoever empties the trash next comes to it
            if any(left.uuid == lease.uuid for left in read_trash.list_trash(self._directory)):
                self._publisher.empty_trash()


class Turn:
    """A lease that this process has, renewed until it is given back.

    A forked child has no part in it.
    """

    def __init__(self, evaluator: Evaluator, lease: Lease) -> None:
        self._evaluator = evaluator
        self._lease = lease
        self._process = os.getpid()
        # Held as long as it is to be renewed. No event: an interrupt may leave that one locked.
        renewing = threading.Lock()
        renewing.acquire()
        self._renewing: threading.Lock | None = renewing
        try:
            Task(partial(_keep, lease, renewing)).start()
        except RuntimeError as error:  # no more threads: it holds as long as it does
            _logger.warning("the lease %s cannot be renewed: %s", lease.path, error)

    def finish(self) -> bool:
        """Give it back done; False when somebody else has had it meanwhile.

        Raises:
            OSError: That it is done cannot be recorded; the lease will expire.
            RunLocked: Another process keeps the run's lock; the lease will expire.
        """
        if os.getpid() != self._process:
            return False
        self._end()
        return self._evaluator.finish(self._lease)

    def give_up(self) -> None:
        """Give it back undone; where that cannot be said, it will expire."""
        if os.getpid() != self._process:
            return
        self._end()
        try:
            self._evaluator.give_up(self._lease)
        except (OSError, CkptdbError) as error:
            _logger.warning("the lease %s is left to expire: %s", self._lease.path, error)

    def _end(self) -> None:
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.release()


def _keep(lease: Lease, renewing: threading.Lock) -> None:
    """Renew a lease as long as the lock is held; outside of `Turn`, which must not live as long."""
    # Signals are for the main thread; one that came here would not wake it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while not renewing.acquire(timeout=lease.seconds / RENEWALS):
        try:
            if not leases.renew(lease):
                _logger.warning("somebody else has the lease %s by now", lease.path)
                return
        except OSError as error:
            _logger.info("the lease %s is not renewed for now: %s", lease.path, error)
