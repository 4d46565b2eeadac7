"""journal.jsonl: the run's append-only facts, keyed by checkpoint uuid.

What a directory cannot tell any more (it was deleted, and why) or never could (pins, tags,
late metrics) is a line here, so that the index can be rebuilt from disk alone. The last line
per uuid and key wins.

Each line ends in a checksum of itself (``crc``) and in that of the last line that was there when it
was written (``after``), so that damage is noticed: a line that does not verify, and lines that are
missing. What a crash leaves is no damage, and counts for nothing: a last line without its end,
which whoever comes next closes with a NUL, or NULs where a power cut came before the bytes.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import uuid as uuids
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain as joined
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypeVar, cast

from ckptdb.core.metrics import Metric
from ckptdb.core.records import Annotations, Checkpoint, Resumption, Run
from ckptdb.core.text import is_storable
from ckptdb.disk import fsutil, names, paths
from ckptdb.disk.training_info import MAX_BYTES, has_too_many_values

_Key = TypeVar("_Key")
Gone = Literal["deleted", "replaced", "discarded", "vanished"]
_GONE = ("deleted", "replaced", "discarded", "vanished")
_NAME = "journal.jsonl"
_PART_BYTES = 1024 * 1024
_LONGEST_BYTES = 4 * MAX_BYTES
"""A line with the record of the largest training_info.json, whose letters may all be escaped."""
MOST_BYTES = 4 * 1024**3
"""What is read of a journal at most, holes not counted: the ends of some million checkpoints."""
_NO_LINE = "00000000"
"""What the first line comes after."""
_SEAL = re.compile(rb', "after": "([0-9a-f]{8})", "crc": "([0-9a-f]{8})"\}\n')
_LONG_ENOUGH = re.compile(rb"\n[^\n]{45}")
_MANY = 1000
"""After so many lines in a row that are too short to be ours, more are not read one by one."""
_SEAL_BYTES = len(b', "after": "01234567", "crc": "01234567"}\n')
_CRC_BYTES = len(b', "crc": "01234567"}\n')
_BEGIN = b'{"at": "'
_CLOSED = b"\0\n"
"""What ends a line that a crash has torn; no line of ours holds a NUL."""
_OF_A_TORN_LINE = re.compile(rb"[\0\x20-\x7e]*\n?")
# What of a checkpoint outlives its directory. Annotations have lines of their own.
_RECORD = (
    "step", "created_at", "finalized_at", "size_bytes", "file_count", "parent", "problem",
    "info", "metrics",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: something that happened to one checkpoint.

    Attributes:
        at: When (UTC).
        kind: ``deleted``, ``replaced``, ``discarded``, ``vanished``, ``reappeared``,
            ``metric``, ``tag``, ``untag``, ``pin``, ``unpin``, ``note``, ``rejected``,
            ``unrejected``, ``resumed``, ``evaluated`` or ``accepted`` (that it has vanished). Of
            the journal itself, without a uuid: ``contradicted`` by a catalog, and ``settled``.
        details: What the kind needs: ``reason`` and ``record``, ``name`` and ``value``, …
    """

    at: str
    kind: str
    uuid: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a journal.

    Attributes:
        lines: How many of its lines cannot be read.
        gaps: At how many other places lines are missing.
        is_too_large: Whether it has more than `MOST_BYTES`.
    """

    lines: int
    gaps: int
    is_too_large: bool = False

    def __str__(self) -> str:
        """Write the part of a sentence that says so."""
        return " and ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.is_too_large:
            yield f"its {_NAME} is larger than {MOST_BYTES} bytes"
        if self.lines:
            yield f"{self.lines} line{'s' * (self.lines > 1)} of its journal cannot be read"
        if self.gaps:
            yield f"lines of its journal are missing at {self.gaps} place{'s' * (self.gaps > 1)}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a whole journal says, in the end.

    Attributes:
        gone: By uuid, the checkpoint as it was, with when and why it went.
        annotations: By uuid, what people added; only those that have any.
        lost: uuids of those of ``gone`` that were published and vanished, and nobody has accepted.
        told: By uuid, which keys there are lines about, those that undo one included.
        damage: What of it cannot be read.
        contradicted: What a catalog knows that it does not, in words, as long as that stands.
        is_short: Whether one was longer before.
        settled_bytes: How long one was at most that this one has come from.
    """

    gone: Mapping[str, Checkpoint]
    annotations: Mapping[str, Annotations]
    lost: frozenset[str] = frozenset()
    told: Mapping[str, frozenset[str]] = field(default_factory=dict, compare=False)
    damage: Damage | None = None
    contradicted: str | None = None
    is_short: bool = False
    settled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """What moves whenever a journal changes."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Mark:
        """Return that of a file."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def gone(checkpoint: Checkpoint, kind: Gone, reason: str, at: str) -> Fact:
    """Return the line that records a checkpoint's end."""
    record = {name: getattr(checkpoint, name) for name in _RECORD}
    record["metrics"] = {k: v for k, v in checkpoint.metrics.items() if k not in checkpoint.late}
    return Fact(at, kind, checkpoint.uuid, {"reason": reason, "record": record})


