"""Lines of a journal: their format, their checksums, and reading around damage."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ckptdb.core.facts import JOURNAL, MOST_BYTES, Damage, Fact
from ckptdb.disk import journal_records, paths
from ckptdb.disk.json_file import MAX_BYTES, has_too_many_values

PART_BYTES = 1024 * 1024
_LONGEST_BYTES = 4 * MAX_BYTES
"""A line with the record of the largest training_info.json, whose letters may all be escaped."""
NO_LINE = "00000000"
"""Checksum that the first line refers to."""
SEAL = re.compile(rb', "after": "([0-9a-f]{8})", "crc": "([0-9a-f]{8})"\}\n')
_LONG_ENOUGH = re.compile(rb"\n[^\n]{45}")
_MANY = 1000
"""After so many lines in a row that are too short to be ours, more are not read one by one."""
SEAL_BYTES = len(b', "after": "01234567", "crc": "01234567"}\n')
_CRC_BYTES = len(b', "crc": "01234567"}\n')
_BEGIN = b'{"at": "'
_OF_A_TORN_LINE = re.compile(rb"[\0\x20-\x7e]*\n?")


@dataclass(frozen=True, slots=True)
class Mark:
    """Inode, size and times of a journal, which change with it."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Mark:
        """Return the mark of a file from its status."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def serialize(facts: Iterable[Fact], after: str) -> Iterator[bytes]:
    """Yield lines, each with the checksum of the one that it comes after."""
    for fact in facts:
        head = {"at": fact.at, "fact": fact.kind, "uuid": fact.uuid}
        head_bytes = json.dumps({**head, **fact.details, "after": after})[:-1].encode()
        after = f"{zlib.crc32(head_bytes):08x}"
        yield b'%b, "crc": "%b"}\n' % (head_bytes, after.encode())


def _find_seal(line: bytes) -> tuple[str, str] | None:
    """Return what a line comes after and its checksum; None when it does not verify."""
    seal = SEAL.fullmatch(line[-SEAL_BYTES:])
    # A copy of a line is made sooner than a view of it, but for one of many megabytes.
    content = line[:-_CRC_BYTES] if len(line) < PART_BYTES else memoryview(line)[:-_CRC_BYTES]
    if seal is None or zlib.crc32(content) != int(seal[2], 16):
        return None
    return seal[1].decode(), seal[2].decode()


def _is_torn(line: bytes) -> bool:
    """Tell whether a line may be the rest that a crash or a power cut has left."""
    if line.endswith(b"\n") and b"\0" not in line:
        return False
    begin = line[: len(_BEGIN)].split(b"\0")[0]
    return _BEGIN.startswith(begin) and _OF_A_TORN_LINE.fullmatch(line) is not None


class LineChain:
    """Chain of checksums: tells valid lines from the rest of a crash and from damage, in order."""

    def __init__(self) -> None:
        self.last = NO_LINE
        """The checksum of the last line that verified."""
        self.is_too_large = False
        self._damaged = self._gaps = 0
        self._is_after_damage = False
        # The last one, which has no end yet.
        self._open: bool = False

    def takes(self, line: bytes) -> bool:
        """Tell whether a line is valid; damage in it, or before it, is counted."""
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
        """Return the damage of the lines read so far."""
        found = Damage(self._damaged, self._gaps, self.is_too_large)
        return None if found == Damage(0, 0) else found

    def resumed(self) -> LineChain:
        """Return a copy that goes on where the last line had no end, and reads that again."""
        found = copy(self)
        found._forget_open()  # noqa: SLF001  # of our own kind
        return found

    def _forget_open(self) -> None:
        self._damaged -= self._open
        self._open = False


def open_journal(path: Path | str, flags: int) -> int:
    """Open the journal and nothing else that may have its name; never blocks on a FIFO."""
    return paths.open_file(path, flags)


def iter_facts(hidden: Path, chain: LineChain, *, most_bytes: float = MOST_BYTES) -> Iterator[Fact]:
    """Yield the facts of all lines that can be read."""
    try:
        handle = open_journal(hidden / JOURNAL, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(handle, "rb", PART_BYTES) as file:
        chain.is_too_large = os.fstat(handle).st_size > MOST_BYTES
        for line in read_lines(file, most_bytes):
            fact = parse(line) if chain.takes(line) else None
            if fact:
                yield fact


def read_lines(file: BinaryIO, most_bytes: float = MOST_BYTES) -> Iterator[bytes]:
    """Yield the lines of a journal; a short placeholder stands for a line that is too long.

    Args:
        file: An open journal; holes are skipped.
        most_bytes: Limit of bytes to read, holes not counted.
    """
    left, short = most_bytes, 0
    while left > 0 and (line := file.readline(PART_BYTES)):
        left -= len(line)
        short = 0 if len(line) > SEAL_BYTES else short + 1
        if short > _MANY and line.endswith(b"\n"):
            begin = file.tell()
            line = _skip_short(file, line)
            left -= file.tell() - begin
        elif len(line) == PART_BYTES and not line.endswith(b"\n"):
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
        if is_hole(line):
            skip_hole(file)
        line = file.readline(PART_BYTES)
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
    part = file.read(PART_BYTES)
    found = _LONG_ENOUGH.search(b"\n" + part)
    end = found.start() if found else part.rfind(b"\n") + 1
    file.seek(begin + end)
    return b"?\n" if (line + part[:end]).strip(b"\n") else b"\n"


def is_hole(part: bytes) -> bool:
    """Tell whether a part may be a hole in the file: a full part of NULs."""
    return len(part) == PART_BYTES and part.count(0) == PART_BYTES


def skip_hole(file: BinaryIO) -> None:
    """Go on where a file has bytes on the disk, or at its end."""
    handle, at = file.fileno(), file.tell()
    where = os.lseek(handle, 0, os.SEEK_CUR)  # which the buffer knows, too
    try:
        found = os.lseek(handle, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return  # the file system does not support it
        found = os.fstat(handle).st_size
    finally:
        os.lseek(handle, where, os.SEEK_SET)
    file.seek(found)


def parse(line: bytes) -> Fact | None:
    """Return the fact of a line, None when the line is not one of ours."""
    if has_too_many_values(line):
        return None
    try:
        content = json.loads(line)
        at, kind, uuid = content.pop("at"), content.pop("fact"), content.pop("uuid")
        del content["after"], content["crc"]
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return None
    if not all(journal_records.is_text(text) for text in (at, kind, uuid)):
        return None
    return Fact(at, kind, uuid, content)
