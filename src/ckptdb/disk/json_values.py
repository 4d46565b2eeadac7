"""Values as JSON for the catalog: non-finite numbers as text, with limits on depth and number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ckptdb.disk.json_file import MAX_BYTES
from ckptdb.disk.plain_values import (
    MAX_DEPTH,
    MAX_INT_BITS,
    texts,
)

_MAX_NODES = 1_000_000
_SCALARS = frozenset({str, bool, type(None)})


def for_catalog(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training_info with non-finite numbers as the strings NaN, Infinity, -Infinity.

    Bare NaN is no JSON: SQLite's JSON functions raise on it.
    """
    if len(info) < _MAX_NODES and _is_plain_json(info):
        return dict(info)
    try:
        return cast("dict[str, Any]", as_json_values(info, Budget(_MAX_NODES, MAX_BYTES), 0))
    except OverflowError:
        return {}  # absurdly large; the file keeps it


class Budget:
    """Number of values and letters that may still be converted."""

    def __init__(self, values: int, letters: int) -> None:
        self._values, self._letters = values, letters

    def spend(self, *, values: int = 0, letters: int = 0) -> None:
        """Count what was unfolded.

        Raises:
            OverflowError: It is too much.
        """
        self._values -= values
        self._letters -= letters
        if self._values < 0 or self._letters < 0:
            raise OverflowError


def as_json_values(value: Any, budget: Budget, depth: int, *, exact: bool = False) -> Any:
    """Return a value as JSON; ``exact`` refuses two keys with the same text."""
    budget.spend(values=1)
    if depth > MAX_DEPTH + 1:  # the values of the deepest mapping count too
        raise OverflowError
    if value is None or isinstance(value, bool | float):
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        return value
    if isinstance(value, int):
        return _as_int(value)
    if isinstance(value, Mapping):
        found = {}
        for key, inner in value.items():
            name = _as_text(key, budget)
            if exact and name in found:
                raise KeyError(name)
            found[name] = as_json_values(inner, budget, depth + 1, exact=exact)
        return found
    if isinstance(value, list | tuple | set):
        ordered = texts(value) if isinstance(value, set) else value
        return [as_json_values(v, budget, depth + 1, exact=exact) for v in ordered]
    return _as_text(value, budget)


def _as_text(value: Any, budget: Budget) -> str:
    text = value if isinstance(value, str) else str(_as_int(value))
    budget.spend(letters=len(text))
    return text


def _as_int(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise OverflowError
    return value


def _is_plain_json(info: Mapping[str, Any]) -> bool:
    """Tell whether a mapping is plain JSON without nesting, as nearly all are."""
    for key, value in info.items():
        kind = type(value)
        if kind is float:
            if not math.isfinite(value):
                return False
        elif kind is int:
            if value.bit_length() > MAX_INT_BITS:
                return False
        elif kind not in _SCALARS:
            return False
        if type(key) is not str:
            return False
    return True