def deleted_unrecorded(end: Checkpoint) -> Fact:
    """Return the line of a deletion that nobody could record in time, from what is left of it."""
    return gone(end, "deleted", end.deleted_reason or "", end.deleted_at or "")


def size(directory: Path) -> int:
    """Return the size in bytes of a run's journal, 0 without one, -1 when it cannot be told."""
    try:
        # Asked at every question: joining strings takes a fifth of the time.
        return paths.get_status(f"{directory}/{names.HIDDEN}/{_NAME}").st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return -1  # no size that anybody has seen: whoever asks has to look


def append(hidden: Path, facts: Iterable[Fact], *, make_durable: bool) -> tuple[Mark, Mark] | None:
    """Add lines; the caller holds the run's lock. Returns what the journal was before and after.

    Raises:
        OSError: Not all of it could be written; what was torn counts for nothing.
    """
    facts = list(facts)
    if not facts:
        return None
    handle = fsutil.open_kept(hidden / _NAME, os.O_RDWR | os.O_APPEND)
    try:
        before = os.fstat(handle)
        if make_durable and before.st_size == 0:
            # Before the first byte: whoever finds one need not ask whether the name is durable.
            fsutil.fsync(hidden)
        after, is_torn = _find_end(handle, before.st_size)
        lines = b"".join(_sealed(facts, after))
        # A line torn by a crash must not swallow the next one.
        _write(handle, _CLOSED + lines if is_torn else lines)
        if make_durable:
            os.fsync(handle)
        return Mark.of(before), Mark.of(os.fstat(handle))
    finally:
        os.close(handle)


def rewrite(hidden: Path, more: Iterable[Fact]) -> Path:
    """Put a journal of all lines that can be read, and of more, in the place of a damaged one.

    The caller holds the run's lock. Between any two steps there is a journal: the old one, or the
    new one.

    Returns:
        Where the damaged one is kept.

    Raises:
        OSError: It cannot be done; the damaged one is the journal.
    """
    path, name = hidden / _NAME, uuids.uuid4()
    aside, staging = hidden / f"{_NAME}.damaged-{name}", hidden / f".{_NAME}.{name}"
    # Before anything is made: what is no file is no journal.
    os.close(_open(path, os.O_RDONLY))
    try:
        facts = joined(_facts(hidden, _Chain(), most_bytes=math.inf), more)
        _write_lines(staging, _sealed(facts, _NO_LINE), before=paths.find_status(path))
        _keep(path, aside)
        fsutil.fsync(hidden)
        paths.replace(staging, path)
    except OSError:
        with suppress(OSError):
            paths.unlink(staging)
        raise
    fsutil.fsync(hidden)
    return aside


