"""JSON files, read with limits on size and depth: other people's programs write some of them."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from ckptdb.disk import paths
from ckptdb.disk.plain_values import (
    first_line,
)
from ckptdb.errors import Obstructed, UnreadableInfo

MAX_BYTES = 64 * 1024 * 1024
"""Larger metadata files are refused unread."""
RECORD_BYTES = 16 * 1024
"""Largest record of a process, such as that of a save or a lease."""
MAX_VALUES = 4_000_000
"""With more values JSON is refused: each takes many times the memory that its bytes do."""
_MAX_DIGITS = 4300
_PART_BYTES = 1024 * 1024


# Errors that tell what stands at a path; any other one only says that it cannot be read now.
_SAYS_WHAT_IT_IS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.EISDIR,
        errno.ENODEV,
    }
)


def load_json(path: Path | str, limit: int = MAX_BYTES) -> tuple[dict[str, Any], bytes]:
    """Read a JSON object from a regular file of at most ``limit`` bytes, with its bytes.

    Raises:
        UnreadableInfo: Anything else stands at that path.
    """
    raw = read_regular(path, limit)
    return parse_object(path, raw), raw


def parse_object(path: Path | str, raw: bytes) -> dict[str, Any]:
    """Return the JSON object that the bytes of a file are.

    Raises:
        UnreadableInfo: They are something else.
    """
    if has_too_many_values(raw):
        raise UnreadableInfo(Path(path), f"has more than {MAX_VALUES} values")
    try:
        content = parse(raw)
    except (ValueError, RecursionError) as error:
        raise UnreadableInfo(Path(path), f"is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UnreadableInfo(Path(path), f"holds a {type(content).__name__}, not an object")
    return content


def parse(raw: bytes) -> Any:
    """Return what JSON in UTF-8 says.

    Raises:
        ValueError, RecursionError: It is none.
    """
    if 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS:
        return json.loads(raw.decode())
    return json.loads(raw.decode(), parse_int=_short_int)


def has_too_many_values(raw: bytes) -> bool:
    """Tell whether JSON has more than `MAX_VALUES`, each behind a mark; those in text count too."""
    if len(raw) <= MAX_VALUES:
        return False
    return sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES


def _short_int(text: str) -> int:
    # What Python takes the square of its length for, where somebody has lifted Python's own limit.
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has more than {_MAX_DIGITS} digits")
    return int(text)


def raise_if_unknown(error: UnreadableInfo) -> None:
    """Raise the I/O error behind, when all it says is that a file cannot be read now.

    What the file holds cannot be told then, and nothing may be concluded from that.
    """
    cause = find_unknown(error)
    if cause is not None:
        raise cause


def find_unknown(error: UnreadableInfo) -> OSError | None:
    """Return the I/O error behind, when all it says is that a file cannot be read now."""
    cause = error.__cause__
    unknown = isinstance(cause, OSError) and cause.errno not in _SAYS_WHAT_IT_IS
    return cause if isinstance(cause, OSError) and unknown else None


def read_regular(path: Path | str, limit: int) -> bytes:
    """Return the bytes of a regular file, as `read_with_status` does."""
    return read_with_status(path, limit)[0]


def read_with_status(path: Path | str, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a regular file and what it was before they were read.

    Never follows a symlink, never blocks on a FIFO.

    Raises:
        UnreadableInfo: Missing, something else, or larger than ``limit`` bytes.
    """
    try:
        handle, found = paths.open_to_read(path)
    except FileNotFoundError as error:
        raise UnreadableInfo(Path(path), "is missing") from error
    except Obstructed as error:
        raise UnreadableInfo(Path(path), error.why) from error
    except OSError as error:
        raise UnreadableInfo(Path(path), f"cannot be opened ({error.strerror})") from error
    try:
        if found.st_size > limit:
            raise UnreadableInfo(Path(path), f"is larger than {limit} bytes")
        # Not up to the limit at once: that much memory would be set aside for every file.
        content = os.read(handle, found.st_size + 1)
        if len(content) != found.st_size:  # it is growing, or this was only a part
            content = _read_on(handle, content, limit)
    except OSError as error:
        raise UnreadableInfo(Path(path), f"cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    return content, found


def _read_on(handle: int, begun: bytes, limit: int) -> bytes:
    parts, left = [begun], limit + 1 - len(begun)
    while left > 0 and (part := os.read(handle, min(left, _PART_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
