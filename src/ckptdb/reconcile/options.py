"""Options of reconciling one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckptdb.reconcile.repairs import Completing, Finishing

ReconcileDepth = Literal["changes", "files", "full"]
"""Extent of the reading.

``"changes"`` reads only what the stamp and the fingerprints show to be new. ``"files"`` reads the
metadata of every checkpoint and the whole journal, whatever the index holds of them. ``"full"``
also compares every file of every checkpoint with its manifest.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of reconciling one run.

    Attributes:
        depth: Extent of the reading.
        repairs: Everything that may be changed in the run's directory; None for nothing.
        assume: Store a stamp that is too young to be sure, marked as not verified.
        store: Store the differences in the index; False for a dry run.
        restore: Also restore what a damaged journal lacks and the index knows.
        locked: The caller holds the run's lock.
    """

    depth: ReconcileDepth
    repairs: Completing | None = None
    assume: bool = False
    store: bool = True
    restore: bool = False
    locked: bool = False

    @property
    def finishing(self) -> Finishing | None:
        """Repairs of every kind, if they are allowed."""
        return self.repairs if isinstance(self.repairs, Finishing) else None

    @property
    def writes_journal(self) -> bool:
        """Whether the journal may be written."""
        return self.finishing is not None

    @property
    def includes_journal_gaps(self) -> bool:
        """Whether facts that only the journal lacks are differences: to be written, or named."""
        return self.writes_journal or not self.store
