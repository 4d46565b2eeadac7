"""Freshness of the index: whether it is known to hold exactly what is on disk in a run."""

from __future__ import annotations

from ckptdb.core.recorded import IndexedRun
from ckptdb.core.stamp import Stamp


def is_exact(indexed: IndexedRun | None, stamp: Stamp | None) -> bool:
    """Tell whether the index was compared with a run's directory, which has not changed since.

    Args:
        indexed: The run's row, None when there is none.
        stamp: The directory's stamp now, None when there is no directory.
    """
    if indexed is None or stamp is None or not indexed.verified:
        return False
    return indexed.stamp == str(stamp) and stamp.is_settled()
