"""Retiring checkpoints: recorded in the journal, moved out of sight, then removed.

Nothing is ever unlinked under a published name, unless it cannot be moved; see `in_place`. What is
retired lies in the `trash` until somebody empties it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdb.core.facts import Fact
from ckptdb.core.observed import Identity, Leftover
from ckptdb.core.records import Checkpoint, CheckpointProblem, DeletedKind
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    journal_records,
    leases,
    names,
    read_checkpoint,
    read_tmp,
    removal_checks,
    writer,
)
from ckptdb.disk.delete_in_place import UNMOVABLE
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.disk.transaction import NO_SPACE, StampChange
from ckptdb.disk.trash import Trash
from ckptdb.errors import DeletionIncomplete, NotDeleted

Confirm = Callable[[frozenset[str]], None]
"""Raises when checkpoints, given by uuid, should not go after all; the run is locked then."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Checkpoints that are out of sight, their deletion recorded."""

    gone: tuple[Checkpoint, ...]
    span: StampChange


@dataclass(frozen=True, slots=True)
class Deletion:
    """A checkpoint that may be retired, if it is still the one that was judged.

    Attributes:
        force: Even when it is pinned or leased; pin and leases end with it.
        by_hand: Even when it is rejected, or what training was last resumed from, which no rule
            may take away.
        damage: Its known damage, which its record alone does not show.
    """

    step: int
    uuid: str
    reason: str
    force: bool = False
    by_hand: bool = False
    damage: CheckpointProblem | None = None


