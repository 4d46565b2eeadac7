"""Assembly of a manager from its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ckptdb.disk import identity
from ckptdb.reconcile.location import find_location
from ckptdb.training import config as configuration
from ckptdb.training.checksum_worker import ChecksumWorker
from ckptdb.training.manager_settings import ManagerSettings
from ckptdb.training.metric_change import RankingChange
from ckptdb.training.pruning import Pruner
from ckptdb.training.recent_saves import RecentSaves, SaveCost, find_recorded
from ckptdb.training.resuming import Resuming
from ckptdb.training.run_directory import RunDirectory
from ckptdb.training.run_parts import make_parts
from ckptdb.training.save_scheduler import SaveScheduler
from ckptdb.training.saving import SaveOptions, Saver
from ckptdb.training.signals import Signals


class AssembledManager(ManagerSettings):
    """A manager's settings and parts, without its methods.

    Args:
        config: The configuration, a mapping or pydantic model.
        options: The same keys; they win over the config.
    """

    def __init__(self, config: object, options: Mapping[str, Any]) -> None:
        settings = configuration.parse(config, options, find_direction=identity.find_direction)
        super().__init__(settings)
        self._directory = RunDirectory(settings.checkpoint_dir)
        if settings.catalog is not None:
            find_location(self._directory.path, settings.catalog)
        self._parts = make_parts(self._directory.path, settings)
        self._publisher, self._parents = self._parts.publisher, self._parts.parents
        self._background, self._hooks = self._parts.background, self._parts.hooks
        self._index = self._parts.index
        self._signals = Signals(settings.signals)
        none: Sequence[SaveCost] = ()
        recent = RecentSaves(partial(self._index.query_stored, find_recorded, nothing=none))
        limits = settings.find_limits()
        self._scheduler = SaveScheduler(limits, self._signals, recent, saves=settings.enabled)
        worker = ChecksumWorker(self._publisher) if settings.checksums else None
        self._resuming = Resuming(self._parts, worker)
        change = RankingChange(self._publisher, is_accepted=settings.accept_metric_change)
        self._pruner = Pruner(self._parts, change)
        self._recent = recent
        self._saver = Saver(
            self._parts,
            SaveOptions(settings.exclusive, settings.check_space),
            pruner=self._pruner,
            metric_change=change,
            scheduler=self._scheduler,
            recent=recent,
            resuming=self._resuming,
            checksum_worker=worker,
        )
        queues = (self._background, worker, self._hooks)
        self._queues = [queue for queue in queues if queue is not None]
