"""Records as JSON: the names of fields are keys, paths become text, tuples become lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Final

NOT_IN_JSON: Final = {"json": False}
"""Metadata of a field that is left out of the record's JSON."""


JsonKeys = Mapping[str, "str | JsonKeys"]
"""The attribute of each key, dotted where it belongs to a part, or the keys of an inner mapping."""


class JsonRecord:
    """A dataclass that is printed as JSON.

    Its keys are its fields, unless the class declares others in ``JSON_KEYS``, in the order of the
    document. Parts of a record declare theirs likewise, and need not be of this class.
    """

    __slots__ = ()
    JSON_KEYS: ClassVar[JsonKeys | None] = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a mapping that `json.dumps` accepts."""
        return _read(self)


def to_json(value: object) -> Any:
    """Return a value of a record as `json.dumps` accepts it; inside mappings it is plain JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    if is_dataclass(value):
        return _read(value)
    if isinstance(value, Mapping):
        return {key: _read(v) if is_dataclass(v) else v for key, v in value.items()}
    return value


def _read(record: Any) -> dict[str, Any]:
    return {key: to_json(read(record)) for key, read in _readers(type(record))}  # type: ignore[arg-type]  # a type is hashable


@cache
def _readers(record: type[Any]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    keys: JsonKeys | None = getattr(record, "JSON_KEYS", None)
    if keys is None:
        own = (field.name for field in fields(record) if field.metadata != NOT_IN_JSON)
        keys = {name: name for name in own}
    return _make_readers(keys)


def _make_readers(keys: JsonKeys) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    return tuple((key, _make_reader(attribute)) for key, attribute in keys.items())


def _make_reader(attribute: str | JsonKeys) -> Callable[[Any], Any]:
    if isinstance(attribute, str):
        return attrgetter(attribute)
    inner = _make_readers(attribute)
    return lambda record: {key: to_json(read(record)) for key, read in inner}
