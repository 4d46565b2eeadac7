"""Observing a run: its directory, journal, trash and changed checkpoints. Writes nothing.

A checkpoint whose fingerprint is known and unchanged costs two `stat` calls. Records may be handed
on while others are still to be read.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ckptdb.core.facts import Facts
from ckptdb.core.observed import Identity, KnownFingerprints, Observation, Tmp
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    config_file,
    fsutil,
    identity,
    names,
    read_changed,
    read_tmp,
    read_trash,
    run_listing,
)
from ckptdb.disk.parallel import ParallelReader
from ckptdb.disk.read_changed import ReadBatch
from ckptdb.disk.run_listing import Listing

PORTION = 5000
"""Number of checkpoints that are in memory at a time."""


# Errors of the very file; any other one, such as no descriptor left, may befall all of them.
_OF_ONE_DIRECTORY = frozenset({
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN,
    errno.ENAMETOOLONG, errno.EFBIG,
})  # fmt: skip
Take = Callable[[Sequence[Checkpoint]], Mapping[int, Checkpoint]]


def observe(
    directory: Path,
    known: KnownFingerprints | None = None,
    *,
    verify: bool = False,
    on_checkpoint: Callable[[], None] | None = None,
    take: Take | None = None,
    listing: Listing | None = None,
    may_touch: bool = False,
) -> Observation:
    """Look at a run directory.

    Args:
        directory: The run.
        known: Facts that need not be read again; None reads everything.
        verify: Also compare every listed file of what is read with its manifest.
        on_checkpoint: Called after each checkpoint, for a progress bar.
        take: Gets what is read, whenever `PORTION` checkpoints have come together, and returns
            what of it is to be in the observation, by step; of the others that says no more than
            that the caller knows them.
        listing: Of this directory, made not long ago; None to make one now.
        may_touch: For the age of an unfinished save, see `fs_clock.find_time`.

    Raises:
        OSError: The directory itself cannot be read.
    """
    known = known or KnownFingerprints()
    if listing is None or not listing.is_still_true():
        listing = run_listing.list_folder(directory)
    stamp = listing.stamp
    who = identity.identify(directory)
    trouble, reader = _Trouble(), ParallelReader()
    trouble.unreadable.update(listing.dead_links)
    # What a link leads to comes and goes without moving the run's stamp.
    trouble.unsure = bool(listing.linked or listing.dead_links)
    finals, took, bare, deleting = _load_finals(
        read_changed.read_changed(
            who, sorted(listing.finals), known.finals, verify=verify, reader=reader
        ),
        directory, trouble, on_checkpoint, take,
    )  # fmt: skip
    # A checkpoint never seen before may have lines in the part of the journal already read.
    read = [checkpoint for checkpoint in finals.values() if checkpoint]
    new = took or any(cp.uuid != known.finals.get(cp.step, ("",))[0] for cp in read)
    same = not took and not read and finals.keys() >= known.finals.keys()
    stale = known.journal_bytes != stamp.journal_bytes or new
    trash = (*read_trash.list_trash(directory), *read_trash.list_deleting(who, deleting))
    unrecorded = [left for left in trash if not left.recorded]
    facts: Facts | None = None
    if stale or unrecorded:
        try:
            facts = read_trash.read_facts(who, unrecorded)
        except OSError as error:
            # The checkpoints can be answered for all the same.
            trouble.errors.append(f"{error.filename}: {error.strerror}")
    config: dict[str, Any] | None = None
    if not (same and known.config):
        try:
            # A file that comes into a directory is a change to it, which is then read.
            few = known.configless and not took
            steps = [cp.step for cp in read] if few else finals
            config = _newest_config(directory, [s for s in steps if s not in bare], reader)
        except OSError:
            trouble.unsure = True
    tmps = _load_tmps(who, sorted(listing.tmps), trouble, may_touch=may_touch)
    return Observation(
        identity=who,
        stamp=stamp,
        settled=listing.settled,
        finals=finals,
        tmps=tmps,
        olds=tuple(listing.olds),
        trash=tuple(left for left in trash if left.until is None or left.is_due(time.time())),
        foreign=tuple(sorted(listing.foreign)),
        facts=facts,
        config=config,
        errors=tuple(trouble.errors),
        unreadable=trouble.unreadable,
        leased=read_trash.find_leased(directory, trash),
        unsure=trouble.unsure,
        doubts=trouble.doubts,
    )


class ReadFiles:
    """Files of a run, read repeatedly: unchanged checkpoints are not read again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._finals: dict[int, Checkpoint] = {}

    def observe(self) -> Observation:
        """Look at the run, its journal included; every published checkpoint is in it.

        Raises:
            OSError: The directory itself cannot be read.
        """
        found = observe(self._directory, self._known())
        finals = {cp.step: cp for cp in found.finals.values() if cp is not None}
        same = (step for step, cp in found.finals.items() if cp is None)
        self._finals = {step: self._finals[step] for step in same} | finals
        return replace(found, finals=dict(sorted(self._finals.items())))

    def find_published(self) -> tuple[Checkpoint, ...] | None:
        """Return the published checkpoints by step, but for those with an error of their own.

        None when they cannot be read now.

        Raises:
            OSError: The directory itself cannot be read.
        """
        who, steps = (
            identity.identify(self._directory),
            sorted(run_listing.list_folder(self._directory).finals),
        )
        finals: dict[int, Checkpoint] = {}
        for looked in read_changed.read_changed(who, steps, self._known().finals):
            if any(error.errno not in _OF_ONE_DIRECTORY for _, error in looked.failed):
                return None  # perhaps none of them can be
            finals.update((step, self._finals[step]) for step in looked.same)
            finals.update((checkpoint.step, checkpoint) for checkpoint in looked.read)
        self._finals = finals
        return tuple(finals[step] for step in sorted(finals))

    def _known(self) -> KnownFingerprints:
        return KnownFingerprints(
            {step: (cp.uuid, cp.fingerprint) for step, cp in self._finals.items()}
        )


