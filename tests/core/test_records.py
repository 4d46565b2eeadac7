from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.metrics import Metric, metrics_of
from ckptdb.core.ranking import rank_key
from ckptdb.core.records import Checkpoint, Run
from ckptdb.core.rows import Rows
from ckptdb.core.text import is_storable
from ckptdb.core.times import utc

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "ranked", "best_first"),
    [
        ("min", {1: 0.3, 2: 0.1, 3: 0.2}, [2, 3, 1]),
        ("max", {1: 0.3, 2: 0.1, 3: 0.2}, [1, 3, 2]),
        ("min", {1: 0.5, 2: 0.5, 3: 0.5}, [3, 2, 1]),
        ("max", {1: 0.5, 2: 0.5, 3: 0.5}, [3, 2, 1]),
        ("min", {1: 0.9, 2: NAN, 3: 0.1}, [3, 1, 2]),
        ("max", {1: -INF, 2: INF, 3: -5.0}, [3, 2, 1]),
        ("min", {1: None, 2: None, 3: 7.0}, [3, 2, 1]),
        ("min", {1: -0.0, 2: 0.0}, [2, 1]),
        ("max", {1: 0, 2: -1, 3: None}, [1, 2, 3]),
    ],
    ids=[
        "low",
        "high",
        "ties low",
        "ties high",
        "NaN",
        "infinities",
        "missing",
        "zeros",
        "integers",
    ],
)
def test_the_ranking_puts_the_best_finite_value_first(mode, ranked, best_first):
    assert sorted(ranked, key=lambda step: rank_key(ranked[step], step, mode)) == best_first


@pytest.mark.parametrize(
    ("mode", "tie_mode", "ranked", "best_first"),
    [
        ("min", "min", {1: (0.5, 0.1), 2: (0.5, 0.2), 3: (0.1, 0.9)}, [3, 1, 2]),
        ("min", "max", {1: (0.5, 0.1), 2: (0.5, 0.2), 3: (0.1, 0.9)}, [3, 2, 1]),
        ("max", "min", {1: (0.5, 7), 2: (0.5, 7), 3: (0.5, 8)}, [2, 1, 3]),
        ("min", "max", {1: (0.5, -9.0), 2: (0.5, None), 3: (0.5, INF)}, [1, 3, 2]),
        ("min", "min", {1: (None, 1.0), 2: (0.5, None)}, [2, 1]),
    ],
    ids=["low", "high", "equal in both", "missing ties", "missing values"],
)
def test_a_tie_decides_only_among_equal_values(mode, tie_mode, ranked, best_first):
    def key(step):
        value, tie = ranked[step]
        return rank_key(value, step, mode, tie=tie, tie_mode=tie_mode)

    assert sorted(ranked, key=key) == best_first


@pytest.mark.parametrize(
    ("at", "metrics", "late"),
    [
        ("2026-01-01", {"loss": 0.5, "nan": None, "big": None}, []),
        ("2026-01-02", {"loss": 0.1, "nan": None, "big": None}, ["loss"]),
        (
            "2026-01-03",
            {"loss": 0.1, "mmlu": 0.6, "nan": 1.0, "big": None},
            ["loss", "mmlu", "nan"],
        ),
    ],
)
def test_a_record_as_of_a_moment_has_what_had_been_reported(tmp_path, at, metrics, late):
    said = [
        Metric("loss", 0.1, "eval", "2026-01-02"),
        Metric("mmlu", 0.6, "eval", "2026-01-03"),
        Metric("nan", 1.0, "eval", "2026-01-03"),
    ]
    checkpoint = Checkpoint(
        run_uuid="r", run="r", uuid="u", step=1, path=tmp_path, status="final",
        created_at="2026-01-01", info={"loss": 0.5, "nan": "NaN", "big": 10**400, "yes": True},
        metrics={"loss": 0.1, "mmlu": 0.6, "nan": 1.0, "big": None},
        late={metric.name: metric for metric in said},
    )  # fmt: skip
    then = checkpoint.as_of(at)

    assert {name: then.metrics.get(name) for name in metrics} == metrics
    assert {name for name, value in then.metrics.items() if value is not None} == {
        name for name, value in metrics.items() if value is not None
    }
    assert sorted(then.late) == late
    assert then.status == "final"


