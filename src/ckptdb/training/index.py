"""One run's view of the index: healed before every answer, and never in the way of a save.

`RunIndex` is the one place where a failing catalog is caught. It is then warned about once,
questions are answered by the same `Catalog` in memory, filled from disk by the same
reconcile, and the catalog is tried again later.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.store import Changes
from ckptdb.core import fork, warnings
from ckptdb.core.candidates import Candidate
from ckptdb.core.records import Checkpoint, Problem
from ckptdb.core.stamp import Stamp
from ckptdb.disk import (
    fsutil,
    identity,
    names,
    root_marker,
    run_finder,
    run_stamp,
)
from ckptdb.disk.observation import ReadFiles
from ckptdb.disk.pending_index import Note, Notes
from ckptdb.disk.publish import Publisher
from ckptdb.disk.transaction import StampChange
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogMissing,
    CatalogOutdated,
    CatalogReadOnly,
    IndexStale,
    JournalInDoubt,
    RunLocked,
    Untrustworthy,
)
from ckptdb.reconcile.action import NOT_RANKED
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.location import find_fixed_location, fix_choice
from ckptdb.reconcile.options import ReconcileDepth
from ckptdb.reconcile.repairs import Completing
from ckptdb.reconcile.report import RunReport
from ckptdb.reconcile.run import index_run, reconcile_run

_T = TypeVar("_T")
_logger = logging.getLogger("ckptdb")

PATIENCE_SECONDS = 2.0
"""How long all waits of one save on the catalog may take together."""
WORK_SECONDS = 120.0
"""How long a catalog may work on one question or transaction, however large it is: it was made to
take that long, or its disk is of no use, and training goes on without it."""
RETRY_SECONDS = 10.0
"""How long a catalog that failed is left alone."""
LISTING_SHARE = 1 / 20
"""How much of its time a loop that saves without a pause may spend on listing its run again."""

# A reader that may not write has nothing to repair with; that is no failure to warn about.
_QUIET = (CatalogMissing, CatalogOutdated, CatalogReadOnly)
# SQLite has no checksums: flipped bits can come back as text that is no UTF-8, no JSON, no number.
_NONSENSE = (ValueError, TypeError, LookupError)


@dataclass(slots=True)
class Fresh:
    """A catalog and the state of the run it is known to show.

    Attributes:
        stamp: The stamp that a settled listing has confirmed.
        memo: Answers that hold as long as that stamp does.
        followed: What is known beyond our own changes, None when somebody else's came between.
    """

    catalog: Catalog
    run_id: int | None = None
    stamp: Stamp | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    followed: Followed | None = None


@dataclass(slots=True)
class Followed:
    """A run that since this process has looked at it was changed by nobody else.

    Attributes:
        stamp: As it is now, settled or not.
        listed_at: When its directory was listed last (monotonic).
        listing_seconds: How long that took.
        at_most: How many published checkpoints it has, or more; infinite when not counted.
        ranked_by: Metrics of which each of them has a value.
        resumed_from: uuid of what training was last resumed from, when that was asked.
        by_files: By uuid, what is published by its files; None when that was not looked at.
    """

    stamp: Stamp
    listed_at: float = -math.inf
    listing_seconds: float = 0.0
    at_most: float = math.inf
    ranked_by: frozenset[str] = frozenset()
    resumed_from: str | None = None
    by_files: dict[str, Candidate] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether listing it again would take more than its share of the time since."""
        return (time.monotonic() - self.listed_at) * LISTING_SHARE < self.listing_seconds

    def move(self, told: Sequence[Checkpoint], stamp: Stamp) -> None:
        """Follow a change of our own."""
        self.stamp = stamp
        published = [checkpoint for checkpoint in told if checkpoint.status == "final"]
        self.at_most += len(published)
        for checkpoint in published:
            ranks = {name for name, value in checkpoint.metrics.items() if value is not None}
            self.ranked_by &= ranks
        if self.by_files is not None:
            for checkpoint in told:
                self.by_files.pop(checkpoint.uuid, None)
            self.by_files |= {cp.uuid: _candidate(cp) for cp in published}


