"""The trash of a run: retired checkpoints whose bytes are not removed yet.

It lies there until somebody empties it: at once, or as long as it can be undeleted, is pinned, or
is leased.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptdb.core import warnings
from ckptdb.core.facts import Fact
from ckptdb.core.observed import Leftover
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    journal,
    journal_records,
    leases,
    names,
    read_checkpoint,
    read_trash,
    tree_removal,
)
from ckptdb.disk.delete_in_place import DeletingInPlace
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.errors import DeletionIncomplete, NotDeleted, NotUndeleted, RunNotHere

UNIDENTIFIED_TTL_SECONDS = 30 * 24 * 3600.0
"""Minimum time in the trash of a directory that cannot be identified as a checkpoint."""


class Trash(DeletingInPlace):
    """Moves checkpoints into the trash, brings them back, and empties it."""

    def undelete(self, step: int) -> Checkpoint:
        """Give a retired checkpoint its name again; return it.

        Args:
            step: Of several that were retired there, the last one comes back.

        Raises:
            NotUndeleted: None can be undeleted, or the step is taken.
        """
        with self._changing() as (who, watch):
            final = self._final(step)
            trash = read_trash.list_trash(self.directory)
            found = [left for left in trash if left.step == step and left.until is not None]
            # What cannot be identified has waited longer; what was deleted since comes first.
            found.sort(key=lambda left: (not left.identified, -(left.until or 0)))
            if fsutil.is_there(final):
                why = _where(found[0]) if found else "it is there"
                raise NotUndeleted(final, why)
            if not found:
                raise NotUndeleted(final, "its bytes are gone")
            left = found[0]
            with watch.change(links=1):
                fsutil.rename_new(left.path, final)
            self._sync_directory()
            self._append(watch, [Fact(self._now(), "reappeared", left.uuid)])
            return read_checkpoint.load(who, final, step)

    def empty_trash(self, *, everything: bool = False, unidentified: bool = False) -> int:
        """Remove the bytes of everything retired; return how many checkpoints that were.

        One that was replaced by a new save while it was pinned or leased stays as long as it is.

        Args:
            everything: Also what can still be undeleted.
            unidentified: Even what may be no checkpoint at all.

        Raises:
            DeletionIncomplete: Some of it could not be removed; the rest was.
            JournalInDoubt: What is pinned cannot be told for sure; nothing goes.
        """
        try:
            with self._anchored():
                return self._empty_trash(everything=everything, unidentified=unidentified)
        except RunNotHere:
            return 0

    def _empty_trash(self, *, everything: bool, unidentified: bool) -> int:
        failed: list[NotDeleted] = []
        now = self._clock()

        def is_due(left: Leftover) -> bool:
            wanted = everything and (left.identified or unidentified)
            return left.is_due(math.inf if wanted else now)

        trash = read_trash.list_trash(self.directory)
        if trash:
            self.must_be_here()
            self._refuse_in_doubt()
        if any(map(is_due, trash)):
            self._condemn(is_due)
            trash = read_trash.list_trash(self.directory)
        removed = self._remove_retired(trash, failed)
        if not all(left.recorded for left in trash):
            self._record_late()
            removed += self._remove_retired(read_trash.list_trash(self.directory), failed)
        if failed:
            raise DeletionIncomplete({}, failed, done=removed)
        return removed

    def _condemn(self, is_due: Callable[[Leftover], bool]) -> None:
        """Take from what has waited long enough the name by which it can be undeleted."""
        # Under the lock: nobody may undelete what is being removed, whatever the clocks say.
        with self._changing() as (_, watch):
            for left in read_trash.list_trash(self.directory):
                if is_due(left):
                    self._to_trash(watch, left.path, left.step, left.uuid)

    def _remove_retired(self, trash: Sequence[Leftover], failed: list[NotDeleted]) -> int:
        retired = [left for left in trash if left.recorded and left.until is None]
        kept = self._find_kept() if retired else frozenset()
        deletions = [left for left in retired if left.uuid not in kept]
        if deletions:
            # Who retired them may not have come to this: a name that comes back must be whole.
            self._sync_directory()
        removed = 0
        for left in deletions:
            try:
                tree_removal.remove_tree(left.path)
                removed += 1
            except FileNotFoundError:
                continue  # another process removes it at the same time
            except OSError as error:  # one that will not go must not keep the others
                failed.append(NotDeleted(self.directory, left.step, error, left.path))
        return removed

    def _find_kept(self) -> frozenset[str]:
        leased = leases.find_leased(self._hidden, now=leases.tell_time(self._hidden))
        return self._pins.find().union(leased)

    def _record_freed(
        self, watch: StampWatch, aside: Sequence[Leftover], facts: Sequence[Fact]
    ) -> None:
        for left in aside:
            tree_removal.remove_all_but(left.path, names.RECORD)
        self._append_to_freed(watch, facts)
        for left in aside:
            self._to_trash(watch, left.path, left.step, left.uuid)

    def _record_late(self) -> None:
        """Write down what was freed by somebody who died, or still had no space for it."""
        with self._changing() as (who, watch):
            aside = [left for left in read_trash.list_trash(self.directory) if not left.recorded]
            self._sync_trash()
            self._sync_directory()
            recorded = journal.read(self._hidden, who.run).gone
            ends = [
                read_trash.load_retired(who, left) for left in aside if left.uuid not in recorded
            ]
            self._record_freed(watch, aside, [journal_records.gone(end) for end in ends])

    def _set_aside(self, watch: StampWatch, path: Path, step: int, checkpoint_uuid: str) -> None:
        """Move what was replaced into the trash, where it stays as long as it is pinned."""
        if checkpoint_identity.is_identified(path):
            self._to_trash(watch, path, step, checkpoint_uuid)
        else:
            self._keep_unidentified(watch, path, step, checkpoint_uuid)
        # The name it had is flushed before anything is removed; until then it may come back.
        self._sync_trash()

    def _keep_unidentified(self, watch: StampWatch, path: Path, step: int, uuid: str) -> Leftover:
        """Move what may be somebody's own into the trash for long, and say so."""
        until = int(self._clock() + max(UNIDENTIFIED_TTL_SECONDS, self.trash_ttl_seconds))
        target = self._to_trash(watch, path, step, uuid, until=until, identified=False)
        left = Leftover(target, step, uuid, until=until, identified=False)
        warnings.warn(
            f"What stood in the place of step {step} of {self.directory} is no checkpoint that can "
            f"be identified: it has neither a manifest.json nor a training_info.json that can be "
            f"read. It was moved to {target} and stays there until {utc(until)}; move it elsewhere "
            f"to keep it, or `ckptdb undelete {step}` when no other checkpoint has that step."
        )
        return left

    def _to_trash(
        self,
        watch: StampWatch,
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
                    fsutil.rename_new(path, target)
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
            fsutil.fsync(self._trash)


def _where(left: Leftover) -> str:
    return (
        "another one has its place by now; what was there before lies in "
        f"{left.path} until {utc(left.until or 0)}"
    )
