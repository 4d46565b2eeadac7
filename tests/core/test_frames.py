"""Answers as the tables of pandas, polars and pyarrow."""

import math
import subprocess
import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from ckptdb import Rows
from ckptdb.core import frames
from ckptdb.errors import LibraryMissing

ANSWER = Rows(
    ("whole", "holes", "number", "text", "bytes", "nothing", "mixed", "text", "truth"),
    (
        (1, 1, 1, "a", b"a", None, 1, "b", True),
        (2, None, 0.5, None, None, None, "x", "c", None),
        (2**53 + 1, 2**53 + 1, None, "d", b"d", None, None, "d", False),
    ),
)
NAMES = ["whole", "holes", "number", "text", "bytes", "nothing", "mixed", "text_2", "truth"]


def test_pandas_keeps_whole_numbers_whole_with_holes_among_them():
    frame = ANSWER.to_pandas()
    assert list(frame.columns) == NAMES
    assert [str(frame[name].dtype) for name in ("whole", "holes", "number")] == [
        "int64", "Int64", "float64",
    ]  # fmt: skip
    assert frame["holes"][2] == 2**53 + 1
    assert frame["holes"].isna().tolist() == [False, True, False]
    assert math.isnan(frame["number"][2])
    assert frame["mixed"].tolist() == [1, "x", None]
    assert frame["text"].isna().tolist() == [False, True, False]


def test_polars_types_every_column():
    frame = ANSWER.to_polars()
    assert frame.columns == NAMES
    assert frame.dtypes == [
        pl.Int64, pl.Int64, pl.Float64, pl.String, pl.Binary, pl.Null,
        pl.String, pl.String, pl.Boolean,
    ]  # fmt: skip
    assert frame["holes"].to_list() == [1, None, 2**53 + 1]
    assert frame["number"].to_list() == [1.0, 0.5, None]
    assert frame["mixed"].to_list() == ["1", "x", None]


def test_arrow_types_every_column():
    table = ANSWER.to_arrow()
    assert table.column_names == NAMES
    assert [str(kind) for kind in table.schema.types] == [
        "int64", "int64", "double", "string", "binary", "null", "string", "string", "bool",
    ]  # fmt: skip
    assert table.column("holes").to_pylist() == [1, None, 2**53 + 1]
    assert table.to_pandas().shape == (3, 9)


@pytest.mark.parametrize("to", ["to_pandas", "to_polars", "to_arrow"])
def test_an_empty_answer_keeps_its_columns(to):
    frame = getattr(Rows(("a", "b"), ()), to)()
    names = frame.column_names if isinstance(frame, pa.Table) else list(frame.columns)
    assert names == ["a", "b"]
    assert len(frame) == 0


def test_a_second_column_of_a_name_never_takes_the_name_of_a_third():
    assert frames.unique_names(["a", "a_2", "a", "a"]) == ["a", "a_2", "a_3", "a_4"]


@pytest.mark.parametrize(
    "values",
    [(1, 0.5), (1, b"a"), ("x", b"a"), (1, "x", 0.5, b"a", None), (True, "x"), (2**63 - 1, 0.5)],
)
def test_no_mixture_of_values_is_too_much_for_a_library(values):
    rows = Rows(("a",), tuple((value,) for value in values))
    for frame in (rows.to_pandas(), rows.to_polars(), rows.to_arrow()):
        assert len(frame) == len(values)
    as_text = [None if value is None else str(value) for value in values]
    if not {type(value) for value in values} <= {int, float}:
        assert rows.to_polars()["a"].to_list() == as_text
        assert rows.to_arrow()["a"].to_pylist() == as_text


@pytest.mark.parametrize(
    ("to", "library"), [("to_pandas", "pandas"), ("to_polars", "polars"), ("to_arrow", "pyarrow")]
)
def test_a_library_that_is_not_there_is_one_sentence(monkeypatch, to, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LibraryMissing) as caught:
        getattr(ANSWER, to)()
    assert str(caught.value) == (
        f"{to}() needs {library}, not installed here: `pip install '{library}'`."
    )


def test_nobody_who_asks_for_rows_pays_for_a_library():
    code = (
        "import sys; from ckptdb import Rows; Rows(('a',), ((1,),)).as_dicts();"
        "print({'pandas', 'polars', 'pyarrow', 'ckptdb.core.frames'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout == "set()\n"


def test_an_answer_of_the_catalog_goes_the_whole_way(tmp_path):
    from ckptdb import CheckpointManager, Registry

    with CheckpointManager(
        {"checkpoint_dir": tmp_path / "run", "metric_name": "loss", "higher_is_better": False}
    ) as manager:
        for step, loss in ((1, 0.5), (2, math.nan)):
            with manager.save(step, {"loss": loss}):
                pass
    with Registry.open(tmp_path / "run") as registry:
        rows = registry.query("SELECT step, value, deleted_at FROM checkpoint_history ORDER BY 1")
    expected = pd.DataFrame({"step": [1, 2], "value": [0.5, math.nan]})
    pd.testing.assert_frame_equal(rows.to_pandas()[["step", "value"]], expected)
    assert rows.to_polars()["value"].to_list() == [0.5, None]
    assert rows.to_arrow().column("deleted_at").null_count == 2
