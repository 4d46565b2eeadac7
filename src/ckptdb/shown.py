"""How values look to people, on a terminal as on a page.

Names, paths and reasons come from anybody's disk: what a terminal would obey is shown, not sent.
"""

from __future__ import annotations

import os
from pathlib import Path


def clean(value: object) -> str:
    """Return a value as text that no terminal obeys: control characters are spelled out."""
    text = "" if value is None else str(value)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def number(value: object) -> str:
    """Return a metric's value short enough for a table."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else clean(value)


def copyable(path: Path) -> str:
    """Return what to paste into a shell for a path.

    The path itself, unless it holds what a terminal would obey or what is no text: such a one is
    quoted, as bash and zsh understand it (``$'...'``).
    """
    text = str(path)
    if text.isprintable():
        return text
    return "$'" + "".join(map(_quoted, os.fsencode(path))) + "'"


def _quoted(byte: int) -> str:
    character = chr(byte)
    if character in "'\\":
        return f"\\{character}"
    return character if character.isascii() and character.isprintable() else f"\\x{byte:02x}"


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def inert(value: object) -> object:
    """Return a value that a spreadsheet takes for what it is: text is never a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
