"""Repairs that reconciling may do in a run's directory.

A question does none, so that it cannot change a run. A training loop's manager uses `Completing`
before its answers; every other change of a run uses `Finishing`.
"""

from __future__ import annotations

from pathlib import Path

from ckptdb.disk.publish import Publisher
from ckptdb.reconcile.action import REPAIRS, Action


class Completing:
    """Repairs that publish what a crash left complete; nothing is removed.

    Args:
        publisher: Of the run, with its durability and metric.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self._publisher.directory

    def may_repair(self, action: Action) -> bool:
        """Tell whether an action is a repair of this kind; the attempt may still find otherwise."""
        return action.kind in ("complete tmp", "orphan old")

    def repair(self, action: Action) -> bool:
        """Repair one difference; return False when it is left to `Finishing`.

        Raises:
            OSError: The repair is not possible now.
            CkptdbError: Likewise.
        """
        if isinstance(action.leftover, Path):
            return self._publisher.complete(action.leftover)
        if action.kind == "orphan old" and action.leftover is not None:
            return self._publisher.give_name_back(action.leftover)
        return False


class Finishing(Completing):
    """Repairs of every kind: also removals, and lines of the journal about what has vanished."""

    def establish(self) -> None:
        """Make the run's identity permanent; see `Publisher.establish`."""
        self._publisher.establish()

    def may_repair(self, action: Action) -> bool:
        """Tell whether an action is a repair at all."""
        return action.kind in REPAIRS

    def repair(self, action: Action) -> bool:
        """Repair one difference; see `Completing.repair`."""
        if isinstance(action.leftover, Path):
            self._publisher.adopt(action.leftover)
        elif action.kind == "orphan old" and action.leftover is not None:
            self._publisher.put_back(action.leftover)
        elif action.kind == "unfinished removal":
            left = action.leftover
            if left is not None and left.path.parent == self.directory:
                self._publisher.finish_deletion(left)
            self._publisher.empty_trash()
        return True
