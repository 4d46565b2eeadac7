from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.times import parse_time
from ckptdb.errors import InvalidTime

NAIVE = datetime.fromisoformat("2026-11-22")
NOW = datetime(2026, 11, 22, 16, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-22T16:01:24.123Z", "2026-11-22T16:01:24.123Z"),
        ("2026-11-22T16:01:24.123999Z", "2026-11-22T16:01:24.123Z"),
        (" 2026-11-22 16:01 ", "2026-11-22T16:01:00.000Z"),
        ("2026-11-22", "2026-11-22T00:00:00.000Z"),
        ("2026-11-22T16:00:00+02:00", "2026-11-22T14:00:00.000Z"),
        ("90 seconds ago", "2026-11-22T15:58:30.000Z"),
        ("1 minute ago", "2026-11-22T15:59:00.000Z"),
        ("2 hours ago", "2026-11-22T14:00:00.000Z"),
        ("1.5 days ago", "2026-11-21T04:00:00.000Z"),
        ("1 week ago", "2026-11-15T16:00:00.000Z"),
        (NAIVE, "2026-11-22T00:00:00.000Z"),
        (
            datetime(2026, 11, 22, tzinfo=timezone(timedelta(hours=-1))),
            "2026-11-22T01:00:00.000Z",
        ),
    ],
)
def test_a_time_becomes_what_tables_have(at, expected):
    assert parse_time(at, now=NOW) == expected


@pytest.mark.parametrize(
    "at",
    ["", "yesterday", "2026-13-01", "2 hours", "-2 hours ago", "two hours ago",
     "9" * 400 + " days ago", "99999999 weeks ago", "0001-01-01T00:00:00+14:00", "²2 hours ago"],
)  # fmt: skip
def test_what_is_no_time_is_one_sentence(at):
    with pytest.raises(InvalidTime, match="is no time: write it like 2026-11-22T16:00:00Z"):
        parse_time(at, now=NOW)


@given(st.datetimes(timezones=st.just(UTC)))
def test_whatever_was_written_is_read_back(at):
    first = parse_time(at, now=NOW)

    assert parse_time(first, now=NOW) == first
    assert abs(datetime.fromisoformat(first) - at) < timedelta(milliseconds=1)
