"""Parts of a manager that saving, pruning and resuming share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptdb.core.records import Checkpoint, Problem, Trouble
from ckptdb.disk.publish import Publisher
from ckptdb.disk.transaction import StampChange
from ckptdb.training.background import Background
from ckptdb.training.config import Settings
from ckptdb.training.hooks import HookDispatcher
from ckptdb.training.index import RunIndex
from ckptdb.training.parents import ParentTracker


class ChangeRecorder:
    """Records changes of a run that are durable on disk: in the index, then by the loop's hooks."""

    def __init__(self, index: RunIndex, hooks: HookDispatcher) -> None:
        self._index = index
        self._hooks = hooks
        self._config_step: int | None = None

    def record(
        self,
        checkpoints: Sequence[Checkpoint],
        span: StampChange,
        *,
        published: Sequence[Checkpoint] = (),
        gone: Sequence[Checkpoint] = (),
    ) -> None:
        """Record checkpoints as they are now.

        Args:
            checkpoints: The changed checkpoints.
            span: Stamps of the run before and after the change.
            published: Those that the change has published.
            gone: Those that the change has deleted, discarded or replaced.
        """
        self._index.record(checkpoints, span, config_step=self._config_step)
        self._report(published, gone)

    def record_save(
        self,
        saved: Checkpoint,
        span: StampChange,
        *,
        replaced: Sequence[Checkpoint] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a save.

        Args:
            saved: The checkpoint that was saved.
            span: Stamps of the run before and after the save.
            replaced: The checkpoint of the same step that it has replaced, if any.
            config: The run's configuration, when the checkpoint came with one.
        """
        is_published = saved.status == "final"
        config = config if is_published else None
        self._config_step = None if config is None else saved.step
        self._index.record([*replaced, saved], span, config=config)
        self._report([saved] if is_published else [], replaced)

    def _report(self, published: Sequence[Checkpoint], gone: Sequence[Checkpoint]) -> None:
        # In this order: a hook that looks at the step alone must not take the new checkpoint for
        # the one that it has replaced.
        self._hooks.report_deleted(gone)
        self._hooks.report_published(published)


@dataclass(frozen=True, slots=True)
class RunParts:
    """Parts of a manager that saving, pruning and resuming share.

    Attributes:
        directory: The run, absolute.
    """

    directory: Path
    publisher: Publisher
    index: RunIndex
    hooks: HookDispatcher
    changes: ChangeRecorder
    background: Background
    parents: ParentTracker

    def report(self, what: Trouble, where: Path, error: BaseException) -> None:
        """Report a failure behind the loop to its hook."""
        self.hooks.report_problem(Problem(what, where, error))


def make_parts(directory: Path, settings: Settings) -> RunParts:
    """Make the parts for a run.

    Args:
        directory: The run, absolute.
        settings: The manager's configuration.
    """
    metric = settings.attributes["metric_name"]
    publisher = Publisher(
        directory,
        make_durable=settings.durable,
        # A manager that ranks by no metric leaves the metric that the run has recorded.
        metric=None if metric is None else (metric, settings.attributes["higher_is_better"]),
        remember=not settings.accept_metric_change,
        trash_ttl_seconds=settings.trash_ttl_seconds,
    )
    hooks = HookDispatcher(settings.hooks)
    index = RunIndex(
        publisher,
        choice=settings.catalog,
        durable=settings.durable,
        on_problem=hooks.report_problem,
    )
    return RunParts(
        directory,
        publisher,
        index,
        hooks,
        ChangeRecorder(index, hooks),
        Background(),
        ParentTracker(directory, index),
    )
