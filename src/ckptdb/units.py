"""How quantities are told to people."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def human_bytes(size: float | None) -> str:
    """Return a size in bytes with a decimal unit, e.g. ``1.2 GB``."""
    if size is None:
        return ""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004  # decimal units
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
