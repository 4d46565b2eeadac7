"""Our functions answer as SQLite's own do."""

import math
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.catalog import functions

TEXTS = st.text("aab \u00e9\u65e5", max_size=8)
VALUES = st.one_of(
    st.none(), TEXTS, TEXTS.map(str.encode), st.integers(-(2**63), 2**63 - 1),
    # SQLite and Python round a tie in the 16th digit differently.
    st.floats(width=16, allow_nan=False).filter(lambda x: math.isinf(x) or float(f"{x:.15g}") == x),
    st.sampled_from([1.0, 1e20, 1.5e-7, 100000.0, -0.25]),
)  # fmt: skip
CALLS = (
    "instr(:a, :b)", "replace(:a, :b, :c)", "trim(:a)", "trim(:a, :b)", "ltrim(:a)",
    "ltrim(:a, :b)", "rtrim(:a)", "rtrim(:a, :b)",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@given(a=VALUES, b=VALUES, c=VALUES)
def test_ours_and_theirs_agree(call, a, b, c):
    parameters = {"a": a, "b": b, "c": c}
    with closing(sqlite3.connect(":memory:")) as theirs, closing(_ours()) as ours:
        sql = f"SELECT {call}, typeof({call})"
        expected = theirs.execute(sql, parameters).fetchall()
        assert ours.execute(sql, parameters).fetchall() == expected


def _ours():
    raw = sqlite3.connect(":memory:")
    functions.define(raw, None, 1000)
    return raw
