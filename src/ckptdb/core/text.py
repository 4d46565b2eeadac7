"""Text for people: values, steps and paths, safe for a terminal, a shell or a spreadsheet.

Names, paths and reasons may come from other users: control characters are spelled out.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ckptdb.errors.text import clean

__all__ = [
    "CleanRecords",
    "clean",
    "clean_lines",
    "copyable",
    "inert",
    "is_storable",
    "number",
    "some_steps",
]

_MOST_STEPS = 4
"""Number of steps that a sentence lists."""
_FORMULA = re.compile(r"'*[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]")
"""Beginnings that a spreadsheet may read as a formula, in half and full width."""
_BREAK = re.compile(r"([\n\t])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of writing."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def clean_lines(text: str) -> str:
    """Return text with control characters spelled out; tabs and newlines stay."""
    if text.isprintable():
        return text
    return "".join(part if part in "\n\t" else clean(part) for part in _BREAK.split(text))


class CleanRecords(logging.Filter):
    """A logging filter that spells out control characters in the arguments of a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the arguments of a record; every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg if arg is None or isinstance(arg, int | float) else clean(arg)
                for arg in record.args
            )
        return True


def number(value: object) -> str:
    """Return a metric's value short enough for a table."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else clean(value)


def some_steps(steps: Sequence[int]) -> str:
    """Return steps for a sentence, e.g. ``steps 5, 6, 7, 8 and 2 more``."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    more = len(steps) - _MOST_STEPS
    if more == 1:
        more = 0  # its number takes no more space than "1 more"
    listed = [str(step) for step in (steps[:_MOST_STEPS] if more > 0 else steps)]
    last = f"{more} more" if more > 0 else listed.pop()
    return f"steps {', '.join(listed)} and {last}"


def copyable(path: Path, *, only_ascii: bool = False) -> str:
    """Return a path as it can be pasted into a shell.

    A path with special characters is quoted; one with control characters or undecodable bytes
    gets the quotes of bash and zsh (``$'...'``).

    Args:
        path: The path.
        only_ascii: Escape all other characters, too.
    """
    text = str(path)
    if text.isprintable() and (text.isascii() or not only_ascii):
        return shlex.quote(text)
    return "$'" + "".join(map(_quoted, os.fsencode(path))) + "'"


def _quoted(byte: int) -> str:
    character = chr(byte)
    if character in "'\\":
        return f"\\{character}"
    return character if character.isascii() and character.isprintable() else f"\\x{byte:02x}"


def inert(value: object) -> object:
    """Return a cell that no spreadsheet runs as a formula and no terminal as a command.

    A text that begins like a formula gets an apostrophe in front. To read such a cell back, remove
    one apostrophe in front of such a beginning.
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def is_storable(text: str) -> bool:
    """Tell whether a database stores a text: no lone surrogates (JSON may have them), no NUL."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in text
