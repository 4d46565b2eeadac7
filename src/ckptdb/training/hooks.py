"""Hooks of a training loop: called for published and deleted checkpoints, and for problems.

Hooks are called in a thread of their own, in order, after the event is durable. A slow hook delays
the other hooks and `shutdown`, and neither a save nor a deletion; the error of a hook is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ckptdb.core.records import Checkpoint, Problem
from ckptdb.training.background import WorkQueue

_T = TypeVar("_T")
_logger = logging.getLogger("ckptdb")


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions of a loop; None is not called."""

    on_published: Callable[[Checkpoint], object] | None = None
    on_deleted: Callable[[Checkpoint], object] | None = None
    on_problem: Callable[[Problem], object] | None = None


class HookDispatcher:
    """Calls the hooks of a loop in the background, one after the other."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._queue = WorkQueue()

    def report_published(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Report checkpoints that have their final name."""
        for checkpoint in checkpoints:
            self._call(self._hooks.on_published, checkpoint)

    def report_deleted(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Report checkpoints whose deletion is recorded."""
        for checkpoint in checkpoints:
            self._call(self._hooks.on_deleted, checkpoint)

    def report_problem(self, problem: Problem) -> None:
        """Report a failure in the background."""
        self._call(self._hooks.on_problem, problem)

    def drain(self) -> bool:
        """Wait for the hooks that are still to be called, as `WorkQueue.drain` does."""
        return self._queue.drain()

    def _call(self, hook: Callable[[_T], object] | None, event: _T) -> None:
        if hook is not None:
            self._queue.submit(lambda: _try(hook, event))


def _try(hook: Callable[[_T], object], event: _T) -> None:
    try:
        hook(event)
    except (Exception, SystemExit):
        _logger.exception("the hook %r failed for %r", hook, event)
