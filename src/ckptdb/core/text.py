"""How values look to people, on a terminal as on a page.

Names, paths and reasons come from anybody's disk: what a terminal would obey is shown, not sent.
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
"""How many steps a sentence lists."""
_FORMULA = re.compile(r"'*[=+\-@\t\n\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet may take for a formula, in letters of both widths."""
_BREAK = re.compile(r"([\n\t])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""All but tabs and new lines; and what turns the direction of writing."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def clean_lines(text: str) -> str:
    """Return a text of several lines likewise; where these end, and tabs, stay as they are."""
    if text.isprintable():
        return text
    return "".join(part if part in "\n\t" else clean(part) for part in _BREAK.split(text))


class CleanRecords(logging.Filter):
    """Cleans what a log says of names, paths and errors; what the program says stays as it is."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the arguments of a record, and let it through."""
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
        more = 0  # naming it takes no more space
    listed = [str(step) for step in (steps[:_MOST_STEPS] if more > 0 else steps)]
    last = f"{more} more" if more > 0 else listed.pop()
    return f"steps {', '.join(listed)} and {last}"


def copyable(path: Path, *, only_ascii: bool = False) -> str:
    """Return what to paste into a shell for a path.

    The path itself, unless a shell would make something else of it: such a one is in quotes; and
    in those of bash and zsh (``$'...'``) if it holds what a terminal would obey or what is no text.

    Args:
        path: As Python has it.
        only_ascii: Take all other letters for what is no text.
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
    """Return a cell that no spreadsheet takes for a formula, and no terminal for a command.

    A text that would begin one gets an apostrophe before it; whoever reads it back takes one away
    from whatever has it before such a character.
    """
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def is_storable(text: str) -> bool:
    """Tell whether a database accepts a text; a lone surrogate may stand in JSON, but not there."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in text
