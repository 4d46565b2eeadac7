"""What becomes of the values that a loop passes: numbers, nothing, or a refusal; never a guess."""

import datetime as dt
import enum
import json
import math
import string
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptdb import CheckpointManager, Registry
from ckptdb.core.metrics import metrics_of
from ckptdb.disk import config_file, training_info
from ckptdb.errors import InvalidAnnotation, UnwritableInfo


class Torch:
    """A scalar of another library."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return f"Torch({self.value!r})"

    def item(self):
        return self.value


MISSING = "missing"  # null in the file, and no metric
REFUSED = "refused"  # the save is, before a file is opened
TEXT = "text"  # kept, and no metric

VALUES = [
    # nothing
    (None, MISSING),
    (np.ma.masked, MISSING),
    (np.ma.array(1.0, mask=True), MISSING),
    (np.ma.array([1.0], mask=[True]), MISSING),
    (np.ma.array(["1"], mask=[True]), MISSING),
    (pd.NA, MISSING),
    (pd.NaT, MISSING),
    (np.datetime64("NaT"), MISSING),
    (np.datetime64("NaT", "ns"), MISSING),
    (np.timedelta64("NaT", "ns"), MISSING),
    (np.array("NaT", dtype="datetime64[ns]"), MISSING),
    (np.array(None, dtype=object), MISSING),
    (np.array([None], dtype=object), MISSING),
    (np.array(pd.NA, dtype=object), MISSING),
    (pd.Series([pd.NA], dtype="Int64"), MISSING),
    (Torch(None), MISSING),
    (Torch(np.ma.masked), MISSING),
    # numbers
    (0.5, 0.5),
    (3, 3.0),
    (2**80, float(2**80)),
    (np.float64(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.longdouble("0.5"), 0.5),
    (np.int64(3), 3.0),
    (np.array(0.5), 0.5),
    (np.array([[0.5]]), 0.5),
    (np.array(0.5, dtype=object), 0.5),
    (np.array(Decimal("0.5"), dtype=object), 0.5),
    (np.ma.array([0.5], mask=[False]), 0.5),
    (pd.Series([0.5]), 0.5),
    (Torch(0.5), 0.5),
    (Torch(3), 3.0),
    (Decimal("0.5"), 0.5),
    (Decimal(3), 3.0),
    (Fraction(1, 2), 0.5),
    # not finite: kept, never ranked
    (math.nan, None),
    (math.inf, None),
    (np.float32("nan"), None),
    (Decimal("NaN"), None),
    (Decimal("sNaN"), None),
    (Decimal("-Infinity"), None),
    (Decimal("1e400"), None),
    (Fraction(10**400), None),
    (10**400, None),
    # no numbers, whatever they look like
    (True, TEXT),
    (np.True_, TEXT),
    (np.array([True]), TEXT),
    ("0.5", TEXT),
    ("nan", TEXT),
    ("", TEXT),
    (np.str_("0.5"), TEXT),
    (np.array("0.5"), TEXT),
    # neither
    (1j, REFUSED),
    (np.complex128(1), REFUSED),
    (np.array([1.0, 2.0]), REFUSED),
    (np.array([]), REFUSED),
    (np.ma.array([1.0, 2.0], mask=[True, True]), REFUSED),
    (np.datetime64(5, "ns"), REFUSED),
    (np.timedelta64(5, "ns"), REFUSED),
    (np.timedelta64(5, "s"), REFUSED),
    (pd.Timestamp("2026-11-22"), REFUSED),
    (dt.datetime(2026, 11, 22), REFUSED),  # noqa: DTZ001  # a naive one is what is meant
    (np.void(b"1"), REFUSED),
    (b"0.5", REFUSED),
    (Torch([0.5]), REFUSED),
    (Torch(1j), REFUSED),
    (object(), REFUSED),
]


def name(value):
    shown = type(value) not in (object, int) or value == 3  # not 10**400
    return repr(value)[:40] if shown else type(value).__name__


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=name)
@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in a list"])
def test_what_has_no_value_is_null_and_never_a_number(value, expected, inside):
    given = {"loss": [value] if inside else value}
    if expected is REFUSED:
        with pytest.raises(UnwritableInfo, match="'loss'"):
            training_info.dump_info(given)
        return
    written = json.loads(training_info.dump_info(given))
    if inside:
        written = {"loss": written["loss"][0]}
    if expected is MISSING:
        assert written == {"loss": None}
    if expected in (MISSING, TEXT):
        assert metrics_of(written) == {}
    else:
        assert metrics_of(written) == {"loss": expected}


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=name)
def test_a_late_metric_without_a_value_is_refused_as_one_that_is_no_number(value, expected):
    if expected is REFUSED:
        with pytest.raises(UnwritableInfo):
            training_info.plain_numbers({"acc": value})
        return
    found = metrics_of(training_info.plain_numbers({"acc": value}))
    assert ("acc" in found) == (expected not in (MISSING, TEXT))


def test_a_masked_loss_is_not_the_best(tmp_path):
    run = tmp_path / "run"
    with CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False}
    ) as manager:
        for step, loss in ((1, 0.5), (2, np.ma.masked), (3, 0.7)):
            with manager.save(step, {"loss": loss}) as folder:
                (folder / "model.bin").write_bytes(b"m")
        with pytest.warns(UserWarning, match=r"at step\(s\) \[2\] that do not have metric"):
            assert manager.get_best_checkpoint_path() == f"{run}/step_1"
    with Registry.open(run) as registry:
        assert registry.best().step == 1
        with pytest.raises(InvalidAnnotation, match="must be numbers by name, not 'acc'"):
            registry.log_metrics(None, 1, {"acc": pd.NA}, source="eval")


# --- configurations ---------------------------------------------------------------------


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({("a", 1): 2}, {"('a', 1)": 2}),
        ({"x": {(0, 1): "edge"}}, {"x": {"(0, 1)": "edge"}}),
        ({1: "int", None: "none", 2.5: "float"}, {"1": "int", "None": "none", "2.5": "float"}),
        ({"colour": Colour.RED, "size": Size.BIG}, {"colour": "red", "size": 3}),
        ({"path": Path("/data/x")}, {"path": "/data/x"}),
        ({PurePosixPath("a"): 1}, {"a": 1}),
        ({"lr": np.float64(0.1), "n": np.int32(4)}, {"lr": 0.1, "n": 4}),
        ({"on": np.True_, "off": np.array(0.5)}, {"on": True, "off": 0.5}),
        ({"masked": np.ma.masked, "na": pd.NA}, {"masked": None, "na": None}),
        ({"betas": (0.9, 0.95), "r": range(3)}, {"betas": [0.9, 0.95], "r": [0, 1, 2]}),
        ({"s": {"b", "a"}, "f": frozenset({2, 1})}, {"s": ["a", "b"], "f": [1, 2]}),
        ({"pairs": {(2, 1), (1, 2)}}, {"pairs": [[1, 2], [2, 1]]}),
        ({"day": dt.date(2026, 1, 2)}, {"day": "2026-01-02"}),
        (
            {"at": dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=2)))},
            {"at": "2026-01-02 03:00:00+02:00"},
        ),
        ({"d": Decimal("0.1"), "f": Fraction(1, 4)}, {"d": 0.1, "f": 0.25}),
        (
            {"yes": "no", "null": "null", "~": "~", "=": "=", "<<": "<<", "1e3": "1e-06",
             "2026-01-02": "2026-01-02", "": "", "!!python/tuple": "!!python/tuple [1]"},
            {"yes": "no", "null": "null", "~": "~", "=": "=", "<<": "<<", "1e3": "1e-06",
             "2026-01-02": "2026-01-02", "": "", "!!python/tuple": "!!python/tuple [1]"},
        ),
        ({"nan": math.nan, "inf": -math.inf}, {"nan": "NaN", "inf": "-Infinity"}),
    ],
    # Not its text: that of a set is another one in each process.
    ids=lambda value: " ".join(map(str, value))[:50],
)  # fmt: skip
def test_what_is_written_of_a_configuration_can_be_read_again(tmp_path, config, read):
    raw = config_file.serialize_config(config).content
    assert b"!!python" not in raw.replace(b"'!!python/tuple", b"")
    (tmp_path / "config.yaml").write_bytes(raw)
    assert config_file.get_config(tmp_path) == read
    assert config_file.config_to_compare(config) == read
    assert config_file.serialize_config(config).mapping == read


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"model": object()}, r"'model' \(object\)"),
        ({"model": {"head": [object()]}}, r"'model' \(dict\), in it a object"),
        ({"seeds": np.zeros(3)}, r"'seeds' \(ndarray\)"),
        ({"z": 1j}, r"'z' \(complex\)"),
        ({"text": "\ud800"}, r"'text' \(str\), which is no text in Unicode"),
        ({"n": 1 << 20_000}, r"'n' \(int\)"),
        ({"m": {1: "a", "1": "b"}}, "is the same text as another key: '1'"),
        ({1: "a", "1": "b"}, "is the same text as another key: '1'"),
        ({"when": dt.time(1)}, r"'when' \(time\)"),
    ],
    ids=["object", "object inside", "array", "complex", "surrogate", "huge", "text twice",
         "text twice above", "time"],
)  # fmt: skip
def test_what_cannot_be_read_again_is_refused_by_name(config, fault):
    with pytest.raises(UnwritableInfo, match=fault):
        config_file.serialize_config({"fine": 1, **config})


def test_a_value_that_many_share_is_written_once():
    shared: object = ["x" * 10]
    for _ in range(60):
        shared = [shared, shared]
    assert len(config_file.serialize_config({"a": shared}).content) < 10_000


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(string.printable)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.timezones())
    | st.decimals()
    | st.builds(np.float32, st.floats(width=32))
    | st.builds(Path, st.text(string.ascii_letters, min_size=1))
    | st.binary()
    | st.sampled_from([Colour.RED, Size.BIG, np.ma.masked, pd.NA, pd.NaT])
)
KEYS = TEXTS | st.integers() | st.dates() | st.tuples(st.integers(), TEXTS) | st.none()
CONFIGS = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(KEYS, inner, max_size=4)
            | st.tuples(inner, inner)
            | st.sets(st.integers() | TEXTS | st.tuples(st.integers(), st.integers()), max_size=4)
        ),
        max_leaves=10,
    ),
    max_size=5,
)


@pytest.mark.slow
@given(CONFIGS)
@example({"": "\x85\u2028\ufeff\x7f\0"})
@example({"=": {"<<": ["=", "<<"]}})
def test_every_configuration_comes_back_or_is_refused(config):
    try:
        raw = config_file.serialize_config(config).content
    except UnwritableInfo as error:
        assert "same text as another key" in str(error)  # noqa: PT017  # nothing else is refused
        return
    assert (
        config_file._parse_config(Path("config.yaml"), raw)
        == config_file.serialize_config(config).mapping
    )
