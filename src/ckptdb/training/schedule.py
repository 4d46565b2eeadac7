"""When to save. Pure: no clock, no signal, no disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

SaveReason = Literal["signal", "deadline", "period"]
"""Why a step is saved; the first two come before the third, since they ask for the last save."""

SAFETY: Final = 1.5
"""How much longer than the slowest of the recent ones the last save may take."""
SLACK_SECONDS: Final = 1.0
"""Further margin before a deadline, for delays that no earlier save or step has had."""
FIRST_SHARE: Final = 1 / 50
"""The part of the time before a deadline that stands for a save as long as none is known…"""
FIRST_AT_MOST_SECONDS: Final = 300.0
"""… and the most of it."""

SLURM_END: Final = "SLURM_JOB_END_TIME"
_UNITS: Final = (86_400, 3_600, 60, 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loop has to be done by.

    Attributes:
        must_save_by_seconds: From the beginning on; None for no such limit.
        ends_at: Seconds since the epoch; None for no such limit.
    """

    must_save_by_seconds: float | None = None
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which the last checkpoint must be published.

    Attributes:
        remaining_seconds: From now on; negative when it has passed.
        whole_seconds: From the beginning on.
    """

    remaining_seconds: float
    whole_seconds: float


@dataclass(frozen=True, slots=True)
class RecentDurations:
    """How long things have taken lately, the slowest of each.

    Attributes:
        step_seconds: A step without its save; 0 when none has been measured.
        save_seconds: A save until it is published; None when none is known.
    """

    step_seconds: float = 0.0
    save_seconds: float | None = None


def parse_duration(text: str) -> int:
    """Return the seconds of ``DD:HH:MM:SS``; each of the four may be any whole number from 0.

    Raises:
        ValueError: It is none.
    """
    parts = [int(part) for part in text.split(":")]
    if len(parts) != len(_UNITS) or min(parts) < 0:
        raise ValueError(text)
    return sum(unit * part for unit, part in zip(_UNITS, parts, strict=True))


def find_slurm_end(environment: Mapping[str, str], *, now: float) -> float | None:
    """Return when the SLURM job ends that this process is part of, in seconds since the epoch.

    None without such a job. One that is over says nothing about a process that still runs: what
    was started in it, such as a terminal that is kept, hands its environment on.
    """
    text = environment.get(SLURM_END, "")
    if not (text.isascii() and text.isdigit()):
        return None
    end = float(text)
    return end if end > now else None


def is_periodic(step: int, *periods: int | None) -> bool:
    """Tell whether a step is divisible by one of the periods; None is no period."""
    return any(step % period == 0 for period in periods if period)


def is_near(deadline: Deadline, pace: RecentDurations, *, saving: bool) -> bool:
    """Tell whether a save at a later step might not be published in time.

    The next chance comes a step later.

    Args:
        deadline: Where it stands.
        pace: How long a step and a save take.
        saving: This step is saved in any case, which comes before that next step.
    """
    save = pace.save_seconds
    if save is None:
        save = min(deadline.whole_seconds * FIRST_SHARE, FIRST_AT_MOST_SECONDS)
    needed = pace.step_seconds + SAFETY * save + SLACK_SECONDS
    return deadline.remaining_seconds <= needed + (save if saving else 0.0)
