"""Registry: many runs, for people and tools."""

from __future__ import annotations

from ckptdb.registry.annotating import Annotating
from ckptdb.registry.asking import Asking
from ckptdb.registry.choosing import Choosing
from ckptdb.registry.comparing import Comparing
from ckptdb.registry.deleting import Deleting
from ckptdb.registry.indexing import CatalogStatus, Indexing
from ckptdb.registry.watching import Watching

__all__ = ["CatalogStatus", "Registry"]


class Registry(Asking, Choosing, Comparing, Annotating, Deleting, Indexing, Watching):
    """Runs and checkpoints below a root, in a run, or in a catalog; made by `open`.

    Reading creates nothing: without a catalog the tree is indexed in memory. A run that is
    asked about by name is compared with its directory first; answers over all runs are
    compared only as far as the checkpoints that they name.
    """
