"""Times: as files and tables store them (UTC, ISO-8601, milliseconds) and as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ckptdb.core import units
from ckptdb.errors import InvalidTime

_AGO: Final = " ago"


def utc(timestamp: float) -> str:
    """Return a POSIX timestamp (seconds) as files and tables store it."""
    return in_utc(datetime.fromtimestamp(timestamp, tz=UTC))


def seconds(at: str | None) -> float | None:
    """Return a stored time as a POSIX timestamp (seconds); None when it cannot be parsed."""
    try:
        return datetime.fromisoformat(at or "").timestamp()
    except (ValueError, TypeError):
        return None


def in_utc(time: datetime) -> str:
    """Return a datetime, which must be in UTC, as files and tables store it."""
    return f"{time.isoformat(timespec='milliseconds')[:-6]}Z"


def parse_time(at: str | datetime, *, now: float) -> str:
    """Return a time that a person wrote as files and tables store it.

    Args:
        at: ISO-8601, in UTC without a zone, or e.g. ``"2 hours ago"``.
        now: Seconds since the epoch.

    Raises:
        InvalidTime: The text is neither.
    """
    try:
        found = at if isinstance(at, datetime) else _read(at.strip(), now)
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return in_utc(found.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidTime(str(at)) from error


def _read(text: str, now: float) -> datetime:
    hours = units.find_hours(text.removesuffix(_AGO)) if text.endswith(_AGO) else None
    if hours is None:
        return datetime.fromisoformat(text)
    return datetime.fromtimestamp(now - hours * 3_600, tz=UTC)
