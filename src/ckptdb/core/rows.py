"""Answers of ad hoc queries: rows as tuples, mappings or data frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to an ad hoc query: column names and the rows as tuples."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool = False
    """True when the row limit cut the answer."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return each row as a mapping from column to value; the second ``x`` is ``x_2``."""
        names: Sequence[str] = self.columns
        if len(set(names)) < len(names):
            from ckptdb.core import frames

            names = frames.unique_names(names)
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: whole numbers stay whole, NULLs or not.

        Raises:
            LibraryMissing: pandas is not installed; likewise for the other two.
        """
        from ckptdb.core import frames

        return frames.to_pandas(self.columns, self.rows)

    def to_polars(self) -> Any:
        """Return a polars DataFrame; values of several kinds in a column become text."""
        from ckptdb.core import frames

        return frames.to_polars(self.columns, self.rows)

    def to_arrow(self) -> Any:
        """Return a pyarrow Table; values of several kinds in a column become text."""
        from ckptdb.core import frames

        return frames.to_arrow(self.columns, self.rows)
