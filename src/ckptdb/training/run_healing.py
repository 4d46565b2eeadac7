"""Healing the index of one run: it is brought to what is on disk before every answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.records import Problem
from ckptdb.core.stamp import Stamp
from ckptdb.disk import fsutil, identity, names, run_stamp
from ckptdb.disk.publish import Publisher
from ckptdb.errors import Untrustworthy
from ckptdb.reconcile.action import NOT_RANKED
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.options import ReconcileDepth
from ckptdb.reconcile.repairs import Completing
from ckptdb.reconcile.report import RunReport
from ckptdb.reconcile.run import index_run, reconcile_run
from ckptdb.training.followed_run import FollowedRun

_logger = logging.getLogger("ckptdb")


class HealingBlocked(OSError):
    """The stored index may not be brought to what is on disk; the reason is the message."""


@dataclass(slots=True)
class RunView:
    """A catalog, and the state of the run that it is known to show.

    Attributes:
        is_stored: False for a catalog in memory.
        run_id: The run's row, None when there is none.
        stamp: The stamp that a settled listing has confirmed.
        memo: Answers that hold as long as that stamp does.
        followed: Knowledge beyond that; None when another process may have changed the run.
    """

    catalog: Catalog
    is_stored: bool
    run_id: int | None = None
    stamp: Stamp | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    followed: FollowedRun | None = None

    def forget(self) -> FollowedRun | None:
        """Drop what is known of the run's state; return what was known of it as followed."""
        followed, self.followed = self.followed, None
        self.stamp = None
        self.memo.clear()
        return followed


class RunHealing:
    """Brings catalogs to what is on disk in one run.

    Args:
        publisher: Changes the run's directory, for what a crash left there.
        on_problem: Called once for each checkpoint that cannot be trusted; must not wait.

    Attributes:
        doubt: Why nothing of the run may be deleted, as the last healing found; None if it may.
        is_unfinished: Whether work is left in the run that a question may not do.
    """

    def __init__(self, publisher: Publisher, on_problem: Callable[[Problem], None]) -> None:
        self.doubt: str | None = None
        self.is_unfinished = False
        self._publisher = publisher
        self._directory = publisher.directory
        self._on_problem = on_problem
        self._reported: set[tuple[int, str]] = set()

    def heal(self, view: RunView, *, trust_own: bool) -> None:
        """Bring a catalog to what is on disk, unless it is known to be there.

        Args:
            view: The catalog.
            trust_own: Accept a stamp that only our own changes have advanced.

        Raises:
            HealingBlocked: The stored catalog may not be changed by a question.
            OSError: The run cannot be read.
            CatalogError: The catalog fails.
            RunLocked: Another process holds the run's lock.
        """
        stamp = run_stamp.find_stamp(self._directory)
        if stamp is None:
            view.run_id, view.stamp, view.followed = None, None, None
            return
        followed = view.followed
        if view.stamp == stamp or (trust_own and followed and followed.stamp.is_same(stamp)):
            return
        view.forget()
        if self._is_known(view, stamp, trust_own=trust_own):
            self.doubt = None
            view.followed = FollowedRun(stamp)
            return
        if view.is_stored and not self.is_ours():
            raise HealingBlocked("a run that was never written to is not repaired by a question")
        self._list(view, stamp, trust_own=trust_own)

    def _list(self, view: RunView, stamp: Stamp, *, trust_own: bool) -> None:
        """List the run, index it, and follow it from then on."""
        started = time.monotonic()
        report = self.index(view, assume=trust_own)
        if report.blocked and view.is_stored:
            raise HealingBlocked(report.blocked)
        if report.blocked:
            # What memory still has may be gone, and that may not be concluded: begin again.
            view.catalog.database.close()
            view.catalog = Catalog(Database.in_memory())
            report = self.index(view, assume=trust_own)
        self._report_all(report)
        self.doubt = report.doubt
        view.run_id = report.run_id
        view.stamp = report.verified
        now = run_stamp.find_stamp(self._directory)
        # A file may become readable without moving the stamp; a repair has moved it.
        sure = all(action.kind != "unreadable" for action in report.actions)
        if sure and now is not None and now.is_same(stamp):
            ended = time.monotonic()
            view.followed = FollowedRun(now, ended, ended - started)

    def index(
        self, view: RunView, *, depth: ReconcileDepth = "changes", assume: bool = False
    ) -> RunReport:
        """Bring a catalog to what is on disk; what a crash left complete is published."""
        report = index_run(
            view.catalog,
            self._directory,
            depth=depth,
            assume=assume,
            completing=Completing(self._publisher) if view.is_stored else None,
        )
        self.is_unfinished |= view.is_stored and report.is_unfinished
        return report

    def read_all(self, view: RunView) -> None:
        """Bring a catalog to what is on disk, trusting no stamp and no fingerprint."""
        view.forget()
        self._report_all(self.index(view, depth="full"))

    def finish(self, view: RunView) -> None:
        """Finish what a crash left half done in the run, and journal what has vanished."""
        view.forget()
        report = reconcile_run(
            view.catalog, self._directory, depth="changes", publisher=self._publisher
        )
        self.doubt = report.doubt
        if report.blocked:
            _logger.info("not finished: %s", report.blocked)

    def is_new_to(self, view: RunView) -> bool:
        """Tell whether a catalog has never been compared with the run's directory."""
        if view.run_id is not None:
            return False
        indexed = view.catalog.runs.find(self.find_uuid())
        return (indexed is None or indexed.stamp is None) and self.is_ours()

    def is_ours(self) -> bool:
        """Tell whether we have written to the run; before, no journal says what is gone."""
        return fsutil.is_there(identity.hidden(self._directory) / "run.json")

    def find_uuid(self) -> str:
        """Return the run's uuid."""
        return identity.identify(self._directory).run.uuid

    def report_problem(self, step: int, what: str) -> None:
        """Report once that a checkpoint cannot be trusted."""
        if (step, what) not in self._reported:
            self._reported.add((step, what))
            path = self._directory / names.final_name(step)
            self._on_problem(Problem("checkpoint", path, Untrustworthy(path, what)))

    def _report_all(self, report: RunReport) -> None:
        for action in report.actions:
            if action.kind in ("unreadable", "damaged") and action.step is not None:
                self.report_problem(action.step, action.what.removesuffix(NOT_RANKED))

    def _is_known(self, view: RunView, stamp: Stamp, *, trust_own: bool) -> bool:
        """Tell whether the catalog already holds the run as it is at a stamp."""
        indexed = view.catalog.runs.find(self.find_uuid())
        if indexed is None or indexed.stamp != str(stamp):
            return False
        exact = is_exact(indexed, stamp)
        if exact:
            view.stamp = stamp
        if exact or trust_own:
            view.run_id = indexed.id
            return True
        return False
