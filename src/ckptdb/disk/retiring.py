"""Taking checkpoints away: into the journal, out of sight, and then their bytes.

Nothing is ever unlinked under a published name, unless it cannot be moved; see `in_place`. What is
retired lies in the trash until somebody empties it: at once, or as long as it can be undeleted, is
pinned, or is leased.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ckptdb import caller
from ckptdb.disk import claims, durable, journal, names, obstacles, scan, writer
from ckptdb.disk.changing import NO_SPACE, Span
from ckptdb.disk.identity import Identity
from ckptdb.disk.in_place import UNMOVABLE, DeletingInPlace
from ckptdb.disk.journal import Fact
from ckptdb.disk.scan import Leftover, Watch
from ckptdb.errors import DeletionIncomplete, NotDeleted, NotUndeleted
from ckptdb.records import Checkpoint, utc

UNIDENTIFIED_TTL_SECONDS = 30 * 24 * 3600.0
"""How long what had a checkpoint's name, and cannot be identified, stays in the trash at least."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Checkpoints that are out of sight, their deletion recorded."""

    gone: tuple[Checkpoint, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Doomed:
    """A checkpoint that may be retired, if it is still the one that was judged.

    Attributes:
        force: Even when it is pinned or leased; pin and leases end with it.
        by_hand: Even when it is rejected, or what training was last resumed from, which no rule
            may take away.
        damage: What is known to be wrong with it: no later look at its record can tell.
    """

    step: int
    uuid: str
    reason: str
    force: bool = False
    by_hand: bool = False
    damage: str | None = None


class Retiring(DeletingInPlace):
    """Ends checkpoints, and keeps the trash."""

    @cached_property
    def _pins(self) -> journal.Pins:
        return journal.Pins(self._hidden)

    def retire(self, doomed: Iterable[Doomed], *, checked: bool = False) -> Retired:
        """Record the end of published checkpoints and take them out of sight.

        One that is no longer the checkpoint that was judged, or has been pinned, leased, rejected
        or resumed from since, is left alone. The bytes stay in the trash until `empty_trash`; on a
        full disk they go at once.

        Args:
            doomed: Which.
            checked: Look first whether all that is in them may be removed; if not, it stays whole.
                Of what is deleted by hand then nothing goes, or all.

        Raises:
            DeletionIncomplete: Some of them are not out of sight; says which, and which are.
        """
        with self._changing() as (who, watch):
            failed: list[NotDeleted] = []
            found = list(self._unchanged(who, doomed, failed))
            # By the journal: whoever judged may not have known of the latest pin.
            pinned = self._pins.find() if found else frozenset()
            leases = claims.settle(self._hidden) if found else ()
            kept = pinned.union(claim.uuid for claim in leases)
            beyond_rules = self._find_beyond_rules() if found else frozenset()
            leaving = [
                (cp, doom)
                for cp, doom in found
                if (doom.force or cp.uuid not in kept)
                and (doom.by_hand or cp.uuid not in beyond_rules)
            ]
            if checked:
                leaving = self._find_removable(leaving, failed)
            at = self._now()
            reasons = {cp.uuid: doom.reason for cp, doom in leaving}
            judged = [cp for cp, _ in leaving]
            facts = {cp.uuid: journal.gone(cp, "deleted", reasons[cp.uuid], at) for cp in judged}
            try:
                gone = self._put_away(who, watch, judged, facts, failed)
            except OSError as error:
                failed += [NotDeleted(self.directory, cp.step, error) for cp in judged]
                gone = []
            forced = [cp.uuid for cp in gone if cp.uuid in pinned]
            if forced:  # only now: what could not be moved keeps its pin
                self._append(watch, [Fact(at, "unpin", known) for known in forced])
            gone_uuids = {cp.uuid for cp in gone}
            for claim in leases:
                if claim.uuid in gone_uuids:
                    claims.remove(claim)
            ended = tuple(
                replace(cp, status="deleted", deleted_at=at, deleted_reason=reasons[cp.uuid])
                for cp in gone
            )
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
        """
        step = names.get_tmp_step(path)
        with self._changing() as (who, watch):
            if not durable.is_folder(path):
                writer.release(path)
                return Retired((), watch.span)
            tmp = scan.load_tmp(who, path, step, may_touch=uuid is not None)
            if uuid is not None and not (tmp.abandoned and tmp.checkpoint.uuid == uuid):
                return Retired((), watch.span)
            return Retired((self._discard(who, watch, tmp.checkpoint, reason),), watch.span)

    def undelete(self, step: int) -> Checkpoint:
        """Give a retired checkpoint its name again; return it.

        Args:
            step: Of several that were retired there, the last one comes back.

        Raises:
            NotUndeleted: None can be undeleted, or the step is taken.
        """
        with self._changing() as (who, watch):
            final = self._final(step)
            trash = scan.list_trash(self.directory)
            found = [left for left in trash if left.step == step and left.until is not None]
            # What cannot be identified has waited longer; what was deleted since comes first.
            found.sort(key=lambda left: (not left.identified, -(left.until or 0)))
            if durable.is_there(final):
                why = _where(found[0]) if found else "it is there"
                raise NotUndeleted(final, why)
            if not found:
                raise NotUndeleted(final, "its bytes are gone")
            left = found[0]
            with watch.change(links=1):
                durable.rename_new(left.path, final)
            self._sync_directory()
            self._append(watch, [Fact(self._now(), "reappeared", left.uuid)])
            return scan.load(who, final, step)

    def empty_trash(self, *, everything: bool = False, unidentified: bool = False) -> int:
        """Remove the bytes of everything retired; return how many checkpoints that were.

        One that was replaced by a new save while it was pinned or leased stays as long as it is.

        Args:
            everything: Also what can still be undeleted.
            unidentified: Even what may be no checkpoint at all.

        Raises:
            DeletionIncomplete: Some of it could not be removed; the rest was.
        """
        failed: list[NotDeleted] = []
        now = self._clock()

        def is_due(left: Leftover) -> bool:
            wanted = everything and (left.identified or unidentified)
            return left.is_due(math.inf if wanted else now)

        trash = scan.list_trash(self.directory)
        if any(map(is_due, trash)):
            self._condemn(is_due)
            trash = scan.list_trash(self.directory)
        removed = self._remove_retired(trash, failed)
        if not all(left.recorded for left in trash):
            self._record_late()
            removed += self._remove_retired(scan.list_trash(self.directory), failed)
        if failed:
            raise DeletionIncomplete({}, failed, done=removed)
        return removed

    def _condemn(self, is_due: Callable[[Leftover], bool]) -> None:
        """Take from what has waited long enough the name by which it can be undeleted."""
        # Under the lock: nobody may undelete what is being removed, whatever the clocks say.
        with self._changing() as (_, watch):
            for left in scan.list_trash(self.directory):
                if is_due(left):
                    self._to_trash(watch, left.path, left.step, left.uuid)

    def _remove_retired(self, trash: Sequence[Leftover], failed: list[NotDeleted]) -> int:
        retired = [left for left in trash if left.recorded and left.until is None]
        kept = self._find_kept() if retired else frozenset()
        doomed = [left for left in retired if left.uuid not in kept]
        if doomed:
            # Who retired them may not have come to this: a name that comes back must be whole.
            self._sync_directory()
        removed = 0
        for left in doomed:
            try:
                durable.remove_tree(left.path)
                removed += 1
            except FileNotFoundError:
                continue  # another process removes it at the same time
            except OSError as error:  # one that will not go must not keep the others
                failed.append(NotDeleted(self.directory, left.step, error, left.path))
        return removed

    def _find_beyond_rules(self) -> frozenset[str | None]:
        return self._pins.find_rejected() | {self._pins.find_resumed_from()}

    def _find_kept(self) -> frozenset[str]:
        leased = claims.find_leased(self._hidden, now=claims.tell_time(self._hidden))
        return self._pins.find().union(leased)

    def _discard(
        self, who: Identity, watch: Watch, checkpoint: Checkpoint, reason: str
    ) -> Checkpoint:
        at = self._now()
        fact = journal.gone(checkpoint, "discarded", reason, at)
        failed: list[NotDeleted] = []
        self._put_away(who, watch, [checkpoint], {checkpoint.uuid: fact}, failed)
        if failed:
            raise failed[0].error
        writer.release(checkpoint.path)
        path = self._final(checkpoint.step)
        return replace(
            checkpoint, path=path, status="deleted", deleted_at=at, deleted_reason=reason
        )

    def _put_away(
        self,
        who: Identity,
        watch: Watch,
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
        watch: Watch,
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
        self, who: Identity, watch: Watch, cp: Checkpoint, *, recorded: bool
    ) -> Path | None:
        """Return where a checkpoint is by now: in the trash, or still there and marked."""
        if cp.status == "tmp" and not scan.is_identified(cp.path):
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
        self, who: Identity, watch: Watch, cp: Checkpoint, *, recorded: bool
    ) -> Path | None:
        # Looked at once more: reading and flushing took their time.
        if cp.status == "final" and scan.find_uuid(who, cp.path, cp.step) != cp.uuid:
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
            if durable.is_there(cp.path):
                raise
            return None  # removed by hand meanwhile

    def _record_freed(self, watch: Watch, aside: Sequence[Leftover], facts: Sequence[Fact]) -> None:
        for left in aside:
            durable.remove_all_but(left.path, names.RECORD)
        self._append_to_freed(watch, facts)
        for left in aside:
            self._to_trash(watch, left.path, left.step, left.uuid)

    def _record_late(self) -> None:
        """Write down what was freed by somebody who died, or still had no space for it."""
        with self._changing() as (who, watch):
            aside = [left for left in scan.list_trash(self.directory) if not left.recorded]
            self._sync_trash()
            self._sync_directory()
            told = journal.read(self._hidden, who.run).gone
            ends = [scan.load_retired(who, left) for left in aside if left.uuid not in told]
            self._record_freed(watch, aside, [journal.deleted_unrecorded(end) for end in ends])

    def _find_removable(
        self, leaving: Sequence[tuple[Checkpoint, Doomed]], failed: list[NotDeleted]
    ) -> list[tuple[Checkpoint, Doomed]]:
        """Return what nothing forbids to remove; by hand, all of them or none."""
        removable: list[tuple[Checkpoint, Doomed]] = []
        for cp, doom in leaving:
            obstacle = obstacles.find_obstacle(cp.path)
            if obstacle is None:
                removable.append((cp, doom))
            else:
                failed.append(NotDeleted(self.directory, cp.step, obstacle))
        if failed and all(doom.by_hand for _, doom in leaving):
            cause = failed[0].error
            failed += [NotDeleted(self.directory, cp.step, cause) for cp, _ in removable]
            failed.sort(key=lambda one: one.step or 0)
            return []
        return removable

    def _unchanged(
        self, who: Identity, doomed: Iterable[Doomed], failed: list[NotDeleted]
    ) -> Iterator[tuple[Checkpoint, Doomed]]:
        for doom in doomed:
            path = self._final(doom.step)
            try:
                if not durable.is_folder(path):
                    continue
                # What cannot be read now cannot be recorded: it stays, unless it is forced.
                # What somebody takes away by hand may be damaged, which no later look can tell.
                found = scan.load(who, path, doom.step, verify=doom.by_hand, strict=not doom.force)
                if found.uuid == doom.uuid:
                    yield replace(found, problem=found.problem or doom.damage), doom
            except FileNotFoundError:
                continue  # removed by hand meanwhile
            except OSError as error:
                failed.append(NotDeleted(self.directory, doom.step, error))

    def _set_aside(self, watch: Watch, path: Path, step: int, checkpoint_uuid: str) -> None:
        """Move what was replaced into the trash, where it stays as long as it is pinned."""
        if scan.is_identified(path):
            self._to_trash(watch, path, step, checkpoint_uuid)
        else:
            self._keep_unidentified(watch, path, step, checkpoint_uuid)
        # The name it had is flushed before anything is removed; until then it may come back.
        self._sync_trash()

    def _keep_unidentified(self, watch: Watch, path: Path, step: int, uuid: str) -> Leftover:
        """Move what may be somebody's own into the trash for long, and say so."""
        until = int(self._clock() + max(UNIDENTIFIED_TTL_SECONDS, self.trash_ttl_seconds))
        target = self._to_trash(watch, path, step, uuid, until=until, identified=False)
        left = Leftover(target, step, uuid, until=until, identified=False)
        caller.warn(
            f"What stood in the place of step {step} of {self.directory} is no checkpoint that can "
            f"be identified: it has neither a manifest.json nor a training_info.json that can be "
            f"read. It was moved to {target} and stays there until {utc(until)}; move it elsewhere "
            f"to keep it, or `ckptdb undelete {step}` when no other checkpoint has that step."
        )
        return left

    def _to_trash(
        self,
        watch: Watch,
        path: Path,
        step: int,
        checkpoint_uuid: str,
        *,
        recorded: bool = True,
        until: int | None = None,
        identified: bool = True,
    ) -> Path:
        for attempt in range(1000):
            name = names.trash_name(
                step,
                checkpoint_uuid,
                recorded=recorded,
                until=until,
                identified=identified,
                attempt=attempt,
            )
            target = self._trash / name
            try:
                with watch.change(links=-1 if path.parent == self.directory else 0):
                    durable.rename_new(path, target)
            except OSError as error:
                # A checkpoint copied back by hand and retired again has the same uuid.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                return target
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))

    def _sync_trash(self) -> None:
        # A new name first: the old one may not be gone for good before.
        if self._durable:
            durable.fsync(self._trash)


def _where(left: Leftover) -> str:
    return (
        "another one has its place by now; what was there before lies in "
        f"{left.path} until {utc(left.until or 0)}"
    )