def read(hidden: Path, run: Run) -> Facts:
    """Read a whole journal; a missing one says nothing.

    Raises:
        OSError: It is there and cannot be read.
    """
    ends: dict[str, Fact] = {}
    notes: dict[str, _Notes] = {}
    ever: set[str] = set()
    accepted: set[str] = set()
    standing: Fact | None = None
    settled_bytes = 0
    chain = _Chain()
    for fact in _facts(hidden, chain):
        if fact.kind in _GONE:
            ends[fact.uuid] = fact
            ever.add(fact.uuid)
            accepted.discard(fact.uuid)
        elif fact.kind == "reappeared":
            ends.pop(fact.uuid, None)
            ever.add(fact.uuid)
        elif fact.kind == "accepted":
            accepted.add(fact.uuid)
        elif fact.kind == "contradicted":
            standing = fact
        elif fact.kind == "settled":
            standing = None
            settled_bytes = max(settled_bytes, _count(fact.details.get("bytes")))
        else:
            notes.setdefault(fact.uuid, _Notes()).add(fact)
    annotations = {uuid: note.result() for uuid, note in notes.items()}
    buried = (_buried(run, fact) for fact in ends.values())
    gone = {checkpoint.uuid: checkpoint for checkpoint in buried if checkpoint}
    told = {uuid: frozenset(note.told) for uuid, note in notes.items() if note.told}
    told |= {uuid: told.get(uuid, frozenset()) | {"gone"} for uuid in ever}
    vanished = (uuid for uuid in gone.keys() - accepted if ends[uuid].kind == "vanished")
    return Facts(
        gone=gone,
        annotations={uuid: found for uuid, found in annotations.items() if found != Annotations()},
        # What was never finished was no checkpoint yet.
        lost=frozenset(uuid for uuid in vanished if gone[uuid].finalized_at is not None),
        told=told,
        damage=chain.damage,
        contradicted=None if standing is None else _find_why(standing),
        is_short=standing is not None and standing.details.get("short") is True,
        settled_bytes=settled_bytes,
    )


class Pins:
    """Which checkpoints of a run are held: pinned, rejected, or last resumed from."""

    def __init__(self, hidden: Path) -> None:
        self._marks = _Marks(hidden, (b'pin"', b'rejected"', b'"resumed"'), _find_hold)

    def follow(self, grown: tuple[Mark, Mark] | None) -> None:
        """Take note of lines of our own."""
        if grown is not None:
            self._marks.follow(*grown)

    def find_doubt(self) -> str | None:
        """Return why nothing may be deleted by what the journal says, in words; None if it may.

        Raises:
            OSError: The journal is there and cannot be read.
        """
        self._marks.standing()
        return self._marks.doubt

    def find(self) -> frozenset[str]:
        """Return the uuids that are pinned, understanding no more than that takes.

        Raises:
            OSError: The journal is there and cannot be read.
        """
        return self._find("pin")

    def find_rejected(self) -> frozenset[str]:
        """Return the uuids that are rejected; raises what `find` does."""
        return self._find("rejected")

    def find_resumed_from(self) -> str | None:
        """Return the uuid of what training was last resumed from; raises what `find` does."""
        resumed = [uuid for what, uuid in self._marks.standing() if what == "resumed"]
        return resumed[-1] if resumed else None

    def _find(self, kind: str) -> frozenset[str]:
        return frozenset(uuid for what, uuid in self._marks.standing() if what == kind)


class Evaluated:
    """Which checkpoints of a run have been evaluated, by the name of the evaluation."""

    def __init__(self, hidden: Path) -> None:
        self._marks = _Marks(hidden, (b'"evaluated"',), _find_evaluation)

    def find(self, name: str) -> frozenset[str]:
        """Return the uuids of those that an evaluation is done with.

        Raises:
            OSError: The journal is there and cannot be read.
        """
        return frozenset(uuid for uuid, done in self._marks.standing() if done == name)


@dataclass(frozen=True, slots=True)
class _Known(Generic[_Key]):
    """What has been read of a journal.

    Attributes:
        marks: By key, whether it stands.
        chain: Which lines were read.
        read_bytes: How far.
        seen: The journal when it was read.
        latest: What our own lines have made of it since.
        changed: Whether something else than a new line has come in between.
        longest_bytes: How much was ever read of it.
        contradicted: What a catalog knows that it does not.
    """

    marks: Mapping[_Key, bool]
    chain: _Chain
    read_bytes: int = 0
    seen: Mark | None = None
    latest: Mark | None = None
    changed: bool = False
    longest_bytes: int = 0
    contradicted: str | None = None

    def holds_for(self, now: Mark) -> bool:
        """Whether the journal has only grown since."""
        latest = self.latest
        return (
            latest is not None
            and not self.changed
            and now.inode == latest.inode
            and (now == latest or now.size_bytes > latest.size_bytes)
        )


