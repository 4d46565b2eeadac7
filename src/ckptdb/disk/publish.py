"""stage → make durable → publish → retire → remove.

A published name is always whole: bytes are durable before the name exists, and nothing is
ever unlinked under it. Every step leaves a state that `recover` understands, so a crash
between any two of them loses neither a checkpoint nor the record of a deletion.
"""

from __future__ import annotations

import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ckptdb.core.observed import Identity, Leftover, Manifest, Tmp
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    journal,
    json_file,
    liveness,
    manifest,
    names,
    paths,
    read_checkpoint,
    read_tmp,
    symlinks,
    trainer_lock,
    tree_removal,
    writer,
)
from ckptdb.disk.replace import Replacing
from ckptdb.disk.run_stamp import StampWatch
from ckptdb.disk.trainer_lock import TrainerLock
from ckptdb.disk.transaction import StampChange
from ckptdb.errors import (
    NoCheckpointHere,
    ReplacedInPart,
    RunLocked,
    SaveFailed,
    StepTaken,
)

_NOT_THERE = "is not there; it was finalized, discarded or removed before"


@dataclass(frozen=True, slots=True)
class Staged:
    """A ``tmp_step_N`` ready to be filled.

    Attributes:
        gone: Checkpoints that had to leave to make room (incomplete leftovers).
        adopted: A complete leftover that was published instead of being thrown away.
    """

    checkpoint: Checkpoint
    gone: tuple[Checkpoint, ...]
    adopted: tuple[Checkpoint, ...]
    span: StampChange


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint under its final name, durable, with what it replaced.

    When another process has published it for us, it may already have ended.
    """

    checkpoint: Checkpoint
    replaced: Checkpoint | None
    span: StampChange


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A ``tmp_step_N`` whose manifest is written.

    Attributes:
        staged: Its record, when it was read just before by this process.
    """

    manifest: Manifest
    staged: Checkpoint | None = None

    def published_at(self, final: Path) -> Checkpoint | None:
        """Return its record under its final name, None when that has to be read."""
        if self.staged is None:
            return None
        return replace(
            self.staged,
            path=final,
            status="final",
            finalized_at=self.manifest.finalized_at,
            size_bytes=self.manifest.size_bytes,
            file_count=len(self.manifest.files),
            parent=self.manifest.parent,
        )


