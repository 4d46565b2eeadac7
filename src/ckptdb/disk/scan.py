"""A run directory → what is observed there, and the stamp that tells whether it changed.

Observing never writes. It reads only what the caller does not know yet: a checkpoint whose
fingerprint is known and unchanged costs two `stat` calls. What is read may be handed on while
the rest is still to come.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ckptdb.core.metrics import metrics_of
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import (
    fsutil,
    identity,
    journal,
    leases,
    liveness,
    lock,
    manifest,
    names,
    paths,
    read_checkpoint,
    symlinks,
    training_info,
    writer,
)
from ckptdb.disk.identity import Identity
from ckptdb.disk.journal import Facts
from ckptdb.disk.manifest import Manifest
from ckptdb.disk.parallel import ParallelReader
from ckptdb.disk.process import Life
from ckptdb.disk.read_checkpoint import derive_uuid
from ckptdb.disk.writer import Writer
from ckptdb.errors import UnreadableInfo

PORTION = 5000
"""How many checkpoints are in memory at a time when there are many to read."""
_GAP_SECONDS = 2.0
"""How long a reader waits for a name that a replacement in two renames has taken away."""
_LOOKS = 5
_UNCOUNTED = 2

load = read_checkpoint.load  # whoever looks at a run may want one of its checkpoints

# Errors of the very file; any other one, such as no descriptor left, may befall all of them.
_OF_ONE_DIRECTORY = frozenset({
    errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN,
    errno.ENAMETOOLONG, errno.EFBIG,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stamp:
    """What moves whenever a run changes: the directory's mtime and link count, the journal.

    Attributes:
        changed_ns: The directory's ctime, which nobody can set back. It is not stored, and two
            stamps are equal without it; see `is_same`.
    """

    mtime_ns: int
    links: int
    journal_bytes: int
    changed_ns: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.mtime_ns}:{self.links}:{self.journal_bytes}"

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """Read what ``str()`` wrote.

        Raises:
            ValueError: Nobody of ours wrote that.
        """
        mtime_ns, links, journal_bytes = map(int, text.split(":"))
        return cls(mtime_ns, links, journal_bytes)

    def is_same(self, other: Stamp | None) -> bool:
        """Whether nothing has changed between the two, by the ctime too."""
        return other is not None and self == other and self.changed_ns == other.changed_ns

    def is_settled(self) -> bool:
        """Whether a later change would be sure to show in the mtime."""
        return read_checkpoint.is_settled(self.mtime_ns)


def find_stamp(directory: Path) -> Stamp | None:
    """Return a run's stamp, or None when the directory is not there."""
    try:
        found = paths.find_stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    size = journal.size(directory)
    return Stamp(found.st_mtime_ns, found.st_nlink, size, found.st_ctime_ns)


