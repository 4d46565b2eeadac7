"""Tables of checkpoints: lists, lines of descent, and all facts about one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptdb.cli.formats import print_records, print_rows, print_table
from ckptdb.cli.printing import get_width
from ckptdb.core.records import Ancestor, Checkpoint
from ckptdb.core.text import number
from ckptdb.core.units import human_bytes

_NARROW = 100
_FIELDS = (
    "run", "step", "status", "path", "size_bytes", "file_count", "created_at", "finalized_at",
    "deleted_at", "deleted_reason", "deleted_kind", "pinned", "tags", "notes", "problem",
    "problem_kind", "rejected",
)  # fmt: skip


def print_checkpoints(
    found: Sequence[Checkpoint],
    form: str,
    *,
    metrics: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Print checkpoints: whole records as JSON, the most used columns as a table.

    Args:
        found: In this order.
        form: One of `FORMATS`.
        metrics: Columns of a table; every other form has all metrics.
        names: Labels of runs in a table, by uuid, where they differ from the name.
    """
    if form in ("json", "jsonl"):
        print_records([checkpoint.as_dict() for checkpoint in found], form)
        return
    if form == "table":
        _print_checkpoint_table(found, metrics, names or {})
        return
    every = sorted({name for checkpoint in found for name in checkpoint.metrics})
    # A loop may record the step among its metrics; two columns need two names.
    named = (f"metric {name}" if name in _FIELDS else name for name in every)
    columns = (*_FIELDS, *named)
    rows = (
        [
            *(_flat(getattr(checkpoint, name)) for name in _FIELDS),
            *(checkpoint.metrics.get(name) for name in every),
        ]
        for checkpoint in found
    )
    print_rows(columns, rows, form)


def print_lineage(found: Sequence[Ancestor], form: str) -> None:
    """Print a checkpoint and its ancestors, one per row."""
    if form == "json":
        print_records([one.as_dict() for one in found], form)
        return
    rows = (
        [
            str(one.step),
            one.status,
            short_time(one.finalized_at or one.created_at),
            short_time(one.resumed_at),
            one.deleted_reason or "",
        ]
        for one in found
    )
    print_table(["step", "status", "saved", "resumed from", "why it is gone"], rows)


def describe(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return all facts about a checkpoint as pairs of a label and a text."""
    lines = [
        ("run", checkpoint.run),
        ("step", str(checkpoint.step)),
        ("status", checkpoint.status),
        ("path", str(checkpoint.path)),
        ("uuid", checkpoint.uuid),
        ("size", f"{human_bytes(checkpoint.size_bytes)} in {checkpoint.file_count} files"),
        ("created", checkpoint.created_at),
        ("finalized", checkpoint.finalized_at or ""),
        ("deleted", checkpoint.deleted_at or ""),
        ("reason", checkpoint.deleted_reason or ""),
        ("parent", checkpoint.parent or ""),
        ("pinned", "yes" if checkpoint.pinned else ""),
        ("tags", ", ".join(checkpoint.tags)),
        ("notes", checkpoint.notes or ""),
        ("problem", checkpoint.problem or ""),
        ("rejected", checkpoint.rejected or ""),
    ]
    if checkpoint.size_bytes is None:
        lines = [line for line in lines if line[0] != "size"]
    for name, value in checkpoint.metrics.items():
        late = checkpoint.late.get(name)
        origin = f"  ({late.source}, {late.reported_at})" if late else ""
        text = "not finite" if value is None else number(value)
        lines.append((f"metric {name}", f"{text}{origin}"))
    return [(name, text) for name, text in lines if text]


def _print_checkpoint_table(
    found: Sequence[Checkpoint], metrics: Sequence[str], names: Mapping[str, str]
) -> None:
    several = len({checkpoint.run_uuid for checkpoint in found}) > 1
    columns = [
        *(["run"] if several else []), "step", "status", *metrics,
        "size", "finalized", "marks", "path",
    ]  # fmt: skip
    rows = [
        [
            *([names.get(checkpoint.run_uuid, checkpoint.run)] if several else []),
            str(checkpoint.step),
            checkpoint.status,
            *(number(checkpoint.metrics.get(name)) for name in metrics),
            human_bytes(checkpoint.size_bytes),
            short_time(checkpoint.finalized_at or checkpoint.created_at),
            _marks(checkpoint),
            checkpoint.deleted_reason or _relative_path(checkpoint.path),
        ]
        for checkpoint in found
    ]
    print_table(columns, rows)


def _relative_path(path: Path) -> str:
    """Return a path that can be copied: relative to here on a narrow terminal."""
    here = Path.cwd()
    return str(path.relative_to(here)) if is_narrow() and path.is_relative_to(here) else str(path)


def is_narrow() -> bool:
    """Tell whether output goes to a narrow terminal."""
    return get_width() < _NARROW


def short_time(at: str | None) -> str:
    """Return a time for a table: to the second, on a narrow terminal to the minute."""
    return (at or "")[: 16 if is_narrow() else 19].replace("T", " ")


def _marks(checkpoint: Checkpoint) -> str:
    marks = [*(["pinned"] if checkpoint.pinned else []), *checkpoint.tags]
    if checkpoint.problem:
        # Only the kind of problem; `ckptdb show` prints the whole sentence.
        marks.append("PROBLEM " + re.split(r": | \(", checkpoint.problem, maxsplit=1)[0])
    if checkpoint.rejected is not None:
        marks.append("REJECTED")
    return ", ".join(marks)


def _flat(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, int | float | str) else str(value)