Question = Callable[[Catalog, int, dict[str, Any]], _T]
"""Asks a catalog about a run, by id; may keep answers in the memo while nothing changes."""


class RunIndex:
    """Asks and tells the catalog about one run.

    Args:
        publisher: Changes the run's directory, for what a crash left there.
        choice: The catalog, when it was chosen explicitly.
        durable: Whether the catalog's own commits are flushed.
        on_problem: Told of a catalog that is given up, and of checkpoints that were found not to
            be trustworthy, each once; must not wait.
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
        self._mutex = threading.RLock()
        self._stored: Fresh | None = None
        self._memory: Fresh | None = None
        self._retry_at = 0.0
        self._patience = PATIENCE_SECONDS
        self._warned = False
        self._missed = False
        self._has_looked_for_notes = False
        self._placed = False
        self._on_problem = on_problem
        self._reported: set[tuple[int, str]] = set()
        self._doubt: str | None = None
        self._is_unfinished = False
        self.files = ReadFiles(self._directory)
        fork.AFTER_FORK.add(self)

    def begin_save(self) -> None:
        """Start counting the waits of another save."""
        self._patience = PATIENCE_SECONDS

    def ask(self, question: Question[_T], *, nothing: _T, trust_own: bool = False) -> _T:
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
            except (CatalogError, RunLocked, PermissionError) as error:
                self._give_up(error)
            except _NONSENSE as error:
                self._give_up(self._broken(error))
            except OSError as error:
                # E.g. a read-only file system under a run that needs repair.
                _logger.info("%s cannot be repaired: %s", self._directory, error)
            return self._answer(self._in_memory(), question, nothing, trust_own=trust_own)

    def peek(self, question: Callable[[Catalog, int], _T], *, nothing: _T) -> _T:
        """Answer from what the catalog holds of the run just now: nothing is listed or repaired.

        Args:
            question: Gets the catalog, and the run by id.
            nothing: The answer when the run or the catalog is not there, or it cannot be asked.
        """
        with self._mutex:
            try:
                stored = self._open(for_writing=False)
                seen = stored.catalog.find_run(self._uuid()) if stored else None
                return question(stored.catalog, seen.id) if stored and seen else nothing
            except CatalogError as error:
                self._give_up(error)
            except _NONSENSE as error:
                self._give_up(self._broken(error))
            except OSError as error:
                _logger.info("%s cannot be looked at: %s", self._directory, error)
            return nothing

    def look_for_doubt(self) -> None:
        """Find out whether index and journal contradict each other about what is kept."""
        # A journal that was cut has moved the stamp, whoever advanced it.
        self.ask(lambda *_: None, nothing=None, trust_own=True)
        self.finish()

    def finish(self) -> None:
        """Finish what looking has found half done in the run, and write down what has vanished.

        A question leaves that alone; this is for whoever acts on the run.
        """
        with self._mutex:
            if not self._is_unfinished:
                return
            self._is_unfinished = False
            try:
                stored = self._open(for_writing=False)
                if stored is None:
                    return
                stored.stamp = stored.followed = None
                stored.memo.clear()
                report = reconcile_run(
                    stored.catalog, self._directory, depth="changes", publisher=self._publisher
                )
                self._doubt = report.doubt
                if report.blocked:
                    _logger.info("not finished: %s", report.blocked)
            except (CatalogError, RunLocked, PermissionError) as error:
                self._give_up(error)
            except _NONSENSE as error:
                self._give_up(self._broken(error))
            except OSError as error:
                _logger.info("%s cannot be repaired: %s", self._directory, error)

    def refuse_in_doubt(self) -> None:
        """Make sure that nothing was found that forbids every deletion.

        Raises:
            JournalInDoubt: Index and journal contradict each other, or the journal is damaged.
            OSError: The journal is there and cannot be read.
        """
        # What has damaged the journal may have left its length, which is all that a question sees.
        doubt = self._doubt or self._publisher.find_doubt()
        if doubt is not None:
            raise JournalInDoubt(self._directory, doubt)

    def follow(self) -> Followed | None:
        """Return what is known of the run if only our own changes have come since it was seen.

        Somebody else's moves the stamp, unless it falls into one tick of the file system's clock
        with one of ours and takes as many directories away as it adds.
        """
        with self._mutex:
            fresh = self._stored or self._memory
            followed = fresh.followed if fresh else None
            if followed is None or not followed.stamp.is_same(
                run_stamp.find_stamp(self._directory)
            ):
                return None
            return followed

    def read_again(self) -> None:
        """Read every file of the run again: the index was found to contradict one."""
        with self._mutex:
            for fresh in (self._stored, self._memory):
                if fresh is None:
                    continue
                fresh.stamp = fresh.followed = None
                fresh.memo.clear()
                try:
                    self._report(self._look(fresh, depth="full"))
                except (CatalogError, RunLocked, OSError) as error:
                    self._give_up(error)

    def tell(
        self,
        checkpoints: Sequence[Checkpoint],
        span: StampChange,
        *,
        config: Mapping[str, Any] | None = None,
        config_step: int | None = None,
    ) -> None:
        """Store what was just done on disk; what fails is healed by a later question.

        Args:
            checkpoints: As they are now; the last is the one that was saved.
            span: The run's stamp before and after.
            config: The run's configuration, when that checkpoint came with one.
            config_step: Else with which step the one came that is stored, when that is known.
        """
        with warnings.warning_afterwards(), self._mutex:
            started = time.monotonic()
            missed = True
            try:
                self._check_place()
                stored = self._open(for_writing=True)
                if stored is not None:
                    self._look_for_notes(stored)
                    is_new = self._is_new_to(stored)
                    changes = self._changes(checkpoints, span, config, config_step)
                    self._store(stored, changes, span)
                    if is_new:
                        # It may hold more than this: answers over all runs must not lack that.
                        self._heal(stored, trust_own=True)
                    missed = False
                    self._catch_up(stored)
            except (CatalogError, RunLocked, OSError) as error:
                # E.g. no space for the first catalog of a run: the checkpoint is safe all the same.
                self._give_up(error, quiet=())
            except _NONSENSE as error:
                self._give_up(self._broken(error))
            finally:
                spent = time.monotonic() - started
                self._patience = max(self._patience - spent, 0.05)
            if missed:
                self._note_missed()

    def _is_new_to(self, stored: Fresh) -> bool:
        """Whether the catalog has never been compared with the run's directory."""
        if stored.run_id is not None:
            return False
        seen = stored.catalog.find_run(self._uuid())
        return (seen is None or seen.stamp is None) and self._is_ours()

    def _check_place(self) -> None:
        """Warn once of a root that is passed over, and of a run that its root would not find."""
        if self._placed:
            return
        self._placed = True
        location = find_fixed_location(self._directory, self._choice)
        root = location.base
        if root == self._directory:
            for marker in root_marker.find_markers(self._directory):
                if not marker.counts:
                    warnings.warn(
                        f"{marker}: its catalog is not used, but {location}. To share that of "
                        f"{marker.root}, let a common group write to {marker.root}/.ckptdb and "
                        "nobody else, or name one catalog for both with catalog= or CKPTDB_CATALOG."
                    )
        if root is not None and (where := run_finder.find_unsearched(root, self._directory)):
            warnings.warn(
                f"{self._directory} lies {'behind the link' if where.is_symlink() else 'in'} "
                f"{where}, where no runs are looked for: when the catalog is lost, only "
                f"`ckptdb reconcile {self._directory}` finds it again."
            )

    def _note_missed(self) -> None:
        """Leave a note for answers over all runs, which would not compare this one."""
        self._missed = True
        try:
            location = find_fixed_location(self._directory, self._choice)
            notes = Notes(location.notes, location.base)
            notes.add(self._directory, self._uuid(), make_durable=self._durable)
        except (CatalogError, OSError) as error:
            _logger.info("no note that the catalog is behind: %s", error)

    def _look_for_notes(self, stored: Fresh) -> None:
        """Once, look whether somebody has left a note that the catalog is behind on the run."""
        if self._has_looked_for_notes:
            return
        self._has_looked_for_notes = True
        location = stored.catalog.database.location
        self._missed |= bool(Notes(location.notes, location.base).find(self._uuid()))

    def _catch_up(self, stored: Fresh) -> None:
        """Bring a catalog that works again to all that it has missed from this process."""
        if not self._missed:
            return
        location = stored.catalog.database.location
        notes: Sequence[Note] = Notes(location.notes, location.base).find(self._uuid())
        with suppress(OSError):
            notes = [note.claim() for note in notes]
        self._heal(stored, trust_own=False)
        self._missed = False
        for note in notes:
            note.remove()

    def _uuid(self) -> str:
        return identity.identify(self._directory).run.uuid

    def learn(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Store what looking closer at published checkpoints has shown, wherever one answers."""
        for checkpoint in checkpoints:
            if checkpoint.problem is not None:
                self._report_one(checkpoint.step, checkpoint.problem)
        self.tell(checkpoints, None)
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
            moved=None if span is None else (str(span[0]), str(span[1])),
        )

    def _store(self, stored: Fresh, changes: Changes, span: StampChange) -> None:
        followed, stored.followed = stored.followed, None
        stored.stamp = None
        stored.memo.clear()
        try:
            stored.run_id = stored.catalog.apply(changes, timeout_seconds=self._patience)
        except IndexStale:
            self._heal(stored, trust_own=False)
            return
        if span is not None and followed is not None and span[0].is_same(followed.stamp):
            followed.move(changes.checkpoints, span[1])
            stored.followed = followed

    def close(self) -> None:
        """Close the catalog; the next question opens it again."""
        with self._mutex:
            if self._stored is not None:
                self._stored.catalog.database.close()
            self._stored = None

    def after_fork(self) -> None:
        """Begin anew in a child; called there by the fork itself."""
        # A thread of the parent may be in the middle of it, which the child does not have.
        self._mutex = threading.RLock()
        fork.keep_for_ever((self._stored, self._memory))
        self._stored = self._memory = None

    # --- which catalog ------------------------------------------------------------------

    def _open(self, *, for_writing: bool) -> Fresh | None:
        if self._stored is not None:
            if not self._stored.catalog.database.replaced():
                return self._stored
            self.close()
        if time.monotonic() < self._retry_at:
            return None
        location = find_fixed_location(self._directory, self._choice)
        # What has been removed meanwhile is not made again; only a save does that.
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
        self._stored = Fresh(Catalog(database))
        return self._stored

    def _is_ours(self) -> bool:
        """Before our first write there is no journal to say what is gone."""
        return fsutil.is_there(identity.hidden(self._directory) / "run.json")

    def _in_memory(self) -> Fresh:
        if self._memory is None:
            self._memory = Fresh(Catalog(Database.in_memory()))
        return self._memory

    def _give_up(self, error: Exception, *, quiet: tuple[type[CatalogError], ...] = _QUIET) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self.close_quietly()
        if isinstance(error, quiet):
            if isinstance(error, CatalogMissing):
                self._retry_at = 0.0
            return
        _logger.warning("catalog given up for now: %s", error)
        if not self._warned:
            self._warned = True
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

    def _broken(self, error: Exception) -> CatalogBroken:
        _logger.info("the catalog holds nonsense", exc_info=error)
        return CatalogBroken(str(find_fixed_location(self._directory, self._choice)), str(error))

    def close_quietly(self) -> None:
        """Close a catalog that may be broken."""
        try:
            self.close()
        except CatalogError as error:
            _logger.info("closing the catalog: %s", error)
            self._stored = None

    # --- healing ------------------------------------------------------------------------

    def _answer(self, fresh: Fresh, question: Question[_T], nothing: _T, *, trust_own: bool) -> _T:
        self._heal(fresh, trust_own=trust_own)
        if fresh.run_id is None:
            return nothing
        return question(fresh.catalog, fresh.run_id, fresh.memo)

    def _heal(self, fresh: Fresh, *, trust_own: bool) -> None:
        stamp = run_stamp.find_stamp(self._directory)
        if stamp is None:
            fresh.run_id, fresh.stamp, fresh.followed = None, None, None
            return
        followed = fresh.followed
        if fresh.stamp == stamp or (trust_own and followed and followed.stamp.is_same(stamp)):
            return
        fresh.memo.clear()
        fresh.stamp = fresh.followed = None
        if self._is_known(fresh, stamp, trust_own=trust_own):
            self._doubt = None
            fresh.followed = Followed(stamp)
            return
        if fresh is not self._memory and not self._is_ours():
            raise _Blocked("a run that was never written to is not repaired by looking at it")
        started = time.monotonic()
        report = self._look(fresh, assume=trust_own)
        if report.blocked and fresh is not self._memory:
            raise _Blocked(report.blocked)
        if report.blocked:
            # What memory still has may be gone, and that may not be concluded: begin again.
            fresh.catalog.database.close()
            fresh.catalog = Catalog(Database.in_memory())
            report = self._look(fresh, assume=trust_own)
        self._report(report)
        self._doubt = report.doubt
        fresh.run_id = report.run_id
        fresh.stamp = report.verified
        now = run_stamp.find_stamp(self._directory)
        # What cannot be read may become readable without moving the stamp; a repair has moved it.
        sure = all(action.kind != "unreadable" for action in report.actions)
        if sure and now is not None and now.is_same(stamp):
            ended = time.monotonic()
            fresh.followed = Followed(now, ended, ended - started)

    def _look(
        self, fresh: Fresh, *, depth: ReconcileDepth = "changes", assume: bool = False
    ) -> RunReport:
        """Bring an index to what is on disk; what a crash left complete is published."""
        is_stored = fresh is not self._memory
        report = index_run(
            fresh.catalog,
            self._directory,
            depth=depth,
            assume=assume,
            completing=Completing(self._publisher) if is_stored else None,
        )
        self._is_unfinished |= is_stored and report.is_unfinished
        return report

    def _report(self, report: RunReport) -> None:
        for action in report.actions:
            if action.kind not in ("unreadable", "damaged") or action.step is None:
                continue
            self._report_one(action.step, action.what.removesuffix(NOT_RANKED))

    def _report_one(self, step: int, what: str) -> None:
        if (step, what) not in self._reported:
            self._reported.add((step, what))
            path = self._directory / names.final_name(step)
            self._on_problem(Problem("checkpoint", path, Untrustworthy(path, what)))

    def _is_known(self, fresh: Fresh, stamp: Stamp, *, trust_own: bool) -> bool:
        indexed = fresh.catalog.find_run(self._uuid())
        if indexed is None or indexed.stamp != str(stamp):
            return False
        exact = is_exact(indexed, stamp)
        if exact:
            fresh.stamp = stamp
        if exact or trust_own:
            fresh.run_id = indexed.id
            return True
        return False


def _candidate(checkpoint: Checkpoint) -> Candidate:
    finite = {name: value for name, value in checkpoint.metrics.items() if value is not None}
    return Candidate(checkpoint.step, checkpoint.uuid, finite)


class _Blocked(OSError):
    """The stored index may not be brought to what is on disk; the reason is the message."""