class StampWatch:
    """Follows the stamp through our own changes, to notice anybody else's between them.

    Each change is wrapped in `change`; ``span`` is then the stamp before the first and after
    the last, or None when the directory moved in between without us.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first: Stamp | None = None
        self._last: Stamp | None = None
        self._disturbed = False

    @contextmanager
    def change(self, *, links: int = 0) -> Iterator[None]:
        """Wrap one change of our own.

        Args:
            links: By how many it changes the number of directories. When it is another number,
                somebody else's change has come at the same moment.
        """
        before = find_stamp(self._directory)
        if self._last is None:
            self._first = before
        elif before != self._last:
            self._disturbed = True
        yield
        self._last = after = find_stamp(self._directory)
        # Some file systems do not count: then it is 1 or 2, in spite of our own folder.
        if before and after and before.links > _UNCOUNTED and after.links - before.links != links:
            self._disturbed = True

    @property
    def span(self) -> tuple[Stamp, Stamp] | None:
        """The stamps around all changes so far."""
        if self._disturbed or self._first is None or self._last is None:
            return None
        return self._first, self._last


@dataclass(frozen=True, slots=True)
class KnownFingerprints:
    """What the caller already knows about a run, so that it need not be read again.

    Attributes:
        finals: By step, uuid and fingerprint of each published checkpoint.
        journal_bytes: Size of the journal that has been read; None to read it again.
        config: Whether the run's configuration is known as long as no checkpoint is new or gone.
        configless: Whether it is known that no checkpoint has one.
    """

    finals: Mapping[int, tuple[str, str | None]] = field(default_factory=dict)
    journal_bytes: int | None = None
    config: bool = False
    configless: bool = False


@dataclass(slots=True)
class Looked:
    """What some published checkpoints were found to be.

    Attributes:
        same: Steps of those that are exactly as the caller knows them.
        read: The others.
        bare: Steps of those that have no configuration, as far as they were read.
        deleting: Steps of those that are being deleted where they stand.
        failed: What came of those that could be neither compared nor read.
        doubts: By step, why files could not be compared with a manifest, if that was asked.
    """

    same: list[int] = field(default_factory=list)
    read: list[Checkpoint] = field(default_factory=list)
    bare: list[int] = field(default_factory=list)
    deleting: list[int] = field(default_factory=list)
    failed: list[tuple[int, OSError]] = field(default_factory=list)
    doubts: dict[int, str] = field(default_factory=dict)


Take = Callable[[Sequence[Checkpoint]], Mapping[int, Checkpoint]]


@dataclass(frozen=True, slots=True)
class Tmp:
    """A ``tmp_step_N`` directory.

    Attributes:
        published_uuid: What its uuid is, or was, under its final name.
        manifest: Its presence says that all bytes are durable and only the name is missing.
        writer: Who stages it, when that was recorded.
        fate: ``publish`` it under its final name, put it in the ``trash`` because it holds what
            has been replaced, or None: it is not ours to move.
        life: What is known of its writer.
        blocked: It is complete, and its final name is taken by what is no checkpoint of this run:
            a file, or a symlink.
        abandoned: Nobody will continue it: its writer is dead, or cannot be asked and has not
            touched it for `liveness.UNTOUCHED_SECONDS`.
    """

    checkpoint: Checkpoint
    published_uuid: str
    manifest: Manifest | None
    writer: Writer | None
    fate: Literal["publish", "trash"] | None
    life: Life = "unknown"
    abandoned: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """A directory that a crash left between two steps of ours.

    Attributes:
        recorded: False when it was retired on a disk too full for the line in the journal, or
            when nobody knows whether it was.
        until: Until when it can be undeleted, in seconds since the epoch.
        identified: False when it may be anything: no file of it says that it is a checkpoint.
    """

    path: Path
    step: int
    uuid: str
    recorded: bool = True
    until: int | None = None
    identified: bool = True

    def is_due(self, now: float) -> bool:
        """Whether it has been kept for long enough for whoever may have wanted it back."""
        return self.until is not None and self.until <= now


@dataclass(slots=True)
class Listing:
    """What the names in a directory say.

    Attributes:
        stamp: The directory's, before it was listed.
        settled: Whether any change since is sure to have moved the stamp.
        finals: The steps that are published.
        linked: Those of them behind a symlink to a directory: read through it, never changed.
        dead_links: By name, why a symlink in a checkpoint's place leads to none.
        foreign: Names that look like ours and are not.
        below: Names of directories that may lead to other runs.
        unlikely: Names of directories that do so only if they are runs themselves.
    """

    directory: Path
    stamp: Stamp
    settled: bool
    finals: list[int] = field(default_factory=list)
    linked: list[int] = field(default_factory=list)
    dead_links: dict[str, str] = field(default_factory=dict)
    tmps: list[int] = field(default_factory=list)
    olds: list[Leftover] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    unlikely: list[str] = field(default_factory=list)

    def where_to_search(self) -> list[str]:
        """Return the names of the directories in which runs are to be looked for, sorted.

        Whatever its name, a directory with a run.json is a run; and what is called ``step_5`` is
        no checkpoint in a directory that is no run, such as that of a pipeline.
        """
        below, unlikely = list(self.below), list(self.unlikely)
        if not _has_identity(self.directory):
            finals = (step for step in self.finals if step not in self.linked)
            checkpoints = map(names.final_name, finals), map(names.tmp_name, self.tmps)
            (unlikely if self.is_run else below).extend(chain(*checkpoints))
        # Asked of every checkpoint of a run that has no run.json: joining paths takes longer.
        top, file = self.directory, f"{names.HIDDEN}/run.json"
        return sorted(below + [n for n in unlikely if os.path.isfile(f"{top}/{n}/{file}")])

    @property
    def is_run(self) -> bool:
        """Whether the directory holds checkpoints, ours or NeMo-RL's."""
        checkpoints = map(names.final_name, self.finals), map(names.tmp_name, self.tmps)
        return _has_identity(self.directory) or any(
            (self.directory / name / names.INFO).is_file() for name in chain(*checkpoints)
        )

    def is_still_true(self) -> bool:
        """Whether listing the directory again would be sure to show the same."""
        return self.settled and self.stamp.is_same(find_stamp(self.directory))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a run directory holds.

    Attributes:
        finals: By step; None for one that is exactly as the caller knows it.
        config: Of the highest step that has one, empty when none has; None when the caller
            knows it.
        trash: What is retired, except for what can be undeleted yet; also what could not be moved
            into the trash, and is being deleted where it stands.
        facts: What the journal says, and the trash on its behalf; None when it has not grown
            since the caller read it.
        foreign: Names that look like ours and are not (``step_007``, a file ``step_5``).
        unreadable: By name, why a directory could not be read that is there. Which checkpoint
            it is cannot be told, so nothing of its step may be taken for deleted.
        leased: uuids in the trash whose bytes an evaluator is still using.
        unsure: Something could not be read now, and may be readable at the next look without
            anything having moved the stamp.
        doubts: By step, why files could not be compared with a manifest, if that was asked.
        errors: What else could not be read, in words; while there are any, nothing at all that
            is missing may be taken for deleted.
    """

    identity: Identity
    stamp: Stamp
    settled: bool
    finals: Mapping[int, Checkpoint | None]
    tmps: Mapping[int, Tmp]
    olds: tuple[Leftover, ...]
    trash: tuple[Leftover, ...]
    foreign: tuple[str, ...]
    facts: Facts | None
    config: Mapping[str, Any] | None
    errors: tuple[str, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    leased: frozenset[str] = frozenset()
    unsure: bool = False
    doubts: Mapping[int, str] = field(default_factory=dict)


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
        known: What need not be read again; None reads everything.
        verify: Also compare every listed file of what is read with its manifest.
        on_checkpoint: Called after each checkpoint, for a progress bar.
        take: Gets what is read, whenever `PORTION` checkpoints have come together, and returns
            what of it is to be in the observation, by step; of the others that says no more than
            that the caller knows them.
        listing: Of this directory, made not long ago; None to make one now.
        may_touch: To tell how old an unfinished save is, see `clock.find_time`.

    Raises:
        OSError: The directory itself cannot be read.
    """
    known = known or KnownFingerprints()
    if listing is None or not listing.is_still_true():
        listing = list_folder(directory)
    stamp = listing.stamp
    who = identity.identify(directory)
    trouble, pace = _Trouble(), ParallelReader()
    trouble.unreadable.update(listing.dead_links)
    # What a link leads to comes and goes without moving the run's stamp.
    trouble.unsure = bool(listing.linked or listing.dead_links)
    finals, took, bare, deleting = _load_finals(
        look(who, sorted(listing.finals), known.finals, verify=verify, pace=pace),
        directory, trouble, on_checkpoint, take,
    )  # fmt: skip
    # A checkpoint never seen before may have lines in the part of the journal already read.
    read = [checkpoint for checkpoint in finals.values() if checkpoint]
    new = took or any(cp.uuid != known.finals.get(cp.step, ("",))[0] for cp in read)
    same = not took and not read and finals.keys() >= known.finals.keys()
    stale = known.journal_bytes != stamp.journal_bytes or new
    trash = (*list_trash(directory), *_list_deleting(who, deleting))
    unrecorded = [left for left in trash if not left.recorded]
    facts: Facts | None = None
    if stale or unrecorded:
        try:
            facts = read_facts(who, unrecorded)
        except OSError as error:
            # The checkpoints can be answered for all the same.
            trouble.errors.append(f"{error.filename}: {error.strerror}")
    config: dict[str, Any] | None = None
    if not (same and known.config):
        try:
            # A file that comes into a directory is a change to it, which is then read.
            few = known.configless and not took
            steps = [cp.step for cp in read] if few else finals
            config = _newest_config(directory, [s for s in steps if s not in bare], pace)
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
        leased=_find_leased(directory, trash),
        unsure=trouble.unsure,
        doubts=trouble.doubts,
    )


