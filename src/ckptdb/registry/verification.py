"""Verifying published checkpoints, file by file, the oldest verification first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.changes import Changes
from ckptdb.core.observed import Manifest
from ckptdb.core.recorded import IndexedRun, RecordedRun
from ckptdb.core.records import Checkpoint, CheckpointProblem
from ckptdb.core.times import utc
from ckptdb.core.units import human_bytes
from ckptdb.disk import (
    checksums,
    identity,
    manifest,
    read_checkpoint,
    symlinks,
    verified,
)
from ckptdb.disk.manifest import Compared
from ckptdb.disk.verified import StoppedAt, Verified, VerifyDepth
from ckptdb.errors import ChecksumsUnavailable, IndexStale, UnreadableInfo
from ckptdb.reconcile.plan_published import compare_published, keep_damage

_LEAST_BYTES = 16 * 1024 * 1024
"""Bytes of the first file that are read however little time there is."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification; iterating yields the checkpoints.

    Attributes:
        checkpoints: Published checkpoints with their problems, whenever they were verified.
        done: Number of checkpoints that were compared with their manifests this time.
        never: Number of verifiable checkpoints that were never compared.
        oldest_at: Time of the oldest verification; None when there is none.
        not_verifiable: Reason, by uuid, why files cannot be compared. A missing manifest is
            found for all checkpoints, other reasons for those that were read this time; damaged
            checkpoints are not included.
        not_seen: Reason, by directory, why the checkpoints of a run were not read.
        unrecorded: Reason why the times of verification could not be recorded, or None.
        stopped: File, by uuid, that was not read to its end because the time was over.
    """

    checkpoints: tuple[Checkpoint, ...]
    done: int
    never: int
    oldest_at: str | None
    not_verifiable: Mapping[str, str] = field(default_factory=dict)
    not_seen: Mapping[Path, str] = field(default_factory=dict)
    unrecorded: str | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)

    @property
    def damaged(self) -> tuple[Checkpoint, ...]:
        """Checkpoints that are damaged or cannot be read."""
        return tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.problem)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


class Verifier:
    """Compares files with their manifests, and records the result in the index.

    Args:
        catalog: Already reconciled with the runs.
        depth: ``"contents"`` reads the files that have checksums, ``"sizes"`` none.
        max_seconds: When to stop, also within a file, after the first or `_LEAST_BYTES` of it; None
            for not before the end.
        on_checkpoint: Called after each checkpoint.
    """

    def __init__(
        self,
        catalog: Catalog,
        depth: VerifyDepth,
        *,
        max_seconds: float | None,
        on_checkpoint: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._depth: VerifyDepth = depth
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._on_checkpoint = on_checkpoint
        self._begun = False
        self._done = 0
        self._seen = set[str]()
        self._stopped: dict[str, str] = {}
        self._can_read: bool | None = None
        self._doubts: dict[str, str] = {}

    def verify(self, runs: Sequence[IndexedRun], *, ours: Sequence[IndexedRun]) -> Verification:
        """Verify what is published in some runs.

        Args:
            runs: Which.
            ours: Those of them that may be written to.
        """
        now = utc(time.time())
        notes = {
            seen.id: verified.load(identity.hidden(seen.run.directory), self._depth, now=now)
            for seen in runs
        }
        live = {
            seen.id: self._catalog.checkpoints.list_all(run_id=seen.id, status="final")
            for seen in runs
        }
        each = [(seen, checkpoint) for seen in runs for checkpoint in live[seen.id]]
        each.sort(key=lambda one: _find_last(notes[one[0].id], one[1].uuid))
        unrecorded: str | None = None
        try:
            for seen, checkpoint in each:
                if self._is_late():
                    break
                self._verify(seen, checkpoint, notes[seen.id])
                self._on_checkpoint()
        finally:
            for seen in ours:
                of = {checkpoint.uuid for checkpoint in live[seen.id]}
                hidden = identity.hidden(seen.run.directory)
                try:
                    verified.store(hidden, self._depth, notes[seen.id], of=of)
                except OSError as error:
                    unrecorded = f"{hidden} cannot be written ({error.strerror})"
        return replace(self._sum_up(runs, notes), unrecorded=unrecorded)

    def _sum_up(self, runs: Sequence[IndexedRun], notes: dict[int, Verified]) -> Verification:
        found = [
            (notes[seen.id].at.get(checkpoint.uuid), checkpoint)
            for seen in runs
            for checkpoint in self._catalog.checkpoints.list_all(run_id=seen.id, status="final")
        ]
        doubts = {
            checkpoint.uuid: why
            for _, checkpoint in found
            if checkpoint.problem is None and (why := self._find_doubt(checkpoint)) is not None
        }
        times = [at for at, checkpoint in found if checkpoint.uuid not in doubts]
        return Verification(
            tuple(checkpoint for _, checkpoint in found),
            self._done,
            times.count(None),
            min(filter(None, times), default=None),
            doubts,
            stopped=self._stopped,
        )

    def _find_doubt(self, checkpoint: Checkpoint) -> str | None:
        if checkpoint.uuid in self._seen:
            return self._doubts.get(checkpoint.uuid)
        # There was no time to read it; a missing manifest is found all the same.
        return None if manifest.is_there(checkpoint.path) else manifest.WITHOUT

    def _verify(self, seen: IndexedRun, known: Checkpoint, notes: Verified) -> None:
        who = identity.identify(seen.run.directory)
        try:
            found = read_checkpoint.load(who, known.path, known.step)
            content = None if found.problem else manifest.find(known.path)
        except (OSError, UnreadableInfo) as error:
            why = symlinks.find_obstruction(known.path)
            if why is None and isinstance(error, FileNotFoundError):
                return  # it was deleted meanwhile
            why = why or getattr(error, "strerror", None) or str(error)
            problem = CheckpointProblem("unreadable", f"{known.path.name} cannot be read ({why})")
            found, content = replace(known, fingerprint=None).with_problem(problem), None
        if found.uuid != known.uuid:
            return  # another save has taken its place
        doubt: str | None = manifest.WITHOUT
        if content is not None:
            compared, finished = self._compare(found, content, notes)
            if not finished:
                return
            found, doubt = found.with_problem(compared.problem), compared.doubt
        self._begun = True
        self._seen.add(known.uuid)
        if found.problem is None and doubt is not None:
            self._doubts[known.uuid] = doubt
        else:
            self._done += 1
        read = content is not None and self._reads(content)
        if read or self._depth == "sizes" or not (content and content.checksums):
            notes.at[known.uuid] = utc(time.time())
        notes.unfinished.pop(known.uuid, None)
        notes.stopped.pop(known.uuid, None)
        self._store(seen, known, found, read=read)

    def _compare(
        self, found: Checkpoint, content: Manifest, notes: Verified
    ) -> tuple[Compared, bool]:
        """Compare the files with the manifest; return also whether all of them were compared."""
        done = notes.unfinished.get(found.uuid, [])
        before, each, reads = set(done), list[Compared](), self._reads(content)
        for name in _order_files(content, notes.stopped.get(found.uuid)):
            if name in before:
                continue
            if self._is_late():
                break
            one = manifest.compare_file(found.path, name, content)
            if one == Compared() and reads:
                try:
                    one = checksums.compare_file(
                        found.path, name, content, goes_on=self._has_time_to_read
                    )
                except checksums.ChecksumStopped as stopped:
                    self._note_stopped(found, name, stopped.read_bytes, content, notes)
                    break
            each.append(one)
            if one.doubt is None:  # a doubt is found again by the next verification
                self._begun = True
                done.append(name)
        else:
            return manifest.join(each), True
        notes.unfinished[found.uuid] = done
        # Damage is reported at once; the rest of the files need not be compared.
        compared = manifest.join(each)
        return compared, compared.damage is not None

    def _has_time_to_read(self, read_bytes: int) -> bool:
        # A part of the first file in any case, or nothing would ever be verified.
        is_over = self._deadline is not None and time.monotonic() >= self._deadline
        return not is_over or (not self._begun and read_bytes < _LEAST_BYTES)

    def _note_stopped(
        self, found: Checkpoint, name: str, read_bytes: int, content: Manifest, notes: Verified
    ) -> None:
        """Record a file that there was too little time for, so that others come before it."""
        self._begun = True
        before = notes.stopped.get(found.uuid)
        files = [one for one in before.files if one != name] if before else []
        notes.stopped[found.uuid] = StoppedAt(utc(time.time()), [*files, name])
        read, size = human_bytes(read_bytes), human_bytes(content.files[name])
        self._stopped[found.uuid] = f"only {read} of the {size} of {found.path / name} were read"

    def _reads(self, content: Manifest) -> bool:
        if self._depth != "contents" or not content.checksums:
            return False
        if self._can_read is None:
            self._can_read = checksums.is_available()
            if not self._can_read:
                warnings.warn(f"Only sizes are compared. {ChecksumsUnavailable()}")
        return self._can_read

    def _store(self, seen: IndexedRun, known: Checkpoint, found: Checkpoint, *, read: bool) -> None:
        problem = known.find_problem()
        problems = {known.uuid: problem} if problem else {}
        recorded = RecordedRun(indexed=seen, records={known.uuid: known}, problems=problems)
        if not read or known.uuid in self._doubts:
            certain = known.uuid not in self._doubts
            found = keep_damage(found, recorded, sizes_verified=certain)
        if compare_published(found, recorded, lambda: ()) is None:
            return
        with suppress(IndexStale):  # another save has taken its place
            self._catalog.apply(Changes(run=seen.run, checkpoints=[found]))

    def _is_late(self) -> bool:
        # The first file in any case.
        return self._begun and self._deadline is not None and time.monotonic() >= self._deadline


def _find_last(notes: Verified, uuid: str) -> str:
    """Return the time of the last try to verify a checkpoint."""
    stopped = notes.stopped.get(uuid)
    return max(notes.at.get(uuid, ""), stopped.at if stopped else "")


def _order_files(content: Manifest, stopped: StoppedAt | None) -> list[str]:
    """Return the listed files; those that there was too little time for come last."""
    last = {name: at for at, name in enumerate(stopped.files)} if stopped else {}
    return sorted(content.files, key=lambda name: last.get(name, -1))