class Retiring(Trash):
    """Retires checkpoints."""

    def retire(
        self,
        deletions: Iterable[Deletion],
        *,
        checked: bool = False,
        confirm: Confirm | None = None,
    ) -> Retired:
        """Record the end of published checkpoints and take them out of sight.

        One that is no longer the checkpoint that was judged, or has been pinned, leased, rejected
        or resumed from since, is left alone. The bytes stay in the trash until `empty_trash`; on a
        full disk they go at once.

        Args:
            deletions: Which.
            checked: Look first whether all that is in them may be removed; if not, it stays whole.
                Of what is deleted by hand then nothing goes, or all.
            confirm: Called under the run's lock with the uuids of what is about to go; what it
                raises keeps all of it.

        Raises:
            DeletionIncomplete: Some of them are not out of sight; says which, and which are.
            JournalInDoubt: What is pinned cannot be told for sure; nothing goes.
        """
        with self._changing() as (who, watch):
            self._refuse_in_doubt()
            failed: list[NotDeleted] = []
            found = list(self._unchanged(who, deletions, failed))
            # By the journal: whoever judged may not have known of the latest pin.
            pinned = self._pins.find() if found else frozenset()
            active = leases.settle(self._hidden) if found else ()
            kept = pinned.union(lease.uuid for lease in active)
            beyond_rules = self._find_beyond_rules() if found else frozenset()
            leaving = [
                (cp, deletion)
                for cp, deletion in found
                if (deletion.force or cp.uuid not in kept)
                and (deletion.by_hand or cp.uuid not in beyond_rules)
            ]
            if checked:
                leaving = self._find_removable(leaving, failed)
            if confirm is not None:
                confirm(frozenset(cp.uuid for cp, _ in leaving))
            at = self._now()
            ends = {cp.uuid: _ended(cp, deletion, at) for cp, deletion in leaving}
            judged = [cp for cp, _ in leaving]
            facts = {uuid: journal_records.gone(end) for uuid, end in ends.items()}
            try:
                gone = self._put_away(who, watch, judged, facts, failed)
            except OSError as error:
                failed += [NotDeleted(self.directory, cp.step, error) for cp in judged]
                gone = []
            forced = [cp.uuid for cp in gone if cp.uuid in pinned]
            if forced:  # only now: what could not be moved keeps its pin
                self._append(watch, [Fact(at, "unpin", known) for known in forced])
            gone_uuids = {cp.uuid for cp in gone}
            for lease in active:
                if lease.uuid in gone_uuids:
                    leases.remove(lease)
            ended = tuple(ends[cp.uuid] for cp in gone)
            retired = Retired(ended, watch.span)
            if failed:
                steps = {self.directory: [cp.step for cp in ended]}
                raise DeletionIncomplete(steps, failed, done=retired)
            return retired

    def discard(self, path: Path, *, reason: str, uuid: str | None = None) -> Retired:
        """Give up a ``tmp_step_N``: record that, and take it out of sight.

        Args:
            path: Nothing happens when it is not there.
            reason: For the record.
            uuid: Which one was judged to be abandoned. Another that stands there by now is left
                alone, and that one when somebody has gone on with it.

        Raises:
            JournalInDoubt: It stays where it is.
        """
        step = names.get_tmp_step(path)
        with self._changing() as (who, watch):
            self._refuse_in_doubt()
            if not fsutil.is_folder(path):
                writer.release(path)
                return Retired((), watch.span)
            tmp = read_tmp.load_tmp(who, path, step, may_touch=uuid is not None)
            if uuid is not None and not (tmp.abandoned and tmp.checkpoint.uuid == uuid):
                return Retired((), watch.span)
            return Retired((self._discard(who, watch, tmp.checkpoint, reason),), watch.span)

    def _find_beyond_rules(self) -> frozenset[str | None]:
        return self._pins.find_rejected() | {self._pins.find_resumed_from()}

    def _discard(
        self, who: Identity, watch: StampWatch, checkpoint: Checkpoint, reason: str
    ) -> Checkpoint:
        end = checkpoint.ended("discarded", reason, self._now())
        failed: list[NotDeleted] = []
        self._put_away(who, watch, [checkpoint], {end.uuid: journal_records.gone(end)}, failed)
        if failed:
            raise failed[0].error
        writer.release(checkpoint.path)
        return replace(end, path=self._final(end.step))

    def _put_away(
        self,
        who: Identity,
        watch: StampWatch,
        leaving: Sequence[Checkpoint],
        facts: Mapping[str, Fact],
        failed: list[NotDeleted],
    ) -> list[Checkpoint]:
        """Record the end of checkpoints and take them out of sight; return those that went.

        A disk too full for the record is freed first: what the record is made of stays in the
        trash, under a name that says that it is still to be written. What cannot be moved is
        deleted where it stands.

        Args:
            who: The run.
            watch: Of the run.
            leaving: Which.
            facts: What is recorded of each, by uuid.
            failed: Gets those that did not go, or not wholly.

        Raises:
            OSError: Their end cannot be recorded, and there is space enough; none went.
        """
        recorded = True
        try:
            self._append(watch, list(facts.values()))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            recorded = False
        aside, marked = self._move_all(who, watch, leaving, failed, recorded=recorded)
        try:
            if aside and not recorded:
                self._sync_trash()
            if aside:
                self._sync_directory()
            if aside and not recorded:
                self._record_freed(watch, aside, [facts[left.uuid] for left in aside])
        except OSError as error:
            failed += [NotDeleted(self.directory, left.step, error, left.path) for left in aside]
        self._delete_in_place(watch, marked, {} if recorded else facts, failed)
        gone = {*(left.uuid for left in aside), *(cp.uuid for cp in marked)}
        return [cp for cp in leaving if cp.uuid in gone]

    def _move_all(
        self,
        who: Identity,
        watch: StampWatch,
        leaving: Sequence[Checkpoint],
        failed: list[NotDeleted],
        *,
        recorded: bool,
    ) -> tuple[list[Leftover], list[Checkpoint]]:
        """Return what is in the trash by now, and what is still there and counts as deleted."""
        aside: list[Leftover] = []
        marked: list[Checkpoint] = []
        untouched: list[Checkpoint] = []
        for cp in leaving:
            try:
                path = self._move_or_mark(who, watch, cp, recorded=recorded)
            except OSError as error:  # one that will not go must not keep the others
                failed.append(NotDeleted(self.directory, cp.step, error))
                untouched.append(cp)
                continue
            if path == cp.path:
                marked.append(cp)
            elif path is not None:
                aside.append(Leftover(path, cp.step, cp.uuid, recorded=recorded))
        if recorded and untouched:
            # Such a line counts for nothing; should somebody remove it by hand, it would.
            with suppress(OSError):
                self._append(watch, [Fact(self._now(), "reappeared", cp.uuid) for cp in untouched])
        return aside, marked

    def _move_or_mark(
        self, who: Identity, watch: StampWatch, cp: Checkpoint, *, recorded: bool
    ) -> Path | None:
        """Return where a checkpoint is by now: in the trash, or still there and marked."""
        if cp.status == "tmp" and not checkpoint_identity.is_identified(cp.path):
            if not recorded:  # what is somebody's own frees no disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cp.path))
            return self._keep_unidentified(watch, cp.path, cp.step, cp.uuid).path
        try:
            return self._move_aside(who, watch, cp, recorded=recorded)
        except OSError as error:
            if error.errno not in UNMOVABLE:
                raise
            if error.errno not in NO_SPACE and self.trash_ttl_seconds:
                why = f"{error.strerror}: it cannot be kept for undelete, only deleted at once"
                raise OSError(error.errno, why, str(cp.path)) from error
        self._mark(watch, cp)
        return cp.path

    def _move_aside(
        self, who: Identity, watch: StampWatch, cp: Checkpoint, *, recorded: bool
    ) -> Path | None:
        # Looked at once more: reading and flushing took their time.
        if cp.status == "final" and checkpoint_identity.find_uuid(who, cp.path, cp.step) != cp.uuid:
            return None
        try:
            # On a full disk nothing waits.
            until = (
                int(self._clock() + self.trash_ttl_seconds)
                if self.trash_ttl_seconds and recorded
                else None
            )
            return self._to_trash(watch, cp.path, cp.step, cp.uuid, recorded=recorded, until=until)
        except FileNotFoundError:
            if fsutil.is_there(cp.path):
                raise
            return None  # removed by hand meanwhile

    def _find_removable(
        self, leaving: Sequence[tuple[Checkpoint, Deletion]], failed: list[NotDeleted]
    ) -> list[tuple[Checkpoint, Deletion]]:
        """Return what nothing forbids to remove; by hand, all of them or none."""
        removable: list[tuple[Checkpoint, Deletion]] = []
        for cp, deletion in leaving:
            try:
                obstacle = removal_checks.find_obstacle(cp.path)
            except PermissionError as error:
                obstacle = error  # what may not be looked at may not be emptied
            if obstacle is None:
                removable.append((cp, deletion))
            else:
                failed.append(NotDeleted(self.directory, cp.step, obstacle))
        if failed and all(deletion.by_hand for _, deletion in leaving):
            cause = failed[0].error
            failed += [NotDeleted(self.directory, cp.step, cause) for cp, _ in removable]
            failed.sort(key=lambda one: one.step or 0)
            return []
        return removable

    def _unchanged(
        self, who: Identity, deletions: Iterable[Deletion], failed: list[NotDeleted]
    ) -> Iterator[tuple[Checkpoint, Deletion]]:
        for deletion in deletions:
            path = self._final(deletion.step)
            try:
                if not fsutil.is_folder(path):
                    continue
                # What cannot be read now cannot be recorded: it stays, unless it is forced.
                # What somebody takes away by hand may be damaged, which no later look can tell.
                found = read_checkpoint.load(
                    who, path, deletion.step, verify=deletion.by_hand, strict=not deletion.force
                )
                if found.uuid == deletion.uuid:
                    yield found.with_problem(found.find_problem() or deletion.damage), deletion
            except FileNotFoundError:
                continue  # removed by hand meanwhile
            except OSError as error:
                failed.append(NotDeleted(self.directory, deletion.step, error))


def _ended(checkpoint: Checkpoint, deletion: Deletion, at: str) -> Checkpoint:
    kind: DeletedKind = "manual" if deletion.by_hand else "retention"
    return checkpoint.ended(kind, deletion.reason, at)
