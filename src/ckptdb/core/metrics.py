"""Metrics: late values, and the numbers of a training_info."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ckptdb.core.text import is_storable

TRAINING_INFO = "training_info"
"""The source of every metric that was saved with the checkpoint."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A value reported after the checkpoint was saved.

    Attributes:
        value: Finite, or None when what was reported is not.
        source: Who measured it, e.g. ``"lm-eval"``.
    """

    JSON_KEYS: ClassVar = {"value": "value", "source": "source", "reported_at": "reported_at"}

    name: str
    value: float | None
    source: str
    reported_at: str


def metrics_of(info: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a training_info by name: finite values, None for NaN and infinity.

    A bool, a string or null is not a metric, and neither is anything nested. Integers too
    large for a float count as not finite.
    """
    found: dict[str, float | None] = {}
    for name, value in info.items():
        if type(value) is float and name.isascii() and "\0" not in name and math.isfinite(value):
            found[name] = value  # nearly all of them
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_storable(name):
            continue
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        found[name] = number if math.isfinite(number) else None
    return found