class _Marks(Generic[_Key]):
    """Which marks stand, the last one last; of a journal that has grown it reads the new lines.

    Args:
        hidden: The run's ``.ckptdb`` folder.
        words: One of them is in every line that sets such a mark or takes it away.
        find: Returns which mark a fact is about, and whether it stands from then on.
    """

    def __init__(
        self, hidden: Path, words: Sequence[bytes], find: Callable[[Fact], tuple[_Key, bool] | None]
    ) -> None:
        self._hidden = hidden
        self._words = (*words, b'"contradicted"', b'"settled"')
        self._find = find
        # In one piece: another thread may be asking too.
        self._known: _Known[_Key] = _Known({}, _Chain())

    @property
    def doubt(self) -> str | None:
        """Why the journal that was read last cannot be trusted, in words."""
        known = self._known
        if known.chain.damage is not None:
            return str(known.chain.damage)
        if known.longest_bytes > known.read_bytes:
            return "its journal is shorter than it was"
        return known.contradicted

    def follow(self, before: Mark, after: Mark) -> None:
        """Take note of lines of our own."""
        known = self._known
        if known.seen is not None:
            changed = not known.holds_for(before)
            self._known = replace(known, latest=after, changed=changed)

    def standing(self) -> list[_Key]:
        known = self._known
        path = f"{self._hidden}/{_NAME}"
        try:
            now = Mark.of(paths.get_status(path))
            if now == known.seen:
                return [key for key, stands in known.marks.items() if stands]
            handle = _open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            self._known = _Known({}, _Chain(), longest_bytes=known.longest_bytes)
            return []
        with os.fdopen(handle, "rb", _PART_BYTES) as file:
            now = Mark.of(os.fstat(handle))
            nothing: _Known[_Key] = _Known({}, _Chain(), longest_bytes=known.longest_bytes)
            if not known.holds_for(now):
                known = nothing
            found = self._read_on(file, known, now)
            if known.read_bytes and found.chain.damage != known.chain.damage:
                # It may have been emptied, and be longer by now: it is read from its beginning.
                found = self._read_on(file, nothing, now)
            self._known = found
        return [key for key, stands in self._known.marks.items() if stands]

    def _read_on(self, file: BinaryIO, known: _Known[_Key], now: Mark) -> _Known[_Key]:
        marks, chain, read_bytes = dict(known.marks), known.chain.resumed(), known.read_bytes
        chain.is_too_large = now.size_bytes > MOST_BYTES
        longest_bytes, contradicted = known.longest_bytes, known.contradicted
        file.seek(read_bytes)
        for line in _lines(file):
            is_ours = chain.takes(line)
            fact = _parse(line) if is_ours and any(w in line for w in self._words) else None
            if fact and fact.kind == "contradicted":
                contradicted = _find_why(fact)
            elif fact and fact.kind == "settled":
                contradicted, longest_bytes = None, 0
            elif fact and (found := self._find(fact)):
                marks.pop(found[0], None)
                marks[found[0]] = found[1]
            # What is torn, or is just being written, is looked at again.
            if line.endswith(b"\n"):
                read_bytes = file.tell()
        return _Known(
            marks,
            chain,
            read_bytes,
            seen=now,
            latest=now,
            longest_bytes=max(longest_bytes, read_bytes),
            contradicted=contradicted,
        )


def _find_hold(fact: Fact) -> tuple[tuple[str, str], bool] | None:
    kind = fact.kind.removeprefix("un")
    return ((kind, fact.uuid), kind == fact.kind) if _counts(fact) else None


def _find_evaluation(fact: Fact) -> tuple[tuple[str, str], bool] | None:
    name = fact.details.get("name")
    if fact.kind != "evaluated" or not isinstance(name, str):
        return None
    return (fact.uuid, name), True


