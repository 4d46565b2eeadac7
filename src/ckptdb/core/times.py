"""Points in time as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ckptdb.core import units
from ckptdb.errors import InvalidTime

_AGO: Final = " ago"


def utc(timestamp: float) -> str:
    """Write a POSIX timestamp (seconds) the way every file and table of ckptdb does."""
    return in_utc(datetime.fromtimestamp(timestamp, tz=UTC))


def seconds(at: str | None) -> float | None:
    """Return a recorded time as a POSIX timestamp; None for what other hands may write."""
    try:
        return datetime.fromisoformat(at or "").timestamp()
    except (ValueError, TypeError):
        return None


def in_utc(moment: datetime) -> str:
    """Write a datetime, which must be in UTC, like `utc`."""
    return f"{moment.isoformat(timespec='milliseconds')[:-6]}Z"


def moment(at: str | datetime, *, now: float) -> str:
    """Return a point in time as files and tables have it.

    Args:
        at: ISO-8601, in UTC when it names no zone, or e.g. ``"2 hours ago"``.
        now: Seconds since the epoch.

    Raises:
        InvalidTime: It is neither.
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