class ReadFiles:
    """What the files of a run say, again and again: what has not changed is not read again."""

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
        who, steps = identity.identify(self._directory), sorted(list_folder(self._directory).finals)
        finals: dict[int, Checkpoint] = {}
        for looked in look(who, steps, self._known().finals):
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


def read_facts(who: Identity, unrecorded: Sequence[Leftover] | None = None) -> Facts:
    """Read what a run's journal says, and its trash where that had no space for it.

    Args:
        who: The run.
        unrecorded: What is in the trash and not in the journal, when that has just been listed.

    Raises:
        OSError: It is there and cannot be read.
    """
    if unrecorded is None:
        unrecorded = [left for left in list_trash(who.run.directory) if not left.recorded]
    facts = journal.read(identity.hidden(who.run.directory), who.run)
    return replace(facts, gone={**_ends(who, unrecorded), **facts.gone})


def look(
    who: Identity,
    steps: Sequence[int],
    known: Mapping[int, tuple[str, str | None]],
    *,
    verify: bool = False,
    pace: ParallelReader | None = None,
) -> Iterator[Looked]:
    """Look at published checkpoints of a run, a few at a time.

    Args:
        who: The run.
        steps: Theirs.
        known: By step, uuid and fingerprint; what has that fingerprint is not read again.
        verify: Also compare every listed file of what is read with its manifest.
        pace: Whether the file system is slow, when that has been found out.
    """
    directory = who.run.directory
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def look_at(some: Sequence[int]) -> Looked:
        found = Looked()
        for step in some:
            name = names.final_name(step)
            before = known.get(step)
            try:
                if before and before[1] and read_checkpoint.is_unchanged(name, before[1], folder):
                    found.same.append(step)
                else:
                    one = read_checkpoint.read(who, directory / name, step, verify=verify)
                    found.read.append(one.checkpoint)
                    if not one.has_config:
                        found.bare.append(step)
                    if one.doubt:
                        found.doubts[step] = one.doubt
            except read_checkpoint.BeingDeleted:
                found.deleting.append(step)
            except OSError as error:
                found.failed.append((step, error))
        return found

    try:
        yield from (pace or ParallelReader()).through(steps, look_at)
    finally:
        os.close(folder)


