"""CheckpointManager: one run, inside a training loop.

A drop-in for the module ``nemo_rl.utils.checkpoint``: the same names, signatures, warnings
and directories, with durable publishing and an index behind them.
"""

from __future__ import annotations

# Loops written for NeMo-RL patch `glob` in this module. ckptdb itself never calls it, because a
# directory's name may hold the characters that glob gives a meaning to.
import glob  # noqa: F401
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ckptdb.core import warnings
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    identity,
    names,
    published_name,
    run_listing,
)
from ckptdb.disk.training_info import load_info
from ckptdb.errors import (
    NoCheckpointHere,
    UnreadableInfo,
)
from ckptdb.reconcile.location import find_location
from ckptdb.retention import RetentionPlan
from ckptdb.training import config as configuration
from ckptdb.training import load_history, ranked_steps, schedule
from ckptdb.training.checksum_worker import ChecksumWorker
from ckptdb.training.config import CheckpointingConfig, PretrainedCheckpointConfig
from ckptdb.training.config_change import OnChange
from ckptdb.training.manager_settings import ManagerSettings
from ckptdb.training.metric_change import MetricChange
from ckptdb.training.pruning import CurrentRules, Pruner
from ckptdb.training.recent_saves import RecentSaves, SaveCost, find_recorded
from ckptdb.training.resuming import ResumeOptions, Resuming
from ckptdb.training.run_directory import RunDirectory
from ckptdb.training.run_parts import make_parts
from ckptdb.training.save_scheduler import SaveScheduler
from ckptdb.training.saving import SaveOptions, Saver
from ckptdb.training.schedule import Reason
from ckptdb.training.signals import Signals

__all__ = [
    "CheckpointManager",
    "CheckpointingConfig",
    "PretrainedCheckpointConfig",
    "validate_warm_start_checkpoint",
]

PathLike = str | os.PathLike[str]
_logger = logging.getLogger("ckptdb")


