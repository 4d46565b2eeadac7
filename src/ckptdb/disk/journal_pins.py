"""Pins, rejections, resumptions and evaluations, followed while a journal grows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from ckptdb.core.facts import JOURNAL, MOST_BYTES, Fact
from ckptdb.disk import journal_lines, journal_records, paths
from ckptdb.disk.journal_lines import PART_BYTES, LineChain, Mark

_Key = TypeVar("_Key")


class Pins:
    """Checkpoints of a run that are pinned, rejected, or last resumed from."""

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
        """Return the uuids of pinned checkpoints; only lines about pins are parsed.

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
    """Checkpoints of a run that have been evaluated, by the name of the evaluation."""

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
    """State after a part of a journal was read.

    Attributes:
        marks: True or False by key: set, or undone.
        chain: Checksums of the lines read so far.
        read_bytes: Size of the part that was read.
        seen: The journal when it was read.
        latest: The journal after our own later lines.
        changed: True if anything but a new line has come in between.
        longest_bytes: Largest size that was ever read.
        contradicted: Contradiction by a catalog, or None.
    """

    marks: Mapping[_Key, bool]
    chain: LineChain
    read_bytes: int = 0
    seen: Mark | None = None
    latest: Mark | None = None
    changed: bool = False
    longest_bytes: int = 0
    contradicted: str | None = None

    def holds_for(self, now: Mark) -> bool:
        """Tell whether the journal has only grown since."""
        latest = self.latest
        return (
            latest is not None
            and not self.changed
            and now.inode == latest.inode
            and (now == latest or now.size_bytes > latest.size_bytes)
        )


class _Marks(Generic[_Key]):
    """Marks in force, the last one last; only new lines of a grown journal are read.

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
        self._known: _Known[_Key] = _Known({}, LineChain())

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
        path = f"{self._hidden}/{JOURNAL}"
        try:
            now = Mark.of(paths.get_status(path))
            if now == known.seen:
                return [key for key, stands in known.marks.items() if stands]
            handle = journal_lines.open_journal(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            self._known = _Known({}, LineChain(), longest_bytes=known.longest_bytes)
            return []
        with os.fdopen(handle, "rb", PART_BYTES) as file:
            now = Mark.of(os.fstat(handle))
            nothing: _Known[_Key] = _Known({}, LineChain(), longest_bytes=known.longest_bytes)
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
        for line in journal_lines.read_lines(file):
            is_ours = chain.takes(line)
            fact = (
                journal_lines.parse(line)
                if is_ours and any(w in line for w in self._words)
                else None
            )
            if fact and fact.kind == "contradicted":
                contradicted = journal_records.find_why(fact)
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
    return ((kind, fact.uuid), kind == fact.kind) if journal_records.is_hold(fact) else None


def _find_evaluation(fact: Fact) -> tuple[tuple[str, str], bool] | None:
    name = fact.details.get("name")
    if fact.kind != "evaluated" or not isinstance(name, str):
        return None
    return (fact.uuid, name), True
