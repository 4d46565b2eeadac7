"""What reconciling may do in a run's directory, beyond bringing the index up to date.

A question gets none of these, and without one there is nothing that could change a run. What a
training loop's manager is asked gets `Completing`, whoever acts on a run `Finishing`.
"""

from __future__ import annotations

from pathlib import Path

from ckptdb.disk.publish import Publisher
from ckptdb.reconcile.plan import REPAIRS, Action


class Completing:
    """May publish what a crash left complete; removes nothing.

    Args:
        publisher: Of the run, with its durability and metric.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def directory(self) -> Path:
        """The run's."""
        return self._publisher.directory

    def may_repair(self, action: Action) -> bool:
        """Whether it is for this to repair, as far as that can be told before it is tried."""
        return action.kind in ("complete tmp", "orphan old")

    def repair(self, action: Action) -> bool:
        """Repair one difference; tell whether that was to be done.

        Raises:
            OSError: It cannot be done now.
            CkptdbError: Likewise.
        """
        if isinstance(action.leftover, Path):
            return self._publisher.complete(action.leftover)
        if action.kind == "orphan old" and action.leftover is not None:
            return self._publisher.give_name_back(action.leftover)
        return False


class Finishing(Completing):
    """May also finish what was left half done, and write to the journal what has vanished."""

    def establish(self) -> None:
        """Make the run's identity permanent; see `Publisher.establish`."""
        self._publisher.establish()

    def may_repair(self, action: Action) -> bool:
        """Whether it is for this to repair: all that a crash left is."""
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
