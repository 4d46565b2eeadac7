"""Reading many files: one after the other, or in parallel where each one takes long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ckptdb.core.threads import tasks_at

_T = TypeVar("_T")
_R = TypeVar("_R")

SLOW_SECONDS = 0.001
"""Median time of an item in `_TRIALS` from which threads are worth their own cost.

A local disk takes a tenth of that; a network file system takes as much for a single call.
"""
THREADS = 32
_TRIALS = 5
_PORTION = 500
_SHARE = 8
"""Number of items that a thread takes at a time: small, because results are awaited in order."""


class ParallelReader:
    """Reads many files of a file system; the first few show whether threads pay."""

    def __init__(self) -> None:
        self._took_seconds: list[float] = []

    @property
    def is_slow(self) -> bool:
        """Tell whether the first items took long."""
        took = self._took_seconds
        return len(took) == _TRIALS and statistics.median(took) > SLOW_SECONDS

    def through(self, items: Sequence[_T], work: Callable[[Sequence[_T]], _R]) -> Iterator[_R]:
        """Yield what the work makes of each part of the items, in order.

        No more than a few hundred results wait for being taken.

        Args:
            items: All of them.
            work: Gets a few at a time; called in threads when the file system is slow.
        """
        tried = min(_TRIALS - len(self._took_seconds), len(items))
        for number in range(tried):
            started = time.perf_counter()
            result = work(items[number : number + 1])
            self._took_seconds.append(time.perf_counter() - started)
            yield result
        if self.is_slow:
            yield from _at_once(_cut(items, tried, _SHARE), work)
        else:
            yield from map(work, _cut(items, tried, _PORTION))


def _cut(items: Sequence[_T], begin: int, size: int) -> list[Sequence[_T]]:
    return [items[at : at + size] for at in range(begin, len(items), size)]


def _at_once(parts: Sequence[Sequence[_T]], work: Callable[[Sequence[_T]], _R]) -> Iterator[_R]:
    asked: SimpleQueue[int | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def help_out() -> None:
        for number in iter(asked.get, None):
            try:
                done.put((number, work(parts[number]), None))
            except BaseException as error:  # noqa: BLE001  # raised where it is awaited
                done.put((number, None, error))

    with tasks_at(help_out, min(THREADS, len(parts)), end=partial(_end, asked)) as helpers:
        if not helpers:
            yield from map(work, parts)
            return
        # Twice as many as there are threads, lest one of them has nothing to do.
        ahead = 2 * THREADS
        for number in range(min(ahead, len(parts))):
            asked.put(number)
        came: dict[int, tuple[Any, BaseException | None]] = {}
        for number in range(len(parts)):
            while number not in came:
                which, *found = done.get()
                came[which] = (found[0], found[1])
            result, error = came.pop(number)
            if error is not None:
                raise error
            if number + ahead < len(parts):
                asked.put(number + ahead)
            yield result


def _end(asked: SimpleQueue[int | None]) -> None:
    with suppress(Empty):
        while True:
            asked.get_nowait()
    for _ in range(THREADS):
        asked.put(None)
