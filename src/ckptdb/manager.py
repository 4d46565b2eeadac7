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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ckptdb.core import warnings
from ckptdb.core.records import Checkpoint
from ckptdb.disk import names
from ckptdb.retention import RetentionPlan
from ckptdb.training import checkpoint_files, ranked_steps, resume_paths, schedule
from ckptdb.training.assembly import AssembledManager
from ckptdb.training.background import shutdown_beside_error
from ckptdb.training.checkpoint_files import (
    load_checkpoint_history as _load_checkpoint_history,  # noqa: F401  # NeMo-RL's name
)
from ckptdb.training.checkpoint_files import validate_warm_start_checkpoint
from ckptdb.training.config import CheckpointingConfig, PretrainedCheckpointConfig
from ckptdb.training.config_change import OnChange
from ckptdb.training.pruning import CurrentRules
from ckptdb.training.resume_paths import (
    load_megatron_common_state_dict as _load_megatron_common_state_dict,
)
from ckptdb.training.resuming import ResumeOptions
from ckptdb.training.schedule import SaveReason

__all__ = [
    "CheckpointManager",
    "CheckpointingConfig",
    "PretrainedCheckpointConfig",
    "validate_warm_start_checkpoint",
]

PathLike = str | os.PathLike[str]
_logger = logging.getLogger("ckptdb")


