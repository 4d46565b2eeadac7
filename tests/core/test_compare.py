"""What differs between two checkpoints, what matters most first."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.compare import (
    Side,
    compare,
    config_changes,
    file_changes,
    metric_changes,
)
from ckptdb.core.records import Checkpoint


@pytest.mark.parametrize(
    ("a", "b", "changes"),
    [
        ({"lr": 0.1}, {"lr": 0.1}, []),
        ({"lr": 0.1}, {"lr": 0.2}, [("lr", "changed", 0.1, 0.2)]),
        ({"n": 1}, {"n": 1.0}, []),
        ({"n": 1}, {"n": True}, [("n", "changed", 1, True)]),
        ({"n": [1, True]}, {"n": [1.0, 1]}, [("n", "changed", [1, True], [1.0, 1])]),
        ({"x": None}, {}, [("x", "removed", None, None)]),
        ({}, {"x": {"y": 1}}, [("x", "added", None, {"y": 1})]),
        ({"x": {"y": 1}}, {"x": {"y": 2}}, [("x.y", "changed", 1, 2)]),
        ({"x": {"y": 1}}, {"x": 3}, [("x", "changed", {"y": 1}, 3)]),
        ({"a.b": 1}, {"a.b": 2}, [('"a.b"', "changed", 1, 2)]),
        (
            {"z": 1, "old": 1, "b": 1},
            {"z": 2, "new": 1, "b": 2},
            [("b", "changed", 1, 2), ("z", "changed", 1, 2), ("new", "added", None, 1),
             ("old", "removed", 1, None)],
        ),
    ],
)  # fmt: skip
def test_changed_keys_come_first_then_new_and_gone_ones(a, b, changes):
    found = config_changes(a, b)
    assert [(change.key, change.kind, change.a, change.b) for change in found] == changes


def test_metrics_are_ranked_by_how_much_they_changed_of_what_they_were():
    found = metric_changes(
        {"loss": 2.0, "acc": 0.5, "same": 1.0, "zero": 0.0, "gone": 1.0, "nan": None},
        {"loss": 1.0, "acc": 0.6, "same": 1.0, "zero": 0.1, "new": 3.0, "nan": 1.0},
    )
    assert [change.name for change in found] == ["zero", "loss", "acc", "gone", "nan", "new"]
    assert [change.relative for change in found[:3]] == [math.inf, -0.5, pytest.approx(0.2)]
    assert [change.relative for change in found[3:]] == [None] * 3
    assert [change.kind for change in found[3:]] == ["removed", "changed", "added"]


def test_a_metric_that_only_one_has_differs_also_where_it_is_not_finite():
    (change,) = metric_changes({}, {"nan": None})
    assert (change.kind, change.a, change.b) == ("added", None, None)
    assert metric_changes({"nan": None}, {"nan": None}) == ()


def test_files_are_ranked_by_how_many_bytes_that_is():
    found = file_changes(
        {"model": 100, "same": 5, "gone": 30}, {"model": 150, "same": 5, "new": 200}
    )
    assert [(change.path, change.kind, change.grown_bytes) for change in found] == [
        ("new", "added", 200), ("model", "changed", 50), ("gone", "removed", -30),
    ]  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
)
configs = st.dictionaries(st.text(max_size=3), values, max_size=4)
OTHER_WAY = {"changed": "changed", "added": "removed", "removed": "added"}


@given(configs, configs)
def test_the_other_way_round_the_same_differs(a, b):
    assert config_changes(a, a) == ()
    forth = {
        (change.key, change.kind, repr(change.a), repr(change.b)) for change in config_changes(a, b)
    }
    back = {
        (change.key, OTHER_WAY[change.kind], repr(change.b), repr(change.a))
        for change in config_changes(b, a)
    }
    assert forth == back


def checkpoint(step):
    return Checkpoint(
        run_uuid="r", run="r", uuid=str(step), step=step, path=Path(f"/r/step_{step}"),
        status="final", created_at="t",
    )  # fmt: skip


def test_what_is_not_known_is_not_taken_for_nothing():
    found = compare(Side(checkpoint(1), {"lr": 1}, {"m": 1}), Side(checkpoint(2), None, None))
    assert (found.config, found.files) == (None, None)
    assert found.as_dict()["config"] is None
    same = compare(Side(checkpoint(1), {}, {}), Side(checkpoint(2), {}, {}))
    assert (same.config, same.files) == ((), ())
    assert same.as_dict()["config"] == []
