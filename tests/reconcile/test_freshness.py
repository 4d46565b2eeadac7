from __future__ import annotations

import time
from pathlib import Path

import pytest

from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Run
from ckptdb.core.stamp import Stamp
from ckptdb.reconcile.freshness import is_exact

RUN = Run(uuid="the run", name="grpo", directory=Path("/results/grpo"), created_at="2026")
OLD = Stamp(1, 2, 3)
YOUNG = Stamp(time.time_ns() + 10**12, 2, 3)


def indexed(stamp: Stamp | None, *, verified: bool = True) -> IndexedRun:
    return IndexedRun(1, RUN, None if stamp is None else str(stamp), verified=verified)


@pytest.mark.parametrize(
    ("row", "stamp", "expected"),
    [
        (indexed(OLD), OLD, True),
        (indexed(OLD, verified=False), OLD, False),
        (indexed(OLD), Stamp(1, 2, 4), False),
        (indexed(None), OLD, False),
        (indexed(YOUNG), YOUNG, False),
        (None, OLD, False),
        (indexed(OLD), None, False),
    ],
    ids=["exact", "only advanced", "changed", "never compared", "young", "no row", "no directory"],
)
def test_the_index_is_exact_for_a_settled_stamp_that_was_compared(row, stamp, expected):
    assert is_exact(row, stamp) is expected
