"""Transactions: changes of a run under its lock, with durable names, that move its stamp."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from ckptdb.core.facts import Fact
from ckptdb.core.observed import Identity
from ckptdb.core.ranking import RankedBy
from ckptdb.core.records import Run
from ckptdb.core.stamp import Stamp
from ckptdb.core.times import utc
from ckptdb.disk import (
    fsutil,
    identity,
    journal,
    names,
    paths,
)
from ckptdb.disk.journal_pins import Pins
from ckptdb.disk.lock import run_lock
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.disk.safe_path import DirectoryId, anchored
from ckptdb.errors import JournalInDoubt, RunNotHere

_NO_DIRECTORY = "for there is no such directory"
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

StampChange = tuple[Stamp, Stamp] | None
"""The run's stamp before and after an operation; None when somebody else came between."""


class Changing:
    """Parts that every change of a run needs.

    Args:
        directory: The run, absolute.
        of: The run to change; None for any.
        directory_id: Directory that was judged; None for any.
        make_durable: Flush each step before the next.
        metric: Name and whether higher is better, written to run.json; None leaves it alone.
        remember: When that is another metric, by what the run was ranked until now.
        trash_ttl_seconds: Time in which a retired checkpoint can be undeleted.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        *,
        of: Run | None = None,
        directory_id: DirectoryId | None = None,
        make_durable: bool = True,
        metric: tuple[str, bool] | None = None,
        remember: bool = True,
        trash_ttl_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._of = of
        self._directory_id = directory_id
        self._hidden = identity.hidden(directory)
        self._trash = self._hidden / names.TRASH
        self._durable = make_durable
        self._metric = metric
        self._remember = remember
        self.trash_ttl_seconds = trash_ttl_seconds
        self._clock = clock
        self._names_durable = not make_durable
        self._known_as: tuple[str, str | None] | None = None
        self._pins = Pins(self._hidden)

    def find_doubt(self) -> str | None:
        """Return why nothing may be deleted by what the journal says, in words; None if it may.

        Raises:
            OSError: The journal is there and cannot be read.
        """
        return self._pins.find_doubt()

    def _refuse_in_doubt(self) -> None:
        doubt = self.find_doubt()
        if doubt is not None:
            raise JournalInDoubt(self.directory, doubt)

    def record(self, facts: Sequence[Fact]) -> StampChange:
        """Append facts to the run's journal."""
        with self._changing() as (_, watch):
            self._append(watch, facts)
            return watch.span

    @contextmanager
    def alone(self) -> Iterator[tuple[Identity, Callable[[Sequence[Fact]], None]]]:
        """Hold the run's lock; yields who the run is, and what appends facts to its journal."""
        with self._changing() as (who, watch):
            yield who, partial(self._append, watch)

    def establish(self) -> Identity:
        """Make the run's identity permanent without changing anything else."""
        with self._changing() as (who, _):
            return who

    def record_pruned_by(self, ranked_by: RankedBy) -> None:
        """Note in run.json by what the run was pruned."""
        with self._changing():
            identity.record_pruned_by(self.directory, ranked_by, make_durable=self._durable)

    @contextmanager
    def _changing(self, *, first: bool = False) -> Iterator[tuple[Identity, StampWatch]]:
        if first:
            # With the trash: when the disk is full, there may be no space for another directory.
            fsutil.make_directories(self._trash, durable=self._durable)
        with self._anchored():
            if not first:
                self.must_be_here()
            self._make_folders()
            with run_lock(self._hidden):
                if not first:
                    self.must_be_here()
                self._make_names_durable()
                who = self._establish_locked(first=first)
                known_as = who.run.uuid, who.run.created_at
                if known_as != self._known_as:
                    # One that was begun anew has a journal of its own.
                    self._pins = Pins(self._hidden)
                    self._known_as = known_as
                yield who, StampWatch(self.directory)

    @contextmanager
    def _anchored(self) -> Iterator[None]:
        """Resolve all below the run from its directory as it is now, whoever moves it."""
        try:
            stack = ExitStack()
            directory_id = stack.enter_context(anchored(self.directory))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._not_here(_NO_DIRECTORY) from error
        with stack:
            if self._directory_id not in (None, directory_id):
                raise self._not_here("where another directory is by now")
            yield

    def _make_folders(self) -> None:
        """Make the folders of ours, and make sure that they are no others.

        Whoever has something to say about a run finds it there, or is told that it is gone: a
        directory made where one was moved away, or is not mounted, would seem to be the run.
        """
        try:
            for folder in (self._hidden, self._trash):
                fsutil.make_folder(folder, durable=self._durable)
            paths.check_folder(self._trash)
        except FileNotFoundError as error:
            raise self._not_here(_NO_DIRECTORY) from error

    def must_be_here(self) -> None:
        """Make sure that the run is there, and is the one that is meant.

        Raises:
            RunNotHere: It is not; nothing was changed.
        """
        if self._directory_id not in (None, paths.find_directory_id(self.directory)):
            raise self._not_here("where another directory is by now")
        who = identity.find(self.directory)
        if who is None:
            raise self._not_here(_NO_DIRECTORY)
        meant = self._of
        if meant is None or who.run.uuid == meant.uuid:
            return
        if not who.recorded and who.run.forked_from == meant.uuid:
            return  # it came back from a backup: what is written now makes it a run of its own
        if not who.marked:
            raise self._not_here("for the directory there has no .ckptdb/run.json")
        raise self._not_here(who.problem or "where another run is by now")

    def _not_here(self, why: str) -> RunNotHere:
        name = self.directory.name if self._of is None else self._of.name
        return RunNotHere(name, self.directory, why.removesuffix("."))

    def _make_names_durable(self) -> None:
        """Once, flush the names that all others hang on: who made them may not have come to it."""
        if self._names_durable:
            return
        fsutil.fsync(self._hidden)
        fsutil.fsync(self.directory)
        # One that is not to be read, we cannot have written.
        with suppress(PermissionError):
            fsutil.fsync(self.directory.parent)
        self._names_durable = True

    def _establish_locked(self, *, first: bool) -> Identity:
        metric_name, higher_is_better = self._metric or (None, False)
        try:
            return identity.establish(
                self.directory,
                metric_name=metric_name,
                higher_is_better=higher_is_better,
                keep_metric=self._metric is None,
                make_durable=self._durable,
                first=first,
                remember=self._remember,
            )
        except OSError as error:
            if first or error.errno not in NO_SPACE:
                raise
            # A copied run on a full disk has no identity of its own yet; checkpoints can be deleted
            # from it all the same, by the identity that it will get.
            return identity.identify(self.directory)

    def _append(self, watch: StampWatch, facts: Sequence[Fact]) -> None:
        if facts:
            with watch.change():
                grown = journal.append(self._hidden, facts, make_durable=self._durable)
            self._pins.follow(grown)

    def _sync_directory(self) -> None:
        # The commit point: only after it may anything older be removed.
        if self._durable:
            fsutil.fsync(self.directory)

    def _final(self, step: int) -> Path:
        return self.directory / names.final_name(step)

    def _now(self) -> str:
        return utc(self._clock())
