"""SQL functions that replace those of SQLite in queries of people.

SQLite looks at the clock between its steps only, and some of its functions take, on one long text,
time that grows with the square of its length. These here take the time that reading it takes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

_MOST_TRIMMED: Final = 1000
"""Different characters that one call takes away."""


def define(raw: sqlite3.Connection, base: Path | None, longest_bytes: int) -> None:
    """Put these functions in the place of SQLite's own.

    Args:
        raw: Gets them; views may call them only where `trusted_schema` is on.
        base: What ``abspath(path)`` prepends.
        longest_bytes: No text may become longer.
    """
    make = partial(raw.create_function, deterministic=True)
    make("abspath", 1, partial(_absolute, base))
    make("instr", 2, _instr)
    make("replace", 3, partial(_replace, longest_bytes))
    strip: Callable[[str, str], str]
    for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
        make(name, 1, partial(_trim, strip))
        make(name, 2, partial(_trim, strip))


def _absolute(base: Path | None, path: Any) -> Any:
    if base is None or not isinstance(path, str):
        return path
    return os.path.join(base, path)


def _instr(text: Any, wanted: Any) -> int | None:
    if text is None or wanted is None:
        return None
    if isinstance(text, bytes) and isinstance(wanted, bytes):
        return text.find(wanted) + 1
    return _text(text).find(_text(wanted)) + 1


def _replace(longest_bytes: int, value: Any, old: Any, new: Any) -> Any:
    if value is None or old is None:
        return None
    text, before = _text(value), _text(old)
    if not before:
        return value if isinstance(value, int | float) else text
    if new is None:
        return None
    after = _text(new)
    grown = len(after.encode()) - len(before.encode())
    if grown > 0 and len(text.encode()) + text.count(before) * grown > longest_bytes:
        raise OverflowError
    return text.replace(before, after)


def _trim(strip: Callable[[str, str], str], value: Any, characters: Any = " ") -> str | None:
    if value is None or characters is None:
        return None
    different = set(_text(characters))
    if len(different) > _MOST_TRIMMED:
        raise OverflowError
    return strip(_text(value), "".join(different))


def _text(value: str | bytes | float) -> str:
    """Return a value as SQLite casts it to text, but for a tie in the 16th digit of a number."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int):
        return str(value)
    digits, e, exponent = f"{value + 0.0:.15g}".partition("e")
    if digits.endswith("inf"):
        return digits.replace("inf", "Inf")
    return f"{digits}{'' if '.' in digits else '.0'}{e}{exponent}"
