"""journal.jsonl: the run's append-only facts, keyed by checkpoint uuid.

What a directory cannot tell any more (it was deleted, and why) or never could (pins, tags,
late metrics) is a line here, so that the index can be rebuilt from disk alone. The last line
per uuid and key wins; a torn or foreign line counts for nothing.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, TypeVar, cast

from ckptdb.disk import durable, names
from ckptdb.disk.info import MAX_BYTES
from ckptdb.records import Annotations, Checkpoint, Metric, Resumption, Run, is_storable

_Key = TypeVar("_Key")
Gone = Literal["deleted", "replaced", "discarded", "vanished"]
_GONE = ("deleted", "replaced", "discarded", "vanished")
_NAME = "journal.jsonl"
_PART_BYTES = 1024 * 1024
_LONGEST_BYTES = 4 * MAX_BYTES
"""A line with the record of the largest training_info.json, whose letters may all be escaped."""
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
            ``unrejected``, ``resumed`` or ``evaluated``.
        details: What the kind needs: ``reason`` and ``record``, ``name`` and ``value``, …
    """

    at: str
    kind: str
    uuid: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a whole journal says, in the end.

    Attributes:
        gone: By uuid, the checkpoint as it was, with when and why it went.
        annotations: By uuid, what people added; only those that have any.
    """

    gone: Mapping[str, Checkpoint]
    annotations: Mapping[str, Annotations]


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
        return os.lstat(f"{directory}/{names.HIDDEN}/{_NAME}").st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return -1  # no size that anybody has seen: whoever asks has to look


def append(hidden: Path, facts: Iterable[Fact], *, make_durable: bool) -> None:
    """Add lines; the caller holds the run's lock.

    Raises:
        OSError: Not all of it could be written; what was torn counts for nothing.
    """
    lines = "".join(_line(fact) for fact in facts).encode()
    if not lines:
        return
    handle = _open(hidden / _NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        end = os.fstat(handle).st_size
        if make_durable and end == 0:
            # Before the first byte: whoever finds one need not ask whether the name is durable.
            durable.fsync(hidden)
        # A line torn by a crash must not swallow the next one.
        if end and os.pread(handle, 1, end - 1) != b"\n":
            lines = b"\n" + lines
        while lines:
            lines = lines[os.write(handle, lines) :]
        if make_durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def read(hidden: Path, run: Run) -> Facts:
    """Read a whole journal; a missing one says nothing.

    Raises:
        OSError: It is there and cannot be read.
    """
    ends: dict[str, Fact] = {}
    notes: dict[str, _Notes] = {}
    for fact in _facts(hidden):
        if fact.kind in _GONE:
            ends[fact.uuid] = fact
        elif fact.kind == "reappeared":
            ends.pop(fact.uuid, None)
        else:
            notes.setdefault(fact.uuid, _Notes()).add(fact)
    annotations = {uuid: note.result() for uuid, note in notes.items()}
    buried = (_buried(run, fact) for fact in ends.values())
    return Facts(
        gone={checkpoint.uuid: checkpoint for checkpoint in buried if checkpoint},
        annotations={uuid: found for uuid, found in annotations.items() if found != Annotations()},
    )


class Pins:
    """Which checkpoints of a run are held: pinned, rejected, or last resumed from."""

    def __init__(self, hidden: Path) -> None:
        self._marks = _Marks(hidden, (b'pin"', b'rejected"', b'"resumed"'), _find_hold)

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
        self._words = words
        self._find = find
        # In one piece: another thread may be asking too.
        self._known: tuple[int, int, Mapping[_Key, bool]] = (0, 0, {})

    def standing(self) -> list[_Key]:
        inode, read_bytes, known = self._known
        path = f"{self._hidden}/{_NAME}"
        try:
            now = os.lstat(path)
            if (now.st_ino, now.st_size) == (inode, read_bytes):
                return [key for key, stands in known.items() if stands]
            handle = _open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        with os.fdopen(handle, "rb", _PART_BYTES) as file:
            now = os.fstat(handle)
            if now.st_ino != inode or now.st_size < read_bytes:
                read_bytes, known = 0, {}
            marks = dict(known)
            file.seek(read_bytes)
            for line in _lines(file):
                fact = _parse(line) if any(word in line for word in self._words) else None
                if fact and (found := self._find(fact)):
                    marks.pop(found[0], None)
                    marks[found[0]] = found[1]
                # What is torn, or is just being written, is looked at again.
                if line.endswith(b"\n"):
                    read_bytes = file.tell()
        self._known = (now.st_ino, read_bytes, marks)
        return [key for key, stands in marks.items() if stands]


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


def _line(fact: Fact) -> str:
    head = {"at": fact.at, "fact": fact.kind, "uuid": fact.uuid}
    return json.dumps({**head, **fact.details}) + "\n"


def _open(path: Path | str, flags: int) -> int:
    """Open the journal and nothing else that may have its name; never blocks on a FIFO."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(code, os.strerror(code), str(path))


def _facts(hidden: Path) -> Iterator[Fact]:
    try:
        handle = _open(hidden / _NAME, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(handle, "rb", _PART_BYTES) as file:
        for line in _lines(file):
            fact = _parse(line)
            if fact:
                yield fact


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield line by line; one that is too long to be ours is passed over, not held in memory."""
    while line := file.readline(_PART_BYTES):
        if len(line) < _PART_BYTES or line.endswith(b"\n"):
            yield line
            continue
        parts, size_bytes = [line], len(line)
        while not line.endswith(b"\n") and (line := file.readline(_PART_BYTES)):
            size_bytes += len(line)
            # What a crash left unwritten is NULs; only an object is worth collecting.
            if size_bytes <= _LONGEST_BYTES and parts and parts[0].startswith(b"{"):
                parts.append(line)
            else:
                parts.clear()
        if parts:
            yield b"".join(parts)


def _parse(line: bytes) -> Fact | None:
    try:
        content = json.loads(line)
        at, kind, uuid = content.pop("at"), content.pop("fact"), content.pop("uuid")
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

    def add(self, fact: Fact) -> None:
        if fact.kind in ("pin", "unpin"):
            self.pinned = fact.kind == "pin"
        elif fact.kind in ("rejected", "unrejected"):
            if _counts(fact):
                self.rejected = fact.details["reason"] if fact.kind == "rejected" else None
        elif fact.kind == "resumed":
            host, pid = fact.details.get("host"), fact.details.get("pid")
            if _is_text(host) and _is_count(pid):
                self.resumptions.add(Resumption(fact.at, cast("str", host), cast("int", pid)))
        elif fact.kind == "note":
            text = fact.details.get("text")
            self.notes = cast("str", text) if _is_text(text) else None
        elif fact.kind in ("tag", "untag", "metric"):
            self._add_named(fact, fact.details.get("name"))

    def _add_named(self, fact: Fact, name: object) -> None:
        if not isinstance(name, str) or not is_storable(name):
            return
        if fact.kind == "tag":
            self.tags[name] = fact.at
        elif fact.kind == "untag":
            self.tags.pop(name, None)
        else:
            value, source = _finite(fact.details.get("value")), fact.details.get("source")
            if _is_text(source):
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
