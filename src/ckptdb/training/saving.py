"""Saving of a run by its manager: stage, publish, discard, and the disk space for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdb.core import warnings
from ckptdb.disk import free_space, names, observation
from ckptdb.disk.config_file import serialize_config
from ckptdb.disk.trainer_lock import TrainerLock
from ckptdb.disk.training_info import dump_info
from ckptdb.errors import CkptdbError
from ckptdb.training.checksum_worker import ChecksumWorker
from ckptdb.training.metric_change import RankingChange
from ckptdb.training.pruning import CurrentRules, Pruner
from ckptdb.training.recent_saves import RecentSaves
from ckptdb.training.resuming import Resuming
from ckptdb.training.run_parts import RunParts
from ckptdb.training.save_scheduler import SaveScheduler

_logger = logging.getLogger("ckptdb")
_RAISED = "discarded: the save raised an error"
_NO_SPACE = "discarded: left unfinished, and another save had no space"


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """Options of a manager's saves.

    Attributes:
        is_exclusive: Refuse to save while another process saves into the run.
        check_space: Refuse to begin a save for which the disk has no space.
    """

    is_exclusive: bool
    check_space: bool


class Saver:
    """Saves the checkpoints of a run.

    Attributes:
        trainer_lock: Lock of this process on the run, None before its first save.
    """

    def __init__(
        self,
        parts: RunParts,
        options: SaveOptions,
        *,
        pruner: Pruner,
        metric_change: RankingChange,
        scheduler: SaveScheduler,
        recent: RecentSaves,
        resuming: Resuming,
        checksum_worker: ChecksumWorker | None,
    ) -> None:
        self._parts = parts
        self._options = options
        self._pruner = pruner
        self._metric_change = metric_change
        self._scheduler = scheduler
        self._recent = recent
        self._resuming = resuming
        self._checksum_worker = checksum_worker
        self._configs: dict[Path, dict[str, Any]] = {}
        self._has_saved = False
        self.trainer_lock: TrainerLock | None = None

    def stage(
        self,
        step: int,
        training_info: Mapping[str, Any],
        run_config: object,
        current: CurrentRules,
    ) -> Path:
        """Create a staged checkpoint with its metadata; return its absolute path.

        Args:
            step: Training step.
            training_info: Content of training_info.json.
            run_config: The run's configuration, None without one.
            current: Rules of the manager, for a prune that frees space.
        """
        number = names.as_step(step)
        content = dump_info(training_info)
        config = None if run_config is None else serialize_config(run_config)
        parts = self._parts
        pending = parts.background.pending
        if pending is not None and pending.name == names.tmp_name(number):
            parts.background.collect()
        parts.publisher.check_place(number)
        if not self._has_saved:
            self._resuming.warn_of_obstructed(above=number)
        self._has_saved = True
        path = parts.directory / names.tmp_name(number)
        self._scheduler.begin(path)
        with self._scheduler.dropping(path):
            if self._options.is_exclusive:
                self.trainer_lock = parts.publisher.lock_trainer()
            self._metric_change.warn(current.ranked_by, current.get_policy)
            self._make_sure_of_space(number, current)
            parts.index.begin_save()
            parts.parents.warn_before(number)
            with warnings.warning_afterwards():
                staged = parts.publisher.stage(
                    number, content, None if config is None else config.content
                )
                parts.parents.begin(path, number)
                changed = [staged.checkpoint, *staged.adopted, *staged.gone]
                parts.changes.record(
                    changed, staged.span, published=staged.adopted, gone=staged.gone
                )
                if config is not None:
                    self._configs[path] = config.mapping
        return path

    @contextmanager
    def discarding(self, path: Path) -> Iterator[None]:
        """Discard a staged checkpoint when the loop raises an error while it writes."""
        try:
            with self._scheduler.dropping(path):
                yield
        except BaseException:
            with warnings.warning_afterwards(raises=False):
                self.discard(path)
            raise

    def publish(self, path: Path) -> None:
        """Publish a staged checkpoint."""
        parts = self._parts
        published = parts.publisher.publish(path, parent=parts.parents.find_parent(path))
        saved, replaced = published.checkpoint, published.replaced
        self._scheduler.end(path, saved.size_bytes)
        parts.parents.publish(path, saved.uuid)
        if self._checksum_worker:
            self._checksum_worker.add(saved)
        parts.changes.record_save(
            saved,
            published.span,
            replaced=[] if replaced is None else [replaced],
            config=self._configs.pop(path, None),
        )
        if replaced is not None:
            self._pruner.warn_if_pinned(replaced)
            self._pruner.empty_trash_later()

    def publish_later(
        self, path: Path, wait: Callable[[], None], *, then: Callable[[], None]
    ) -> None:
        """Publish a staged checkpoint in the background.

        Args:
            path: The checkpoint.
            wait: Blocks until asynchronous writers are done.
            then: Called in the background after the checkpoint was published.
        """

        def finalize() -> None:
            try:
                with self._scheduler.dropping(path):
                    wait()
                    with warnings.warning_afterwards(raises=False):
                        self.publish(path)
            except BaseException as error:
                self._parts.report("save", path, error)
                raise

        self._scheduler.hand_over(path)
        self._parts.background.finalize(path, finalize, then=then)

    def discard(self, path: Path, *, reason: str = _RAISED, uuid: str | None = None) -> None:
        """Discard a staged checkpoint; a failure is logged and reported.

        Args:
            path: The checkpoint.
            reason: The reason that is recorded.
            uuid: Discard it only if it is still this checkpoint.
        """
        parts = self._parts
        parts.parents.discard(path)
        try:
            parts.index.check_journal()
            retired = parts.publisher.discard(path, reason=reason, uuid=uuid)
            parts.changes.record(retired.gone, retired.span, gone=retired.gone)
            self._pruner.empty_trash_later()
        except (OSError, CkptdbError) as error:
            _logger.warning("%s could not be discarded: %s", path, error)
            parts.report("discard", path, error)

    def _make_sure_of_space(self, step: int, current: CurrentRules) -> None:
        needed = self._recent.largest_bytes if self._options.check_space else None
        if not needed:
            return
        background = self._parts.background

        def empty_trash() -> None:
            background.wait()
            self._parts.index.check_journal()
            self._pruner.empty_trash()

        def discard_unfinished() -> None:
            for tmp in observation.observe(self._parts.directory, may_touch=True).tmps.values():
                if tmp.abandoned:
                    checkpoint = tmp.checkpoint
                    self.discard(checkpoint.path, reason=_NO_SPACE, uuid=checkpoint.uuid)
            background.wait()

        def prune() -> None:
            current.prune()
            background.wait()

        def empty_whole_trash() -> None:
            self._pruner.empty_trash(everything=True)

        free_space.make_sure(
            self._parts.directory,
            step,
            needed_bytes=needed,
            remedies=(empty_trash, discard_unfinished, prune, empty_whole_trash),
        )
