"""The one ranking: its key, and the metric with its direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["min", "max"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class RankedBy:
    """What tells the best checkpoints of a run: a metric and its direction; None for the step."""

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
    """Sort key of the one ranking: smallest first is best first.

    Only finite values rank; without one a checkpoint comes last, newest first. Equal values
    go to the better tie, if there is one, and then to the higher step.
    """
    return (*_value_key(value, mode), *_value_key(tie, tie_mode), -step)


def _value_key(value: float | None, mode: Mode) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return (True, 0.0)
    return (False, value if mode == "min" else -value)
