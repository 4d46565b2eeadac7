"""Points in time as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from ckptdb.errors import InvalidTime
from ckptdb.records import in_utc, utc

_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_AGO: Final = re.compile(rf"(\d+(?:\.\d+)?) ({'|'.join(_SECONDS)})s? ago", re.ASCII)


def moment(at: str | datetime, *, now: float) -> str:
    """Return a point in time as files and tables have it.

    Args:
        at: ISO-8601, in UTC when it names no zone, or e.g. ``"2 hours ago"``.
        now: Seconds since the epoch.

    Raises:
        InvalidTime: It is neither.
    """
    try:
        ago = _AGO.fullmatch(at.strip()) if isinstance(at, str) else None
        if ago is not None:
            return utc(now - float(ago[1]) * _SECONDS[ago[2]])
        found = datetime.fromisoformat(at.strip()) if isinstance(at, str) else at
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return in_utc(found.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidTime(str(at)) from error