class CheckpointManager(AssembledManager):
    """Saves, ranks and prunes the checkpoints of one run.

    Args:
        config: A mapping or pydantic model with the keys of `CheckpointingConfig`.
        options: The same keys as keywords; they win over the config.

    Raises:
        InvalidConfig: Lists everything that is wrong with the config.
        CatalogError: An explicitly chosen catalog cannot be used.
    """

    def __init__(self, config: object, **options: Any) -> None:
        super().__init__(config, options)

    # --- saving -------------------------------------------------------------------------

    @contextmanager
    def save(
        self, step: int, metrics: Mapping[str, Any], *, config: object = None
    ) -> Iterator[Path]:
        """Yield a directory to write into; publish it on exit, discard it on an error.

        Args:
            step: Training step, from 0.
            metrics: Content of training_info.json; its numbers are the metrics.
            config: The run's configuration, a mapping or pydantic model.
        """
        folder = self.init_tmp_checkpoint(step, metrics, config)
        with self._saver.discarding(folder):
            yield folder
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
            UnwritableInfo: The info or the config cannot be written; no file was opened.
            RunInUse: Another process saves into this run.
            NotEnoughSpace: The disk has less space than recent checkpoints took.
            StepTaken: Something that is no checkpoint directory has the step's name.
            StepInUse: Another process is writing this step.
        """
        return self._saver.stage(step, training_info, run_config, self._current_rules)

    def finalize_checkpoint(self, checkpoint_path: PathLike) -> None:
        """Publish a checkpoint, then prune; both are done on return.

        Args:
            checkpoint_path: The path from `init_tmp_checkpoint`.

        Raises:
            NoCheckpointHere: There is no such directory in this run.
            SaveFailed: The checkpoint could not be made durable; older checkpoints are untouched.
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
            checkpoint_path: The path from `init_tmp_checkpoint`; nothing else may write to it.
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
            # One queue may hand work to another.
            while any(queue.drain() for queue in self._queues):
                pass
            self._signals.stop()
            self._index.close_quietly()
            # After an interrupted wait a finalization may still be running.
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
        else:
            shutdown_beside_error(self.shutdown)
        return False

    # --- pruning ------------------------------------------------------------------------

    def remove_old_checkpoints(self, exclude_latest: bool = True) -> None:  # noqa: FBT001, FBT002  # the drop-in signature
        """Retire every checkpoint that no retention rule keeps.

        A checkpoint that this process continues from stays whatever the rules say.

        Args:
            exclude_latest: Always keep the highest step, and the last save of this manager;
                otherwise the rules decide about them, too.

        Raises:
            JournalInDoubt: The run's journal is damaged, or the catalog contradicts it; nothing
                is deleted.
        """
        self._pruner.prune(self._current_rules, exclude_latest=exclude_latest)

    def plan_retention(self, *, exclude_latest: bool = True) -> RetentionPlan:
        """Return what `remove_old_checkpoints` would keep and remove now, and why."""
        return self._pruner.plan(self._current_rules, exclude_latest=exclude_latest)

    def apply_retention(self, planned: RetentionPlan) -> None:
        """Carry out a plan of `plan_retention`, or nothing.

        Raises:
            PlanChanged: Other checkpoints would go by now.
            JournalInDoubt: As `remove_old_checkpoints`.
        """
        self._pruner.apply(planned, self._current_rules)

    # --- when to save -------------------------------------------------------------------

    def should_save(self, step: int) -> SaveReason | None:
        """Return the reason to save the step that has just ended, None for none; call once a step.

        ``"signal"`` and ``"deadline"`` ask for the last save; after it neither is returned again,
        and `should_stop` is true.

        Args:
            step: Training step, from 0.

        Raises:
            InvalidStep: The step is not a whole number from 0.
            SignalsElsewhere: Signals are configured, and this is not the main thread.
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
        """Whether a deadline or a signal ends the loop now; all steps are saved."""
        return self._scheduler.is_over

    # --- resuming -----------------------------------------------------------------------

    def resume(
        self, *, config: object = None, on_change: OnChange = "warn", checksums: bool = False
    ) -> Checkpoint | None:
        """Return the newest whole checkpoint, to continue from; None to start fresh.

        That is the newest checkpoint of the line of training that was saved last. After training
        has gone back and saved lower steps it is not the highest step, and a warning says so;
        where the line is not known, as in runs of NeMo-RL, it is the highest.

        Every file is compared with the manifest; a checkpoint without one only needs a
        training_info.json. Each newer checkpoint that is passed over is named in a warning. A
        damaged one no longer counts for best, latest and retention. The resumption is recorded,
        and the next save has the checkpoint as its parent.

        Args:
            config: Configuration of this training, a mapping or pydantic model, to compare with
                the one of the checkpoint; None to compare none.
            on_change: ``"warn"`` names the changed keys, ``"refuse"`` raises an error that names
                them. A configuration that cannot be compared counts as changed; a checkpoint
                without one only causes a warning.
            checksums: Also read and compare all files that have checksums.

        Raises:
            ChecksumsUnavailable: The library for checksums is not installed.
            ConfigChanged: The configuration has changed, and that is refused.
            RuntimeError: An earlier background finalization failed.
            InvalidChoice: There is no such ``on_change``.
        """
        options = ResumeOptions(config, on_change, checksums)
        # A checkpoint that is still being finalized may be the newest, and must not become the
        # parent of the next save after this resume.
        self.finalize_pending()
        return self._resuming.find(options)

    def reject(self, checkpoint: Checkpoint, reason: str) -> Checkpoint | None:
        """Reject a checkpoint that could not be loaded; return the next one, as `resume` does.

        A rejected checkpoint stays on disk. It is neither best nor latest, and retention neither
        counts nor deletes it; ``ckptdb unreject`` undoes that.

        Args:
            checkpoint: The checkpoint that `resume` has returned.
            reason: E.g. ``repr(error)``.

        Raises:
            NoCheckpointHere: The checkpoint belongs to another run.
            ConfigChanged: As `resume`.
        """
        return self._resuming.reject(checkpoint, reason)

    # --- paths --------------------------------------------------------------------------

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

        Ties go to the higher step. Checkpoints without a finite value of the metric are left out,
        with the warnings of `get_best_checkpoint_path`. Without a metric, the highest steps.

        Args:
            count: Maximum number of paths.

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
        """Return the content of a checkpoint's training_info.json; None without a path.

        Training continues from the checkpoint that was loaded: it is the parent of the next save,
        and no prune of this process deletes it.

        Raises:
            NoCheckpointHere: There is no such file.
            UnreadableInfo: The file is not a JSON object.
        """
        self._parents.note_look()
        if checkpoint_path is None:
            return None
        folder = self._directory.find_existing(Path(checkpoint_path))
        return checkpoint_files.load_published_info(folder)

    @staticmethod
    def get_resume_paths(
        last_checkpoint_path: PathLike | None, *, model_component: str = "policy"
    ) -> tuple[Path | None, Path | None]:
        """Return where weights and optimizer state of a checkpoint are.

        Args:
            last_checkpoint_path: The checkpoint, None when starting fresh.
            model_component: Subdirectory of the model, ``"policy"`` or ``"value"``.

        Returns:
            Both None without a checkpoint. The optimizer is None when none was saved; for a
            Megatron checkpoint its path only means that the state is stored with the weights.
        """
        if not last_checkpoint_path:
            return None, None
        return resume_paths.find(
            Path(last_checkpoint_path),
            model_component,
            # A name of this module, looked up at each call: loops patch it here.
            load_common_state=_load_megatron_common_state_dict,
        )

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
