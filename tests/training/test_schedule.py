"""When a step is saved, as tables."""

import pytest

from ckptdb.training.schedule import (
    FIRST_AT_MOST_SECONDS,
    Deadline,
    RecentDurations,
    find_slurm_end,
    is_near,
    is_periodic,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:00:00", 0),
        ("00:00:00:01", 1),
        ("00:00:01:00", 60),
        ("00:01:00:00", 3_600),
        ("01:00:00:00", 86_400),
        ("00:03:45:00", 13_500),
        ("10:00:00:90", 864_090),
    ],
)
def test_a_duration_has_days_hours_minutes_and_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", ":::", "1", "00:45:00", "1:2:3:4:5", "1:2:3:x", "1:2:3:4.5", "0:0:0:-1", "soon"]
)
def test_anything_else_is_no_duration(text):
    with pytest.raises(ValueError, match=r"."):
        parse_duration(text)


@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "2000"}, 2000.0),
        ({"SLURM_JOB_END_TIME": "1000"}, None),
        ({"SLURM_JOB_END_TIME": "10"}, None),
        ({"SLURM_JOB_END_TIME": ""}, None),
        ({"SLURM_JOB_END_TIME": "UNLIMITED"}, None),
        ({"SLURM_JOB_END_TIME": "-1"}, None),
        ({"SLURM_JOB_END_TIME": "٢٠٠٠"}, None),
    ],
    ids=["no job", "ahead", "now", "over", "empty", "a word", "negative", "other digits"],
)
def test_the_end_of_a_job_counts_while_it_is_ahead(environment, end):
    assert find_slurm_end(environment, now=1000.0) == end


@pytest.mark.parametrize(
    ("step", "periods", "periodic"),
    [
        (0, (10,), True),
        (1, (10,), False),
        (10, (10,), True),
        (15, (10, 5), True),
        (15, (10, None), False),
        (7, (1, None), True),
        (7, (10, 7), True),
        (2**62, (2,), True),
    ],
)
def test_a_step_is_periodic_when_one_of_the_periods_divides_it(step, periods, periodic):
    assert is_periodic(step, *periods) is periodic


# A step of 10 s and a save of 20 s: the next chance needs 10 + 1.5 * 20 + 1 seconds.
@pytest.mark.parametrize(
    ("remaining", "saving", "near"),
    [
        (41.1, False, False),
        (41.0, False, True),
        (0.0, False, True),
        (-5.0, False, True),
        (61.1, True, False),
        (61.0, True, True),
    ],
    ids=["just time", "just none", "at it", "past it", "after a save", "not after a save"],
)
def test_a_deadline_is_near_when_a_step_later_a_save_may_be_late(remaining, saving, near):
    assert is_near(Deadline(remaining, 1000.0), RecentDurations(10.0, 20.0), saving=saving) is near


@pytest.mark.parametrize(
    ("whole", "at_most"),
    [(10.0, 0.2), (3_600.0, 72.0), (1e6, FIRST_AT_MOST_SECONDS)],
    ids=["seconds", "an hour", "days"],
)
def test_as_long_as_no_save_is_known_a_part_of_the_time_stands_for_one(whole, at_most):
    needed = 1.5 * at_most + 1.0
    assert is_near(Deadline(needed, whole), RecentDurations(), saving=False)
    assert not is_near(Deadline(needed + 0.01, whole), RecentDurations(), saving=False)
