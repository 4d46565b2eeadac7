"""What a harness found, as one row of the laboratory's table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

Size = Literal["smoke", "ci", "exhaustive"]
"""How much is tried: enough to see that the harness works, some minutes in all, or all."""

FAILURES_SHOWN = 20
NOT_TRIED = "not tried: "
"""How a line on stderr begins that says what this machine does not allow."""
_COLUMNS = (
    "harness", "workloads", "points", "struck", "lost", "half-visible", "not recovered", "per core",
)  # fmt: skip


PROMISED: dict[str, int] = {
    "crowd": 20_000, "kills": 10_000, "faults ": 5_000, "power cuts replayed": 20_000,
    "cuts ": 500, "fuzz ": 50_000,
}  # fmt: skip
"""How many points there are at least in the size for CI, by row, or by how several rows begin. In
the exhaustive one it is ten times as many, of the fuzzed inputs forty times."""


@dataclass(slots=True)
class Row:
    """One harness on one subject.

    Attributes:
        harness: Its name; a control's begins with ``control``.
        workloads: How many different sequences of operations were hurt.
        points: At how many places it should have struck.
        struck: At how many it did.
        lost: Times that something acknowledged was not there afterwards: a checkpoint, a pin, a
            late metric, the record of a deletion.
        half_visible: Times that a published name was not whole, or a reader met half of it.
        not_recovered: Times that what came after the fault failed: a traceback, a question
            answered wrongly, an index that still differs, a save that does not work.
        failures: The first of them, each with what is needed to see it again.
        notes: What is to be told besides, as the cells of a table of its own.
    """

    harness: str
    workloads: int = 0
    points: int = 0
    struck: int = 0
    lost: int = 0
    half_visible: int = 0
    not_recovered: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_control(self) -> bool:
        """It hurts the plain way of saving, and has to find its losses."""
        return self.harness.startswith("control")

    @property
    def holds(self) -> bool:
        """Every point was struck, and nothing came of it; of a control: something did."""
        harm = self.lost + self.half_visible + self.not_recovered
        return self.points > 0 and self.struck == self.points and bool(harm) == self.is_control

    def add(self, other: Row) -> None:
        """Take in what another shard of the same harness found."""
        for name in ("points", "struck", "lost", "half_visible", "not_recovered", "workloads"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds += other.seconds
        self.failures = (self.failures + other.failures)[:FAILURES_SHOWN]
        self.notes += other.notes

    def fail(self, kind: Literal["lost", "half_visible", "not_recovered"], what: str) -> None:
        """Count one failure."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.failures) < FAILURES_SHOWN:
            self.failures.append(f"{self.harness}: {kind.replace('_', ' ')}: {what}")

    def as_json(self) -> str:
        """Return one line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read what `as_json` wrote."""
        return cls(**json.loads(line))


def merged(rows: Iterable[Row]) -> list[Row]:
    """Add up the shards of each harness, in order of first appearance."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.harness in found:
            found[row.harness].add(row)
        else:
            found[row.harness] = row
    return list(found.values())


def too_few(rows: Sequence[Row], size: Size) -> list[str]:
    """Say which of the harnesses that were run have not come to what is promised of them."""
    if size == "smoke":
        return []
    missing = []
    for name, count in PROMISED.items():
        times = 1 if size == "ci" else 40 if name == "fuzz " else 10
        struck = [
            row.struck
            for row in rows
            if row.harness == name or (name.endswith(" ") and row.harness.startswith(name))
        ]
        if struck and sum(struck) < times * count:
            missing.append(f"{name.strip()} ({sum(struck):,} of {times * count:,} points)")
    return missing


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_line(_COLUMNS), _line(["---"] + ["---:"] * (len(_COLUMNS) - 1))]
    for row in rows:
        rate = row.points / row.seconds if row.seconds else 0.0
        counts = (row.workloads, row.points, row.struck, row.lost, row.half_visible)
        cells = [row.harness, *(f"{n:,}" for n in (*counts, row.not_recovered)), f"{rate:,.0f}/s"]
        lines.append(_line(cells))
    return "\n".join(lines)


def details(row: Row) -> str:
    """Return what a row tells besides, as a Markdown table; empty when there is nothing."""
    if not row.notes:
        return ""
    count = row.notes[0].count("|") + 1
    return "\n".join([_line([row.harness, *[""] * (count - 1)]), _line(["---"] * count),
                      *(f"| {note} |" for note in row.notes)])  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
