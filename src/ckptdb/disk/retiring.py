"""Taking checkpoints away: into the journal, out of sight, and then their bytes.

Nothing is ever unlinked under a published name. What is retired lies in the trash until somebody
empties it: at once, or as long as it can be undeleted, is pinned, or is leased.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ckptdb.disk import claims, durable, journal, names, scan
from ckptdb.disk.changing import NO_SPACE, Changing, Span
from ckptdb.disk.identity import Identity
from ckptdb.disk.journal import Fact
from ckptdb.disk.scan import Leftover, Watch
from ckptdb.errors import NotUndeleted
from ckptdb.records import Checkpoint


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
    """

    step: int
    uuid: str
    reason: str
    force: bool = False
    by_hand: bool = False


class Retiring(Changing):
    """Ends checkpoints, and keeps the trash."""

    @cached_property
    def _pins(self) -> journal.Pins:
        return journal.Pins(self._hidden)

    def retire(self, doomed: Iterable[Doomed]) -> Retired:
        """Record the end of published checkpoints and take them out of sight.

        One that is no longer the checkpoint that was judged, or has been pinned, leased, rejected
        or resumed from since, is left alone. The bytes stay in the trash until `empty_trash`; on a
        full disk they go at once.
        """
        with self._changing() as (who, watch):
            failed: list[OSError] = []
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
            at = self._now()
            facts = [journal.gone(cp, "deleted", doom.reason, at) for cp, doom in leaving]
            gone = self._put_away(who, watch, [checkpoint for checkpoint, _ in leaving], facts)
            forced = [cp.uuid for cp in gone if cp.uuid in pinned]
            if forced:  # only now: what could not be moved keeps its pin
                self._append(watch, [Fact(at, "unpin", known) for known in forced])
            gone_uuids = {cp.uuid for cp in gone}
            for claim in leases:
                if claim.uuid in gone_uuids:
                    claims.remove(claim)
            reasons = {cp.uuid: doom.reason for cp, doom in leaving}
            ended = (
                replace(cp, status="deleted", deleted_at=at, deleted_reason=reasons[cp.uuid])
                for cp in gone
            )
            if failed:
                raise failed[0]
            return Retired(tuple(ended), watch.span)

    def discard(self, path: Path, *, reason: str, uuid: str | None = None) -> Retired:
        """Give up a ``tmp_step_N``: record that, and take it out of sight.

        Args:
            path: Nothing happens when it is not there.
            reason: For the record.
            uuid: Which one was judged; another that stands there by now is left alone.
        """
        step = names.get_tmp_step(path)
        with self._changing() as (who, watch):
            if not durable.is_folder(path):
                return Retired((), watch.span)
            checkpoint = scan.load_tmp(who, path, step).checkpoint
            if uuid not in (None, checkpoint.uuid):
                return Retired((), watch.span)
            return Retired((self._discard(who, watch, checkpoint, reason),), watch.span)

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
            if durable.is_there(final):
                why = "another one has its place by now" if found else "it is there"
                raise NotUndeleted(final, why)
            if not found:
                raise NotUndeleted(final, "its bytes are gone")
            left = max(found, key=lambda left: left.until or 0)
            with watch.change(links=1):
                durable.rename_new(left.path, final)
            self._sync_directory()
            self._append(watch, [Fact(self._now(), "reappeared", left.uuid)])
            return scan.load(who, final, step)

    def empty_trash(self, *, everything: bool = False) -> int:
        """Remove the bytes of everything retired; return how many checkpoints that were.

        One that was replaced by a new save while it was pinned or leased stays as long as it is.

        Args:
            everything: Also what can still be undeleted.

        Raises:
            OSError: Some of it could not be removed; the rest was.
        """
        failed: list[OSError] = []
        now = math.inf if everything else self._clock()
        trash = scan.list_trash(self.directory)
        if any(left.is_due(now) for left in trash):
            self._condemn(now)
            trash = scan.list_trash(self.directory)
        removed = self._remove_retired(trash, failed)
        if not all(left.recorded for left in trash):
            self._record_late()
            removed += self._remove_retired(scan.list_trash(self.directory), failed)
        if failed:
            raise failed[0]
        return removed

    def _condemn(self, now: float) -> None:
        """Take from what has waited long enough the name by which it can be undeleted."""
        # Under the lock: nobody may undelete what is being removed, whatever the clocks say.
        with self._changing() as (_, watch):
            for left in scan.list_trash(self.directory):
                if left.is_due(now):
                    self._to_trash(watch, left.path, left.step, left.uuid)

    def _remove_retired(self, trash: Sequence[Leftover], failed: list[OSError]) -> int:
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
            except OSError as error:
                failed.append(error)  # one that will not go must not keep the others
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
        self._put_away(who, watch, [checkpoint], [fact])
        path = self._final(checkpoint.step)
        return replace(
            checkpoint, path=path, status="deleted", deleted_at=at, deleted_reason=reason
        )

    def _put_away(
        self, who: Identity, watch: Watch, leaving: Sequence[Checkpoint], facts: Sequence[Fact]
    ) -> list[Checkpoint]:
        """Record the end of checkpoints and take them out of sight; return those that went.

        A disk too full for the record is freed first: what the record is made of stays in the
        trash, under a name that says that it is still to be written.
        """
        recorded = True
        try:
            self._append(watch, facts)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            recorded = False
        failed: OSError | None = None
        gone: list[Checkpoint] = []
        aside: list[Leftover] = []
        for cp in leaving:
            try:
                path = self._move_aside(who, watch, cp, recorded=recorded)
            except OSError as error:
                failed = failed or error  # one that will not go must not keep the others
                continue
            if path is None:
                continue
            gone.append(cp)
            aside.append(Leftover(path, cp.step, cp.uuid, recorded=recorded))
        if gone:
            if not recorded:
                self._sync_trash()
            self._sync_directory()
        if aside and not recorded:
            self._record_freed(watch, aside, facts)
        if failed:
            raise failed
        return gone

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
        self._append(watch, facts)
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
            facts = [
                journal.gone(end, "deleted", end.deleted_reason or "", end.deleted_at or "")
                for end in ends
            ]
            self._record_freed(watch, aside, facts)

    def _unchanged(
        self, who: Identity, doomed: Iterable[Doomed], failed: list[OSError]
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
                    yield found, doom
            except FileNotFoundError:
                continue  # removed by hand meanwhile
            except OSError as error:
                failed.append(error)

    def _set_aside(self, watch: Watch, path: Path, step: int, checkpoint_uuid: str) -> None:
        """Move what was replaced into the trash, where it stays as long as it is pinned."""
        self._to_trash(watch, path, step, checkpoint_uuid)
        # The name it had is flushed before anything is removed; until then it may come back.
        self._sync_trash()

    def _to_trash(
        self,
        watch: Watch,
        path: Path,
        step: int,
        checkpoint_uuid: str,
        *,
        recorded: bool = True,
        until: int | None = None,
    ) -> Path:
        for attempt in range(1000):
            name = names.trash_name(
                step, checkpoint_uuid, recorded=recorded, until=until, attempt=attempt
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
