import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.downsample import downsample

VALUES = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=200)


@pytest.mark.parametrize(
    ("values", "room", "kept"),
    [
        ([], 5, ()),
        ([1.0], 2, (0,)),
        ([1.0, 2.0, 3.0], 3, (0, 1, 2)),
        ([0.0, 0.0, 9.0, 0.0, -9.0, 0.0, 0.0], 4, (0, 2, 4, 6)),
        ([1.0, None, None, None, 1.0], 4, (0, 4)),
        ([None] * 9, 6, (0, 4, 8)),
    ],
    ids=["nothing", "one", "all fit", "peaks stay", "gaps are nothing to draw", "no values at all"],
)
def test_what_is_drawn(values, room, kept):
    assert downsample(values, room) == kept


@given(VALUES, st.integers(2, 60))
def test_ends_and_extremes_stay_and_the_rest_fits(values, room):
    kept = downsample(values, room)

    assert list(kept) == sorted(set(kept))
    assert len(kept) <= max(room, 4)
    known = [value for value in values if value is not None]
    drawn = [values[i] for i in kept if values[i] is not None]
    if values:
        assert {0, len(values) - 1} <= set(kept)
    if known:
        assert (min(drawn), max(drawn)) == (min(known), max(known))
