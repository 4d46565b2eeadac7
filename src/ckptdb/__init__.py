"""A checkpoint registry for training loops: crash-safe directories, indexed in SQL.

`CheckpointManager` saves, ranks and prunes one run's checkpoints; `Registry` answers questions
over many runs. Checkpoints are plain directories, and everything that the catalog knows can be
rebuilt from them.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptdb.core.text import CleanRecords
from ckptdb.errors import CkptdbError

if TYPE_CHECKING:
    from ckptdb.core.metrics import Metric
    from ckptdb.core.ranking import rank_key
    from ckptdb.core.records import Ancestor, Checkpoint, Problem, Run
    from ckptdb.core.rows import Rows
    from ckptdb.manager import CheckpointManager
    from ckptdb.registry import Registry
    from ckptdb.retention import Policy

    __version__: str
else:
    # Imported when first asked for: the command line needs no manager, a loop no registry, and
    # neither is worth SQLAlchemy to somebody who only catches our errors.
    _HOMES = {
        "Ancestor": "core.records",
        "Checkpoint": "core.records",
        "CheckpointManager": "manager",
        "Metric": "core.metrics",
        "Policy": "retention",
        "Problem": "core.records",
        "Registry": "registry",
        "Rows": "core.rows",
        "Run": "core.records",
        "rank_key": "core.ranking",
    }

    _ROOMS = {home.partition(".")[0] for home in _HOMES.values()}

    def __getattr__(name: str) -> Any:
        """Return a public name, or a module that holds some, and remember it."""
        if name == "__version__":
            from importlib.metadata import version

            found = version("ckptdb")
        elif name in _HOMES:
            found = getattr(import_module(f"ckptdb.{_HOMES[name]}"), name)
        elif name in _ROOMS:
            return import_module(f"ckptdb.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """List what can be asked for, imported or not."""
        return sorted({*globals(), *_HOMES, *_ROOMS, "__version__"})


__all__ = [
    "Ancestor",
    "Checkpoint",
    "CheckpointManager",
    "CkptdbError",
    "Metric",
    "Policy",
    "Problem",
    "Registry",
    "Rows",
    "Run",
    "rank_key",
]

# A library stays silent unless its user asks for its log.
logging.getLogger("ckptdb").addHandler(logging.NullHandler())
logging.getLogger("ckptdb").addFilter(CleanRecords())