def load_tmp(who: Identity, path: Path, step: int, *, may_touch: bool = False) -> Tmp:
    """Read one ``tmp_step_N``; size and count are unknown while it is being written.

    Args:
        who: The run.
        path: The directory.
        step: Its step.
        may_touch: To tell how old it is, see `clock.find_time`.
    """
    by = writer.find(path)
    raw, content = b"", dict[str, Any]()
    found: Manifest | None = None
    with suppress(UnreadableInfo):
        found = _find_manifest(path)
    held = found
    try:
        content, raw = training_info.load_info(path)
    except UnreadableInfo as error:
        training_info.raise_if_unknown(error)
        found = None  # not to be published as it is
    if found and found.step != step:
        found = None
    published_uuid = derive_uuid(who, held, step, raw)
    uuid = found.uuid if found else (by.uuid if by else derive_uuid(who, None, step, raw, "tmp"))
    created = found.created_at if found else (by.created_at if by else None)
    created_at = created or _created_at(path)
    checkpoint = as_staged(who, path, step, (uuid, created_at), content)
    life = liveness.find_life(path, by)
    fate = None if life == "alive" else _fate(who, path, step, found, published_uuid)
    blocked = found is not None and _is_taken(path.with_name(names.final_name(step)))
    abandoned = not (fate or blocked) and (
        life == "dead"
        or (
            life == "unknown"
            and liveness.is_untouched(path, identity.hidden(path.parent), may_touch=may_touch)
        )
    )
    return Tmp(checkpoint, published_uuid, found, by, fate, life, abandoned, blocked)


