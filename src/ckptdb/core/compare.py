"""Differences between two checkpoints: configuration, metrics, files. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Literal

from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.records import Checkpoint

ChangeKind = Literal["changed", "added", "removed"]
_KINDS: Final[tuple[ChangeKind, ...]] = ("changed", "added", "removed")


class _Absent(Enum):
    ABSENT = "absent"


_ABSENT: Final = _Absent.ABSENT


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A configuration key (dotted path) whose value differs; None on a side without the key."""

    key: str
    kind: ChangeKind
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric that differs; None on a side where it is missing (see the kind) or not finite."""

    JSON_KEYS: ClassVar = {
        "name": "name", "kind": "kind", "a": "a", "b": "b", "relative": "relative",
    }  # fmt: skip

    name: str
    kind: ChangeKind
    a: float | None
    b: float | None

    @property
    def relative(self) -> float | None:
        """Relative change, infinite from zero; None when a side is None."""
        if self.a is None or self.b is None:
            return None
        return (self.b - self.a) / abs(self.a) if self.a else math.copysign(math.inf, self.b)


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file whose size in bytes differs; None on a side without the file."""

    path: str
    kind: ChangeKind
    a: int | None
    b: int | None

    @property
    def grown_bytes(self) -> int:
        """Growth from the first to the second checkpoint."""
        return (self.b or 0) - (self.a or 0)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two compared checkpoints.

    Attributes:
        config: Stored configuration as JSON values; None when it is not known.
        files: Sizes in bytes by path below the checkpoint; None when the checkpoint is deleted.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any] | None
    files: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Difference(JsonRecord):
    """All differences between two checkpoints, the most important first.

    Attributes:
        metrics: By relative change; metrics of one side only come last.
        config: None when one configuration is not known.
        files: Compared by size only. None when one checkpoint is deleted.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "a": {"run": "a.run", "step": "a.step", "status": "a.status", "path": "a.path"},
        "b": {"run": "b.run", "step": "b.step", "status": "b.status", "path": "b.path"},
        "metrics": "metrics",
        "config": "config",
        "files": "files",
        "size_bytes": {"a": "a.size_bytes", "b": "b.size_bytes"},
    }

    a: Checkpoint
    b: Checkpoint
    metrics: tuple[MetricChange, ...]
    config: tuple[ConfigChange, ...] | None
    files: tuple[FileChange, ...] | None


def compare(a: Side, b: Side) -> Difference:
    """Return the differences between two checkpoints."""
    known = a.config is not None and b.config is not None
    there = a.files is not None and b.files is not None
    return Difference(
        a.checkpoint,
        b.checkpoint,
        metric_changes(a.checkpoint.metrics, b.checkpoint.metrics),
        config_changes(a.config or {}, b.config or {}) if known else None,
        file_changes(a.files or {}, b.files or {}) if there else None,
    )


def metric_changes(
    a: Mapping[str, float | None], b: Mapping[str, float | None]
) -> tuple[MetricChange, ...]:
    """Return the metrics that differ, by relative change."""
    changes = (
        MetricChange(name, _kind(name in a, name in b), a.get(name), b.get(name))
        for name in {*a, *b}
    )

    def rank(change: MetricChange) -> tuple[bool, float, str]:
        relative = change.relative
        return (relative is None, -abs(relative or 0.0), change.name)

    differing = (one for one in changes if one.kind != "changed" or one.a != one.b)
    return tuple(sorted(differing, key=rank))


def config_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[ConfigChange, ...]:
    """Return the keys whose values differ: changed ones, then added, then removed ones."""
    changes = _config_changes(a, b, "")
    return tuple(sorted(changes, key=lambda change: (_KINDS.index(change.kind), change.key)))


def file_changes(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[FileChange, ...]:
    """Return the files that differ in size or exist on one side only, by the number of bytes."""
    changes = (
        FileChange(path, _kind(path in a, path in b), a.get(path), b.get(path))
        for path in {*a, *b}
        if a.get(path) != b.get(path)
    )
    return tuple(sorted(changes, key=lambda change: (-abs(change.grown_bytes), change.path)))


def _config_changes(
    a: Mapping[str, Any], b: Mapping[str, Any], above: str
) -> Iterator[ConfigChange]:
    for key in {*a, *b}:
        # A dot inside a key does not separate levels.
        path = above + (key if "." not in key else json.dumps(key, ensure_ascii=False))
        before, after = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _config_changes(before, after, f"{path}.")
        elif not _is_same(before, after):
            kind = _kind(before is not _ABSENT, after is not _ABSENT)
            yield ConfigChange(path, kind, _value(before), _value(after))


def _is_same(one: object, other: object) -> bool:
    """Tell whether two values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return one == other


def _kind(before: bool, after: bool) -> ChangeKind:  # noqa: FBT001  # a table of three
    return "changed" if before and after else "added" if after else "removed"


def _value(value: Any) -> Any:
    return None if value is _ABSENT else value
