"""From a trace of system calls to the states that a power cut may leave.

Two models of a file system. *Strict*: only what was flushed is certain; of everything else any
part may have reached the disk, in any order (POSIX promises no more). *Ordered*: names reach
the disk in the order in which they were changed, and any flush takes all of them along, but the
bytes of a file come when they like (ext4 with delayed allocation).

A file or directory is a node with a number, not a path: names are entries in directories.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

State = Mapping[str, bytes | None]
"""Content by relative path; None for a directory."""
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Names:
    """Entries that changed in one step: directory, name, and the node it stands for now."""

    changes: tuple[tuple[int, str, int | None], ...]

    @property
    def folders(self) -> set[int]:
        """The directories that changed."""
        return {folder for folder, _, _ in self.changes}


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes written at an offset, or (None) a file cut to that length."""

    node: int
    offset: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Flush:
    """A file or directory that was flushed."""

    node: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The loop has been told something."""

    name: str


Event = Names | Bytes | Flush | Mark
_CHANGING = (Names, Bytes)


@dataclass(slots=True)
class Disk:
    """Directories and files by number."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {_ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> tuple[Disk, dict[int, int]]:
        """Return what is below ``root`` now, and the node of each inode."""
        disk, nodes = cls(), {os.stat(root).st_ino: _ROOT}
        _read_folder(disk, nodes, os.fspath(root), _ROOT)
        return disk, nodes

    def copy(self) -> Disk:
        """Return one that can be changed apart."""
        return Disk({n: dict(entries) for n, entries in self.folders.items()}, dict(self.files))

    def apply(self, event: Event) -> None:
        """Change names or bytes."""
        if isinstance(event, Names):
            for folder, name, node in event.changes:
                entries = self.folders.setdefault(folder, {})
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        elif isinstance(event, Bytes):
            now = self.files.get(event.node, b"")
            if event.content is None:
                self.files[event.node] = now[: event.offset].ljust(event.offset, b"\0")
            else:
                now = now.ljust(event.offset, b"\0")
                end = event.offset + len(event.content)
                self.files[event.node] = now[: event.offset] + event.content + now[end:]

    def state(self, skip: Callable[[str], bool]) -> dict[str, bytes | None]:
        """Return content by path, without the paths to skip."""
        found: dict[str, bytes | None] = {}
        pending = [("", _ROOT)]
        while pending:
            prefix, folder = pending.pop()
            for name, node in self.folders[folder].items():
                path = prefix + name
                if skip(path) or path in found:
                    continue
                if node in self.folders:
                    found[path] = None
                    pending.append((path + "/", node))
                else:
                    found[path] = self.files.get(node, b"")
        return found


def _read_folder(disk: Disk, nodes: dict[int, int], path: str, folder: int) -> None:
    for entry in os.scandir(path):
        # A file with two names is one node: the laboratory's copies share inodes.
        node = nodes.setdefault(entry.inode(), len(nodes))
        disk.folders[folder][entry.name] = node
        if entry.is_dir(follow_symlinks=False):
            disk.folders[node] = {}
            _read_folder(disk, nodes, entry.path, node)
        else:
            disk.files[node] = Path(entry.path).read_bytes()


class Trace:
    """What happened to a root, event by event, and what it was before.

    Args:
        root: As it was when the trace began; a trace is read before anything else is done.
        before: From `Disk.read`, then.
        lines: What the shim wrote.
    """

    def __init__(
        self, root: Path, before: Disk, nodes: dict[int, int], lines: Iterable[str]
    ) -> None:
        self.before = before
        self.events: list[Event] = []
        self._root = os.fspath(root)
        self._nodes = dict(nodes)
        self._now = before.copy()
        self._next = 1 + max(nodes.values())
        for line in lines:
            for event in self._parse(*line.split("\t")[1:]):
                self._now.apply(event)
                self.events.append(event)

    @property
    def end(self) -> Disk:
        """What the trace says there is at its end; equal to what is really there."""
        return self._now

    def _parse(self, kind: str, inode: str, number: str, one: str, other: str) -> Iterator[Event]:
        if kind == "mark":
            yield Mark(one)
        elif kind in ("create", "mkdir"):
            node, self._next = self._next, self._next + 1
            self._nodes[int(inode)] = node
            if kind == "mkdir":
                self._now.folders[node] = {}
                self.before.folders.setdefault(node, {})
            yield Names(((*self._place(one), node),))
        elif kind == "write":
            yield Bytes(self._nodes[int(inode)], int(number), bytes.fromhex(one))
        elif kind == "truncate":
            yield Bytes(self._nodes[int(inode)], int(number), None)
        elif kind == "fsync":
            yield Flush(self._nodes[int(inode)])
        elif kind == "unlink":
            yield Names(((*self._place(one), None),))
        elif kind in ("rename", "link"):
            (source, old), (target, new) = self._place(one), self._place(other)
            left = ((source, old, None),) if kind == "rename" else ()
            yield Names((*left, (target, new, self._now.folders[source][old])))
        elif kind == "exchange":
            (source, old), (target, new) = self._place(one), self._place(other)
            swapped = self._now.folders[target][new], self._now.folders[source][old]
            yield Names(((source, old, swapped[0]), (target, new, swapped[1])))

    def _place(self, path: str) -> tuple[int, str]:
        parts = path.removeprefix(self._root + "/").split("/")
        folder = _ROOT
        for part in parts[:-1]:
            folder = self._now.folders[folder][part]
        return folder, parts[-1]