@given(
    st.dictionaries(st.integers(0, 50), st.none() | st.floats(), min_size=1),
    st.sampled_from(["min", "max"]),
)
def test_no_value_outranks_a_finite_one(values, mode):
    order = sorted(values, key=lambda step: rank_key(values[step], step, mode))

    finite = [s for s in order if values[s] is not None and math.isfinite(values[s])]
    assert order[: len(finite)] == finite
    assert order[len(finite) :] == sorted(set(values) - set(finite), reverse=True)


@pytest.mark.parametrize(
    ("info", "metrics"),
    [
        ({"loss": 0.5, "epoch": 3}, {"loss": 0.5, "epoch": 3.0}),
        ({"nan": NAN, "inf": INF, "minus": -INF}, {"nan": None, "inf": None, "minus": None}),
        ({"bool": True, "text": "0.5", "null": None}, {}),
        ({"nested": {"loss": 1.0}, "list": [1.0]}, {}),
        ({"huge": 10**400, "large": 2**70}, {"huge": None, "large": float(2**70)}),
        ({"\ud800": 1.0, "nul\0": 1.0, "val:ü": 1.0}, {"val:ü": 1.0}),
        ({}, {}),
    ],
    ids=["numbers", "not finite", "no numbers", "nested", "huge", "names", "empty"],
)
def test_metrics_are_the_finite_numbers_of_the_top_level(info, metrics):
    assert metrics_of(info) == metrics


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("val:loss", True),
        ("ü", True),
        ("", True),
        ("\ud800", False),
        ("\0", False),
    ],
)
def test_a_text_is_storable_when_a_database_accepts_it(text, accepted):
    assert is_storable(text) is accepted


def test_times_are_utc_with_milliseconds():
    assert utc(0.0) == "1970-01-01T00:00:00.000Z"
    assert utc(1_795_363_284.1234) == "2026-11-22T16:01:24.123Z"


def test_a_run_knows_its_direction(tmp_path):
    run = Run(uuid="u", name="r", directory=tmp_path)
    assert run.mode == "min"
    assert Run(uuid="u", name="r", directory=tmp_path, higher_is_better=True).mode == "max"


def test_a_checkpoint_shows_its_fields_as_json_values(tmp_path):
    late = Metric("mmlu", 0.6, "lm-eval", "2026-11-22T16:01:24.123Z")
    checkpoint = Checkpoint(
        run_uuid="r",
        run="run",
        uuid="u",
        step=3,
        path=tmp_path / "step_3",
        status="final",
        created_at="2026-11-22T16:01:24.123Z",
        tags=("good",),
        late={"mmlu": late},
        fingerprint="secret",
    )

    shown = checkpoint.as_dict()

    assert shown["path"] == str(tmp_path / "step_3")
    assert shown["tags"] == ["good"]
    assert shown["late"]["mmlu"] == {
        "value": 0.6,
        "source": "lm-eval",
        "reported_at": "2026-11-22T16:01:24.123Z",
    }
    assert "fingerprint" not in shown


def test_rows_are_tuples_and_also_mappings():
    rows = Rows(("step", "loss"), ((1, 0.5), (2, 0.4)))

    assert len(rows) == 2
    assert list(rows) == [(1, 0.5), (2, 0.4)]
    assert rows.as_dicts() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]


def test_no_column_of_a_row_hides_another_of_its_name():
    assert Rows(("x", "x"), ((1, 2),)).as_dicts() == [{"x": 1, "x_2": 2}]
