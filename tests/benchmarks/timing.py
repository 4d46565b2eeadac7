"""Medians of several ways to do one thing, taken in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

_SHORTEST_SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do a thing.

    Attributes:
        act: What is timed.
        before: What has to be there each time, and is not timed. Without it `act` may be
            repeated within one sample.
        after: Takes away what is not wanted any more; not timed either.
        actions: How many of the things one `act` does.
    """

    act: Callable[[], object]
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    actions: int = 1


def medians(
    ways: Mapping[str, Way], *, rounds: int, seconds: float, most: int = 200
) -> dict[str, float]:
    """Return the median time of each way, in seconds for one action.

    Every round takes each way once, so that whatever else the machine does befalls all of them.
    One round before them is not counted.

    Args:
        ways: By name.
        rounds: At least so many.
        seconds: Further rounds begin as long as less time has passed.
        most: At most so many.
    """
    repeats = {name: _repeats(way) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    # What is there by now is not looked at again by each collection to come.
    gc.freeze()
    started = time.perf_counter()
    done = 0
    while done < rounds or (done < most and time.perf_counter() - started < seconds):
        for name, way in ways.items():
            taken[name].append(_sample(way, repeats[name]))
        done += 1
    gc.unfreeze()
    return {name: statistics.median(found) for name, found in taken.items()}


def _repeats(way: Way) -> int:
    first = _sample(way, 1)
    if way.before or way.after or first > _SHORTEST_SAMPLE_SECONDS:
        return 1
    first = _sample(way, 1)
    return max(1, round(_SHORTEST_SAMPLE_SECONDS / max(first, 1e-7)))


def _sample(way: Way, repeats: int) -> float:
    if way.before:
        way.before()
    started = time.perf_counter()
    for _ in range(repeats):
        way.act()
    spent = time.perf_counter() - started
    if way.after:
        way.after()
    return spent / repeats / way.actions


def wait_until(settled: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait for work that goes on behind.

    Raises:
        TimeoutError: It does not end.
    """
    deadline = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if settled():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing has settled in {seconds:g} s")
        time.sleep(5e-4)
