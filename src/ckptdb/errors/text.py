"""Text that the sentences of errors are made of: printable, and sizes with a unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def clean(value: object) -> str:
    """Return a value as text that no terminal obeys: control characters are spelled out."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def human_bytes(size: float | None) -> str:
    """Return a size in bytes with a decimal unit, e.g. ``1.2 GB``."""
    if size is None:
        return ""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004  # decimal units
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def listed(texts: Iterable[str], *, most: int = 10) -> str:
    """Return texts separated by commas: the first ``most``, and how many more there are."""
    found = list(texts)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
