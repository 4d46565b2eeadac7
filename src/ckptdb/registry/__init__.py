"""Registry: many runs, for people and tools."""

from __future__ import annotations

from ckptdb.registry.annotations import Annotating
from ckptdb.registry.deletion import Deleting
from ckptdb.registry.diff import Comparing
from ckptdb.registry.index import CatalogStatus, Indexing
from ckptdb.registry.queries import Asking
from ckptdb.registry.ranking import Choosing
from ckptdb.registry.watch import Watching

__all__ = ["CatalogStatus", "Registry"]


class Registry(Asking, Choosing, Comparing, Annotating, Deleting, Indexing, Watching):
    """Runs and checkpoints below a root, in a run, or in a catalog; made by `open`.

    Reading creates nothing: without a catalog the tree is indexed in memory. A run that is
    asked about by name is compared with its directory first; answers over all runs are
    compared only as far as the checkpoints that they name.
    """
