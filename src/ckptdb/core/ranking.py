"""The one ranking: its key, and the metric with its direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["min", "max"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class RankedBy:
    """The metric that ranks the checkpoints of a run, and its direction; None: newest first."""

    metric: str | None = None
    mode: Mode | None = None

    def __str__(self) -> str:
        if self.metric is None:
            return "no metric (the newest are the best)"
        return f"{self.metric!r} ({'higher' if self.mode == 'max' else 'lower'} is better)"


def rank_key(
    value: float | None,
    step: int,
    mode: Mode,
    *,
    tie: float | None = None,
    tie_mode: Mode = "min",
) -> tuple[bool, float, bool, float, int]:
    """Return the sort key of the one ranking: the best checkpoint has the smallest key.

    Only finite values rank; checkpoints without one come last, newest first. Among equal values
    the better tie value is first, then the higher step.
    """
    return (*_value_key(value, mode), *_value_key(tie, tie_mode), -step)


def _value_key(value: float | None, mode: Mode) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return (True, 0.0)
    return (False, value if mode == "min" else -value)
