"""Rows as the tables of other libraries, each imported when it is asked for.

Databases type values, not columns: a column is of whole numbers, of numbers, of texts or of bytes
when all its values are, NULLs aside. Anything else becomes text, where a library has no column of
mixed values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from ckptdb.errors import LibraryMissing

ColumnKind = Literal["nothing", "whole", "number", "text", "bytes", "truth", "mixed"]


@dataclass(frozen=True, slots=True)
class FrameColumn:
    """One column of an answer, its name unlike all others of it."""

    name: str
    kind: ColumnKind
    cells: list[Any]

    @property
    def has_nulls(self) -> bool:
        """Whether a value is missing."""
        return None in self.cells

    def as_text(self) -> list[str | None]:
        """Return every value as text."""
        return [None if value is None else str(value) for value in self.cells]


def unique_names(names: Iterable[str]) -> list[str]:
    """Return the names of columns, the second of a name as ``name_2``."""
    unique: dict[str, None] = {}
    for name in names:
        new, count = name, 1
        while new in unique:
            count += 1
            new = f"{name}_{count}"
        unique[new] = None
    return list(unique)


def columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[FrameColumn]:
    """Yield the columns of an answer; the second of a name is called ``name_2``."""
    for index, name in enumerate(unique_names(names)):
        values = [row[index] for row in rows]
        kind = _kind(values)
        yield FrameColumn(name, kind, [_float(v) for v in values] if kind == "number" else values)


def to_pandas(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a DataFrame; whole numbers with NULLs among them are ``Int64``."""
    pandas = _library("pandas", "to_pandas()")

    def series(column: FrameColumn) -> Any:
        dtypes = {"number": "float64", "mixed": object, "bytes": object, "nothing": object}
        whole = "Int64" if column.has_nulls else "int64"
        dtype = whole if column.kind == "whole" else dtypes.get(column.kind)
        return pandas.Series(column.cells, dtype=dtype)

    return pandas.DataFrame({column.name: series(column) for column in columns(names, rows)})


def to_polars(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a DataFrame."""
    polars = _library("polars", "to_polars()")
    dtypes = {
        "nothing": polars.Null, "whole": polars.Int64, "number": polars.Float64,
        "text": polars.String, "bytes": polars.Binary, "truth": polars.Boolean,
        "mixed": polars.String,
    }  # fmt: skip
    return polars.DataFrame(
        [
            polars.Series(column.name, _plain(column), dtype=dtypes[column.kind])
            for column in columns(names, rows)
        ]
    )


def to_arrow(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a Table."""
    arrow = _library("pyarrow", "to_arrow()")
    types = {
        "nothing": arrow.null(), "whole": arrow.int64(), "number": arrow.float64(),
        "text": arrow.string(), "bytes": arrow.binary(), "truth": arrow.bool_(),
        "mixed": arrow.string(),
    }  # fmt: skip
    found = list(columns(names, rows))
    arrays = [arrow.array(_plain(column), type=types[column.kind]) for column in found]
    return arrow.table(arrays, names=[column.name for column in found])


def _plain(column: FrameColumn) -> Sequence[Any]:
    return column.as_text() if column.kind == "mixed" else column.cells


def _kind(values: Sequence[Any]) -> ColumnKind:
    kinds = {_KINDS.get(type(value), "mixed") for value in values if value is not None}
    if not kinds:
        return "nothing"
    if kinds == {"whole", "number"}:
        return "number"
    return kinds.pop() if len(kinds) == 1 else "mixed"


_KINDS: dict[type, ColumnKind] = {
    bool: "truth",
    bytes: "bytes",
    float: "number",
    int: "whole",
    str: "text",
}


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise LibraryMissing(what, name, name) from error
