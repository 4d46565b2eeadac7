"""Scheduler of saves: decides after each step whether the loop should save, and why."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptdb.core import fork
from ckptdb.training import schedule
from ckptdb.training.recent_saves import RecentSaves, SaveCost
from ckptdb.training.schedule import (
    Deadline,
    Limits,
    RecentDurations,
    SaveReason,
)
from ckptdb.training.signals import Signals

STEPS_KEPT: Final = 50
"""Number of recent steps of which the slowest counts: a slow first step is forgotten later."""


@dataclass(slots=True)
class _Open:
    """A save that is not published yet.

    Attributes:
        asks: Number of `should_save` calls when the checkpoint was staged.
        answers: Reason of a last save that this save is made for, None for another save.
        is_behind: The save is finalized in the background.
    """

    started: float
    asks: int
    answers: SaveReason | None
    is_behind: bool = False


class SaveScheduler:
    """Decides for one loop, after each step, whether to save; thread-safe.

    Args:
        limits: The deadlines.
        signals: Signals that ask for a last save.
        recent: Durations of recent saves.
        saves: False for a loop that saves nothing and only wants to know when to stop.
        monotonic: Monotonic clock in seconds.
        wall: Seconds since the epoch.
    """

    def __init__(
        self,
        limits: Limits,
        signals: Signals,
        recent: RecentSaves,
        *,
        saves: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits
        self._signals = signals
        self._recent = recent
        self._saves = saves
        self._monotonic, self._wall = monotonic, wall
        self._began, self._began_wall = monotonic(), wall()
        self._steps: deque[float] = deque(maxlen=STEPS_KEPT)
        self._asked_at: float | None = None
        self._saving_seconds = 0.0  # since then
        self._asks = self._covered = 0
        self._urgent: SaveReason | None = None
        self._open: dict[Path, _Open] = {}
        self._is_deadline_answered = self._is_over = False
        # Reentrant: a signal's former handler, which is called after ours, may ask, too.
        self._guard = threading.RLock()
        fork.AFTER_FORK.add(self)

    # --- decisions ----------------------------------------------------------------------

    def ask(self, *, is_periodic: bool) -> SaveReason | None:
        """Return the reason to save the step that has just ended, None for none."""
        with self._guard:
            self._count_step()
            self._urgent = None
            if not self._saves:
                return None
            # One that the loop still has in its hands may have failed there, and been forgotten.
            saves = self._open.values()
            is_being_answered = any(save.answers for save in saves if save.is_behind)
            if not is_being_answered:
                self._urgent = self._find_urgent(saving=is_periodic)
            return self._urgent or ("period" if is_periodic else None)

    @property
    def is_over(self) -> bool:
        """Whether the last save has been made, and no step has ended since."""
        with self._guard:
            if self._is_over or not self._asks:
                return self._is_over
            behind = [save for save in self._open.values() if save.is_behind]
            if any(save.answers for save in behind):
                return True
            covered = max([self._covered, *(save.asks for save in behind)])
            if self._saves and covered < self._asks:
                return False
            reason = self._find_urgent(saving=False)
            if reason and self._covered == self._asks:
                self._answer(reason)
            return reason is not None

    # --- events -------------------------------------------------------------------------

    def begin(self, path: Path) -> None:
        """Note that a save is being staged."""
        with self._guard:
            self._open[path] = _Open(self._monotonic(), self._asks, self._urgent)

    def hand_over(self, path: Path) -> None:
        """Note that a save goes on in the background, while the loop goes on."""
        with self._guard:
            save = self._open.get(path)
            if save:
                self._count_saving(save)
                save.is_behind = True

    def end(self, path: Path, size_bytes: int | None) -> None:
        """Note that a save is published."""
        with self._guard:
            # A checkpoint that another manager has staged has no start time here.
            save = self._open.pop(path, None)
            seconds = None if save is None else self._monotonic() - save.started
            self._recent.add(SaveCost(seconds, size_bytes))
            save = save or _Open(self._monotonic(), self._asks, self._urgent)
            self._count_saving(save)
            self._covered = max(self._covered, save.asks)
            # A signal or deadline during this save is answered by it, if it holds the last step.
            is_all = self._covered == self._asks > 0
            reason = save.answers or (self._find_urgent(saving=False) if is_all else None)
            if reason:
                self._answer(reason)

    def drop(self, path: Path) -> None:
        """Note that a save has failed or was given up."""
        with self._guard:
            save = self._open.pop(path, None)
            if save:
                self._count_saving(save)

    @contextmanager
    def dropping(self, path: Path) -> Iterator[None]:
        """Drop a save when what is done for it fails."""
        try:
            yield
        except BaseException:
            self.drop(path)
            raise

    def after_fork(self) -> None:
        """Begin anew in a child, where no thread of the parent holds the lock."""
        self._guard = threading.RLock()

    # --- pieces -------------------------------------------------------------------------

    def _count_step(self) -> None:
        now = self._monotonic()
        if self._asked_at is not None:
            self._steps.append(max(now - self._asked_at - self._saving_seconds, 0.0))
        self._asked_at, self._saving_seconds = now, 0.0
        self._asks += 1

    def _count_saving(self, save: _Open) -> None:
        if self._asked_at is not None and not save.is_behind:
            self._saving_seconds += self._monotonic() - max(save.started, self._asked_at)

    def _find_urgent(self, *, saving: bool) -> SaveReason | None:
        if self._signals.received:
            return "signal"
        if self._is_deadline_answered or not self._is_near(saving=saving):
            return None
        return "deadline"

    def _is_near(self, *, saving: bool) -> bool:
        deadlines = tuple(self._deadlines())
        if not deadlines:
            return False
        pace = RecentDurations(max(self._steps, default=0.0), self._recent.slowest_seconds)
        return any(schedule.is_near(deadline, pace, saving=saving) for deadline in deadlines)

    def _deadlines(self) -> Iterator[Deadline]:
        whole = self._limits.must_save_by_seconds
        if whole is not None:
            yield Deadline(self._began + whole - self._monotonic(), whole)
        end = self._limits.ends_at
        if end is not None:
            yield Deadline(end - self._wall(), end - self._began_wall)

    def _answer(self, reason: SaveReason) -> None:
        self._is_over = True
        self._signals.received = None
        if reason == "deadline" or self._is_near(saving=False):
            self._is_deadline_answered = True
