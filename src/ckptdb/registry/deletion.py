"""Deleting over many runs, by rule and by hand, with a catalog that works or without."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.location import Location
from ckptdb.core import warnings
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint
from ckptdb.disk import names, run_finder
from ckptdb.disk.paths import find_directory_id
from ckptdb.disk.publish import Publisher
from ckptdb.disk.safe_path import DirectoryId
from ckptdb.errors import (
    CatalogMissing,
    CkptdbError,
    DeletionIncomplete,
    JournalInDoubt,
    NotDeleted,
    Obstructed,
    PlanChanged,
    RunLocked,
    RunNotHere,
    RunsNotNamed,
)
from ckptdb.reconcile.fallback import index_in_memory
from ckptdb.reconcile.report import RunReport
from ckptdb.reconcile.run_location import find_there
from ckptdb.registry import gc, judge
from ckptdb.registry.absorb import find_own_doubt
from ckptdb.registry.catalog_access import UNUSABLE
from ckptdb.registry.gc_result import GcResult
from ckptdb.registry.judge import JudgedRun
from ckptdb.registry.opened import PathLike
from ckptdb.registry.scope import list_some
from ckptdb.registry.tree import Tree
from ckptdb.retention import Policy, Replay

_NO_LIMIT = Policy()


class DeletionMethods(Tree):
    """Judges by a catalog that is true, then carries it out."""

    def gc(
        self,
        policy: Policy = _NO_LIMIT,
        *,
        run: PathLike | Sequence[PathLike] | None = None,
        all_runs: bool = False,
        dry_run: bool = False,
        plans: Collection[str] | None = None,
        trash_ttl_seconds: float = 0.0,
        empty_trash: bool = False,
    ) -> tuple[GcResult, ...]:
        """Apply a retention policy and remove what crashes left behind.

        Args:
            policy: Without limits only leftovers are removed. Its metric may be None for
                the run's own.
            run: Name, path or uuid prefix, or several of them; None for those at or below what
                was opened.
            all_runs: That all of these are meant, should they be several.
            dry_run: Only say what would go; that may be asked of several without naming them.
            plans: `GcResult.plan` of each run, from a dry run; any other plan is refused.
            trash_ttl_seconds: How long what goes can be undeleted.
            empty_trash: Also remove what can still be undeleted.

        Raises:
            RunNotHere: The directory of one that is named is not there, or is another's.
            RunsNotNamed: Several are there, and neither are they named, nor is there a plan or
                ``all_runs``. Nothing goes.
            PlanChanged: Something else would go. Nothing goes.
            UnknownDirection: The best are to be kept, and a run has no metric. Nothing goes.
            UnknownMetric: The best are to be kept, and no checkpoint of a run has the metric.
            DeletionIncomplete: Something did not go, or not wholly; what is done in all runs is
                in its ``done``.
            JournalInDoubt: The journal of the only run is damaged, or the catalog contradicts it;
                of several, such a run is left alone, with a warning.
        """
        with (
            warnings.warning_afterwards(),
            self._deciding(run),
        ):
            found = self._find_meant(run)
            if run is None and len(found) > 1 and not (all_runs or dry_run or plans is not None):
                raise RunsNotNamed([seen.run.directory for seen in found])

            def collect(judged: JudgedRun, *, dry_run: bool) -> GcResult:
                run = judged.run
                publisher = Publisher(
                    run.directory,
                    of=run,
                    directory_id=judged.place,
                    trash_ttl_seconds=trash_ttl_seconds,
                )
                return gc.collect(publisher, judged, dry_run=dry_run, empty_trash=empty_trash)

            # All of them are judged before anything goes.
            named = run is not None or self.run is not None
            judged = self._judge_all(found, policy, named=named, dry_run=dry_run)
            if plans is not None:
                _compare([collect(one, dry_run=True) for one in judged], set(plans))
            collected: list[GcResult] = []
            failed: list[NotDeleted] = []
            for one in judged:
                try:
                    collected.append(collect(one, dry_run=dry_run))
                except (OSError, CkptdbError) as error:
                    if len(judged) == 1:
                        raise
                    # What was done in the others must not be hidden by it.
                    failed.append(NotDeleted(one.run.directory, None, error))
            if not dry_run:
                lying = [one.run.directory for one in judged if one.differs]
                self._healing.index_changes(lying, depth="files")
                self._healing.index_changes(
                    one.directory for one in collected if one.decisions or one.leftovers
                )
            _raise_if_incomplete(collected, failed, tuple(collected))
            return tuple(collected)

    def replay(
        self, policy: Policy, *, run: PathLike | Sequence[PathLike] | None = None
    ) -> tuple[Replay, ...]:
        """Say what a policy would have made of runs, had it been theirs from the beginning.

        Args:
            policy: Its metric may be None for the run's own.
            run: Name, path or uuid prefix, or several of them; None for those at or below what
                was opened.

        Raises:
            UnknownDirection: The best are to be kept, and a run has no metric.
            UnknownMetric: No checkpoint of a run has ever had the metric.
        """
        with self._deciding(run):
            exact = (self._exact(seen, dry_run=True) for seen in self._find_meant(run))
            return tuple(judge.replay(catalog, seen, policy) for catalog, seen, _ in exact)

    def remove(
        self,
        steps: Iterable[int],
        *,
        run: PathLike | None = None,
        force: bool = False,
        dry_run: bool = False,
        trash_ttl_seconds: float = 0.0,
    ) -> GcResult:
        """Delete checkpoints of a run by hand.

        Args:
            steps: All of them, or nothing goes.
            run: Name, path or uuid prefix; None for the run that was opened.
            force: Also pinned and leased ones.
            dry_run: Only say what would go.
            trash_ttl_seconds: How long what goes can be undeleted.

        Raises:
            RunNotHere: The run's directory is not there, or is another's.
            UnknownCheckpoint: A step has no live checkpoint.
            PinnedCheckpoint: One is pinned.
            LeasedCheckpoint: One is being evaluated.
            DeletionIncomplete: Something forbids it, and nothing is gone; or it failed midway, and
                the error says what is gone and what is not.
            JournalInDoubt: The run's journal is damaged, or the catalog contradicts it.
        """
        wanted = [names.as_step(step) for step in steps]
        with (
            warnings.warning_afterwards(),
            self._deciding(run),
        ):
            named = self._get_named(run)
            place = find_directory_id(named.run.directory)
            catalog, seen, report = self._exact(named, dry_run=dry_run)
            _refuse_in_doubt(seen, report, catalog.database.location)
            planned = judge.judge_by_hand(catalog, seen, wanted, force=force)
            publisher = Publisher(
                seen.run.directory,
                of=seen.run,
                directory_id=place,
                trash_ttl_seconds=trash_ttl_seconds,
            )
            removed = gc.remove(seen.run, publisher, planned, force=force, dry_run=dry_run)
            if not dry_run:
                self._healing.index_changes([seen.run.directory])
            _raise_if_incomplete([removed], [], removed)
            return removed

    def undelete(self, step: int, *, run: PathLike | None = None) -> Checkpoint:
        """Bring back a checkpoint that was deleted, as long as its bytes are kept.

        Args:
            step: Of several that were deleted there, the last one comes back.
            run: Name, path or uuid prefix; None for the run that was opened.

        Raises:
            UnknownCheckpoint: There never was one.
            NotUndeleted: Its bytes are gone, or another one has its place.
        """
        with (
            warnings.warning_afterwards(),
            self._deciding(run),
        ):
            seen = self._run_names.get(run)
            self._get_at(seen, step)
            found = Publisher(seen.run.directory, of=seen.run).undelete(names.as_step(step))
            self._healing.index_changes([seen.run.directory])
        return found

    def _find_meant(self, run: PathLike | Sequence[PathLike] | None) -> list[IndexedRun]:
        """Return the runs that are named, or those at or below what was opened, that are there."""
        if run is not None and not isinstance(run, str | os.PathLike):
            return list({seen.id: seen for seen in map(self._get_named, run)}.values())
        if run is not None or self.run is not None:
            return [self._get_named(run)]
        scope = self._find_scope(None)
        found = self._bounds.find_present(self._catalog().runs.list_all(among=scope.among))
        found = [seen for seen in found if not self._is_skipped(seen.run.directory)]
        return [*found, *self._find_unlisted({seen.run.directory for seen in found})]

    def _is_skipped(self, directory: Path) -> bool:
        """Tell of a run behind a link out of what was opened, which has to be named."""
        leads = self._bounds.link_leads_outside(directory)
        if leads:
            self._catalogs.warn_once(
                f"Nothing is deleted in {directory}, where a link leads out of {self.directory}; "
                "name the run (`--run`) when it is meant."
            )
        return leads

    def _find_unlisted(self, listed: Collection[Path]) -> list[IndexedRun]:
        """Return the runs at or below what was opened that the catalog does not have there."""
        top = self.directory
        unlisted = [] if top is None else [d for d in run_finder.find_runs(top) if d not in listed]
        if self._place.is_chosen and self.location.base is None:
            return []  # of a catalog elsewhere other runs may have no part
        for directory in unlisted:
            self._healing.heal(directory)
        there = (find_there(self._catalog(), directory) for directory in unlisted)
        return [seen for seen in there if seen is not None and seen.run.directory not in listed]

    def _get_named(self, run: PathLike | None) -> IndexedRun:
        """Return the one run that is meant, if it is there to be deleted from."""
        seen = self._run_names.get(run)
        Publisher(seen.run.directory, of=seen.run).must_be_here()
        return seen

    def _judge_all(
        self, found: Sequence[IndexedRun], policy: Policy, *, named: bool, dry_run: bool
    ) -> list[JudgedRun]:
        judged = []
        for seen in found:
            # Before it is looked at: what is judged is what will be changed.
            find = find_directory_id if named else self._bounds.get_place_inside
            try:
                place = find(seen.run.directory)
                judged.append(self._judge(seen, policy, place, dry_run=dry_run))
            except (JournalInDoubt, Obstructed, RunNotHere) as error:
                if len(found) == 1:
                    raise
                warnings.warn(str(error))  # it must not keep the others
        if wrong := [one.run.directory for one in judged if one.differs]:
            warnings.warn(
                f"{self.location} does not say what the files of {list_some(wrong)} say; what goes "
                "is decided by the files. `ckptdb check` names what differs, `ckptdb reconcile` "
                "mends it."
            )
        return judged

    def _judge(
        self, seen: IndexedRun, policy: Policy, place: DirectoryId | None, *, dry_run: bool
    ) -> JudgedRun:
        catalog, seen, report = self._exact(seen, dry_run=dry_run)
        _refuse_in_doubt(seen, report, catalog.database.location)
        if report is not None and report.blocked:
            return JudgedRun(seen.run, place=place)  # what cannot be seen whole is not judged
        return replace(judge.judge_by_files(policy, catalog, seen), place=place)

    def _deciding(self, run: object) -> AbstractContextManager[None]:
        """Let a deletion be decided by the files when there is no catalog to decide it by."""
        return self._catalogs.deciding(self.run if run is None else None)

    def _exact(
        self, seen: IndexedRun, *, dry_run: bool
    ) -> tuple[Catalog, IndexedRun, RunReport | None]:
        """Return a catalog that is true about a run: the stored one, or else one in memory."""
        directory = seen.run.directory
        self._catalogs.doubt_copy()
        if not self._catalogs.is_doubted or self._catalog().database.location.in_memory:
            try:
                catalog = self._catalog() if dry_run else self._catalogs.get_for_writing()
                report = self._healing.heal(directory, strict=True)
                return catalog, find_there(catalog, directory) or seen, report
            except (RunLocked, CatalogMissing):
                raise
            except (*UNUSABLE, OSError) as error:
                self._catalogs.doubt(error)
        catalog, report = index_in_memory(directory, self.location.base)
        return catalog, find_there(catalog, directory) or seen, report


def _compare(would: Sequence[GcResult], plans: set[str]) -> None:
    now = {collected.plan: collected.run for collected in would}
    if now.keys() != plans:
        raise PlanChanged([name for plan, name in now.items() if plan not in plans])


def _raise_if_incomplete(
    collected: Sequence[GcResult], failed: Sequence[NotDeleted], done: object
) -> None:
    failed = [*(one for part in collected for one in part.failed), *failed]
    if failed:
        gone = {part.directory: part.went for part in collected}
        removed = sum(part.count_removed() for part in collected)
        raise DeletionIncomplete(gone, failed, done, removed=removed)


def _refuse_in_doubt(seen: IndexedRun, report: RunReport | None, used: Location) -> None:
    """Raise why nothing may be deleted, before anything is: the index says so, or the journal.

    A run that has another catalog than the one in use may have lost lines that only that one knows.
    """
    directory = seen.run.directory
    doubt = report.doubt if report else None
    doubt = doubt or Publisher(directory).find_doubt() or find_own_doubt(directory, used)
    if doubt is not None:
        raise JournalInDoubt(directory, doubt)