class CheckpointManager(ManagerSettings):
    """Saves, ranks and prunes the checkpoints of one run.

    Args:
        config: A mapping or pydantic model with the keys of `CheckpointingConfig`.
        options: The same keys as keywords; they win over the config.

    Raises:
        InvalidConfig: Lists everything that is wrong with the config.
        CatalogError: An explicitly chosen catalog cannot be used.
    """

    def __init__(self, config: object, **options: Any) -> None:
        settings = configuration.parse(config, options, find_direction=identity.find_direction)
        super().__init__(settings)
        self._directory = RunDirectory(settings.checkpoint_dir)
        if settings.catalog is not None:
            find_location(self._directory.path, settings.catalog)
        self._parts = parts = make_parts(self._directory.path, settings)
        self._background, self._hooks, self._index = parts.background, parts.hooks, parts.index
        self._publisher, self._parents = parts.publisher, parts.parents
        none: Sequence[SaveCost] = ()
        self._recent = RecentSaves(partial(self._index.query_stored, find_recorded, nothing=none))
        self._signals = Signals(settings.signals)
        self._scheduler = SaveScheduler(
            settings.find_limits(), self._signals, self._recent, saves=settings.enabled
        )
        checksum_worker = ChecksumWorker(self._publisher) if settings.checksums else None
        self._resuming = Resuming(parts, checksum_worker)
        change = MetricChange(self._publisher, is_accepted=settings.accept_metric_change)
        self._pruner = Pruner(parts, change)
        self._saver = Saver(
            parts,
            SaveOptions(settings.exclusive, settings.check_space),
            pruner=self._pruner,
            metric_change=change,
            scheduler=self._scheduler,
            recent=self._recent,
            resuming=self._resuming,
            checksum_worker=checksum_worker,
        )
        queues = (self._background, checksum_worker, self._hooks)
        self._queues = [queue for queue in queues if queue is not None]

    # --- saving -------------------------------------------------------------------------

    @contextmanager
    def save(
        self, step: int, metrics: Mapping[str, Any], *, config: object = None
    ) -> Iterator[Path]:
        """Give a directory to write into; publish it on exit, discard it on an error.

        Args:
            step: Training step, from 0.
            metrics: What goes into training_info.json; its numbers can be ranked by.
            config: The run's configuration, a mapping or pydantic model.
        """
        folder = self.init_tmp_checkpoint(step, metrics, config)
        try:
            with self._scheduler.dropping(folder):
                yield folder
        except BaseException:
            with warnings.warning_afterwards(raises=False):
                self._saver.discard(folder)
            raise
        self.finalize_checkpoint(folder)

    def init_tmp_checkpoint(
        self, step: int, training_info: Mapping[str, Any], run_config: object = None
    ) -> Path:
        """Create ``tmp_step_{step}`` with its metadata; return its absolute path.

        Args:
            step: Training step, from 0.
            training_info: Written to training_info.json exactly; scalars of numpy and torch
                become numbers.
            run_config: Written to config.yaml: a mapping or anything with ``model_dump()``.

        Raises:
            InvalidStep: The step is not a whole number from 0.
            UnwritableInfo: Names what cannot be written; no file was opened.
            RunInUse: Another process saves into this run.
            NotEnoughSpace: The disk has less space than recent checkpoints took.
            StepTaken: What has the step's name, or is to have it, is no directory of a checkpoint.
            StepInUse: Another process is writing this step.
        """
        return self._saver.stage(step, training_info, run_config, self._current_rules)

    def finalize_checkpoint(self, checkpoint_path: PathLike) -> None:
        """Publish a checkpoint, then prune; both are done on return.

        Args:
            checkpoint_path: What `init_tmp_checkpoint` returned.

        Raises:
            NoCheckpointHere: There is no such directory in this run.
            SaveFailed: It could not be made durable; older checkpoints are untouched.
        """
        path = self._directory.get_tmp(checkpoint_path)
        with warnings.warning_afterwards():
            with self._scheduler.dropping(path):
                self._saver.publish(path)
            self._prune()

    def begin_finalization(
        self, checkpoint_path: PathLike, wait_fn: Callable[[], None] | None = None
    ) -> None:
        """Publish in the background; first collects an earlier finalization.

        Args:
            checkpoint_path: What `init_tmp_checkpoint` returned; nothing else may write to it.
            wait_fn: Blocks until asynchronous writers are done.

        Raises:
            RuntimeError: The earlier finalization failed.
        """
        self.finalize_pending()
        path = self._directory.get_tmp(checkpoint_path)

        self._saver.publish_later(path, wait_fn or (lambda: None), then=self._prune)

    def finalize_pending(self) -> None:
        """Wait for a background finalization; pruning goes on behind it.

        Raises:
            RuntimeError: It failed, with the reason as its cause; raised once.
        """
        self._background.collect()

    @property
    def has_pending_finalization(self) -> bool:
        """True from `begin_finalization` until it has been collected."""
        return self._background.pending is not None

    def shutdown(self) -> None:
        """Wait for everything in the background; the manager stays usable.

        Raises:
            RuntimeError: A background finalization failed.
        """
        try:
            self.finalize_pending()
        finally:
            # Each may hand work on to another.
            while any(queue.drain() for queue in self._queues):
                pass
            self._signals.stop()
            self._index.close_quietly()
            # An interrupted wait leaves one that still saves.
            if not self.has_pending_finalization:
                self._saver.trainer_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if kind is None:
            self.shutdown()
            return False
        try:
            self.shutdown()
        except Exception as failure:  # noqa: BLE001  # the exception in flight matters more
            with warnings.warning_afterwards(raises=False):
                warnings.warn(
                    f"Checkpoint finalization failed while another exception was raised: "
                    f"{failure.__cause__ or failure!r}"
                )
        return False

    # --- pruning ------------------------------------------------------------------------

    def remove_old_checkpoints(self, exclude_latest: bool = True) -> None:  # noqa: FBT001, FBT002  # the drop-in signature
        """Retire every checkpoint that no retention rule keeps.

        What this process has loaded to continue from stays whatever the rules say.

        Args:
            exclude_latest: Always keep the highest step, and what this manager has saved last;
                otherwise the rules decide about them, too.

        Raises:
            JournalInDoubt: The run's journal is damaged, or the catalog contradicts it; nothing
                goes.
        """
        self._pruner.prune(self._current_rules, exclude_latest=exclude_latest)

    def plan_retention(self, *, exclude_latest: bool = True) -> RetentionPlan:
        """Say what `remove_old_checkpoints` would keep and remove now, and why.

        Args:
            exclude_latest: As there.
        """
        return self._pruner.plan(self._current_rules, exclude_latest=exclude_latest)

    def apply_retention(self, planned: RetentionPlan) -> None:
        """Do what `plan_retention` has said, or nothing.

        Raises:
            PlanChanged: Something else would go by now.
            JournalInDoubt: As `remove_old_checkpoints`.
        """
        self._pruner.apply(planned, self._current_rules)

    # --- when to save -------------------------------------------------------------------

    def should_save(self, step: int) -> Reason | None:
        """Say whether the step that has just ended is to be saved, and why; ask once for each.

        ``"signal"`` and ``"deadline"`` ask for the last save; when that has been made, neither
        asks again and `should_stop` is true.

        Args:
            step: Training step, from 0.

        Raises:
            InvalidStep: The step is not a whole number from 0.
            SignalsElsewhere: There are signals to wait for, and this is not the main thread.
        """
        number = names.as_step(step)
        self._signals.start()
        is_periodic = schedule.is_periodic(number, self.save_period, self.ft_save_period)
        reason = self._scheduler.ask(is_periodic=is_periodic)
        if reason in ("signal", "deadline"):
            cause = self._signals.received if reason == "signal" else reason
            _logger.info("step %d is to be saved for the last time: %s", number, cause)
        return reason

    @property
    def should_stop(self) -> bool:
        """Whether a deadline or a signal ends the loop now: all that it has learnt is saved."""
        return self._scheduler.is_over

    # --- resuming -----------------------------------------------------------------------

    def resume(
        self, *, config: object = None, on_change: OnChange = "warn", checksums: bool = False
    ) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, to continue from; None to begin afresh.

        The newest of the line of training that was saved last: where training has gone back and
        saved lower steps, that is not the highest step, and a warning says so. Where the line is
        not known, as in runs that NeMo-RL has saved, it is the highest.

        Every file is compared with its manifest; what was written without one only has to have
        a training_info.json. What is newer and passed over is told in a warning each, and what
        was found damaged counts no more for best, latest and retention. That training continues
        there is recorded, and the next save has it as its parent.

        Args:
            config: What training will run with, a mapping or pydantic model, to be compared with
                what the checkpoint was saved with; None not to.
            on_change: ``"warn"`` names the changed keys, ``"refuse"`` raises an error that does. A
                configuration that is there and cannot be compared counts as changed; of a
                checkpoint without any only a warning says that nothing can be told.
            checksums: Also read the files that have checksums, all of them.

        Raises:
            ChecksumsUnavailable: Checksums are to be compared, and cannot be here.
            ConfigChanged: The configuration is another one, or cannot be compared, and that is
                refused.
            RuntimeError: An earlier background finalization failed.
            InvalidChoice: There is no such ``on_change``.
        """
        options = ResumeOptions(config, on_change, checksums)
        # A checkpoint that is still being finalized may be the newest, and must not become the
        # parent of the next save after this resume.
        self.finalize_pending()
        return self._resuming.find(options)

    def reject(self, checkpoint: Checkpoint, reason: str) -> Checkpoint | None:
        """Put aside a checkpoint that could not be loaded; return the next one, as `resume` does.

        It is kept on disk and reported, and is neither best nor latest, nor counted or deleted
        by retention; ``ckptdb unreject`` undoes that.

        Args:
            checkpoint: What `resume` has returned.
            reason: E.g. ``repr(error)``.

        Raises:
            NoCheckpointHere: It is of another run.
            ConfigChanged: As `resume`.
        """
        return self._resuming.reject(checkpoint, reason)

    # --- questions ----------------------------------------------------------------------

    def get_best_checkpoint_path(self) -> str | None:
        """Return the checkpoint with the best finite value of the metric.

        Ties go to the higher step. Without a metric, or when no checkpoint has it, the latest.
        """
        metric = self.metric_name
        if metric is None:
            return self.get_latest_checkpoint_path()
        self._parents.note_look()
        step, has_only_unranked = ranked_steps.find_best(self._index, metric, self._mode)
        if has_only_unranked:
            return self.get_latest_checkpoint_path()
        return self._directory.format_path(step)

    def get_latest_checkpoint_path(self) -> str | None:
        """Return the checkpoint with the highest step, or None."""
        self._parents.note_look()
        return self._directory.format_path(ranked_steps.find_latest(self._index))

    def get_top_checkpoint_paths(self, count: int) -> list[str]:
        """Return the checkpoints with the best finite values of the metric, the best first.

        Ties go to the higher step. Those that lack the metric, or a finite value of it, are left
        out, with the warnings of `get_best_checkpoint_path`. Without a metric, those with the
        highest steps.

        Args:
            count: At most so many.

        Raises:
            ValueError: The count is negative.
        """
        if count < 0:
            raise ValueError(f"count must be at least 0, not {count}")
        self._parents.note_look()
        steps = ranked_steps.find_top(self._index, self.metric_name, self._mode, count)
        top = f"{self._directory.answered}/"
        return [top + names.final_name(step) for step in steps]

    def load_training_info(self, checkpoint_path: PathLike | None = None) -> dict[str, Any] | None:
        """Return what training_info.json of a checkpoint holds; None without a path.

        What is loaded is what training continues from: the next save has it as its parent, and no
        prune of this process takes it.

        Raises:
            NoCheckpointHere: There is no such file.
            UnreadableInfo: It is there and is not a JSON object.
        """
        self._parents.note_look()
        if checkpoint_path is None:
            return None
        folder = Path(checkpoint_path)
        own = self._directory.find_moved(folder)
        if own is not None and own.exists():
            folder = own
        found = published_name.find_published_info(folder)
        if found is None:
            raise NoCheckpointHere(folder, f"has no {names.INFO}; it is not a checkpoint")
        load_history.note_load(folder, has_weights=False)
        return found

    @staticmethod
    def get_resume_paths(
        last_checkpoint_path: PathLike | None, *, model_component: str = "policy"
    ) -> tuple[Path | None, Path | None]:
        """Return where weights and optimizer state of a checkpoint are.

        Args:
            last_checkpoint_path: The checkpoint, None when starting fresh.
            model_component: Subdirectory of the model, ``"policy"`` or ``"value"``.

        Returns:
            Both None without a checkpoint. The optimizer is None when none was saved. For a
            Megatron checkpoint its path only says that the state is among the weights.
        """
        if not last_checkpoint_path:
            return None, None
        folder = load_history.find_absolute(Path(last_checkpoint_path))
        load_history.note_load(folder, has_weights=True)
        component = folder / model_component
        weights, optimizer = component / "weights", component / "optimizer"
        if optimizer.exists() or _has_megatron_optimizer(weights / "iter_0000000"):
            return weights, optimizer
        warnings.warn(
            f"Optimizer state not found at {optimizer}, nor among the weights in {weights}. "
            "The optimizer starts afresh.",
        )
        return weights, None

    # --- pieces -------------------------------------------------------------------------

    @property
    def _current_rules(self) -> CurrentRules:
        return CurrentRules(self._ranked_by, self._get_policy, self._prune)

    def _prune(self) -> None:
        """Prune after a save: a failure becomes a warning."""
        with warnings.warning_afterwards():
            self._warn_on_delete_failure(self._pruner.attempt(self.remove_old_checkpoints))

    @staticmethod
    def _warn_on_delete_failure(future: Future[None]) -> None:
        """Warn that pruning failed; silent when it did not."""
        error = future.exception()
        if error is not None:
            warnings.warn(
                f"Failed to prune old checkpoints: {error!r}. The new checkpoint is safe; "
                "`ckptdb gc` shows what could go."
            )


def validate_warm_start_checkpoint(warm_start: PathLike, model_component: str = "value") -> None:
    """Check that a checkpoint to start from holds the weights of a component.

    Raises:
        NoCheckpointHere: There are none; training would silently start cold.
    """
    weights = Path(warm_start) / model_component / "weights"
    if not str(warm_start).strip() or not weights.exists():
        why = "does not exist; point the warm start at a step_N directory"
        raise NoCheckpointHere(weights, why)


def _has_megatron_optimizer(iteration_dir: Path) -> bool:
    stored = (iteration_dir / "common.pt", iteration_dir / "metadata.json")
    if not any(file.exists() for file in stored):
        return False
    # Looked up in this module when it runs, because loops patch it here.
    return "optimizer" in _load_megatron_common_state_dict(iteration_dir)


def _load_megatron_common_state_dict(iteration_dir: Path) -> dict[str, Any]:
    """Load the state that a Megatron checkpoint keeps once for all ranks.

    Raises:
        RuntimeError: Megatron-Core is not installed.
    """
    try:
        from megatron.core.dist_checkpointing import (  # type: ignore[import-not-found]  # optional
            load_common_state_dict,
        )
    except ImportError as error:
        raise RuntimeError(
            f"Whether {iteration_dir} holds optimizer state can only be told by Megatron-Core; "
            "install megatron-core."
        ) from error
    # Megatron takes a Path too, but announces that it will not for long.
    state: dict[str, Any] = load_common_state_dict(str(iteration_dir))
    return state


def _load_checkpoint_history(checkpoint_dir: PathLike) -> list[tuple[int, str, dict[str, Any]]]:
    """Return step, path and training_info of every readable checkpoint, by step."""
    load_history.note_look(Path(checkpoint_dir))
    history = []
    for step, path in run_listing.list_finals(Path(checkpoint_dir)):
        try:
            history.append((step, str(path), load_info(path)[0]))
        except UnreadableInfo as error:
            _logger.info("skipped: %s", error)
    return history