def annotated(checkpoint: Checkpoint, annotations: Annotations) -> Checkpoint:
    """Return a checkpoint with what people added to it."""
    late = {metric.name: metric for metric in annotations.late}
    values = {name: metric.value for name, metric in late.items()}
    return replace(
        checkpoint,
        pinned=annotations.pinned,
        rejected=annotations.rejected,
        notes=annotations.notes,
        tags=tuple(name for name, _ in annotations.tags),
        late=late,
        metrics={**checkpoint.metrics, **values},
    )


def _sealed(facts: Iterable[Fact], after: str) -> Iterator[bytes]:
    """Yield lines, each with the checksum of the one that it comes after."""
    for fact in facts:
        head = {"at": fact.at, "fact": fact.kind, "uuid": fact.uuid}
        said = json.dumps({**head, **fact.details, "after": after})[:-1].encode()
        after = f"{zlib.crc32(said):08x}"
        yield b'%b, "crc": "%b"}\n' % (said, after.encode())


def _find_seal(line: bytes) -> tuple[str, str] | None:
    """Return what a line comes after and its checksum; None when it does not verify."""
    seal = _SEAL.fullmatch(line[-_SEAL_BYTES:])
    # A copy of a line is made sooner than a view of it, but for one of many megabytes.
    content = line[:-_CRC_BYTES] if len(line) < _PART_BYTES else memoryview(line)[:-_CRC_BYTES]
    if seal is None or zlib.crc32(content) != int(seal[2], 16):
        return None
    return seal[1].decode(), seal[2].decode()


def _is_torn(line: bytes) -> bool:
    """Whether it may be what a crash or a power cut has left of a line."""
    if line.endswith(b"\n") and b"\0" not in line:
        return False
    begin = line[: len(_BEGIN)].split(b"\0")[0]
    return _BEGIN.startswith(begin) and _OF_A_TORN_LINE.fullmatch(line) is not None


class _Chain:
    """Tells the lines of ours from what a crash has left and from damage, one after the other."""

    def __init__(self) -> None:
        self.last = _NO_LINE
        """The checksum of the last line that verified."""
        self.is_too_large = False
        self._damaged = self._gaps = 0
        self._is_after_damage = False
        # The last one, which has no end yet.
        self._open: bool = False

    def takes(self, line: bytes) -> bool:
        """Whether a line holds a fact; what is wrong with it, or before it, is counted."""
        seal = _find_seal(line)
        if seal is None:
            if not _is_torn(line) and line != b"\n":
                self._damaged += 1
                self._is_after_damage = True
                self._open = not line.endswith(b"\n")
            return False
        after, own = seal
        if after != self.last and not self._is_after_damage:
            self._gaps += 1
        self.last, self._is_after_damage = own, False
        return True

    @property
    def damage(self) -> Damage | None:
        found = Damage(self._damaged, self._gaps, self.is_too_large)
        return None if found == Damage(0, 0) else found

    def resumed(self) -> _Chain:
        """Return a copy that goes on where the last line had no end, and reads that again."""
        found = copy(self)
        found._forget_open()  # noqa: SLF001  # of our own kind
        return found

    def _forget_open(self) -> None:
        self._damaged -= self._open
        self._open = False


def _find_end(handle: int, size_bytes: int) -> tuple[str, bool]:
    """Return the checksum of the last line, and whether a line without its end stands behind it."""
    seal = _SEAL.fullmatch(os.pread(handle, _SEAL_BYTES, max(size_bytes - _SEAL_BYTES, 0)))
    if seal is not None:
        return seal[2].decode(), False
    chain, is_torn = _Chain(), False
    with os.fdopen(os.dup(handle), "rb", _PART_BYTES) as file:
        file.seek(0)
        for line in _lines(file):
            chain.takes(line)
            is_torn = not line.endswith(b"\n")
    return chain.last, is_torn


def _write(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def _write_lines(path: Path, lines: Iterable[bytes], *, before: os.stat_result | None) -> None:
    """Write a new journal, which will replace another one; it may be larger than memory.

    Raises:
        OSError: It cannot be written, or would be too large to be read.
    """
    with _create(path, before) as file:
        for line in lines:
            file.write(line)
            if file.tell() > MOST_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {MOST_BYTES} bytes", str(path))
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path, aside: Path) -> None:
    """Copy a file, and no holes: one with two names would not be written to after a crash."""
    with (
        os.fdopen(_open(path, os.O_RDONLY), "rb", _PART_BYTES) as source,
        _create(aside, paths.find_status(path)) as copy,
    ):
        while part := source.read(_PART_BYTES):
            if not _is_hole(part):
                copy.write(part)
                continue
            _skip_hole(source)
            copy.seek(source.tell())
        copy.truncate(source.tell())
        copy.flush()
        os.fsync(copy.fileno())