class Publisher(Replacing):
    """Changes one run directory; the only code that does. See `Changing` for the arguments."""

    @cached_property
    def _failed(self) -> set[Path]:
        """Staged checkpoints that could not be made durable, and will not be tried again."""
        return set()

    def lock_trainer(self) -> TrainerLock:
        """Take the trainer lock of the run; it lasts as long as the returned object.

        Raises:
            RunInUse: Another process holds it.
        """
        fsutil.make_directories(self._hidden, durable=self._durable)
        return trainer_lock.take(self._hidden, since=self._now())

    def check_place(self, step: int) -> None:
        """Look whether a step can be saved, before anything is done for it.

        Raises:
            StepTaken: What has its name, or is to have it, is no directory of a checkpoint.
        """
        for place in (self._final(step), self.directory / names.tmp_name(step)):
            self._refuse_taken(place)

    def stage(self, step: int, content: bytes, config: bytes | None) -> Staged:
        """Create ``tmp_step_N`` with its metadata.

        A complete leftover of that step is published first, an incomplete one goes to the
        trash.

        Args:
            step: Training step.
            content: Of training_info.json.
            config: Content of config.yaml, None for no such file.

        Raises:
            StepTaken: What has its name, or is to have it, is no directory of a checkpoint.
            StepInUse: Another process is writing that step, or may be.
            OSError: The directory cannot be written.
        """
        path = self.directory / names.tmp_name(step)
        self.check_place(step)
        with self._changing(first=True) as (who, watch):
            self._finish_deletion(who, watch, self._final(step), step)
            adopted, gone = self._make_room(who, watch, path, step)
            created_at = self._now()
            checkpoint_uuid = str(uuid.uuid4())
            self._failed.discard(path)
            with watch.change(links=1):
                fsutil.make_new_folder(path)
                try:
                    self._write_metadata(path, content, config, checkpoint_uuid, created_at)
                except OSError:
                    # Not one byte of the loop's is in it yet; do not leave half a file.
                    tree_removal.remove_tree(path)
                    raise
            born = (checkpoint_uuid, created_at)
            checkpoint = read_tmp.as_staged(who, path, step, born, json_file.parse(content))
            return Staged(checkpoint, tuple(gone), tuple(adopted), watch.span)

    def publish(self, path: Path, *, parent: str | None = None) -> Published:
        """Make a ``tmp_step_N`` durable and give it its final name.

        Args:
            path: What `stage` returned.
            parent: uuid of the checkpoint that training continued from.

        Raises:
            NoCheckpointHere: There is no such directory.
            RunLocked: Another process kept the run's lock; publishing it again may succeed.
            SaveFailed: Its bytes cannot be made durable; nothing older was touched.
            StepTaken: Something that is not a checkpoint has the final name.
            ReplacedInPart: It will have its name when what it replaces is wholly removed.
        """
        step = names.get_tmp_step(path)
        if path in self._failed:
            raise SaveFailed(path, OSError("an earlier attempt to make it durable failed"))
        try:
            with self._anchored():
                sealed = self._seal_or_withdraw(path, step, parent)
                with self._changing() as (who, watch):
                    return self._publish_or_find(who, watch, path, sealed)
        except (StepTaken, NoCheckpointHere, RunLocked, ReplacedInPart):
            raise
        except FileNotFoundError as error:
            raise NoCheckpointHere(path, _NOT_THERE) from error
        except OSError as error:
            # After a failed fsync the next one may succeed without the bytes being there.
            self._failed.add(path)
            # It may have its name, and nobody has flushed that.
            self._names_durable = not self._durable
            raise SaveFailed(path, error) from error

    def add_checksums(self, step: int, uuid: str, checksums: Mapping[str, str]) -> bool:
        """Put checksums into a published checkpoint's manifest; tell whether it was still there.

        A crash before leaves it without any. The run's stamp does not move: to the index
        nothing has changed, but for the fingerprint, which costs one look.
        """
        with self._changing() as (who, _):
            final = self._final(step)
            if checkpoint_identity.find_uuid(who, final, step) != uuid:
                return False
            found = manifest.find(final)
            if found is None:
                return False
            updated = replace(found, checksums=checksums)
            manifest.write(final, updated, make_durable=self._durable)
            return True

    def adopt(self, path: Path) -> Published | None:
        """Publish a complete leftover ``tmp_step_N``, or trash one that holds what was replaced.

        None when it is neither: what is published under its step is unrelated, or it is not
        complete.
        """
        step = names.get_tmp_step(path)
        with self._changing() as (who, watch):
            if not fsutil.is_folder(path):
                return None
            return self._adopt(who, watch, read_tmp.load_tmp(who, path, step))

    def complete(self, path: Path) -> bool:
        """Publish a complete leftover ``tmp_step_N`` where nothing has to be removed for that.

        What it replaces goes to the trash. Tells whether it was published.
        """
        step = names.get_tmp_step(path)
        who = identity.identify(self.directory)
        if not self._lacks_only_its_name(who, path, step):
            return False  # and nothing is to be touched
        with self._changing() as (who, watch):
            if not self._lacks_only_its_name(who, path, step):
                return False
            tmp = read_tmp.load_tmp(who, path, step)
            return self._adopt(who, watch, tmp, in_place=False) is not None

    def give_name_back(self, leftover: Leftover) -> bool:
        """Give an ``old_step_N.<uuid>`` its name again; false when that is taken by now."""
        final = self._final(leftover.step)
        if fsutil.is_there(final):
            return False  # and nothing is to be touched
        with self._changing() as (_, watch):
            if fsutil.is_there(final) or not fsutil.is_folder(leftover.path):
                return False
            with watch.change():
                fsutil.rename_new(leftover.path, final)
            self._sync_directory()
            return True

    def put_back(self, leftover: Leftover) -> None:
        """Give an ``old_step_N.<uuid>`` its name again, or trash it when the name is taken."""
        if self.give_name_back(leftover):
            return
        with self._changing() as (_, watch):
            final = self._final(leftover.step)
            if fsutil.is_folder(leftover.path) and fsutil.is_there(final):
                self._set_aside(watch, leftover.path, leftover.step, leftover.uuid)

    @staticmethod
    def _lacks_only_its_name(who: Identity, path: Path, step: int) -> bool:
        return fsutil.is_folder(path) and read_tmp.load_tmp(who, path, step).fate == "publish"

    def _make_room(
        self, who: Identity, watch: StampWatch, path: Path, step: int
    ) -> tuple[list[Checkpoint], list[Checkpoint]]:
        if not fsutil.is_there(path):
            return [], []
        self._refuse_taken(path)
        tmp = read_tmp.load_tmp(who, path, step, may_touch=True)
        liveness.raise_if_in_use(tmp, self._hidden)
        published = self._adopt(who, watch, tmp)
        if published:
            gone = [published.replaced] if published.replaced else []
            return [published.checkpoint], gone
        if fsutil.is_folder(path):
            reason = "discarded: left unfinished, the step was saved again"
            return [], [self._discard(who, watch, tmp.checkpoint, reason)]
        return [], []

    @staticmethod
    def _refuse_taken(place: Path) -> None:
        # Looked at once: between two looks another process may take it away.
        status = paths.find_status(place)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            target = symlinks.find_target(place)
            raise StepTaken(place, "" if target is None else f"it is a link to {target}")

    def _write_metadata(
        self, path: Path, content: bytes, config: bytes | None, checkpoint_uuid: str,
        created_at: str,
    ) -> None:  # fmt: skip
        fsutil.write_new(path / names.INFO, content, durable=False)
        if config is not None:
            fsutil.write_new(path / names.CONFIG, config, durable=False)
        writer.write(path, checkpoint_uuid, created_at)

    def _seal_or_withdraw(self, path: Path, step: int, parent: str | None) -> _Sealed:
        who = identity.identify(self.directory)
        if not who.recorded:
            who = self.establish()
        try:
            return self._seal(who, path, step, parent)
        except OSError:
            # A save that failed must not be taken for a complete one by whoever comes next.
            with suppress(OSError):
                paths.unlink(path / names.MANIFEST, missing_ok=True)
            raise

    def _seal(self, who: Identity, path: Path, step: int, parent: str | None) -> _Sealed:
        staged = read_tmp.find_staged(who, path, step)
        tmp = staged or read_tmp.load_tmp(who, path, step).checkpoint
        if self._durable:
            fsutil.fsync_tree(path, but=names.WRITER)
        files, targets, dangling = manifest.list_files_and_targets(path)
        if dangling:
            symlinks.warn_of_dangling(path, dangling)
        sealed = Manifest(
            uuid=tmp.uuid,
            step=step,
            created_at=tmp.created_at,
            finalized_at=self._now(),
            parent=parent,
            replaces=checkpoint_identity.find_uuid(who, self._final(step), step),
            files=files,
            targets=targets,
        )
        # The manifest goes last: its presence is what says that the directory is whole.
        manifest.write(path, sealed, make_durable=self._durable)
        # From here on another process may publish it for us. It need not be durable: after a power
        # cut nobody is taken for this process.
        writer.remove(path)
        return _Sealed(sealed, staged)

    def _publish_or_find(
        self, who: Identity, watch: StampWatch, path: Path, sealed: _Sealed
    ) -> Published:
        step, uuid = sealed.manifest.step, sealed.manifest.uuid
        final = self._final(step)
        if checkpoint_identity.find_uuid(who, final, step) == uuid:
            # Another process came between our manifest and our rename, and published for us. What
            # has our name by now may be a save of its own.
            return Published(read_checkpoint.load(who, final, step), None, None)
        if checkpoint_identity.find_uuid(who, path, step) != uuid:
            ended = journal.read(self._hidden, who.run).gone.get(uuid)
            if ended is None or ended.finalized_at is None:
                raise NoCheckpointHere(path, _NOT_THERE)
            return Published(ended, None, None)  # and by now it has been replaced, or deleted
        return self._publish(who, watch, path, sealed)

    def _publish(
        self,
        who: Identity,
        watch: StampWatch,
        path: Path,
        sealed: _Sealed,
        *,
        in_place: bool = True,
    ) -> Published:
        step = sealed.manifest.step
        final = self._final(step)
        current = checkpoint_identity.find_uuid(who, final, step)
        if current is None:
            self._finish_deletion(who, watch, final, step)
            self._refuse_taken(final)
            if fsutil.is_there(final):
                raise StepTaken(final)
        if current != sealed.manifest.replaces:
            # Somebody published or removed this step since it was sealed; say what is true now.
            updated = replace(sealed.manifest, replaces=current)
            manifest.write(path, updated, make_durable=self._durable)
        old: Checkpoint | None = None
        if current is None:
            with watch.change():
                fsutil.rename_new(path, final)
            self._sync_directory()
        else:
            old = self._record_replaced(who, watch, final, sealed.manifest)
            self._swap(watch, path, old, in_place=in_place)
        published = sealed.published_at(final) or read_checkpoint.load(who, final, step)
        return Published(published, old, watch.span)

    def _adopt(
        self, who: Identity, watch: StampWatch, tmp: Tmp, *, in_place: bool = True
    ) -> Published | None:
        path, step = tmp.checkpoint.path, tmp.checkpoint.step
        if tmp.fate == "publish" and tmp.manifest:
            writer.remove(path)
            if self._durable:
                fsutil.fsync_tree(path)
            return self._publish(who, watch, path, _Sealed(tmp.manifest), in_place=in_place)
        if tmp.fate == "trash":
            self._set_aside(watch, path, step, tmp.published_uuid)
        return None
