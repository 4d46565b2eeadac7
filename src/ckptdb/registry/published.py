"""Published checkpoints: answers of a ranking name only what is on disk.

A run whose checkpoint is missing is healed first, and the ranking is repeated.
"""

from __future__ import annotations

from pathlib import Path

from ckptdb.catalog.selection import Selection, pareto_front, ranked
from ckptdb.core.ranking import Mode
from ckptdb.core.records import Checkpoint
from ckptdb.disk import published_name
from ckptdb.reconcile.run_location import find_whereabouts
from ckptdb.registry.catalog_access import CatalogAccess
from ckptdb.registry.healing import Healing
from ckptdb.registry.scope import Bounds
from ckptdb.training import load_history


class PublishedCheckpoints:
    """Chooses checkpoints by a catalog, and returns those that are still published."""

    def __init__(self, catalogs: CatalogAccess, bounds: Bounds, healing: Healing) -> None:
        self._catalogs = catalogs
        self._bounds = bounds
        self._healing = healing

    def choose(self, selection: Selection, count: int) -> tuple[Checkpoint, ...]:
        """Return the best of a selection; of one over history, deleted checkpoints, too."""
        choose = self._recall if selection.is_history else self.find_existing
        found = choose(selection, count)
        # A loop may resume from the answer, and save with a manager.
        for run in {checkpoint.path.parent for checkpoint in found}:
            load_history.note_look(run)
        return found

    def find_existing(self, selection: Selection, count: int) -> tuple[Checkpoint, ...]:
        """Return the best that are published, healing the runs of those that are missing."""
        limit, healed = count, set[Path]()
        while True:
            found = self._rank(selection, limit)
            here = [checkpoint for checkpoint in found if self.contain(checkpoint)]
            if len(here) == len(found) or len(here) >= count:
                return tuple(here[:count])
            stale = {cp.path.parent for cp in found if cp not in here} - healed
            healed |= self.heal(stale)
            if not stale:
                # The run itself is missing, so nothing can be recorded: look behind its rows.
                if len(found) < limit:
                    return tuple(here)
                limit *= 2

    def find_pareto_front(self, selection: Selection, mode: Mode) -> tuple[Checkpoint, ...]:
        """Return the checkpoints of a selection that no other one dominates.

        Args:
            selection: By the first metric; its tie is the second one.
            mode: Direction of the second metric.
        """
        healed, lost = set[Path](), set[int]()
        while True:
            catalog = self._catalogs.get()
            points = [p for p in ranked(catalog.database, selection) if p.id not in lost]
            front = catalog.checkpoints.by_id([p.id for p in pareto_front(points, mode)])
            gone = {n: cp.path.parent for n, cp in front.items() if not self.contain(cp)}
            if not gone:
                return tuple(front.values())
            stale = set(gone.values()) - healed
            healed |= self.heal(stale)
            if not stale:
                # The run itself is missing, so nothing can be recorded: look behind its rows.
                lost |= gone.keys()

    def contain(self, checkpoint: Checkpoint) -> bool:
        """Tell whether a checkpoint is published, and by the run that it was chosen from."""
        # The checkpoint or its run may have been replaced since: its path is another one's then.
        if checkpoint.status != "final" or not self._bounds.contain(checkpoint.path.parent):
            return False
        if not published_name.is_published(checkpoint.path):
            return False
        where = find_whereabouts(self._catalogs.get(), checkpoint.run_uuid, checkpoint.path.parent)
        return where in ("here", "unclear")

    def heal(self, runs: set[Path]) -> set[Path]:
        """Heal some runs, and return them."""
        for directory in runs:
            self._healing.heal(directory)
        return runs

    def _recall(self, selection: Selection, count: int) -> tuple[Checkpoint, ...]:
        """Return the best of history, after recording which ones are missing from disk."""
        found = self._rank(selection, count)
        stale = {cp.path.parent for cp in found if cp.status == "final" and not self.contain(cp)}
        return self._rank(selection, count) if self.heal(stale) else found

    def _rank(self, selection: Selection, count: int) -> tuple[Checkpoint, ...]:
        catalog = self._catalogs.get()
        if selection.is_plain and selection.by is None:
            return catalog.checkpoints.newest(count, run_id=selection.run_id, among=selection.among)
        if selection.is_plain and selection.by is not None:
            return catalog.ranking.top(
                count, *selection.by, run_id=selection.run_id, among=selection.among
            )
        ids = [point.id for point in ranked(catalog.database, selection, count)]
        found = catalog.checkpoints.by_id(ids).values()
        return tuple(cp if selection.at is None else cp.as_of(selection.at) for cp in found)
