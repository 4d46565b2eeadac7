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

import os
from collections.abc import Iterable
from pathlib import Path

from ckptdb.core.facts import GONE, JOURNAL, Fact, Facts
from ckptdb.core.records import Annotations, Run
from ckptdb.disk import fsutil, journal_lines, journal_records, names, paths
from ckptdb.disk.journal_lines import PART_BYTES, SEAL, SEAL_BYTES, LineChain, Mark
from ckptdb.disk.journal_records import AnnotationLines

_CLOSED = b"\0\n"
"""End that is added to a line that a crash has torn; no line of ours has a NUL."""


def size(directory: Path) -> int:
    """Return the size in bytes of a run's journal, 0 without one, -1 when it cannot be told."""
    try:
        # Asked at every question: joining strings takes a fifth of the time.
        return paths.get_status(f"{directory}/{names.HIDDEN}/{JOURNAL}").st_size
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
    handle = fsutil.open_kept(hidden / JOURNAL, os.O_RDWR | os.O_APPEND)
    try:
        before = os.fstat(handle)
        if make_durable and before.st_size == 0:
            # Before the first byte: whoever finds one need not ask whether the name is durable.
            fsutil.fsync(hidden)
        after, is_torn = _find_end(handle, before.st_size)
        lines = b"".join(journal_lines.serialize(facts, after))
        # A line torn by a crash must not swallow the next one.
        _write(handle, _CLOSED + lines if is_torn else lines)
        if make_durable:
            os.fsync(handle)
        return Mark.of(before), Mark.of(os.fstat(handle))
    finally:
        os.close(handle)


def read(hidden: Path, run: Run) -> Facts:
    """Read a whole journal; a missing one says nothing.

    Raises:
        OSError: It is there and cannot be read.
    """
    ends: dict[str, Fact] = {}
    notes: dict[str, AnnotationLines] = {}
    ever: set[str] = set()
    accepted: set[str] = set()
    standing: Fact | None = None
    settled_bytes = 0
    chain = LineChain()
    for fact in journal_lines.iter_facts(hidden, chain):
        if fact.kind in GONE:
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
            settled_bytes = max(settled_bytes, journal_records.as_count(fact.details.get("bytes")))
        else:
            notes.setdefault(fact.uuid, AnnotationLines()).add(fact)
    annotations = {uuid: note.result() for uuid, note in notes.items()}
    buried = (journal_records.parse_end(run, fact) for fact in ends.values())
    gone = {checkpoint.uuid: checkpoint for checkpoint in buried if checkpoint}
    keys = {uuid: frozenset(note.keys) for uuid, note in notes.items() if note.keys}
    keys |= {uuid: keys.get(uuid, frozenset()) | {"gone"} for uuid in ever}
    vanished = (uuid for uuid in gone.keys() - accepted if ends[uuid].kind == "vanished")
    return Facts(
        gone=gone,
        annotations={uuid: found for uuid, found in annotations.items() if found != Annotations()},
        # What was never finished was no checkpoint yet.
        lost=frozenset(uuid for uuid in vanished if gone[uuid].finalized_at is not None),
        keys=keys,
        damage=chain.damage,
        contradicted=None if standing is None else journal_records.find_why(standing),
        is_short=standing is not None and standing.details.get("short") is True,
        settled_bytes=settled_bytes,
    )


def _find_end(handle: int, size_bytes: int) -> tuple[str, bool]:
    """Return the checksum of the last line, and whether a line without its end stands behind it."""
    seal = SEAL.fullmatch(os.pread(handle, SEAL_BYTES, max(size_bytes - SEAL_BYTES, 0)))
    if seal is not None:
        return seal[2].decode(), False
    chain, is_torn = LineChain(), False
    with os.fdopen(os.dup(handle), "rb", PART_BYTES) as file:
        file.seek(0)
        for line in journal_lines.read_lines(file):
            chain.takes(line)
            is_torn = not line.endswith(b"\n")
    return chain.last, is_torn


def _write(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