def cuts(
    trace: Trace, rng: random.Random, skip: Callable[[str], bool], most: int, *, first: int = 0
) -> Iterator[tuple[int, str, State]]:
    """Yield up to ``most`` different states: how many events had happened, which model, content.

    Two states are different when their content is, or what had been acknowledged. At least
    ``first`` events have happened.
    """
    seen: set[tuple[int, frozenset[tuple[str, bytes | None]]]] = set()
    replayed = _Replayed(trace)
    told = [0, *itertools.accumulate(isinstance(event, Mark) for event in trace.events)]
    places = [(end, model) for end in range(first, len(trace.events) + 1) for model in _MODELS]
    rng.shuffle(places)
    visits: deque[tuple[int, str, Iterator[list[Event]]]] = deque()
    for end, model in places * _TIMES:
        visits.append((end, model, _MODELS[model](trace.events[:end], rng)))
    while visits:
        end, model, choices = visits.popleft()
        some = list(itertools.islice(choices, _AT_ONCE))
        for chosen in some:
            if len(seen) == most:
                return
            state = replayed.disk(chosen).state(skip)
            found = told[end], frozenset(state.items())
            if found not in seen:
                seen.add(found)
                yield end, model, state
        if some:
            visits.append((end, model, choices))


class _Replayed:
    """What a trace's changes make of the disk; how far all of them were made is kept."""

    def __init__(self, trace: Trace) -> None:
        self._changes = [event for event in trace.events if isinstance(event, _CHANGING)]
        self._after = [trace.before]

    def disk(self, chosen: Sequence[Event]) -> Disk:
        """Return what is there when these have reached the disk, and no others."""
        pairs = zip(chosen, self._changes, strict=False)
        usual = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))
        disk = self._find_after(usual).copy()
        for event in chosen[usual:]:
            disk.apply(event)
        return disk

    def _find_after(self, count: int) -> Disk:
        for event in self._changes[len(self._after) - 1 : count]:
            disk = self._after[-1].copy()
            disk.apply(event)
            self._after.append(disk)
        return self._after[count]


def key(state: State) -> bytes:
    """Return what is equal for equal states."""
    digest = hashlib.blake2b(digest_size=16)
    for path, content in sorted(state.items()):
        digest.update(path.encode(errors="surrogateescape"))
        digest.update(b"\1" if content is None else b"\2" + hashlib.md5(content).digest())
    return digest.digest()


def _strict(events: Sequence[Event], rng: random.Random) -> Iterator[list[Event]]:
    """Choose among what was not flushed: nothing, all, all but one, only one, at random."""
    flushed: set[int] = set()
    parts: list[Event | None] = []
    for event in reversed(events):
        if isinstance(event, Flush):
            flushed.add(event.node)
            parts.append(None)
        elif isinstance(event, Names):
            parts.append(_certain_part(event, flushed))
        elif isinstance(event, Bytes):
            parts.append(event if event.node in flushed else None)
        else:
            parts.append(None)
    parts.reverse()
    changing = [n for n, event in enumerate(events) if isinstance(event, _CHANGING)]
    pending = [n for n in changing if parts[n] != events[n]]
    for kept in _choices(pending, rng):
        chosen: list[Event] = []
        for number in changing:
            part = events[number] if number in kept else parts[number]
            if part is not None:
                chosen.append(part)
        yield chosen


def _certain_part(event: Names, flushed: set[int]) -> Event | None:
    if event.folders <= flushed:
        return event
    if len(event.folders) == 1 or not event.folders & flushed:
        return None
    # A rename between directories. With the new name the old one is gone, for a directory has
    # but one; the old one alone may be gone for certain while the new one is not there yet.
    (source, old, _), (target, *_rest) = event.changes
    return event if target in flushed else Names(((source, old, None),))


def _choices(pending: Sequence[int], rng: random.Random) -> Iterator[frozenset[int]]:
    everything = frozenset(pending)
    choices = {everything, frozenset[int]()}
    for number in pending[-6:]:
        choices |= {everything - {number}, frozenset({number})}
    for _ in range(3):
        choices.add(frozenset(n for n in pending if rng.random() < 0.5))
    yield from rng.sample(sorted(choices, key=sorted), len(choices))


def _ordered(events: Sequence[Event], rng: random.Random) -> Iterator[list[Event]]:
    """Choose how far the names have come since the last flush, and whose bytes with them."""
    names = [n for n, event in enumerate(events) if isinstance(event, Names)]
    flushes = [n for n, event in enumerate(events) if isinstance(event, Flush)]
    committed = flushes[-1] if flushes else -1
    flushed: dict[int, int] = {}
    for number in flushes:
        event = events[number]
        if isinstance(event, Flush):
            flushed[event.node] = number
    loose = [
        n for n, e in enumerate(events) if isinstance(e, Bytes) and n > flushed.get(e.node, -1)
    ]
    tails = [committed, *(n for n in names if n > committed)]
    ways = [(tail, share) for tail in tails[-6:] for share in (1.0, 0.0, 0.5)]
    for tail, share in rng.sample(ways, len(ways)):
        chosen: list[Event] = []
        for number, event in enumerate(events):
            early = isinstance(event, Names) and number <= tail
            if early or (isinstance(event, Bytes) and number not in loose):
                chosen.append(event)
            elif isinstance(event, Bytes) and rng.random() < share:
                chosen.append(event if share == 1 else _torn(event, rng))
        yield chosen


def _torn(event: Bytes, rng: random.Random) -> Bytes:
    if event.content is None or rng.random() < 0.5:
        return event
    return replace(event, content=event.content[: rng.randrange(len(event.content) + 1)])


_MODELS: dict[str, Callable[[Sequence[Event], random.Random], Iterator[list[Event]]]] = {
    "strict": _strict,
    "ordered": _ordered,
}
_AT_ONCE, _TIMES = 3, 3
"""So many states of a place in the trace are tried before others have their turn, and so often are
all of them chosen anew: some of the choices are left to chance."""
