"""The gate before a terminal: text and line ends pass, control sequences do not.

`printing` cleans names that come from others. The gate catches the rest: the traceback of a
thread, the log of a library, the help of click. It filters the bytes of everything that writes to
`sys.stdout` and `sys.stderr`; a library that moves the cursor gets the stream behind it.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

from ckptdb.core.text import clean_lines

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_COLOUR: Final = re.compile(r"(\x1b\[[0-9;]*m)")


def guard() -> None:
    """Put a gate before each standard stream that is a terminal's."""
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


@contextmanager
def in_colour() -> Iterator[None]:
    """Let escapes for colour through to standard output, and no other control sequence."""
    gate = _find_gate(sys.stdout)
    if gate is None:
        yield
        return
    gate.lets_colours_through = True
    try:
        yield
    finally:
        gate.lets_colours_through = False


def behind(stream: TextIO) -> TextIO:
    """Return the stream behind the gate, for a library that moves the cursor."""
    gate = _find_gate(stream)
    return stream if gate is None else gate.stream


class _Gate(io.RawIOBase):
    """Takes bytes in the encoding of a terminal, and passes on text."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__()
        self.stream = stream
        self.lets_colours_through = False
        self._terminal = stream.buffer
        # What click writes where a locale has only ASCII is UTF-8.
        self.encoding = stream.encoding if _has_letters(stream.encoding) else "utf-8"
        # A letter may come in two parts.
        self._decoder = codecs.getincrementaldecoder(self.encoding)("backslashreplace")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, data: ReadableBuffer, /) -> int:
        given = bytes(data)
        text = self._decoder.decode(given)
        if self.lets_colours_through:
            # Every second part is a colour.
            parts = _COLOUR.split(text)
            parts[::2] = map(clean_lines, parts[::2])
            text = "".join(parts)
        else:
            text = clean_lines(text)
        self.stream.flush()
        self._terminal.write(text.encode(self.encoding, "backslashreplace"))
        self._terminal.flush()
        return len(given)


def _guarded(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
        return stream
    gate: Any = _Gate(stream)  # which need not read, and has no name
    return io.TextIOWrapper(
        gate, encoding=stream.encoding, errors="backslashreplace", newline="", write_through=True
    )


def _find_gate(stream: TextIO) -> _Gate | None:
    found = getattr(stream, "buffer", None)
    return found if isinstance(found, _Gate) else None


def _has_letters(encoding: str) -> bool:
    return codecs.lookup(encoding).name != "ascii"
