"""Deleting a checkpoint where it stands, when the file system does not let it be moved.

A full btrfs, or a quota used up, refuses a rename and still removes files; a directory from the
lower layer of an overlay cannot be renamed at all. Such a checkpoint is marked first, by the mode
of its directory, which takes no space. From then on it counts as deleted for everybody, and
whoever comes after a crash finishes it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ckptdb.core.facts import Fact
from ckptdb.core.observed import Identity, Leftover
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    fsutil,
    journal,
    journal_records,
    names,
    paths,
    read_checkpoint,
    read_trash,
    tree_removal,
)
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.disk.transaction import NO_SPACE, Changing
from ckptdb.errors import NotDeleted

UNMOVABLE = NO_SPACE | {errno.EXDEV}
"""Errors of a rename, where files may be removed all the same."""


class DeletingInPlace(Changing):
    """Deletes checkpoints that cannot be moved into the trash."""

    def finish_deletion(self, left: Leftover) -> None:
        """Remove what is left of a checkpoint that is being deleted where it stands.

        Raises:
            JournalInDoubt: Nothing is removed now.
        """
        with self._changing() as (who, watch):
            self._refuse_in_doubt()
            self._finish_deletion(who, watch, left.path, left.step)

    def _finish_deletion(self, who: Identity, watch: StampWatch, path: Path, step: int) -> None:
        left = read_trash.find_deleting(who, path, step)
        if left is None:
            return
        _free(path, names.RECORD)
        recorded = left.recorded or left.uuid in journal.read(self._hidden, who.run).gone
        facts = [] if recorded else [journal_records.gone(read_trash.load_retired(who, left))]
        self._finish_in_place(watch, path, facts)

    def _mark(self, watch: StampWatch, cp: Checkpoint) -> None:
        """Let a checkpoint count as deleted.

        Raises:
            OSError: It cannot be marked, and is as it was.
        """
        if cp.status == "tmp":
            # Without a manifest nobody takes it for complete.
            paths.unlink(cp.path / names.MANIFEST, missing_ok=True)
            return
        before = stat.S_IMODE(paths.get_status(cp.path).st_mode)
        try:
            with watch.change():
                _set_mark(cp.path)
                if self._durable:
                    fsutil.fsync(cp.path)
                # What is marked moves no stamp, and every question has to see it.
                paths.touch(self.directory)
            self._sync_directory()
        except OSError as error:
            if error.errno not in NO_SPACE:
                paths.set_mode(cp.path, before)
                raise
            self._mark_late(watch, cp.path)

    def _mark_late(self, watch: StampWatch, path: Path) -> None:
        """Mark a checkpoint where even that takes space, which only removing gives back.

        It begins with what every reader goes by: whoever is killed before the mark leaves a
        checkpoint that says that it cannot be trusted.
        """
        paths.unlink(path / names.INFO, missing_ok=True)
        for below, entries in paths.walk(path):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) or entry.name in names.RECORD:
                    continue
                with suppress(FileNotFoundError):
                    paths.unlink(f"{path}/{below}{entry.name}")
                with suppress(OSError), watch.change():
                    _set_mark(path)
                    paths.touch(self.directory)
                    return

    def _delete_in_place(
        self,
        watch: StampWatch,
        marked: Sequence[Checkpoint],
        unrecorded: Mapping[str, Fact],
        failed: list[NotDeleted],
    ) -> None:
        """Remove marked checkpoints.

        Args:
            watch: Of the run.
            marked: Which.
            unrecorded: By uuid, the lines that the journal still lacks.
            failed: Gets those of which something is left.
        """
        # First all bytes: the more is free, the sooner there is space for a line.
        kept = names.RECORD if unrecorded else {names.MANIFEST}
        freed = [cp for cp in marked if self._attempt(cp, failed, partial(_free, cp.path, kept))]
        for cp in freed:
            facts = [fact for fact in (unrecorded.get(cp.uuid),) if fact]
            self._attempt(cp, failed, partial(self._finish_in_place, watch, cp.path, facts))

    def _attempt(self, cp: Checkpoint, failed: list[NotDeleted], work: Callable[[], None]) -> bool:
        try:
            work()
        except OSError as error:  # one that will not go must not keep the others
            failed.append(NotDeleted(self.directory, cp.step, error, cp.path))
            return False
        return True

    def _finish_in_place(self, watch: StampWatch, path: Path, facts: Sequence[Fact]) -> None:
        self._append_to_freed(watch, facts)
        _free(path, {names.MANIFEST})
        paths.unlink(path / names.MANIFEST, missing_ok=True)
        with watch.change(links=-1):
            paths.remove_folder(path)

    def _append_to_freed(self, watch: StampWatch, facts: Sequence[Fact]) -> None:
        """Append to the journal on a disk that was full until just now."""
        try:
            self._append(watch, facts)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            fsutil.commit_file_system(self._hidden)
            self._append(watch, facts)


def _free(path: Path, kept: Container[str]) -> None:
    """Remove what is in a checkpoint, what other readers go by first."""
    if names.INFO not in kept:
        paths.unlink(path / names.INFO, missing_ok=True)
    tree_removal.remove_all_but(path, kept)


def _set_mark(path: Path) -> None:
    paths.set_mode(path, read_checkpoint.DELETING_MODE)
    if not read_checkpoint.is_being_deleted(paths.get_status(path)):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
