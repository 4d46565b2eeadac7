"""Taking in a run that the index knows little of, portion by portion.

Most of what is found in such a run can be compared and stored on its own. What needs the whole
run (what is missing, the journal, the stamp) comes after it, and until then the index says that
it has not seen the run: a crash in between costs no more than another look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.store import Changes, Child
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import Checkpoint
from ckptdb.disk import identity, scan
from ckptdb.disk.identity import Identity
from ckptdb.errors import IndexStale
from ckptdb.reconcile.locked import bury, held, held_to_look
from ckptdb.reconcile.plan import Action, compare, compare_run, keep_damage

_UNSEEN = ""
"""A stamp that no directory has."""


@dataclass
class BatchReader:
    """What has been taken in of a run.

    Attributes:
        recorded: What the index held before, with its history.
        verify: Whether every file has been compared with its manifest.
        store: False to compare only.
        writes: Whether the journal may be written to.
        history: Whether ``recorded`` tells what is gone.
        actions: What differed, without the records.
        finals: By step, uuid and fingerprint of all that were taken.
        problems: By uuid, of those of them that have one.
        children: Those whose parent was not in the index yet.
    """

    catalog: Catalog
    who: Identity
    recorded: RecordedRun
    verify: bool
    store: bool
    writes: bool
    history: bool
    actions: list[Action] = field(default_factory=list)
    finals: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stamp = scan.find_stamp(self.who.run.directory)
        self._refused = False

    def take(self, found: Sequence[Checkpoint]) -> Mapping[int, Checkpoint]:
        """Store some checkpoints; return those that only the whole run can tell about, by step.

        Raises:
            RunLocked: Somebody else keeps the run's lock.
            CatalogError: They cannot be stored.
        """
        directory = self.who.run.directory
        if self.store:
            self.catalog.database.ensure_sound()
        if not self.history:
            told = self.catalog.recorded(self.recorded.indexed, history=True)
            self.recorded, self.history = replace(self.recorded, gone=told.gone), True
        with self._held(directory) if self.store else nullcontext():
            known = self.recorded.finals
            # Another one at its step has to go before it can come: the journal tells how it went.
            mine = [cp for cp in found if known.get(cp.step, (cp.uuid,))[0] == cp.uuid]
            if self.store:
                mine = self._as_they_are(mine)
            taken = self._compare(mine)
            if self.store and not self._store(taken):
                taken = []
            self._stamp = scan.find_stamp(directory)
        for checkpoint, action in taken:
            self._remember(checkpoint, action)
        steps = {checkpoint.step for checkpoint, _ in taken}
        return {cp.step: cp for cp in found if cp.step not in steps}

    def _held(self, directory: Path) -> AbstractContextManager[None]:
        return held(directory) if self.writes else held_to_look(directory)

    def completed(self) -> RecordedRun:
        """Return what the index holds by now, as far as it was asked and told."""
        seen = self.catalog.find_run(self.who.run.uuid) if self.store else None
        # Whoever else was at this run has told the index what it has seen.
        undisturbed = seen is not None and seen.stamp == _UNSEEN
        return replace(
            self.recorded,
            indexed=seen if undisturbed and not self._refused else self.recorded.indexed,
            finals={**self.recorded.finals, **self.finals},
            problems={**self.recorded.problems, **self.problems},
        )

    @cached_property
    def _uuids(self) -> set[str]:
        """What the index has a row of."""
        live = (uuid for uuid, _ in self.recorded.finals.values())
        return {*live, *self.recorded.tmps, *self.recorded.gone}

    def _as_they_are(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Look again at what somebody may have changed since it was read."""
        who = self.who
        stamp = scan.find_stamp(who.run.directory)
        if stamp and stamp.is_settled() and stamp == self._stamp:
            return list(found)
        if identity.identify(who.run.directory) != who:
            return []
        before = {cp.step: cp for cp in found}
        known = {cp.step: (cp.uuid, cp.fingerprint) for cp in found}
        here: list[Checkpoint] = []
        for looked in scan.look(who, list(before), known, verify=self.verify):
            here += [before[step] for step in looked.same]
            here += [cp for cp in looked.read if cp.uuid == before[cp.step].uuid]
        return here

    def _compare(self, found: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Action | None]]:
        seen, known = self.recorded.indexed, self.recorded.finals
        steps = [cp.step for cp in found if cp.step in known]
        contents = self.catalog.contents(seen.id, steps=steps, gone=()) if seen and steps else {}
        recorded = replace(self.recorded, records=contents)
        found = [keep_damage(cp, recorded, sizes_verified=self.verify) for cp in found]
        parents = self._uuids | {checkpoint.uuid for checkpoint in found}
        return [(cp, compare(cp, recorded, lambda: parents)) for cp in found]

    def _store(self, found: Sequence[tuple[Checkpoint, Action | None]]) -> bool:
        known, run = self.recorded.finals, self.who.run
        back = [action for _, action in found if action and action.kind == "reappeared"]
        stored = [
            checkpoint
            for checkpoint, action in found
            if action or checkpoint.fingerprint != known[checkpoint.step][1]
        ]
        try:
            bury(run.directory, (), back, writes=self.writes)
        except OSError:
            return False  # told when the whole run has been seen
        changes = Changes(run=run, checkpoints=stored, seen=_UNSEEN, verified=False)
        try:
            self.catalog.apply(changes)
        except IndexStale:
            self._refused = True  # and made good then
            return False
        if not self.actions:
            self.actions += compare_run(self.who, self.recorded.indexed)
        return True

    def _remember(self, checkpoint: Checkpoint, action: Action | None) -> None:
        uuid, parent = checkpoint.uuid, checkpoint.parent
        if action:
            self.actions.append(action.told())
        self.finals[checkpoint.step] = (uuid, checkpoint.fingerprint)
        if checkpoint.problem:
            self.problems[uuid] = checkpoint.problem
        if parent and parent not in self._uuids:
            self.children.append(Child(uuid, parent, checkpoint.fingerprint))
        self._uuids.add(uuid)
