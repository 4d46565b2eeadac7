"""Storing the checkpoints of a large new run in the index, batch by batch.

Most checkpoints of such a run can be compared and stored on their own. Differences that need the
whole run (missing checkpoints, the journal, the stamp) come last, and until then the index holds no
stamp of the run: after a crash in between, the next reading compares it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.changes import Changes, Child
from ckptdb.core.observed import Identity
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import Checkpoint, CheckpointProblem
from ckptdb.disk import identity, read_changed, run_stamp
from ckptdb.errors import IndexStale
from ckptdb.reconcile.action import Action
from ckptdb.reconcile.journal_updates import record_vanished
from ckptdb.reconcile.locks import lock_to_change, lock_to_read
from ckptdb.reconcile.options import Options
from ckptdb.reconcile.plan import compare_run
from ckptdb.reconcile.plan_published import compare_published, keep_damage

_NO_STAMP = ""
"""A stamp that no directory has."""


@dataclass
class BatchReader:
    """Reader of a run's published checkpoints that stores them in the index batch by batch.

    Attributes:
        who: The run's identity.
        recorded: The run in the index before.
        options: Of reconciling it.
        history: Whether ``recorded`` includes the deleted checkpoints.
        actions: The differences, without the records.
        finals: By step, uuid and fingerprint of all that were stored.
        problems: By uuid, of those of them that have one.
        children: Those whose parent was not in the index yet.
    """

    catalog: Catalog
    who: Identity
    recorded: RecordedRun
    options: Options
    history: bool
    actions: list[Action] = field(default_factory=list)
    finals: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    problems: dict[str, CheckpointProblem] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stamp = run_stamp.find_stamp(self.who.run.directory)
        self._refused = False

    def take(self, found: Sequence[Checkpoint]) -> Mapping[int, Checkpoint]:
        """Store a batch of checkpoints; return by step those that need the whole run.

        Raises:
            RunLocked: Another process holds the run's lock.
            CatalogError: They cannot be stored.
        """
        directory, store = self.who.run.directory, self.options.store
        if store:
            self.catalog.database.ensure_sound()
        if not self.history:
            history = self.catalog.recorded.run(self.recorded.indexed, history=True)
            self.recorded, self.history = replace(self.recorded, gone=history.gone), True
        with self._lock(directory) if store else nullcontext():
            known = self.recorded.finals
            # Another checkpoint at its step has to end first, which needs the journal.
            batch = [cp for cp in found if known.get(cp.step, (cp.uuid,))[0] == cp.uuid]
            if store:
                batch = self._read_again(batch)
            compared = self._compare(batch)
            if store and not self._store(compared):
                compared = []
            self._stamp = run_stamp.find_stamp(directory)
        for checkpoint, action in compared:
            self._remember(checkpoint, action)
        steps = {checkpoint.step for checkpoint, _ in compared}
        return {cp.step: cp for cp in found if cp.step not in steps}

    def _lock(self, directory: Path) -> AbstractContextManager[None]:
        writes_journal = self.options.writes_journal
        return lock_to_change(directory) if writes_journal else lock_to_read(directory)

    def read_recorded(self) -> RecordedRun:
        """Return the run in the index by now, the stored batches included."""
        indexed = self.catalog.runs.find(self.who.run.uuid) if self.options.store else None
        # Another process that indexed this run has stored a stamp of it.
        undisturbed = indexed is not None and indexed.stamp == _NO_STAMP
        return replace(
            self.recorded,
            indexed=indexed if undisturbed and not self._refused else self.recorded.indexed,
            finals={**self.recorded.finals, **self.finals},
            problems={**self.recorded.problems, **self.problems},
        )

    @cached_property
    def _uuids(self) -> set[str]:
        """The uuids of which the index has a row."""
        live = (uuid for uuid, _ in self.recorded.finals.values())
        return {*live, *self.recorded.tmps, *self.recorded.gone}

    def _read_again(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return, under the lock, those checkpoints that are still what was read without it."""
        who = self.who
        stamp = run_stamp.find_stamp(who.run.directory)
        if stamp and stamp.is_settled() and stamp == self._stamp:
            return list(found)
        if identity.identify(who.run.directory) != who:
            return []
        before = {cp.step: cp for cp in found}
        known = {cp.step: (cp.uuid, cp.fingerprint) for cp in found}
        here: list[Checkpoint] = []
        for again in read_changed.read_changed(
            who, list(before), known, verify=self.options.depth == "full"
        ):
            here += [before[step] for step in again.same]
            here += [cp for cp in again.read if cp.uuid == before[cp.step].uuid]
        return here

    def _compare(self, found: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Action | None]]:
        indexed, known = self.recorded.indexed, self.recorded.finals
        steps = [cp.step for cp in found if cp.step in known]
        records = (
            self.catalog.recorded.records(indexed.id, steps=steps, gone=())
            if indexed and steps
            else {}
        )
        recorded = replace(self.recorded, records=records)
        full = self.options.depth == "full"
        found = [keep_damage(cp, recorded, sizes_verified=full) for cp in found]
        parents = self._uuids | {checkpoint.uuid for checkpoint in found}
        return [(cp, compare_published(cp, recorded, lambda: parents)) for cp in found]

    def _store(self, found: Sequence[tuple[Checkpoint, Action | None]]) -> bool:
        known, run = self.recorded.finals, self.who.run
        back = [action for _, action in found if action and action.kind == "reappeared"]
        stored = [
            checkpoint
            for checkpoint, action in found
            if action or checkpoint.fingerprint != known[checkpoint.step][1]
        ]
        try:
            record_vanished(run.directory, (), back, writes_journal=self.options.writes_journal)
        except OSError:
            return False  # reported when the whole run is compared
        changes = Changes(run=run, checkpoints=stored, stamp=_NO_STAMP, stamp_verified=False)
        try:
            self.catalog.apply(changes)
        except IndexStale:
            self._refused = True  # and stored then
            return False
        if not self.actions:
            self.actions += compare_run(self.who, self.recorded.indexed)
        return True

    def _remember(self, checkpoint: Checkpoint, action: Action | None) -> None:
        uuid, parent = checkpoint.uuid, checkpoint.parent
        if action:
            self.actions.append(action.without_record())
        self.finals[checkpoint.step] = (uuid, checkpoint.fingerprint)
        if problem := checkpoint.find_problem():
            self.problems[uuid] = problem
        if parent and parent not in self._uuids:
            self.children.append(Child(uuid, parent, checkpoint.fingerprint))
        self._uuids.add(uuid)
