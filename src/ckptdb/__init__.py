"""A checkpoint registry for training loops: crash-safe directories, indexed in SQL.

`CheckpointManager` saves, ranks and prunes one run's checkpoints; `Registry` answers questions
over many runs. Checkpoints are plain directories, and everything that the catalog knows can be
rebuilt from them.
"""

import logging
from importlib.metadata import version

from ckptdb.errors import CkptdbError
from ckptdb.manager import CheckpointManager
from ckptdb.records import Checkpoint, Metric, Rows, Run, rank_key
from ckptdb.registry import Registry
from ckptdb.retention import Policy

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "CkptdbError",
    "Metric",
    "Policy",
    "Registry",
    "Rows",
    "Run",
    "rank_key",
]
__version__ = version("ckptdb")

# A library stays silent unless its user asks for its log.
logging.getLogger("ckptdb").addHandler(logging.NullHandler())
