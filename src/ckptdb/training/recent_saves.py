"""The last few saves of a run: how long they took and how large they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.records import Checkpoint

KEPT: Final = 5
"""How many saves count as recent."""


@dataclass(frozen=True, slots=True)
class SaveCost:
    """What a save took.

    Attributes:
        seconds: From staging to publishing, None when that is not known.
        size_bytes: Of all its files, None when that is not known.
    """

    seconds: float | None
    size_bytes: int | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Read it from a checkpoint's record, as far as it says.

        Raises:
            ValueError: A time is none.
        """
        seconds = 0.0
        if checkpoint.finalized_at is not None:
            ended = datetime.fromisoformat(checkpoint.finalized_at)
            seconds = (ended - datetime.fromisoformat(checkpoint.created_at)).total_seconds()
        # One that another program has saved has the same time twice.
        return cls(seconds if seconds > 0 else None, checkpoint.size_bytes)


def find_recorded(catalog: Catalog, run_id: int) -> Sequence[SaveCost]:
    """Return what the newest checkpoints of a run have taken, the newest last."""
    newest = catalog.checkpoints.newest(KEPT, run_id=run_id)
    return [SaveCost.of(checkpoint) for checkpoint in reversed(newest)]


class RecentSaves:
    """Remembers the saves of this process; before its first, those that are on record.

    Args:
        find_earlier: Returns the last saves on record, the latest last; asked once, if at all.
    """

    def __init__(self, find_earlier: Callable[[], Sequence[SaveCost]]) -> None:
        self._find_earlier: Callable[[], Sequence[SaveCost]] | None = find_earlier
        self._saves: tuple[SaveCost, ...] = ()

    def add(self, save: SaveCost) -> None:
        """Remember another one."""
        self._saves = (*self._saves, save)[-KEPT:]

    @property
    def slowest_seconds(self) -> float | None:
        """How long the slowest took, None when none is known."""
        known = [save.seconds for save in self._all() if save.seconds is not None]
        return max(known, default=None)

    @property
    def largest_bytes(self) -> int | None:
        """How large the largest is, None when none is known."""
        known = [save.size_bytes for save in self._all() if save.size_bytes is not None]
        return max(known, default=None)

    def _all(self) -> tuple[SaveCost, ...]:
        find, self._find_earlier = self._find_earlier, None
        if find is not None and not self._saves:
            self._saves = tuple(find())[-KEPT:]
        return self._saves
