"""What was measured, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["met", "missed", "not measured", "no target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was done.
        target: As issued; empty where others are only compared.
        measured: The ratio, or the time.
        verdict: Whether the target is met.
        note: What the numbers stand for, or why there are none.
        medians: Seconds, by the name of each way; other units say so in the name.
    """

    what: str
    target: str
    measured: str
    verdict: Verdict
    note: str = ""
    medians: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """How the cost of one way grows.

    Attributes:
        panel: What is plotted together.
        points: Seconds by the number of checkpoints.
    """

    panel: str
    way: str
    points: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one module of lines brings home.

    Attributes:
        counts: What does not depend on the clock.
    """

    rows: Sequence[Row] = ()
    series: Sequence[Series] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


def at_most(
    what: str, limit: float, measured: float, *, note: str = "", medians: Mapping[str, float]
) -> Row:
    """Judge a ratio that should be small."""
    return Row(
        what=what,
        target=f"≤ {limit:g}×",
        measured=times(measured),
        verdict="met" if measured <= limit else "missed",
        note=note,
        medians=medians,
    )


def faster(
    what: str, limit: float, measured: float, *, note: str = "", medians: Mapping[str, float]
) -> Row:
    """Judge how much faster we are than another way."""
    return Row(
        what=what,
        target=f"≥ {limit:,.4g}×" if limit > 1 else "faster",
        measured=f"{times(measured)} faster" if measured >= 1 else f"{times(1 / measured)} slower",
        verdict="met" if measured >= max(limit, 1) else "missed",
        note=note,
        medians=medians,
    )


def within(
    what: str,
    limit_seconds: float,
    measured_seconds: float,
    *,
    note: str = "",
    medians: Mapping[str, float],
) -> Row:
    """Judge a time."""
    return Row(
        what=what,
        target=f"≤ {duration(limit_seconds)}",
        measured=duration(measured_seconds),
        verdict="met" if measured_seconds <= limit_seconds else "missed",
        note=note,
        medians=medians,
    )


def compared(what: str, measured: float, *, note: str = "", medians: Mapping[str, float]) -> Row:
    """Show another way that no target speaks of; ``measured`` is its time by ours."""
    return Row(
        what=what,
        target="",
        measured=f"{times(measured)} ours",
        verdict="no target",
        note=note,
        medians=medians,
    )


def unmeasured(what: str, target: str, why: str) -> Row:
    """Show a line that could not be measured here."""
    return Row(what=what, target=target, measured="", verdict="not measured", note=why)


def times(ratio: float) -> str:
    """Write a ratio for people: 0.31×, 1.27×, 24×, 1,300×."""
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2f}×"


def duration(seconds: float) -> str:
    """Write a time for people, in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
