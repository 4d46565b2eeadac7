"""Catalog: the index of runs and checkpoints in a database.

Queries stand in one module per noun, each with the statements that it sends. A method sends one
statement or one transaction, and none looks at a checkpoint directory: facts come from the disk
and are decided elsewhere.
"""

from __future__ import annotations

from ckptdb.catalog import changes
from ckptdb.catalog.candidates import CandidateQueries
from ckptdb.catalog.checkpoints import CheckpointQueries
from ckptdb.catalog.engine import Database
from ckptdb.catalog.lineage import LineageQueries
from ckptdb.catalog.metrics import MetricQueries
from ckptdb.catalog.ranking import RankingQueries
from ckptdb.catalog.reader import CatalogReader
from ckptdb.catalog.recorded import RecordedQueries
from ckptdb.catalog.runs import RunQueries
from ckptdb.catalog.strays import StrayRows
from ckptdb.core.changes import Changes


class Catalog:
    """Runs and checkpoints in a database.

    Attributes:
        runs: Their rows, directories and own metrics.
        checkpoints: Whole records: listed, by id, the newest.
        ranking: Best, top-k and latest among the live checkpoints.
        metrics: Their names, and their values over a run.
        lineage: Ancestors and resumptions.
        candidates: Checkpoints as retention judges them.
        recorded: Everything recorded of one run, as reconcile compares it.
        strays: Rows without a run or checkpoint.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        reader = CatalogReader(database)
        self._paths = reader.paths
        self.runs = RunQueries(reader)
        self.checkpoints = CheckpointQueries(reader)
        self.ranking = RankingQueries(reader)
        self.metrics = MetricQueries(reader)
        self.lineage = LineageQueries(reader)
        self.candidates = CandidateQueries(reader)
        self.recorded = RecordedQueries(reader)
        self.strays = StrayRows(reader)

    def apply(self, changed: Changes, *, timeout_seconds: float | None = None) -> int:
        """Store changes of one run in one transaction; return the run's id.

        Raises:
            IndexStale: The index has another live checkpoint where one is to be stored.
        """
        with self.database.write(timeout_seconds=timeout_seconds) as connection:
            return changes.apply(connection, self._paths, changed)
