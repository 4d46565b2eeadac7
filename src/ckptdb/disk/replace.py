"""Replacing a published checkpoint: two names exchanged, and the older one retired."""

from __future__ import annotations

import errno
from pathlib import Path

from ckptdb.core.observed import Identity, Manifest
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    journal_records,
    names,
    read_checkpoint,
)
from ckptdb.disk.retire import Retiring
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.errors import (
    NotDeleted,
    ReplacedInPart,
)


class Replacing(Retiring):
    """Replaces a published checkpoint by a staged one; see `Changing` for the arguments."""

    def _record_replaced(
        self, who: Identity, watch: StampWatch, final: Path, sealed: Manifest
    ) -> Checkpoint:
        try:
            # Whether it is damaged no later look can tell.
            old = read_checkpoint.load(who, final, sealed.step, verify=True, strict=True)
        except OSError:
            # It goes in any case; what of it can be read is recorded.
            old = read_checkpoint.load(who, final, sealed.step)
        reason = f"replaced by a new save of step {sealed.step}"
        if not checkpoint_identity.is_identified(final):
            reason += "; it could not be identified, and is kept in the trash for 30 days"
        end = old.ended("replaced", reason, self._now())
        self._append(watch, [journal_records.gone(end)])
        return end

    def _swap(self, watch: StampWatch, path: Path, old: Checkpoint, *, in_place: bool) -> None:
        final = self._final(old.step)
        aside: Path | None = path
        try:
            with watch.change():
                fsutil.exchange(path, final)
        except OSError as error:
            if error.errno != errno.EXDEV or not in_place or not self._may_end(old):
                raise
            self._replace_in_place(watch, path, old)
            aside = None
        except fsutil.ExchangeUnsupported:
            aside = self.directory / names.old_name(old.step, old.uuid)
            with watch.change():
                fsutil.rename_new(final, aside)
                try:
                    fsutil.rename_new(path, final)
                except OSError:
                    fsutil.rename_new(aside, final)  # the older one stays what is published
                    raise
        self._sync_directory()
        if aside is not None:
            self._set_aside(watch, aside, old.step, old.uuid)

    def _may_end(self, old: Checkpoint) -> bool:
        """Tell whether the replaced checkpoint may be removed at once."""
        return old.uuid not in self._find_kept() and checkpoint_identity.is_identified(old.path)

    def _replace_in_place(self, watch: StampWatch, path: Path, old: Checkpoint) -> None:
        """Replace what cannot be moved, once the new one is durable under its tmp name.

        Whoever finds this interrupted finishes the removal, and then publishes the complete tmp.
        """
        self._mark(watch, old)
        failed: list[NotDeleted] = []
        self._delete_in_place(watch, [old], {}, failed)
        try:
            if failed:
                raise failed[0].error
            with watch.change():
                fsutil.rename_new(path, self._final(old.step))
        except OSError as error:
            raise ReplacedInPart(path, error) from error