def _is_taken(final: Path) -> bool:
    status = paths.find_status(final)
    return status is not None and not stat.S_ISDIR(status.st_mode)


def as_staged(
    who: Identity, path: Path, step: int, born: tuple[str, str], content: Mapping[str, Any]
) -> Checkpoint:
    """Return the record of a ``tmp_step_N`` of which all is known; ``born``: uuid and when."""
    return Checkpoint(
        run_uuid=who.run.uuid,
        run=who.run.name,
        uuid=born[0],
        step=step,
        path=path,
        status="tmp",
        created_at=born[1],
        info=training_info.for_catalog(content),
        metrics=metrics_of(content),
    )


def find_staged(who: Identity, path: Path, step: int) -> Checkpoint | None:
    """Read a ``tmp_step_N`` that is as staging left it; None when it needs `load_tmp`."""
    by = writer.find(path)
    if by is None or fsutil.is_there(path / names.MANIFEST):
        return None
    try:
        content, _ = training_info.load_info(path)
    except UnreadableInfo as error:
        training_info.raise_if_unknown(error)
        return None
    return as_staged(who, path, step, (by.uuid, by.created_at), content)


def _created_at(path: Path) -> str:
    try:
        return utc(os.lstat(f"{path}/{names.INFO}").st_mtime)
    except FileNotFoundError:
        return utc(os.lstat(path).st_mtime)


def load_retired(who: Identity, left: Leftover) -> Checkpoint:
    """Read from the trash how a checkpoint ended that no line in the journal tells of.

    Whatever its files were, only those are sure to be there that make up the record.
    """
    if fsutil.is_there(left.path / names.WRITER):
        found = load_tmp(who, left.path, left.step).checkpoint
    else:
        found = read_checkpoint.read_files(
            who, left.path, left.step, os.lstat(left.path)
        ).checkpoint
    if not fsutil.is_there(left.path / names.MANIFEST):
        found = replace(found, size_bytes=None, file_count=None)
    return replace(
        found,
        uuid=left.uuid,
        path=who.run.directory / names.final_name(left.step),
        status="deleted",
        deleted_at=utc(os.lstat(left.path).st_mtime),
        deleted_reason="deleted on a full disk, which had no space for the reason",
        fingerprint=None,
    )


def find_deleting(who: Identity, path: Path, step: int) -> Leftover | None:
    """Return a checkpoint that is being deleted where it stands; None when it is not."""
    try:
        if not read_checkpoint.is_being_deleted(os.lstat(path)):
            return None
        # What tells which one it is goes last, when its end is recorded.
        has_record = any(fsutil.is_there(path / name) for name in names.RECORD)
        return Leftover(path, step, _derive_at(who, path, step), recorded=not has_record)
    except FileNotFoundError:
        return None


def _list_deleting(who: Identity, steps: Iterable[int]) -> list[Leftover]:
    directory = who.run.directory
    found = (find_deleting(who, directory / names.final_name(step), step) for step in steps)
    return [left for left in found if left]


def _ends(who: Identity, unrecorded: Sequence[Leftover]) -> dict[str, Checkpoint]:
    ends = {}
    for left in unrecorded:
        with suppress(FileNotFoundError):  # recorded and removed while we looked
            ends[left.uuid] = load_retired(who, left)
    return ends


