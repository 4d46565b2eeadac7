"""Durations and sizes as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from ckptdb.errors.text import human_bytes

__all__ = [
    "DURATION",
    "SIZE",
    "duration",
    "find_hours",
    "hours",
    "human_age",
    "human_bytes",
    "size",
    "size_bytes",
]

_SECONDS: Final[Mapping[str, int]] = {
    "week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1,
}  # fmt: skip
_WRITTEN: Final = ("day", "hour", "minute")
"""Units in which a duration is written; the others are only parsed."""
_BYTES: Final[Mapping[str, int]] = {
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}

DURATION: Final = rf"(\d+(?:\.\d+)?) ({'|'.join(_SECONDS)})s?"
"""A pattern with two groups, which are the arguments of `hours`."""

SIZE: Final = rf"(\d+(?:\.\d+)?) ?({'|'.join(_BYTES)})"
"""A pattern with two groups, which are the arguments of `size_bytes`."""


def find_hours(text: str) -> float | None:
    """Return the hours of a text such as ``2 days``, or None for any other text."""
    found = re.fullmatch(DURATION, text.strip(), re.ASCII)
    return hours(*found.groups()) if found else None


def hours(amount: str, unit: str) -> float:
    """Return an amount of minutes, days, … in hours."""
    return float(amount) * (_SECONDS[unit] / 3_600)


def duration(time_hours: float) -> str:
    """Return a duration in the largest unit that divides it, or else in hours."""
    for unit in _WRITTEN:
        count = round(time_hours * 3_600 / _SECONDS[unit])
        if count and hours(str(count), unit) == time_hours:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{Decimal(repr(time_hours)):f} hours"  # exactly, and never with an exponent


def size_bytes(amount: str, unit: str) -> int:
    """Return an amount of KB, MiB, … in bytes, rounded down."""
    return int(Decimal(amount) * _BYTES[unit])


def size(count: int) -> str:
    """Return a number of bytes in the unit that makes it the smallest whole number."""
    whole = [(count // each, unit) for unit, each in _BYTES.items() if count % each == 0]
    number, unit = min(whole)
    return f"{number} {unit}"


def human_age(seconds: float) -> str:
    """Return a duration in the unit that fits, e.g. ``3.2 days``."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