@dataclass(slots=True)
class _Trouble:
    """Errors of reading: those of one directory, and those that may affect all of them.

    And what cannot be compared.
    """

    doubts: dict[int, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    unsure: bool = False

    def add(self, path: Path, error: OSError) -> None:
        self.unsure = True
        why = error.strerror or str(error)
        if error.errno in _OF_ONE_DIRECTORY:
            self.unreadable[path.name] = why
        else:
            self.errors.append(f"{path}: {why}")


def _load_finals(
    looks: Iterator[ReadBatch],
    directory: Path,
    trouble: _Trouble,
    on_checkpoint: Callable[[], None] | None,
    take: Take | None,
) -> tuple[dict[int, Checkpoint | None], bool, set[int], list[int]]:
    """Read the published checkpoints of a run.

    Returns:
        The checkpoints by step; whether ``take`` was called; the steps without a configuration;
        the steps that are being deleted in place.
    """
    found: dict[int, Checkpoint | None] = {}
    waiting: list[Checkpoint] = []
    took, bare, deleting = False, set[int](), list[int]()
    for looked in looks:
        bare.update(looked.bare)
        trouble.doubts.update(looked.doubts)
        deleting += looked.deleting
        found.update(dict.fromkeys(looked.same))
        waiting += looked.read
        trouble.unsure |= any(cp.problem and cp.fingerprint is None for cp in looked.read)
        for step, error in looked.failed:
            path = directory / names.final_name(step)
            if _may_be_there(path):  # else retired while we looked: as if never listed
                trouble.add(path, error)
        if on_checkpoint:
            for _ in chain(looked.same, looked.read, looked.deleting, looked.failed):
                on_checkpoint()
        if take and len(waiting) >= PORTION:
            found.update(dict.fromkeys(checkpoint.step for checkpoint in waiting))
            found.update(take(waiting))
            waiting.clear()
            took = True
    found.update((checkpoint.step, checkpoint) for checkpoint in waiting)
    return {step: found[step] for step in sorted(found)}, took, bare, sorted(deleting)


def _newest_config(
    directory: Path, finals: Iterable[int], reader: ParallelReader
) -> dict[str, Any]:
    def having_one(some: Sequence[int]) -> list[Path]:
        folders = (f"{directory}/{names.final_name(step)}" for step in some)
        return [Path(path) for path in folders if config_file.has_config(path)]

    newest = sorted(finals, reverse=True)
    for steps in (newest[:1], newest[1:]):  # nearly always the very first
        for folders in reader.through(steps, having_one):
            for folder in folders:
                found = config_file.find_config(folder)
                if found is not None:
                    return found
    return {}


def _load_tmps(
    who: Identity, steps: Iterable[int], trouble: _Trouble, *, may_touch: bool
) -> dict[int, Tmp]:
    found = {}
    for step in steps:
        path = who.run.directory / names.tmp_name(step)
        try:
            found[step] = read_tmp.load_tmp(who, path, step, may_touch=may_touch)
        except OSError as error:
            if _may_be_there(path):  # else published while we looked
                trouble.add(path, error)
    return found


def _may_be_there(path: Path) -> bool:
    try:
        return fsutil.is_there(path)
    except OSError:
        return True
