"""Verifying what is published, file by file: what was looked at longest ago comes first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ckptdb import caller
from ckptdb.catalog.catalog import Catalog, Recorded, Seen
from ckptdb.catalog.store import Changes
from ckptdb.disk import checksums, identity, manifest, scan, verified
from ckptdb.disk.manifest import Manifest
from ckptdb.disk.verified import Depth, Verified
from ckptdb.errors import ChecksumsUnavailable, IndexStale, UnreadableInfo
from ckptdb.reconcile.plan import compare, keep_damage
from ckptdb.records import Checkpoint, utc


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying has come to; iterating yields the checkpoints.

    Attributes:
        checkpoints: What is published, problems included, however old their verification is.
        done: How many of them have been verified this time.
        never: How many of them have never been.
        oldest_at: When the one that was verified longest ago was; None when none ever was.
    """

    checkpoints: tuple[Checkpoint, ...]
    done: int
    never: int
    oldest_at: str | None

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


class Verifier:
    """Compares files with their manifests, and tells the index what it finds.

    Args:
        catalog: Already reconciled with the runs.
        depth: Whether to read the files that have checksums, or only to ask for their sizes.
        max_seconds: When to stop, between two files, after the first; None for not before the end.
        on_checkpoint: Called after each checkpoint.
    """

    def __init__(
        self,
        catalog: Catalog,
        depth: Depth,
        *,
        max_seconds: float | None,
        on_checkpoint: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._depth: Depth = depth
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._on_checkpoint = on_checkpoint
        self._begun = False
        self._done = 0
        self._can_read: bool | None = None

    def verify(self, runs: Sequence[Seen], *, ours: Sequence[Seen]) -> Verification:
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
        live = {seen.id: self._catalog.checkpoints(run_id=seen.id, status="final") for seen in runs}
        each = [(seen, checkpoint) for seen in runs for checkpoint in live[seen.id]]
        each.sort(key=lambda one: notes[one[0].id].at.get(one[1].uuid, ""))
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
                verified.store(hidden, self._depth, notes[seen.id], of=of)
        return self._sum_up(runs, notes)

    def _sum_up(self, runs: Sequence[Seen], notes: dict[int, Verified]) -> Verification:
        found = [
            (notes[seen.id].at.get(checkpoint.uuid), checkpoint)
            for seen in runs
            for checkpoint in self._catalog.checkpoints(run_id=seen.id, status="final")
        ]
        times = [at for at, _ in found if at is not None]
        return Verification(
            tuple(checkpoint for _, checkpoint in found),
            self._done,
            len(found) - len(times),
            min(times, default=None),
        )

    def _verify(self, seen: Seen, known: Checkpoint, notes: Verified) -> None:
        who = identity.identify(seen.run.directory)
        try:
            found = scan.load(who, known.path, known.step)
            content = None if found.problem else manifest.find(known.path)
        except FileNotFoundError:
            return  # it went meanwhile
        except (OSError, UnreadableInfo) as error:
            why = getattr(error, "strerror", None) or str(error)
            problem = f"{known.path.name} cannot be read ({why})"
            found, content = replace(known, problem=problem, fingerprint=None), None
        if found.uuid != known.uuid:
            return  # another save has taken its place
        if content is not None:
            faults, finished = self._faults(found, content, notes)
            if not finished:
                return
            found = replace(found, problem=manifest.damage(faults))
        self._begun = True
        self._done += 1
        read = content is not None and self._reads(content)
        if read or self._depth == "sizes" or not (content and content.checksums):
            notes.at[known.uuid] = utc(time.time())
        notes.unfinished.pop(known.uuid, None)
        self._tell(seen, known, found, read=read)

    def _faults(
        self, found: Checkpoint, content: Manifest, notes: Verified
    ) -> tuple[list[str], bool]:
        """Return what is wrong with the files, and whether all of them have been looked at."""
        done = notes.unfinished.get(found.uuid, [])
        before, faults, reads = set(done), list[str](), self._reads(content)
        for name, size in content.files.items():
            if name in before:
                continue
            if self._is_late():
                notes.unfinished[found.uuid] = done
                # What is damaged is told at once; it is not worth looking for more.
                return faults, bool(faults)
            self._begun = True
            fault = manifest.find_fault(found.path, name, size)
            if fault is None and reads:
                fault = checksums.find_fault(found.path, name, content)
            faults += [fault] if fault else []
            done.append(name)
        return faults, True

    def _reads(self, content: Manifest) -> bool:
        if self._depth != "contents" or not content.checksums:
            return False
        if self._can_read is None:
            self._can_read = checksums.is_available()
            if not self._can_read:
                caller.warn(f"Only sizes are compared. {ChecksumsUnavailable()}")
        return self._can_read

    def _tell(self, seen: Seen, known: Checkpoint, found: Checkpoint, *, read: bool) -> None:
        problems = {known.uuid: known.problem} if known.problem else {}
        recorded = Recorded(seen=seen, contents={known.uuid: known}, problems=problems)
        if not read:
            found = keep_damage(found, recorded, sizes_verified=True)
        if compare(found, recorded, lambda: ()) is None:
            return
        with suppress(IndexStale):  # another save has taken its place
            self._catalog.apply(Changes(run=seen.run, checkpoints=[found]))

    def _is_late(self) -> bool:
        # The first file in any case: else a large one would never be reached.
        return self._begun and self._deadline is not None and time.monotonic() >= self._deadline
