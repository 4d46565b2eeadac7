"""Knowledge about a run that nobody but this process has changed since its last listing.

A prune deletes, so it needs a listing of the directory, and a listing of ten thousand names takes
longer than a save. With this knowledge a loop that saves without a pause lists its run now and then
instead of at every save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ckptdb.core.candidates import Candidate
from ckptdb.core.records import Checkpoint
from ckptdb.core.stamp import Stamp

LISTING_SHARE = 1 / 20
"""Share of its time that a loop which saves without a pause may spend on listing its run."""


@dataclass(slots=True)
class FollowedRun:
    """Knowledge about a run that nobody but this process has changed since its last listing.

    Attributes:
        stamp: The run's stamp now, settled or not.
        listed_at: Time of the last listing (monotonic).
        listing_seconds: Duration of that listing.
        at_most: Upper bound of the number of published checkpoints; infinite when not counted.
        ranked_by: Metrics of which each published checkpoint has a value.
        resumed_from: uuid of what training was last resumed from, when that was looked up.
        by_files: By uuid, what is published by its files; None when that was not read.
    """

    stamp: Stamp
    listed_at: float = -math.inf
    listing_seconds: float = 0.0
    at_most: float = math.inf
    ranked_by: frozenset[str] = frozenset()
    resumed_from: str | None = None
    by_files: dict[str, Candidate] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether listing it again would take more than its share of the time since."""
        return (time.monotonic() - self.listed_at) * LISTING_SHARE < self.listing_seconds

    def advance(self, changed: Sequence[Checkpoint], stamp: Stamp) -> None:
        """Record a change of our own, and the stamp after it."""
        self.stamp = stamp
        published = [checkpoint for checkpoint in changed if checkpoint.status == "final"]
        self.at_most += len(published)
        for checkpoint in published:
            ranks = {name for name, value in checkpoint.metrics.items() if value is not None}
            self.ranked_by &= ranks
        if self.by_files is not None:
            for checkpoint in changed:
                self.by_files.pop(checkpoint.uuid, None)
            self.by_files |= {cp.uuid: _make_candidate(cp) for cp in published}


def _make_candidate(checkpoint: Checkpoint) -> Candidate:
    finite = {name: value for name, value in checkpoint.metrics.items() if value is not None}
    return Candidate(checkpoint.step, checkpoint.uuid, finite)
