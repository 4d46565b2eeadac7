"""Facts of a journal and the records they stand for: ends of checkpoints, annotations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ckptdb.core.facts import GONE, Fact
from ckptdb.core.metrics import Metric
from ckptdb.core.records import (
    PROBLEM_KINDS,
    Annotations,
    Checkpoint,
    DeletedKind,
    ProblemKind,
    Resumption,
    Run,
)
from ckptdb.core.text import is_storable
from ckptdb.disk import names

# What of a checkpoint outlives its directory. Annotations have lines of their own.
_RECORD = (
    "step", "created_at", "finalized_at", "size_bytes", "file_count", "parent", "problem",
    "info", "metrics",
)  # fmt: skip
_PROBLEM_KIND = "problem_kind"
"""Key of the record, too; older journals do not have it."""


def gone(end: Checkpoint) -> Fact:
    """Return the line that records the end of a checkpoint."""
    record = {name: getattr(end, name) for name in (*_RECORD, _PROBLEM_KIND)}
    record["metrics"] = {k: v for k, v in end.metrics.items() if k not in end.late}
    kind = end.deleted_kind or "unknown"
    details: dict[str, Any] = {"reason": end.deleted_reason or "", "record": record}
    if kind not in GONE:
        details["kind"] = kind  # the line itself says only "deleted"
    return Fact(end.deleted_at or "", kind if kind in GONE else "deleted", end.uuid, details)


def find_why(fact: Fact) -> str:
    """Return the reason of a ``contradicted`` line."""
    why = fact.details.get("why")
    return (
        why if isinstance(why, str) and why.isprintable() else "a catalog contradicts its journal"
    )


def parse_end(run: Run, fact: Fact) -> Checkpoint | None:
    """Return the deleted checkpoint that a line records, None when the record is not sound."""
    record, reason = fact.details.get("record"), fact.details.get("reason")
    if not isinstance(record, dict) or not is_text(reason) or not _is_sound(record):
        return None
    return Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=fact.uuid,
        path=run.directory / names.final_name(record["step"]),
        status="deleted",
        deleted_at=fact.at,
        deleted_reason=reason,
        deleted_kind=_find_deleted_kind(fact, cast("str", reason)),
        problem_kind=_find_problem_kind(record),
        **{name: record[name] for name in _RECORD},
    )


def _find_deleted_kind(fact: Fact, reason: str) -> DeletedKind:
    """Return the kind of a deletion; for a line without a kind, by its reason."""
    if fact.kind != "deleted":
        return cast("DeletedKind", fact.kind)
    kind = fact.details.get("kind")
    if kind in ("retention", "manual", "unknown"):
        return cast("DeletedKind", kind)
    if reason == "by hand":
        return "manual"
    return "retention" if reason.startswith("retention:") else "unknown"


def _find_problem_kind(record: Mapping[str, Any]) -> ProblemKind | None:
    """Return the kind of a problem; for a record without a kind, by its text."""
    problem, kind = record["problem"], record.get(_PROBLEM_KIND)
    if problem is None or kind in PROBLEM_KINDS:
        return None if problem is None else cast("ProblemKind", kind)
    if not problem.startswith("damaged"):
        return "unreadable"
    return "corrupt" if "differs from its checksum" in problem else "damaged"


def _is_sound(record: Mapping[str, Any]) -> bool:
    """A line written by other hands must not make every later reconcile fail."""
    numbers = [record.get(name) for name in ("size_bytes", "file_count")]
    texts = [record.get(name) for name in ("finalized_at", "parent", "problem")]
    metrics = record.get("metrics")
    return (
        set(_RECORD) <= set(record)
        and _is_count(record["step"])
        and is_text(record["created_at"])
        and all(number is None or _is_count(number) for number in numbers)
        and all(text is None or isinstance(text, str) for text in texts)
        and isinstance(record["info"], dict)
        and isinstance(metrics, dict)
        and all(is_text(k) and (v is None or _finite(v) is not None) for k, v in metrics.items())
    )


def is_hold(fact: Fact) -> bool:
    """Tell whether a line sets or undoes a pin, a rejection or a resumption."""
    if fact.kind == "rejected":
        return is_text(fact.details.get("reason"))
    return fact.kind in ("pin", "unpin", "unrejected", "resumed")


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def as_count(number: Any) -> int:
    """Return a whole number that is not negative, 0 for anything else."""
    return int(number) if _is_count(number) else 0


def is_text(text: object) -> bool:
    """Tell whether a value is text that a database can store."""
    return isinstance(text, str) and is_storable(text)


class AnnotationLines:
    """Collects the annotation lines of one checkpoint; the last per key wins."""

    def __init__(self) -> None:
        self.pinned = False
        self.notes: str | None = None
        self.tags: dict[str, str] = {}
        self.late: dict[str, Metric] = {}
        self.rejected: str | None = None
        self.resumptions: set[Resumption] = set()
        self.keys: set[str] = set()

    def add(self, fact: Fact) -> None:
        """Apply one line."""
        if fact.kind in ("pin", "unpin"):
            self.keys.add("pin")
            self.pinned = fact.kind == "pin"
        elif fact.kind in ("rejected", "unrejected"):
            if is_hold(fact):
                self.keys.add("rejected")
                self.rejected = fact.details["reason"] if fact.kind == "rejected" else None
        elif fact.kind == "resumed":
            host, pid = fact.details.get("host"), fact.details.get("pid")
            if is_text(host) and _is_count(pid):
                self.resumptions.add(Resumption(fact.at, cast("str", host), cast("int", pid)))
        elif fact.kind == "note":
            text = fact.details.get("text")
            self.keys.add("note")
            self.notes = cast("str", text) if is_text(text) else None
        elif fact.kind in ("tag", "untag", "metric"):
            self._add_named(fact, fact.details.get("name"))

    def _add_named(self, fact: Fact, name: object) -> None:
        if not isinstance(name, str) or not is_storable(name):
            return
        if fact.kind != "metric":
            self.keys.add(f"tag {name}")
        if fact.kind == "tag":
            self.tags[name] = fact.at
        elif fact.kind == "untag":
            self.tags.pop(name, None)
        else:
            value, source = _finite(fact.details.get("value")), fact.details.get("source")
            if is_text(source):
                self.keys.add(f"metric {name}")
                self.late[name] = Metric(name, value, str(source), fact.at)

    def result(self) -> Annotations:
        """Return the annotations after the last line."""
        late = tuple(self.late[name] for name in sorted(self.late))
        return Annotations(
            self.pinned,
            self.notes,
            tuple(sorted(self.tags.items())),
            late,
            self.rejected,
            tuple(sorted(self.resumptions)),
        )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
