"""Plain values: a training loop's values converted for JSON and YAML.

One rule for all of them. What has no value (masked, NA, NaT, None in an array) is null and never a
number. A number of any library is a number. What is neither a number nor text, list or mapping is
a fault, which is named; a save is refused for it before a file is opened.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Real
from typing import Any

MAX_CONFIG_NODES = 100_000
MAX_DEPTH = 100
MAX_INT_BITS = 14_000
"""Python turns larger ones into text only on request, which JSON then does not make."""

_Fault = str
_SIMPLE = (str, bytes, bytearray)


def plain(value: Any, where: str, faults: list[_Fault], depth: int) -> Any:
    """Return a value as JSON can hold it.

    Args:
        value: Anything.
        where: Its name in a sentence.
        faults: Gets the name of everything that cannot be held.
        depth: Number of containers around it.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth > MAX_DEPTH:
        faults.append(f"{where} is nested deeper than {MAX_DEPTH} levels")
        return None
    if isinstance(value, Mapping):
        faults += [f"{where} has the key {k!r}" for k in value if not is_key(k)]
        return {k: plain(v, f"{where}[{k!r}]", faults, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]", faults, depth + 1) for i, v in enumerate(value)]
    return scalar(value, where, faults)


def is_key(key: object) -> bool:
    """Tell whether JSON makes a key of it."""
    return key is None or isinstance(key, str | bool | int | float)


def scalar(value: Any, where: str, faults: list[_Fault]) -> Any:
    """Return what no container is: a number of any library, or null for what has no value."""
    found = _unwrapped(value)
    if isinstance(found, Exception):
        faults.append(f"{where} ({type(value).__name__}: {first_line(found)})")
        return None
    if found is None or isinstance(found, str | bool | int | float):
        return found
    faults.append(f"{where} ({type(value).__name__})")
    return None


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unwrapped(value: Any) -> Any:
    """Return the number in a scalar or an array of one element, or what it is instead."""
    if _is_missing(value):
        return None
    # Zero-dimensional and one-element arrays of numpy, torch and jax all have .item().
    item = getattr(value, "item", None)
    if callable(item):
        try:
            found = item()
        except (TypeError, ValueError, RuntimeError) as error:
            return error
        if _is_missing(found):
            return None
        if _is_time(value) or _is_time(found):
            return value  # numpy counts nanoseconds: an integer, and no number of anything
        value = found
    return _number(value)


def _number(value: Any) -> Any:
    """Return numbers that are neither int nor float as float, and anything else as it is."""
    if isinstance(value, str | bool | int | float) or not isinstance(value, Decimal | Real):
        return value
    if isinstance(value, Decimal) and value.is_nan():
        return math.nan  # a signalling one raises
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > Fraction(0) else -math.inf


def _is_missing(value: object) -> bool:
    """Tell whether it stands for a value that there is not."""
    if value is None:
        return True
    # Whoever has such a value has imported the library.
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(value, masked.MaskedArray):
        return value.size == 1 and bool(masked.getmaskarray(value).all())
    pandas = sys.modules.get("pandas")
    return pandas is not None and any(
        value is getattr(pandas, name, pandas) for name in ("NA", "NaT")
    )


def _is_time(value: object) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")


# --- configurations ---------------------------------------------------------------------


def plain_config(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[_Fault]]:
    """Return a configuration as YAML can hold it and we can read it, and what cannot be held.

    Tuples become lists, paths text, keys that YAML could not give back text; what one object
    stands for in two places stays one.
    """
    config = _Config()
    return config.mapping(content, 0), config.faults


class _Config:
    def __init__(self) -> None:
        self._where = ""
        self.faults: list[_Fault] = []
        # By id, with the object itself: while it is kept alive, no other object has its id.
        self._done: dict[int, tuple[Any, Any]] = {}

    def plain(self, value: Any, depth: int) -> Any:
        """Return a value without what a library, or an enum, adds to it."""
        if isinstance(value, Mapping | AbstractSet | Sequence) and not isinstance(value, _SIMPLE):
            return self._container(value, depth)
        if isinstance(value, os.PathLike):
            value = os.fsdecode(value)
        elif isinstance(value, bytearray):
            value = bytes(value)
        elif isinstance(value, date) and not _is_missing(value):
            # YAML would give back another zone's time, or none of nanoseconds.
            simple = type(value) is date or (type(value) is datetime and value.tzinfo is None)
            return value if simple else str(value)
        elif not isinstance(value, Enum | str | bytes):
            value = _unwrapped(value)
        return self._base(value)

    def key(self, key: Any) -> Any:
        """Return a key that YAML gives back as it is, by its text where there is no other."""
        if key is None or isinstance(key, str | bool | int | float):
            return self.plain(key, 0)
        return key if type(key) is date else self.plain(str(key), 0)

    def _container(self, value: Any, depth: int) -> Any:
        if id(value) in self._done:
            return self._done[id(value)][1]
        if depth > MAX_DEPTH:
            return self._fault(value, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            found: Any = self.mapping(value, depth)
        elif isinstance(value, AbstractSet):
            found = [self.plain(v, depth + 1) for v in value]
            found = set(found) if all(map(_is_hashable, found)) else sorted(found, key=repr)
        else:
            found = [self.plain(v, depth + 1) for v in value]
        self._done[id(value)] = (value, found)
        return found

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        found, texts = {}, set[str]()
        for key, inner in value.items():
            if depth == 0:
                self._where = f"{key!r} ({type(inner).__name__})"
            name = self.key(key)
            if str(name) in texts:
                self._fault(key, f"is the same text as another key: {key!r}")
            texts.add(str(name))
            found[name] = self.plain(inner, depth + 1)
        return found

    def _base(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, int) and value.bit_length() <= MAX_INT_BITS:
            return int(value)
        if isinstance(value, bytes):
            return bytes(value)
        return self._text(value) if isinstance(value, str) else self._fault(value)

    def _text(self, value: str) -> Any:
        try:
            str.encode(value)
        except UnicodeEncodeError:
            return self._fault(value, "is no text in Unicode")
        return str.__str__(value)

    def _fault(self, value: object, why: str = "") -> None:
        name = type(value).__name__
        inside = "" if self._where.endswith(f"({name})") else f", in it a {name}"
        fault = f"{self._where}{inside}{why and f', which {why}'}"
        if fault not in self.faults:
            self.faults.append(fault)


def _is_hashable(value: object) -> bool:
    return not isinstance(value, list | dict | set)


def texts(values: Iterable[Any]) -> list[Any]:
    """Return the members of a set in an order that is the same in every process."""
    return sorted(values, key=lambda value: (type(value).__name__, str(value)))