def _create(path: Path, before: os.stat_result | None) -> BinaryIO:
    handle = paths.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, before=before)
    return os.fdopen(handle, "wb", _PART_BYTES)


def _find_why(fact: Fact) -> str:
    why = fact.details.get("why")
    return (
        why if isinstance(why, str) and why.isprintable() else "a catalog contradicts its journal"
    )


def _open(path: Path | str, flags: int) -> int:
    """Open the journal and nothing else that may have its name; never blocks on a FIFO."""
    return paths.open_file(path, flags)


def _facts(hidden: Path, chain: _Chain, *, most_bytes: float = MOST_BYTES) -> Iterator[Fact]:
    try:
        handle = _open(hidden / _NAME, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(handle, "rb", _PART_BYTES) as file:
        chain.is_too_large = os.fstat(handle).st_size > MOST_BYTES
        for line in _lines(file, most_bytes):
            fact = _parse(line) if chain.takes(line) else None
            if fact:
                yield fact


def _lines(file: BinaryIO, most_bytes: float = MOST_BYTES) -> Iterator[bytes]:
    """Yield line by line; of one that is too long to be ours only a word, not held in memory.

    Args:
        file: What has no bytes on the disk is passed over.
        most_bytes: How much of the rest is read.
    """
    left, short = most_bytes, 0
    while left > 0 and (line := file.readline(_PART_BYTES)):
        left -= len(line)
        short = 0 if len(line) > _SEAL_BYTES else short + 1
        if short > _MANY and line.endswith(b"\n"):
            begin = file.tell()
            line = _skip_short(file, line)
            left -= file.tell() - begin
        elif len(line) == _PART_BYTES and not line.endswith(b"\n"):
            line, left = _read_long(file, line, left)
        yield line


def _read_long(file: BinaryIO, line: bytes, left: float) -> tuple[bytes, float]:
    """Read the rest of a long line; return it, or only a word when it cannot be ours.

    And how much may be read after that.
    """
    is_torn, holds_nul = _is_torn(line), b"\0" in line
    # What a crash left unwritten is NULs; only an object is worth collecting.
    whole = io.BytesIO() if line.startswith(b"{") else None
    while line:
        if whole is not None:
            whole.write(line)
            if whole.tell() > _LONGEST_BYTES:
                whole = None
        if line.endswith(b"\n") or left <= 0:
            break
        if _is_hole(line):
            _skip_hole(file)
        line = file.readline(_PART_BYTES)
        left -= len(line)
        is_torn &= line.isascii()
        holds_nul |= b"\0" in line
    if whole is not None:
        return whole.getvalue(), left
    end = b"\n" if line.endswith(b"\n") else b""
    return (b"\0" if is_torn and holds_nul else b"?") + end, left


def _skip_short(file: BinaryIO, line: bytes) -> bytes:
    """Pass over lines that are too short to be ours; return a word that stands for them."""
    begin = file.tell()
    part = file.read(_PART_BYTES)
    found = _LONG_ENOUGH.search(b"\n" + part)
    end = found.start() if found else part.rfind(b"\n") + 1
    file.seek(begin + end)
    return b"?\n" if (line + part[:end]).strip(b"\n") else b"\n"


def _is_hole(part: bytes) -> bool:
    """Whether there may be no bytes on the disk: as long as it is, it is all NULs."""
    return len(part) == _PART_BYTES and part.count(0) == _PART_BYTES


def _skip_hole(file: BinaryIO) -> None:
    """Go on where a file has bytes on the disk, or at its end."""
    handle, at = file.fileno(), file.tell()
    where = os.lseek(handle, 0, os.SEEK_CUR)  # which the buffer knows, too
    try:
        found = os.lseek(handle, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return  # a file system that does not tell
        found = os.fstat(handle).st_size
    finally:
        os.lseek(handle, where, os.SEEK_SET)
    file.seek(found)


def _parse(line: bytes) -> Fact | None:
    if has_too_many_values(line):
        return None
    try:
        content = json.loads(line)
        at, kind, uuid = content.pop("at"), content.pop("fact"), content.pop("uuid")
        del content["after"], content["crc"]
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    if not all(_is_text(text) for text in (at, kind, uuid)):
        return None
    return Fact(at, kind, uuid, content)


def _buried(run: Run, fact: Fact) -> Checkpoint | None:
    record, reason = fact.details.get("record"), fact.details.get("reason")
    if not isinstance(record, dict) or not _is_text(reason) or not _is_sound(record):
        return None
    return Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=fact.uuid,
        path=run.directory / names.final_name(record["step"]),
        status="deleted",
        deleted_at=fact.at,
        deleted_reason=reason,
        **{name: record[name] for name in _RECORD},
    )


def _is_sound(record: Mapping[str, Any]) -> bool:
    """A line written by other hands must not make every later reconcile fail."""
    numbers = [record.get(name) for name in ("size_bytes", "file_count")]
    texts = [record.get(name) for name in ("finalized_at", "parent", "problem")]
    metrics = record.get("metrics")
    return (
        set(_RECORD) <= set(record)
        and _is_count(record["step"])
        and _is_text(record["created_at"])
        and all(number is None or _is_count(number) for number in numbers)
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(record["info"], dict)
        and isinstance(metrics, dict)
        and all(_is_text(k) and (v is None or _finite(v) is not None) for k, v in metrics.items())
    )


def _counts(fact: Fact) -> bool:
    """Whether a line says that something is held, or no more."""
    if fact.kind == "rejected":
        return _is_text(fact.details.get("reason"))
    return fact.kind in ("pin", "unpin", "unrejected", "resumed")


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _count(number: Any) -> int:
    return int(number) if _is_count(number) else 0


def _is_text(text: object) -> bool:
    return isinstance(text, str) and is_storable(text)


class _Notes:
    """Collects the annotation lines of one checkpoint; the last per key wins."""

    def __init__(self) -> None:
        self.pinned = False
        self.notes: str | None = None
        self.tags: dict[str, str] = {}
        self.late: dict[str, Metric] = {}
        self.rejected: str | None = None
        self.resumptions: set[Resumption] = set()
        self.told: set[str] = set()

    def add(self, fact: Fact) -> None:
        if fact.kind in ("pin", "unpin"):
            self.told.add("pin")
            self.pinned = fact.kind == "pin"
        elif fact.kind in ("rejected", "unrejected"):
            if _counts(fact):
                self.told.add("rejected")
                self.rejected = fact.details["reason"] if fact.kind == "rejected" else None
        elif fact.kind == "resumed":
            host, pid = fact.details.get("host"), fact.details.get("pid")
            if _is_text(host) and _is_count(pid):
                self.resumptions.add(Resumption(fact.at, cast("str", host), cast("int", pid)))
        elif fact.kind == "note":
            text = fact.details.get("text")
            self.told.add("note")
            self.notes = cast("str", text) if _is_text(text) else None
        elif fact.kind in ("tag", "untag", "metric"):
            self._add_named(fact, fact.details.get("name"))

    def _add_named(self, fact: Fact, name: object) -> None:
        if not isinstance(name, str) or not is_storable(name):
            return
        if fact.kind != "metric":
            self.told.add(f"tag {name}")
        if fact.kind == "tag":
            self.tags[name] = fact.at
        elif fact.kind == "untag":
            self.tags.pop(name, None)
        else:
            value, source = _finite(fact.details.get("value")), fact.details.get("source")
            if _is_text(source):
                self.told.add(f"metric {name}")
                self.late[name] = Metric(name, value, str(source), fact.at)

    def result(self) -> Annotations:
        late = tuple(self.late[name] for name in sorted(self.late))
        return Annotations(
            self.pinned,
            self.notes,
            tuple(sorted(self.tags.items())),
            late,
            self.rejected,
            tuple(sorted(self.resumptions)),
        )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
