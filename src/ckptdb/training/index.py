"""The index of one run: healed before every answer, and never in the way of a save.

A failing catalog is caught here, and nowhere else in a training loop. A warning names it once,
questions are answered by the same `Catalog` in memory, filled from disk by the same reconcile, and
the stored catalog is tried again later.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import Location
from ckptdb.core import fork, warnings
from ckptdb.core.changes import Changes
from ckptdb.core.records import Checkpoint, Problem
from ckptdb.disk import identity, root_marker, run_stamp
from ckptdb.disk.observation import ReadFiles
from ckptdb.disk.publish import Publisher
from ckptdb.disk.transaction import StampChange
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogReadOnly,
    IndexStale,
    JournalInDoubt,
    RunLocked,
)
from ckptdb.reconcile.fallback import EXPECTED, Fallback
from ckptdb.reconcile.location import find_fixed_location, fix_choice
from ckptdb.training.followed_run import FollowedRun
from ckptdb.training.missed_saves import MissedSaves
from ckptdb.training.root_warnings import warn_about_root
from ckptdb.training.run_healing import RunHealing, RunView

_T = TypeVar("_T")
_logger = logging.getLogger("ckptdb")

PATIENCE_SECONDS = 2.0
"""Time that all waits of one save on the catalog may take together."""
WORK_SECONDS = 120.0
"""Time that one query or transaction may take, however large the catalog is. A catalog that takes
longer was made to do so, or its disk is of no use; training goes on without it."""

# SQLite has no checksums: flipped bits can come back as text that is no UTF-8, no JSON, no number.
_NONSENSE = (ValueError, TypeError, LookupError)
_FAILURES = (CatalogError, RunLocked, OSError, *_NONSENSE)

Query = Callable[[Catalog, int, dict[str, Any]], _T]
"""Queries a catalog about a run, by id; may keep answers in the memo while nothing changes."""


class RunIndex:
    """The index of one run: queries of it, and records of what was done on disk.

    Args:
        publisher: Changes the run's directory, for what a crash left there.
        choice: The catalog, when it was chosen explicitly.
        durable: Whether the catalog's own commits are flushed.
        on_problem: Called once for a catalog that is given up, and once for each checkpoint that
            cannot be trusted; must not wait.

    Attributes:
        files: The run's files, read again only where they have changed.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        choice: str | os.PathLike[str] | None = None,
        durable: bool = True,
        on_problem: Callable[[Problem], None] = lambda _: None,
    ) -> None:
        self._publisher = publisher
        self._directory = publisher.directory
        self._choice = fix_choice(choice)
        self._durable = durable
        self._on_problem = on_problem
        self._mutex = threading.RLock()
        self._stored: RunView | None = None
        self._memory: RunView | None = None
        self._fallback = Fallback()
        self._healing = RunHealing(publisher, on_problem)
        self._missed = MissedSaves(self._directory, self._healing.find_uuid)
        self._patience = PATIENCE_SECONDS
        self._has_checked_root = False
        self.files = ReadFiles(self._directory)
        fork.AFTER_FORK.add(self)

    # --- queries --------------------------------------------------------------------------

    def query(self, question: Query[_T], *, nothing: _T, trust_own: bool = False) -> _T:
        """Answer a question about the run as it is on disk now.

        Args:
            question: Gets a catalog that has been brought up to date.
            nothing: The answer when the run does not exist.
            trust_own: Accept a stamp that only our own changes have advanced.
        """
        with self._mutex:
            try:
                stored = self._open(for_writing=False)
                if stored is not None:
                    return self._answer(stored, question, nothing, trust_own=trust_own)
            except _FAILURES as error:
                self._handle_failure(error)
            return self._answer(self._get_memory(), question, nothing, trust_own=trust_own)

    def query_stored(self, question: Callable[[Catalog, int], _T], *, nothing: _T) -> _T:
        """Answer from the rows that the stored catalog has now, without reading the directory.

        Args:
            question: Gets the catalog, and the run by id.
            nothing: The answer when there is no run or no usable catalog.
        """
        with self._mutex:
            try:
                stored = self._open(for_writing=False)
                run = stored.catalog.runs.find(self._healing.find_uuid()) if stored else None
                return question(stored.catalog, run.id) if stored and run else nothing
            except _FAILURES as error:
                self._handle_failure(error)
                return nothing

    def find_followed(self) -> FollowedRun | None:
        """Return what is known of the run if only this process has changed it since its listing.

        A change by another process moves the stamp, unless it falls into one tick of the file
        system's clock with a change of ours and removes as many directories as it adds.
        """
        with self._mutex:
            view = self._stored or self._memory
            followed = view.followed if view else None
            now = run_stamp.find_stamp(self._directory) if followed else None
            return followed if followed and followed.stamp.is_same(now) else None

    def _answer(self, view: RunView, question: Query[_T], nothing: _T, *, trust_own: bool) -> _T:
        self._healing.heal(view, trust_own=trust_own)
        if view.run_id is None:
            return nothing
        return question(view.catalog, view.run_id, view.memo)

    # --- before a deletion ----------------------------------------------------------------

    def check_journal(self) -> None:
        """Find out whether index and journal contradict each other about what is kept."""
        # A journal that was cut has moved the stamp, whoever advanced it.
        self.query(lambda *_: None, nothing=None, trust_own=True)
        self.finish_repairs()

    def finish_repairs(self) -> None:
        """Finish what a crash left half done in the run, and journal what has vanished.

        A question leaves that alone; this is for those who act on the run.
        """
        with self._mutex:
            if not self._healing.is_unfinished:
                return
            self._healing.is_unfinished = False
            try:
                stored = self._open(for_writing=False)
                if stored is not None:
                    self._healing.finish(stored)
            except _FAILURES as error:
                self._handle_failure(error)

    def ensure_deletable(self) -> None:
        """Make sure that nothing was found that forbids every deletion.

        Raises:
            JournalInDoubt: Index and journal contradict each other, or the journal is damaged.
            OSError: The journal is there and cannot be read.
        """
        # Damage may have kept the journal's length, which is all that a question compares.
        doubt = self._healing.doubt or self._publisher.find_doubt()
        if doubt is not None:
            raise JournalInDoubt(self._directory, doubt)

    def read_everything(self) -> None:
        """Read every file of the run again, because the index contradicts one of them."""
        with self._mutex:
            for view in (self._stored, self._memory):
                try:
                    if view is not None:
                        self._healing.read_all(view)
                except (CatalogError, RunLocked, OSError) as error:
                    self._give_up(error)

    # --- records --------------------------------------------------------------------------

    def begin_save(self) -> None:
        """Start counting the waits of another save."""
        self._patience = PATIENCE_SECONDS

    def record(
        self,
        checkpoints: Sequence[Checkpoint],
        span: StampChange,
        *,
        config: Mapping[str, Any] | None = None,
        config_step: int | None = None,
    ) -> None:
        """Store what was just done on disk; a later question heals what cannot be stored.

        Args:
            checkpoints: As they are now; the last is the one that was saved.
            span: The run's stamp before and after.
            config: The run's configuration, when that checkpoint came with one.
            config_step: Otherwise the step whose configuration is stored, when that is known.
        """
        with warnings.warning_afterwards(), self._mutex:
            started = time.monotonic()
            is_stored = False
            try:
                self._check_root()
                stored = self._open(for_writing=True)
                if stored is not None:
                    self._missed.search(stored.catalog.database.location)
                    is_new = self._healing.is_new_to(stored)
                    changes = self._changes(checkpoints, span, config, config_step)
                    self._store(stored, changes, span)
                    if is_new:
                        # The run may hold more than this, which answers over all runs need.
                        self._healing.heal(stored, trust_own=True)
                    is_stored = True
                    self._catch_up(stored)
            except _FAILURES as error:
                self._handle_failure(error, is_save=True)
            finally:
                spent = time.monotonic() - started
                self._patience = max(self._patience - spent, 0.05)
            if not is_stored:
                self._missed.leave_note(self._find_location, make_durable=self._durable)

    def record_findings(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Store what a closer reading of published checkpoints has found, in memory too."""
        for checkpoint in checkpoints:
            if checkpoint.problem is not None:
                self._healing.report_problem(checkpoint.step, checkpoint.problem)
        self.record(checkpoints, None)
        with self._mutex:
            if self._memory is not None:
                changes = self._changes(checkpoints, None, None, None)
                self._store(self._memory, changes, None)

    def _changes(
        self,
        checkpoints: Sequence[Checkpoint],
        span: StampChange,
        config: Mapping[str, Any] | None,
        config_step: int | None,
    ) -> Changes:
        return Changes(
            run=identity.identify(self._directory).run,
            checkpoints=checkpoints,
            config=config,
            config_step=config_step if config is None else checkpoints[-1].step,
            stamp_moved=None if span is None else (str(span[0]), str(span[1])),
        )

    def _store(self, view: RunView, changes: Changes, span: StampChange) -> None:
        followed = view.forget()
        try:
            view.run_id = view.catalog.apply(changes, timeout_seconds=self._patience)
        except IndexStale:
            self._healing.heal(view, trust_own=False)
            return
        if span is not None and followed is not None and span[0].is_same(followed.stamp):
            followed.advance(changes.checkpoints, span[1])
            view.followed = followed

    def _catch_up(self, stored: RunView) -> None:
        """Bring a catalog that works again to the saves that it has missed."""
        if self._missed.is_behind:
            with self._missed.catching_up(stored.catalog.database.location):
                self._healing.heal(stored, trust_own=False)

    def _check_root(self) -> None:
        if not self._has_checked_root:
            self._has_checked_root = True
            warn_about_root(self._directory, self._find_location())

    # --- which catalog ------------------------------------------------------------------

    def close(self) -> None:
        """Close the catalog; the next question opens it again."""
        with self._mutex:
            if self._stored is not None:
                self._stored.catalog.database.close()
            self._stored = None

    def close_quietly(self) -> None:
        """Close a catalog that may be broken."""
        try:
            self.close()
        except CatalogError as error:
            _logger.info("closing the catalog: %s", error)
            self._stored = None

    def after_fork(self) -> None:
        """Begin anew in a child; called there by the fork itself."""
        # A thread of the parent may hold the mutex, and the child does not have that thread.
        self._mutex = threading.RLock()
        fork.keep_for_ever((self._stored, self._memory))
        self._stored = self._memory = None
        self._fallback.after_fork()

    def _find_location(self) -> Location:
        return find_fixed_location(self._directory, self._choice)

    def _open(self, *, for_writing: bool) -> RunView | None:
        """Return the stored catalog, None as long as it is left alone."""
        if self._stored is not None:
            if not self._stored.catalog.database.replaced():
                return self._stored
            self.close()
        if self._fallback.is_active:
            return None
        location = self._find_location()
        # A directory that was removed meanwhile is not created again; only a save does that.
        if for_writing and location.base == self._directory and self._directory.is_dir():
            root_marker.mark_root(self._directory, make_durable=self._durable)
        database = Database.open(
            location,
            create=for_writing,
            upgrade=for_writing,
            durable=self._durable,
            timeout_seconds=self._patience if for_writing else PATIENCE_SECONDS,
            work_seconds=WORK_SECONDS,
        )
        self._stored = RunView(Catalog(database), is_stored=True)
        return self._stored

    def _get_memory(self) -> RunView:
        if self._memory is None:
            self._memory = RunView(self._fallback.get_memory(), is_stored=False)
        return self._memory

    def _handle_failure(self, error: Exception, *, is_save: bool = False) -> None:
        """Give the stored catalog up if that is what failed; the caller goes on without it."""
        if isinstance(error, CatalogError | RunLocked | PermissionError):
            self._give_up(error, is_save=is_save)
        elif isinstance(error, _NONSENSE):
            _logger.info("the catalog holds nonsense", exc_info=error)
            self._give_up(CatalogBroken(str(self._find_location()), str(error)))
        elif is_save:
            # E.g. no space for the first catalog of a run: the checkpoint is safe all the same.
            self._give_up(error)
        else:
            # E.g. a read-only file system under a run that needs repair.
            _logger.info("%s cannot be repaired: %s", self._directory, error)

    def _give_up(self, error: Exception, *, is_save: bool = False) -> None:
        # A process that may only read has nothing to repair with; a save has to be stored.
        is_expected = isinstance(error, EXPECTED) and not is_save
        is_first = self._fallback.activate(error, is_expected=is_expected)
        self.close_quietly()
        if is_expected:
            return
        _logger.warning("catalog given up for now: %s", error)
        if is_first:
            self._on_problem(Problem("catalog", self._directory, error))
            later = (
                "whoever may write the catalog completes it with `ckptdb reconcile`."
                if isinstance(error, CatalogReadOnly)
                else "the catalog is completed when it works again."
            )
            warnings.warn(
                f"{error} Checkpoints are saved as usual and questions are answered from disk; "
                f"{later}"
            )
