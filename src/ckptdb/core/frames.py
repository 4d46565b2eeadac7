"""Rows as the data frames of other libraries, each imported on first use.

Databases type values, not columns. The libraries infer the type of a column whose values have one
type; a column of several types becomes numbers, or else text, where a library has no such columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

from ckptdb.errors import LibraryMissing


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


def to_pandas(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a DataFrame; whole numbers with NULLs among them are ``Int64``."""
    pandas = _library("pandas", "to_pandas()")

    def series(values: list[Any]) -> Any:
        # By itself, pandas makes floats of integers with missing values among them.
        has_nulls = {type(value) for value in values} == {int, type(None)}
        return pandas.Series(values, dtype="Int64" if has_nulls else None)

    return pandas.DataFrame({name: series(values) for name, values in _columns(names, rows)})


def to_polars(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a DataFrame."""
    polars = _library("polars", "to_polars()")
    columns = _columns(names, rows)
    return polars.DataFrame([polars.Series(name, _of_one_type(cells)) for name, cells in columns])


def to_arrow(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a Table."""
    arrow = _library("pyarrow", "to_arrow()")
    columns = _columns(names, rows)
    return arrow.table({name: arrow.array(_of_one_type(cells)) for name, cells in columns})


def _of_one_type(cells: list[Any]) -> list[Any]:
    types = {type(cell) for cell in cells if cell is not None}
    if len(types) < 2:  # noqa: PLR2004  # nothing to convert
        return cells
    convert = float if types == {int, float} else str
    return [None if cell is None else convert(cell) for cell in cells]


def _columns(
    names: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Iterator[tuple[str, list[Any]]]:
    for index, name in enumerate(unique_names(names)):
        yield name, [row[index] for row in rows]


def _library(name: str, method: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise LibraryMissing(method, name, name) from error
