"""stage → make durable → publish → retire → remove.

A published name is always whole: bytes are durable before the name exists, and nothing is
ever unlinked under it. Every step leaves a state that `recover` understands, so a crash
between any two of them loses neither a checkpoint nor the record of a deletion.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdb.disk import durable, identity, info, journal, lease, manifest, names, scan
from ckptdb.disk.identity import Identity, Writer
from ckptdb.disk.journal import Fact
from ckptdb.disk.lease import Lease
from ckptdb.disk.lock import run_lock
from ckptdb.disk.manifest import Manifest
from ckptdb.disk.scan import Leftover, Stamp, Watch
from ckptdb.errors import NoCheckpointHere, RunLocked, SaveFailed, StepInUse, StepTaken
from ckptdb.records import Checkpoint, utc

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_THERE = "is not there; it was finalized, discarded or removed before"

Span = tuple[Stamp, Stamp] | None
"""The run's stamp before and after an operation; None when somebody else came between."""


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
    span: Span


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint under its final name, durable, with what it replaced.

    When another process has published it for us, it may already have ended.
    """

    checkpoint: Checkpoint
    replaced: Checkpoint | None
    span: Span


@dataclass(frozen=True, slots=True)
class Retired:
    """Checkpoints that are out of sight, their deletion recorded."""

    gone: tuple[Checkpoint, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Doomed:
    """A checkpoint that may be retired, if it is still the one that was judged.

    Attributes:
        force: Even when it is pinned; its pin ends with it.
        by_hand: Even when it is rejected, which no rule may take away.
    """

    step: int
    uuid: str
    reason: str
    force: bool = False
    by_hand: bool = False


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


class Publisher:
    """Changes one run directory; the only code that does.

    Args:
        directory: The run, absolute.
        make_durable: Whether each step is flushed before the next.
        metric: Name and whether higher is better, written to run.json; None leaves it alone.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        *,
        make_durable: bool = True,
        metric: tuple[str, bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self._hidden = identity.hidden(directory)
        self._durable = make_durable
        self._metric = metric
        self._clock = clock
        self._failed: set[Path] = set()
        self._names_durable = not make_durable
        self._pins = journal.Pins(self._hidden)

    # --- staging ------------------------------------------------------------------------

    def claim(self) -> Lease:
        """Hold the trainer's lease of the run as long as somebody keeps what is returned.

        Raises:
            RunInUse: Another process holds it.
        """
        durable.make_directories(self._hidden, durable=self._durable)
        return lease.take(self._hidden, since=self._now())

    def stage(self, step: int, content: bytes, config: bytes | None) -> Staged:
        """Create ``tmp_step_N`` with its metadata.

        A complete leftover of that step is published first, an incomplete one goes to the
        trash.

        Args:
            step: Training step.
            content: Of training_info.json.
            config: Content of config.yaml, None for no such file.

        Raises:
            StepInUse: Another live process on this machine is writing that step.
            OSError: The directory cannot be written.
        """
        path = self.directory / names.tmp_name(step)
        with self._changing(first=True) as (who, watch):
            adopted, gone = self._make_room(who, watch, path, step)
            created_at = self._now()
            checkpoint_uuid = str(uuid.uuid4())
            self._failed.discard(path)
            with watch.change(links=1):
                path.mkdir()
                try:
                    self._write_metadata(path, content, config, checkpoint_uuid, created_at)
                except OSError:
                    # Not one byte of the loop's is in it yet; do not leave half a file.
                    durable.remove_tree(path)
                    raise
            born = (checkpoint_uuid, created_at)
            checkpoint = scan.as_staged(who, path, step, born, info.parse(content))
            return Staged(checkpoint, tuple(gone), tuple(adopted), watch.span)

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

    # --- publishing ---------------------------------------------------------------------

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
        """
        step = names.get_tmp_step(path)
        if path in self._failed:
            raise SaveFailed(path, OSError("an earlier attempt to make it durable failed"))
        try:
            sealed = self._seal_or_withdraw(path, step, parent)
            with self._changing() as (who, watch):
                return self._publish_or_find(who, watch, path, sealed)
        except (StepTaken, NoCheckpointHere, RunLocked):
            raise
        except FileNotFoundError as error:
            raise NoCheckpointHere(path, _NOT_THERE) from error
        except OSError as error:
            # After a failed fsync the next one may succeed without the bytes being there.
            self._failed.add(path)
            # It may have its name, and nobody has flushed that.
            self._names_durable = not self._durable
            raise SaveFailed(path, error) from error

    def retire(self, doomed: Iterable[Doomed]) -> Retired:
        """Record the end of published checkpoints and take them out of sight.

        One that is no longer the checkpoint that was judged, or has been pinned or rejected since,
        is left alone. The bytes stay in the trash until `empty_trash`; on a full disk they go at
        once.
        """
        with self._changing() as (who, watch):
            failed: list[OSError] = []
            found = list(self._unchanged(who, doomed, failed))
            # By the journal: whoever judged may not have known of the latest pin.
            pinned = self._pins.find() if found else frozenset()
            rejected = self._pins.find_rejected() if found else frozenset()
            leaving = [
                (cp, doom)
                for cp, doom in found
                if (doom.force or cp.uuid not in pinned)
                and (doom.by_hand or cp.uuid not in rejected)
            ]
            at = self._now()
            facts = [journal.gone(cp, "deleted", doom.reason, at) for cp, doom in leaving]
            gone = self._put_away(who, watch, [checkpoint for checkpoint, _ in leaving], facts)
            forced = [cp.uuid for cp in gone if cp.uuid in pinned]
            if forced:  # only now: what could not be moved keeps its pin
                self._append(watch, [Fact(at, "unpin", known) for known in forced])
            reasons = {cp.uuid: doom.reason for cp, doom in leaving}
            ended = (
                replace(cp, status="deleted", deleted_at=at, deleted_reason=reasons[cp.uuid])
                for cp in gone
            )
            if failed:
                raise failed[0]
            return Retired(tuple(ended), watch.span)

    def add_checksums(self, step: int, uuid: str, checksums: Mapping[str, str]) -> bool:
        """Put checksums into a published checkpoint's manifest; tell whether it was still there.

        A crash before leaves it without any. The run's stamp does not move: to the index
        nothing has changed, but for the fingerprint, which costs one look.
        """
        with self._changing() as (who, _):
            final = self._final(step)
            if scan.find_uuid(who, final, step) != uuid:
                return False
            found = manifest.find(final)
            if found is None:
                return False
            said = replace(found, checksums=checksums)
            manifest.write(final, said, make_durable=self._durable)
            return True

    def record(self, facts: Sequence[Fact]) -> Span:
        """Append facts to the run's journal."""
        with self._changing() as (_, watch):
            self._append(watch, facts)
            return watch.span

    # --- after a crash ------------------------------------------------------------------

    def adopt(self, path: Path) -> Published | None:
        """Publish a complete leftover ``tmp_step_N``, or trash one that holds what was replaced.

        None when it is neither: what is published under its step is unrelated, or it is not
        complete.
        """
        step = names.get_tmp_step(path)
        with self._changing() as (who, watch):
            if not durable.is_folder(path):
                return None
            return self._adopt(who, watch, scan.load_tmp(who, path, step))

    def put_back(self, leftover: Leftover) -> None:
        """Give an ``old_step_N.<uuid>`` its name again, or trash it when the name is taken."""
        with self._changing() as (_, watch):
            if not durable.is_folder(leftover.path):
                return
            final = self._final(leftover.step)
            if durable.is_there(final):
                self._set_aside(watch, leftover.path, leftover.step, leftover.uuid)
            else:
                with watch.change():
                    durable.rename_new(leftover.path, final)
                self._sync_directory()

    def establish(self) -> Identity:
        """Make the run's identity permanent without changing anything else."""
        with self._changing() as (who, _):
            return who

    # --- the trash ----------------------------------------------------------------------

    def empty_trash(self) -> int:
        """Remove the bytes of everything retired; return how many checkpoints that were.

        A pinned one, which was replaced by a new save, stays until it is unpinned.

        Raises:
            OSError: Some of it could not be removed; the rest was.
        """
        failed: list[OSError] = []
        removed = self._remove_retired(failed)
        if not all(left.recorded for left in scan.list_trash(self.directory)):
            self._record_late()
            removed += self._remove_retired(failed)
        if failed:
            raise failed[0]
        return removed

    def _remove_retired(self, failed: list[OSError]) -> int:
        retired = [left for left in scan.list_trash(self.directory) if left.recorded]
        pinned = self._pins.find() if retired else frozenset()
        doomed = [left for left in retired if left.uuid not in pinned]
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

    # --- the steps ----------------------------------------------------------------------

    @contextmanager
    def _changing(self, *, first: bool = False) -> Iterator[tuple[Identity, Watch]]:
        # With the trash: when the disk is full, there may be no space for another directory.
        durable.make_directories(self._hidden / "trash", durable=self._durable)
        with run_lock(self._hidden):
            self._make_names_durable()
            yield self._establish_locked(first=first), Watch(self.directory)

    def _make_names_durable(self) -> None:
        """Once, flush the names that all others hang on: who made them may not have come to it."""
        if self._names_durable:
            return
        durable.fsync(self._hidden)
        durable.fsync(self.directory)
        # One that is not to be read, we cannot have written.
        with suppress(PermissionError):
            durable.fsync(self.directory.parent)
        self._names_durable = True

    def _establish_locked(self, *, first: bool) -> Identity:
        metric_name, higher_is_better = self._metric or (None, False)
        try:
            return identity.establish(
                self.directory,
                metric_name=metric_name,
                higher_is_better=higher_is_better,
                keep_metric=self._metric is None,
                make_durable=self._durable,
                first=first,
            )
        except OSError as error:
            if first or error.errno not in _NO_SPACE:
                raise
            # A copy that has filled the disk can be freed as what it will be.
            return identity.identify(self.directory)

    def _make_room(
        self, who: Identity, watch: Watch, path: Path, step: int
    ) -> tuple[list[Checkpoint], list[Checkpoint]]:
        if not durable.is_there(path):
            return [], []
        if not durable.is_folder(path):
            raise StepTaken(path)
        tmp = scan.load_tmp(who, path, step)
        writer = tmp.writer
        if writer and writer.is_alive and not writer.is_me:
            raise StepInUse(path, f"process {writer.pid} on {writer.host}")
        published = self._adopt(who, watch, tmp)
        if published:
            gone = [published.replaced] if published.replaced else []
            return [published.checkpoint], gone
        if durable.is_folder(path):
            reason = "discarded: left unfinished, the step was saved again"
            return [], [self._discard(who, watch, tmp.checkpoint, reason)]
        return [], []

    def _write_metadata(
        self, path: Path, content: bytes, config: bytes | None, checkpoint_uuid: str,
        created_at: str,
    ) -> None:  # fmt: skip
        writer = Writer.this_process(checkpoint_uuid, created_at)
        durable.write_new(path / names.INFO, content, durable=False)
        if config is not None:
            durable.write_new(path / names.CONFIG, config, durable=False)
        identity.write_writer(path, writer)

    def _seal_or_withdraw(self, path: Path, step: int, parent: str | None) -> _Sealed:
        who = identity.identify(self.directory)
        if not who.recorded:
            who = self.establish()
        try:
            return self._seal(who, path, step, parent)
        except OSError:
            # A save that failed must not be taken for a complete one by whoever comes next.
            with suppress(OSError):
                (path / names.MANIFEST).unlink(missing_ok=True)
            raise

    def _seal(self, who: Identity, path: Path, step: int, parent: str | None) -> _Sealed:
        staged = scan.find_staged(who, path, step)
        tmp = staged or scan.load_tmp(who, path, step).checkpoint
        if self._durable:
            durable.fsync_tree(path, but=names.WRITER)
        sealed = Manifest(
            uuid=tmp.uuid,
            step=step,
            created_at=tmp.created_at,
            finalized_at=self._now(),
            parent=parent,
            replaces=scan.find_uuid(who, self._final(step), step),
            files=manifest.list_files(path),
        )
        # The manifest goes last: its presence is what says that the directory is whole.
        manifest.write(path, sealed, make_durable=self._durable)
        # From here on another process may publish it for us. It need not be durable: after a power
        # cut nobody is taken for this process.
        (path / names.WRITER).unlink(missing_ok=True)
        return _Sealed(sealed, staged)

    def _publish_or_find(
        self, who: Identity, watch: Watch, path: Path, sealed: _Sealed
    ) -> Published:
        step, uuid = sealed.manifest.step, sealed.manifest.uuid
        final = self._final(step)
        if scan.find_uuid(who, final, step) == uuid:
            # Another process came between our manifest and our rename, and published for us. What
            # has our name by now may be a save of its own.
            return Published(scan.load(who, final, step), None, None)
        if scan.find_uuid(who, path, step) != uuid:
            ended = journal.read(self._hidden, who.run).gone.get(uuid)
            if ended is None or ended.finalized_at is None:
                raise NoCheckpointHere(path, _NOT_THERE)
            return Published(ended, None, None)  # and by now it has been replaced, or deleted
        return self._publish(who, watch, path, sealed)

    def _publish(self, who: Identity, watch: Watch, path: Path, sealed: _Sealed) -> Published:
        step = sealed.manifest.step
        final = self._final(step)
        current = scan.find_uuid(who, final, step)
        if current is None and durable.is_there(final):
            raise StepTaken(final)
        if current != sealed.manifest.replaces:
            # Somebody published or removed this step since it was sealed; say what is true now.
            said = replace(sealed.manifest, replaces=current)
            manifest.write(path, said, make_durable=self._durable)
        old: Checkpoint | None = None
        if current is None:
            with watch.change():
                durable.rename_new(path, final)
            self._sync_directory()
        else:
            old = self._record_replaced(who, watch, final, sealed.manifest)
            self._swap(watch, path, old)
        published = sealed.published_at(final) or scan.load(who, final, step)
        return Published(published, old, watch.span)

    def _record_replaced(
        self, who: Identity, watch: Watch, final: Path, sealed: Manifest
    ) -> Checkpoint:
        try:
            old = scan.load(who, final, sealed.step, strict=True)
        except OSError:
            # It goes in any case; what of it can be read is recorded.
            old = scan.load(who, final, sealed.step)
        at, reason = self._now(), f"replaced by a new save of step {sealed.step}"
        self._append(watch, [journal.gone(old, "replaced", reason, at)])
        return replace(old, status="deleted", deleted_at=at, deleted_reason=reason)

    def _swap(self, watch: Watch, path: Path, old: Checkpoint) -> None:
        final = self._final(old.step)
        aside = path
        try:
            with watch.change():
                durable.exchange(path, final)
        except durable.ExchangeUnsupported:
            aside = self.directory / names.old_name(old.step, old.uuid)
            with watch.change():
                durable.rename_new(final, aside)
                try:
                    durable.rename_new(path, final)
                except OSError:
                    durable.rename_new(aside, final)  # the older one stays what is published
                    raise
        self._sync_directory()
        self._set_aside(watch, aside, old.step, old.uuid)

    def _adopt(self, who: Identity, watch: Watch, tmp: scan.Tmp) -> Published | None:
        path, step = tmp.checkpoint.path, tmp.checkpoint.step
        if tmp.fate == "publish" and tmp.manifest:
            (path / names.WRITER).unlink(missing_ok=True)
            if self._durable:
                durable.fsync_tree(path)
            return self._publish(who, watch, path, _Sealed(tmp.manifest))
        if tmp.fate == "trash":
            self._set_aside(watch, path, step, tmp.published_uuid)
        return None

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
            if error.errno not in _NO_SPACE:
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
            return self._to_trash(watch, cp.path, cp.step, cp.uuid, recorded=recorded)
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
                found = scan.load(who, path, doom.step, strict=not doom.force)
                if found.uuid == doom.uuid:
                    yield found, doom
            except FileNotFoundError:
                continue  # removed by hand meanwhile
            except OSError as error:
                failed.append(error)

    def _append(self, watch: Watch, facts: Sequence[Fact]) -> None:
        if facts:
            with watch.change():
                journal.append(self._hidden, facts, make_durable=self._durable)

    def _set_aside(self, watch: Watch, path: Path, step: int, checkpoint_uuid: str) -> None:
        """Move what was replaced into the trash, where it stays as long as it is pinned."""
        self._to_trash(watch, path, step, checkpoint_uuid)
        # The name it had is flushed before anything is removed; until then it may come back.
        self._sync_trash()

    def _to_trash(
        self, watch: Watch, path: Path, step: int, checkpoint_uuid: str, *, recorded: bool = True
    ) -> Path:
        trash = self._hidden / "trash"
        for attempt in range(1000):
            name = names.trash_name(step, checkpoint_uuid, recorded=recorded, attempt=attempt)
            target = trash / name
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
            durable.fsync(self._hidden / "trash")

    def _sync_directory(self) -> None:
        # The commit point: only after it may anything older be removed.
        if self._durable:
            durable.fsync(self.directory)

    def _final(self, step: int) -> Path:
        return self.directory / names.final_name(step)

    def _now(self) -> str:
        return utc(self._clock())