def _find_leased(directory: Path, trash: Sequence[Leftover]) -> frozenset[str]:
    if not trash:
        return frozenset()
    try:
        return frozenset(leases.find_leased(identity.hidden(directory)))
    except OSError:
        return frozenset(left.uuid for left in trash)  # it may be: nothing of it is removed now


def _fate(
    who: Identity, path: Path, step: int, found: Manifest | None, uuid: str
) -> Literal["publish", "trash"] | None:
    """Decide by ``manifest.replaces`` alone what becomes of a ``tmp_step_N`` without a writer."""
    final = path.with_name(names.final_name(step))
    current = find_uuid(who, final, step)
    if current == uuid or (current is None and fsutil.is_there(final)):
        return None  # a copy made by hand, or a stranger has the name
    if found and current in (None, found.replaces):
        return "publish"
    try:
        published = manifest.find(final)
    except UnreadableInfo:
        return None
    # The exchange happened and the crash came before the old one was put away. That one may have
    # been NeMo-RL's, and have no manifest.
    return "trash" if published and published.replaces == uuid else None


def _find_manifest(path: Path) -> Manifest | None:
    try:
        return manifest.find(path)
    except UnreadableInfo as error:
        training_info.raise_if_unknown(error)
        raise


def find_uuid(who: Identity, path: Path, step: int, *, through_link: bool = False) -> str | None:
    """Return the uuid of the checkpoint published at ``path``, or None when nothing is.

    Args:
        who: The run.
        path: Where.
        step: What its name says.
        through_link: Also of one behind a symlink, which may be read and not be changed.
    """
    status = paths.find_status(path)
    if through_link and status is not None and stat.S_ISLNK(status.st_mode):
        return None if symlinks.find_obstruction(path) else _derive_at(who, path, step)
    if (
        status is None
        or not stat.S_ISDIR(status.st_mode)
        or read_checkpoint.is_being_deleted(status)
    ):
        return None
    return _derive_at(who, path, step)


def _derive_at(who: Identity, path: Path, step: int) -> str:
    found: Manifest | None = None
    with suppress(UnreadableInfo):
        found = _find_manifest(path)
    raw = b""
    if found is None:
        try:
            raw = training_info.load_info(path)[1]
        except UnreadableInfo as error:
            training_info.raise_if_unknown(error)
    return derive_uuid(who, found, step, raw)


def is_identified(folder: Path) -> bool:
    """Tell whether a directory says by a file that it is a checkpoint, or holds nothing to lose.

    Such a file is a manifest, without one a training_info.json, and of an unfinished save also
    what says who writes it. One that is damaged or cannot be read now says nothing.
    """
    entries = set(os.listdir(folder))
    if not entries:
        return True
    # Killed while these were written, a save of ours has nothing else yet.
    is_begun = writer.find(folder) or entries <= {*names.RECORD, names.CONFIG}
    if names.find_tmp_step(folder.name) is not None and is_begun:
        return True
    try:
        return manifest.find(folder) is not None or bool(training_info.load_info(folder))
    except UnreadableInfo:
        return False


def is_run(directory: Path) -> bool:
    """Tell whether a directory holds checkpoints, ours or NeMo-RL's."""
    return _has_identity(directory) or sort_folders(directory)[0]


def _has_identity(directory: Path) -> bool:
    return (identity.hidden(directory) / "run.json").is_file()


def sort_folders(top: Path) -> tuple[bool, list[str]]:
    """Tell whether a directory is a run, and which names below it may lead to other runs."""
    try:
        listing = list_folder(top)
    except PermissionError:
        return False, []
    return listing.is_run, listing.where_to_search()


def is_published(folder: Path) -> bool:
    """Tell whether a checkpoint has its name, waiting while it is just being replaced.

    Where two names cannot be exchanged, a replacement takes the name away for an instant, and
    the older checkpoint stands beside it as ``old_step_N.<uuid>``. What stands so and nobody is
    changing the run was left by a crash.
    """
    deadline = time.monotonic() + _GAP_SECONDS
    looks = 0
    while not _is_readable(folder):
        if _is_aside(folder) and time.monotonic() < deadline:
            time.sleep(0.001)
            if lock.may_be_held(identity.hidden(folder.parent)):
                continue
        # It may have come back between the two looks, and gone for the next replacement.
        looks += 1
        if looks == _LOOKS:
            return False
    return True


