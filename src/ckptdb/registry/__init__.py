"""Registry: many runs, for people and tools."""

from __future__ import annotations

from ckptdb.registry.annotations import AnnotationMethods
from ckptdb.registry.deletion import DeletionMethods
from ckptdb.registry.diff import DiffMethods
from ckptdb.registry.index import CatalogStatus, IndexMethods
from ckptdb.registry.queries import QueryMethods
from ckptdb.registry.ranking import RankingMethods
from ckptdb.registry.watch import WatchMethods

__all__ = ["CatalogStatus", "Registry"]


class Registry(
    QueryMethods,
    RankingMethods,
    DiffMethods,
    AnnotationMethods,
    DeletionMethods,
    IndexMethods,
    WatchMethods,
):
    """Runs and checkpoints below a root, in a run, or in a catalog; made by `open`.

    Reading creates nothing: without a catalog the tree is indexed in memory. A run that is named
    is compared with its directory before the answer; of an answer over all runs only the
    checkpoints in it are.
    """