def _is_readable(folder: Path) -> bool:
    status = paths.find_status(folder)
    if status is None or stat.S_ISLNK(status.st_mode):
        return status is not None and symlinks.find_obstruction(folder) is None
    return stat.S_ISDIR(status.st_mode) and not read_checkpoint.is_being_deleted(status)


def find_published_info(folder: Path) -> dict[str, Any] | None:
    """Return training_info of a checkpoint, None when it has none; see `is_published`.

    Raises:
        UnreadableInfo: It is there and is not a JSON object.
    """
    for _ in range(_LOOKS):
        try:
            return training_info.load_info(folder)[0]
        except UnreadableInfo as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        if not is_published(folder):
            break
    return None


def _is_aside(folder: Path) -> bool:
    step = names.find_final_step(folder.name)
    try:
        beside = os.listdir(folder.parent)
    except OSError:
        return False
    return any((names.find_old(name) or (None,))[0] == step for name in beside if step is not None)


def list_finals(directory: Path) -> list[tuple[int, Path]]:
    """Return step and path of everything published in a directory, by step."""
    try:
        found = list_folder(directory).finals
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = ((step, directory / names.final_name(step)) for step in sorted(found))
    return [(step, path) for step, path in steps if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    status = paths.find_status(path)
    return status is not None and not read_checkpoint.is_being_deleted(status)


def list_trash(directory: Path) -> tuple[Leftover, ...]:
    """Return what a run has retired and not yet removed."""
    trash = identity.hidden(directory) / names.TRASH
    parsed = ((name, names.find_trash(name)) for name in paths.list_folders(trash))
    return tuple(
        Leftover(
            trash / name,
            *found,
            recorded=names.is_recorded(name),
            until=names.find_until(name),
            identified=names.is_identified(name),
        )
        for name, found in parsed
        if found
    )


def find_runs(top: Path, *, other_roots: bool = False) -> Iterator[Path]:
    """Yield every run at or below ``top``, in order of path.

    A run has a run.json of ours, or a ``step_N`` or ``tmp_step_N`` with a training_info.json.
    Not searched are checkpoints, symlinks and what `names.is_searched` denies: git's own folder,
    snapshots, installed packages; hidden folders are. A run that is a root only of its own is a
    run like all others; a root of several is somebody else's tree.

    Args:
        top: Where to begin.
        other_roots: Also search the trees of other roots.
    """
    return (found.directory for found in list_runs(top, other_roots=other_roots))


def list_runs(top: Path, *, other_roots: bool = False) -> Iterator[Listing]:
    """Yield the listing of every run that `find_runs` would."""
    # No recursion: a tree may be deeper than Python's own calls.
    way: list[Iterator[Path]] = [iter((top,))]
    while way:
        folder = next(way[-1], None)
        if folder is None:
            way.pop()
            continue
        try:
            if folder != top and not other_roots and _is_other_root(folder):
                continue
            listing = list_folder(folder)
            below = listing.where_to_search()
            is_one = listing.is_run
        except OSError as error:
            if _keeps_from_searching(error, folder, top):
                continue
            raise
        way.append(map(folder.joinpath, below))
        if is_one:
            yield listing
        del listing  # it may be large, and what is below has one of its own


def _is_other_root(folder: Path) -> bool:
    return identity.is_root(folder) and not is_run(folder)


def _keeps_from_searching(error: OSError, folder: Path, top: Path) -> bool:
    """Whether there is nothing to find in a directory of a tree, or nothing for us."""
    if isinstance(error, PermissionError):
        return True
    # Removed while we looked, or so deep that nobody saves there by a path.
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    return folder != top and (gone or error.errno == errno.ENAMETOOLONG)


def find_unsearched(top: Path, run: Path) -> Path | None:
    """Return the directory between two that keeps `find_runs` from the lower one, if one does."""
    for folder in (*reversed(run.parents), run):
        if top not in folder.parents:
            continue
        if folder.is_symlink():
            return folder
        if folder == run:
            break
        is_step = names.find_final_step(folder.name), names.find_tmp_step(folder.name)
        in_checkpoint = is_step != (None, None) and is_run(folder.parent)
        if in_checkpoint or not names.is_searched(folder.name):
            return None if _has_identity(folder) else folder
    return None


# --- reading one directory --------------------------------------------------------------


@dataclass(slots=True)
class _Trouble:
    """What cannot be read: of one directory its own fault, else perhaps that of all.

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


def list_folder(directory: Path) -> Listing:
    """List a directory.

    Raises:
        OSError: It cannot be.
    """
    stamp = find_stamp(directory)
    if stamp is None:
        raise FileNotFoundError(f"{directory} is not there")
    found = Listing(directory, stamp, stamp.is_settled())
    installed = False
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            installed |= names.marks_environment(name)
            is_directory = entry.is_dir(follow_symlinks=False)
            step = names.find_final_step(name)
            if is_directory and step is not None:
                found.finals.append(step)
            elif step is not None and entry.is_symlink():
                _sort_in_link(found, name, step)
            else:
                _sort_in(found, name, is_directory=is_directory)
    below, found.below = found.below, []
    for name in below:
        place = found.below if names.is_searched(name, installed=installed) else found.unlikely
        place.append(name)
    return found


def _sort_in_link(found: Listing, name: str, step: int) -> None:
    why = symlinks.find_obstruction(found.directory / name)
    if why is None:
        found.finals.append(step)
        found.linked.append(step)
    else:
        found.dead_links[name] = why


def find_obstructed(directory: Path) -> dict[int, str]:
    """Return by step what stands in a checkpoint's place and cannot be read as one, and why."""
    try:
        listing = list_folder(directory)
    except OSError:
        return {}
    found = {}
    for name in (*listing.dead_links, *listing.foreign):
        step = names.find_final_step(name)
        why = None if step is None else symlinks.find_obstruction(directory / name)
        if step is not None and why is not None:
            found[step] = why
    return found


def _sort_in(found: Listing, name: str, *, is_directory: bool) -> None:
    if is_directory and (tmp := names.find_tmp_step(name)) is not None:
        found.tmps.append(tmp)
    elif is_directory and (old := names.find_old(name)) is not None:
        found.olds.append(Leftover(found.directory / name, *old))
    else:
        if name.startswith(("step_", "tmp_step_", "old_step_")):
            found.foreign.append(name)
        if is_directory and name != names.HIDDEN:
            found.below.append(name)


def _load_finals(
    looks: Iterator[Looked],
    directory: Path,
    trouble: _Trouble,
    on_checkpoint: Callable[[], None] | None,
    take: Take | None,
) -> tuple[dict[int, Checkpoint | None], bool, set[int], list[int]]:
    """Return what is published by step, whether anything was taken meanwhile, and two more.

    These are what is bare, and what is being deleted where it stands.
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


def _newest_config(directory: Path, finals: Iterable[int], pace: ParallelReader) -> dict[str, Any]:
    def having_one(some: Sequence[int]) -> list[Path]:
        folders = (f"{directory}/{names.final_name(step)}" for step in some)
        return [Path(path) for path in folders if training_info.has_config(path)]

    newest = sorted(finals, reverse=True)
    for steps in (newest[:1], newest[1:]):  # nearly always the very first
        for folders in pace.through(steps, having_one):
            for folder in folders:
                found = training_info.find_config(folder)
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
            found[step] = load_tmp(who, path, step, may_touch=may_touch)
        except OSError as error:
            if _may_be_there(path):  # else published while we looked
                trouble.add(path, error)
    return found


def _may_be_there(path: Path) -> bool:
    try:
        return fsutil.is_there(path)
    except OSError:
        return True
