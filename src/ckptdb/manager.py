"""CheckpointManager: one run, inside a training loop.

A drop-in for the module ``nemo_rl.utils.checkpoint``: the same names, signatures, warnings
and directories, with durable publishing and an index behind them.
"""

from __future__ import annotations

import glob  # noqa: F401
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.ranking import Mode, RankedBy
from ckptdb.core.recorded import Unranked
from ckptdb.core.records import Checkpoint, Problem, Trouble

# Loops written for NeMo-RL patch `glob` in this module; ckptdb itself never globs, because a
# directory's name may hold the characters that glob gives a meaning to.
from ckptdb.disk import (
    free_space,
    identity,
    names,
    observation,
    published_name,
    run_listing,
)
from ckptdb.disk.config_file import serialize_config
from ckptdb.disk.publish import Publisher
from ckptdb.disk.trainer_lock import TrainerLock
from ckptdb.disk.training_info import dump_info, load_info
from ckptdb.errors import (
    CkptdbError,
    DeletionIncomplete,
    JournalInDoubt,
    NoCheckpointHere,
    PlanChanged,
    UnreadableInfo,
)
from ckptdb.reconcile.location import find_location
from ckptdb.retention import Clause, Decision, Policy, RetentionPlan
from ckptdb.training import config as configuration
from ckptdb.training import deletions, load_history, prune_selection, schedule
from ckptdb.training.background import Background
from ckptdb.training.checksum_worker import ChecksumWorker
from ckptdb.training.config import CheckpointingConfig, PretrainedCheckpointConfig
from ckptdb.training.hooks import HookDispatcher
from ckptdb.training.index import RunIndex
from ckptdb.training.parents import ParentTracker
from ckptdb.training.prune_selection import PruneRules, Selection
from ckptdb.training.recent_saves import RecentSaves, SaveCost, find_recorded
from ckptdb.training.resuming import OnChange, Options, Resuming
from ckptdb.training.save_scheduler import SaveScheduler
from ckptdb.training.schedule import Limits, Reason
from ckptdb.training.signals import Signals

__all__ = [
    "CheckpointManager",
    "CheckpointingConfig",
    "PretrainedCheckpointConfig",
    "validate_warm_start_checkpoint",
]

PathLike = str | os.PathLike[str]
_logger = logging.getLogger("ckptdb")
_ADVICE = "Consider enabling val_at_end or adjusting val_period to align with max_steps."
_NOT_FINITE = "NaN and infinite values are never ranked; look at what computes them."


class CheckpointManager:
    """Saves, ranks and prunes the checkpoints of one run.

    Args:
        config: A mapping or pydantic model with the keys of `CheckpointingConfig`.
        options: The same keys as keywords; they win over the config.

    Raises:
        InvalidConfig: Lists everything that is wrong with the config.
        CatalogError: An explicitly chosen catalog cannot be used.
    """

    metric_name: str | None
    higher_is_better: bool
    save_period: int
    keep_top_k: int | None
    ft_keep_latest_k: int | None
    ft_save_period: int | None
    checkpoint_must_save_by: str | None
    keep: Sequence[Clause | str]
    save_optimizer: bool
    model_save_format: str | None
    save_consolidated: bool
    model_cache_dir: str
    model_repo_id: str
    is_peft: bool

    def __init__(self, config: object, **options: Any) -> None:
        settings = configuration.parse(config, options, find_direction=identity.find_direction)
        self.checkpoint_dir = settings.checkpoint_dir
        for name, value in settings.attributes.items():
            setattr(self, name, value)
        # Fixed now: a later chdir must not move the run. By name only, links stay links.
        self._directory = Path(os.path.abspath(settings.checkpoint_dir))
        self._cwd = None if settings.checkpoint_dir.is_absolute() else _find_cwd()
        if self._cwd is not None:
            load_history.note_relative(settings.checkpoint_dir, self._directory)
        if settings.catalog is not None:
            find_location(self._directory, settings.catalog)
        self._publisher = Publisher(
            self._directory,
            make_durable=settings.durable,
            # A manager that judges by no metric has nothing to say about the run's.
            metric=None if self.metric_name is None else (self.metric_name, self.higher_is_better),
            remember=not settings.accept_metric_change,
            trash_ttl_seconds=settings.trash_ttl_seconds,
        )
        self._accepts_metric_change = settings.accept_metric_change
        self._has_warned_of_metric = False
        self._hooks = HookDispatcher(settings.hooks)
        self._index = RunIndex(
            self._publisher,
            choice=settings.catalog,
            durable=settings.durable,
            on_problem=self._hooks.report_problem,
        )
        self._exclusive = settings.exclusive
        self.keep = settings.keep
        self._saves = False
        self._lease: TrainerLock | None = None
        self._parents = ParentTracker(self._directory, self._index)
        self._configs: dict[Path, dict[str, Any]] = {}
        self._config_step: int | None = None
        self._looked_for: set[str] = set()
        self._is_doubt_told = False
        self._background = Background()
        self._check_space = settings.check_space
        none: Sequence[SaveCost] = ()
        self._recent = RecentSaves(partial(self._index.query_stored, find_recorded, nothing=none))
        self._signals = Signals(settings.signals)
        ends_at: float | None = None
        if settings.slurm_deadline:
            ends_at = schedule.find_slurm_end(os.environ, now=time.time())
        limits = Limits(settings.must_save_by_seconds, ends_at)
        self._scheduler = SaveScheduler(limits, self._signals, self._recent, saves=settings.enabled)
        self._resuming = Resuming(self._index, self._publisher)
        self._checksum_worker = ChecksumWorker(self._publisher) if settings.checksums else None
        queues = (self._background, self._checksum_worker, self._hooks)
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
                self._discard(folder)
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
        number = names.as_step(step)
        content = dump_info(training_info)
        settings = None if run_config is None else serialize_config(run_config)
        pending = self._background.pending
        if pending is not None and pending.name == names.tmp_name(number):
            self.finalize_pending()
        self._publisher.check_place(number)
        if not self._saves:
            self._resuming.tell_obstructed(above=number)
        self._saves = True
        path = self._directory / names.tmp_name(number)
        self._scheduler.begin(path)
        with self._scheduler.dropping(path):
            if self._exclusive:
                self._lease = self._publisher.lock_trainer()
            self._warn_of_metric_change()
            self._make_sure_of_space(number)
            self._index.begin_save()
            self._parents.warn_before(number)
            with warnings.warning_afterwards():
                staged = self._publisher.stage(
                    number, content, None if settings is None else settings.content
                )
                self._parents.begin(path, number)
                changed = [staged.checkpoint, *staged.adopted, *staged.gone]
                self._index.record(changed, staged.span)
                self._hooks.report_deleted(staged.gone)
                self._hooks.report_published(staged.adopted)
                if settings is not None:
                    self._configs[path] = settings.mapping
        return path

    def finalize_checkpoint(self, checkpoint_path: PathLike) -> None:
        """Publish a checkpoint, then prune; both are done on return.

        Args:
            checkpoint_path: What `init_tmp_checkpoint` returned.

        Raises:
            NoCheckpointHere: There is no such directory in this run.
            SaveFailed: It could not be made durable; older checkpoints are untouched.
        """
        path = self._own(checkpoint_path)
        with warnings.warning_afterwards():
            with self._scheduler.dropping(path):
                self._publish(path)
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
        path = self._own(checkpoint_path)

        def finalize() -> None:
            try:
                with self._scheduler.dropping(path):
                    if wait_fn is not None:
                        wait_fn()
                    with warnings.warning_afterwards(raises=False):
                        self._publish(path)
            except BaseException as error:
                self._report("save", path, error)
                raise

        self._scheduler.hand_over(path)
        self._background.finalize(path, finalize, then=self._prune)

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
                self._lease = None

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
        self._warn_of_metric_change()
        with warnings.warning_afterwards():
            terms = self._find_terms(exclude_latest=exclude_latest)
            selection = prune_selection.select(self._index, self._directory, terms)
            if selection.removed:
                self._warn_of_unknown_metrics(terms.policy)
                self._retire(selection.removed)
            self._index.finish_repairs()
            self._settle(terms, selection)

    def plan_retention(self, *, exclude_latest: bool = True) -> RetentionPlan:
        """Say what `remove_old_checkpoints` would keep and remove now, and why.

        Args:
            exclude_latest: As there.
        """
        terms = self._find_terms(exclude_latest=exclude_latest)
        return prune_selection.plan_all(self._index, self._directory, terms)

    def apply_retention(self, planned: RetentionPlan) -> None:
        """Do what `plan_retention` has said, or nothing.

        Raises:
            PlanChanged: Something else would go by now.
            JournalInDoubt: As `remove_old_checkpoints`.
        """
        terms = self._find_terms(exclude_latest=planned.exclude_latest)
        selection = prune_selection.select(self._index, self._directory, terms)
        if {decision.uuid for decision in selection.removed} != {
            decision.uuid for decision in planned.gone
        }:
            raise PlanChanged([str(self.checkpoint_dir)])
        self._warn_of_metric_change()
        with warnings.warning_afterwards():
            self._retire(selection.removed)
            self._settle(terms, selection)

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

    def _make_sure_of_space(self, step: int) -> None:
        needed = self._recent.largest_bytes if self._check_space else None
        if not needed:
            return

        def empty_trash() -> None:
            self._background.wait()
            self._index.check_journal()
            self._empty_trash()

        def discard_unfinished() -> None:
            for tmp in observation.observe(self._directory, may_touch=True).tmps.values():
                if tmp.abandoned:
                    reason = "discarded: left unfinished, and another save had no space"
                    self._discard(tmp.checkpoint.path, reason=reason, uuid=tmp.checkpoint.uuid)
            self._background.wait()

        def prune() -> None:
            self._prune()
            self._background.wait()

        def empty_wholly() -> None:
            self._empty_trash(everything=True)

        remedies = (empty_trash, discard_unfinished, prune, empty_wholly)
        free_space.make_sure(self._directory, step, needed_bytes=needed, remedies=remedies)

    def _report(self, what: Trouble, where: Path, error: BaseException) -> None:
        self._hooks.report_problem(Problem(what, where, error))

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
        options = Options(config, on_change, checksums)
        # What is still being finalized may be the newest, and must not become the parent later.
        self.finalize_pending()
        return self._continue_from(self._resuming.find(options))

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
        self._parents.resume_from(None)  # should the next one be refused
        load_history.forget(self._directory, checkpoint.uuid)
        return self._continue_from(self._resuming.reject(checkpoint, reason))

    def _continue_from(self, found: Checkpoint | None) -> Checkpoint | None:
        self._parents.note_look()
        self._parents.resume_from(None if found is None else found.uuid)
        if found is not None:
            # Another manager of this process may be the one that saves.
            load_history.note_load(found.path, has_weights=True)
        if self._checksum_worker and found:
            self._checksum_worker.begin_after(found)
        return found

    # --- questions ----------------------------------------------------------------------

    def get_best_checkpoint_path(self) -> str | None:
        """Return the checkpoint with the best finite value of the metric.

        Ties go to the higher step. Without a metric, or when no checkpoint has it, the latest.
        """
        metric = self.metric_name
        if metric is None:
            return self.get_latest_checkpoint_path()
        self._parents.note_look()

        def find(
            catalog: Catalog, run_id: int, memo: dict[str, Any]
        ) -> tuple[int | None, Unranked]:
            unranked = _find_unranked(catalog, run_id, memo, metric)
            return catalog.find_best_step(run_id, metric, self._mode), unranked

        nothing: tuple[int | None, Unranked] = (None, Unranked())
        step, unranked = self._index.query(find, nothing=nothing)
        for ignored in _ignoring(unranked, metric):
            warnings.warn(ignored)
        if step is None and unranked != Unranked():
            finite = " with a finite value" if unranked.not_finite else ""
            advice = _NOT_FINITE if unranked.not_finite else _ADVICE
            warnings.warn(
                f"No checkpoints contain metric '{metric}'{finite}. Returning latest checkpoint. "
                f"{advice}",
            )
            return self.get_latest_checkpoint_path()
        return self._shown(step)

    def get_latest_checkpoint_path(self) -> str | None:
        """Return the checkpoint with the highest step, or None."""
        self._parents.note_look()
        return self._shown(
            self._index.query(lambda catalog, run_id, _: catalog.find_latest_step(run_id),
                            nothing=None)
        )  # fmt: skip

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
        metric = self.metric_name

        def find(
            catalog: Catalog, run_id: int, memo: dict[str, Any]
        ) -> tuple[tuple[int, ...], Unranked]:
            if metric is None:
                return catalog.newest_steps(run_id, count), Unranked()
            unranked = _find_unranked(catalog, run_id, memo, metric)
            return catalog.top_steps(run_id, metric, self._mode, count), unranked

        nothing: tuple[tuple[int, ...], Unranked] = ((), Unranked())
        steps, unranked = self._index.query(find, nothing=nothing)
        for ignored in _ignoring(unranked, metric):
            warnings.warn(ignored)
        top = f"{self._answered_directory}/"
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
        own = self._find_own(folder)
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
    def _mode(self) -> Mode:
        return "max" if self.higher_is_better else "min"

    @property
    def _policy(self) -> Policy:
        return Policy(
            save_period=self.save_period,
            keep_top_k=self.keep_top_k,
            ft_keep_latest_k=self.ft_keep_latest_k,
            metric=self.metric_name,
            mode=None if self.metric_name is None else self._mode,
            keep=self.keep,
        )

    def _find_terms(self, *, exclude_latest: bool) -> PruneRules:
        in_use = self._parents.find_in_use(with_saved=exclude_latest)
        return PruneRules(self._policy, exclude_latest, in_use, self._find_previous_policy())

    @property
    def _ranked_by(self) -> RankedBy:
        return RankedBy() if self.metric_name is None else RankedBy(self.metric_name, self._mode)

    def _find_previous_ranking(self) -> RankedBy | None:
        """Return by what the run was ranked until now, when that is something else."""
        if self._accepts_metric_change:
            return None
        try:
            before = identity.identify(self._directory).ranked_by
        except OSError:
            return None
        return None if before == self._ranked_by else before

    def _find_previous_policy(self) -> Policy | None:
        """Return the rules by the metric of before, when these are others."""
        before = self._find_previous_ranking()
        if before is None:
            return None
        policy = self._policy
        old = replace(policy, metric=before.metric, mode=before.mode)
        return None if old.rules == policy.rules and not policy.at_most else old

    def _warn_of_metric_change(self) -> None:
        before = None if self._has_warned_of_metric else self._find_previous_ranking()
        # Who judges by no metric, and deletes by none, changes nothing.
        if before is None or (self.metric_name is None and not self._find_previous_policy()):
            return
        self._has_warned_of_metric = True
        warnings.warn(
            f"{self._directory} was judged by {before} until now, and is by {self._ranked_by} from "
            "here on. The first prune keeps what either keeps, later ones go by the new one. If "
            "that is not meant, correct metric_name and higher_is_better; if it is, "
            "accept_metric_change=True prunes by the new one at once."
        )

    def _settle(self, terms: PruneRules, selection: Selection) -> None:
        """Note that the rules of before have had their say."""
        if terms.previous is None or not selection.is_settled:
            return
        try:
            self._publisher.record_pruned_by(self._ranked_by)
        except (OSError, CkptdbError) as error:
            # The next prune keeps it all once more.
            _logger.warning("%s: by what it was pruned is not recorded: %s", self._directory, error)

    def _own(self, checkpoint_path: PathLike) -> Path:
        path = Path(checkpoint_path)
        path = self._find_own(path) or Path(os.path.abspath(path))
        names.get_tmp_step(path)
        if path.parent != self._directory:
            raise NoCheckpointHere(path, f"is not in this run's directory {self._directory}")
        return path

    def _find_own(self, given: Path) -> Path | None:
        """Return where a path leads that was made of a relative checkpoint_dir before a chdir."""
        if given.is_absolute() or self._cwd is None or self._cwd == _find_cwd():
            return None
        is_own = os.path.normpath(given.parent) == os.path.normpath(self.checkpoint_dir)
        return self._directory / given.name if is_own else None

    @property
    def _answered_directory(self) -> Path:
        """The directory as it was given; absolute, when that leads elsewhere by now."""
        is_same = self._cwd is None or self._cwd == _find_cwd()
        return self.checkpoint_dir if is_same else self._directory

    def _shown(self, step: int | None) -> str | None:
        return None if step is None else str(self._answered_directory / names.final_name(step))

    def _publish(self, path: Path) -> None:
        parent = self._parents.find_parent(path)
        published = self._publisher.publish(path, parent=parent)
        self._scheduler.end(path, published.checkpoint.size_bytes)
        self._parents.publish(path, published.checkpoint.uuid)
        if self._checksum_worker:
            self._checksum_worker.add(published.checkpoint)
        replaced = published.replaced
        gone = [replaced] if replaced else []
        config = self._configs.pop(path, None)
        there = [published.checkpoint] if published.checkpoint.status == "final" else []
        if not there:
            config = None
        self._config_step = None if config is None else published.checkpoint.step
        self._index.record([*gone, published.checkpoint], published.span, config=config)
        # In this order: whoever goes by the step alone must not take the new one for the old.
        self._hooks.report_deleted(gone)
        self._hooks.report_published(there)
        if replaced is not None:
            self._warn_if_pinned(replaced)
            self._background.submit(self._empty_trash)

    def _retire(self, removed: Sequence[Decision]) -> None:
        if not removed:
            return
        self._index.check_journal()
        self._index.ensure_deletable()
        failure: DeletionIncomplete | None = None
        try:
            retired = deletions.retire(self._publisher, removed)
        except DeletionIncomplete as error:
            failure, retired = error, error.done
        for checkpoint in retired.gone:
            _logger.info("retired %s: %s", checkpoint.path, checkpoint.deleted_reason)
        self._index.record(retired.gone, retired.span, config_step=self._config_step)
        self._hooks.report_deleted(retired.gone)
        self._background.submit(self._empty_trash)
        if failure is not None:
            raise failure

    def _warn_of_unknown_metrics(self, policy: Policy) -> None:
        if self._looked_for.issuperset(policy.named):
            return
        self._looked_for.update(policy.named)
        found = prune_selection.find_unknown_metrics(self._index, policy)
        for metric in (*found.unknown, *found.never_finite):
            known = ", ".join(found.known) or "none"
            instead = (
                "the newest are kept in place of the best"
                if metric in policy.ranked_by
                else "a rule that names it keeps none"
            )
            what = (
                f"; {instead}. Metrics there are: {known}"
                if metric in found.unknown
                else f" with a finite value, only NaN or infinite ones; {instead}"
            )
            warnings.warn(f"No checkpoint has ever had the metric '{metric}'{what}.")

    def _pinned_gone(self) -> tuple[str, ...]:
        def find(catalog: Catalog, run_id: int, _: object) -> tuple[str, ...]:
            return catalog.pinned_gone(run_id)

        nothing: tuple[str, ...] = ()
        # A pin is a line in the journal, and changes the stamp whatever the clock says.
        return self._index.query(find, nothing=nothing, trust_own=True)

    def _warn_if_pinned(self, replaced: Checkpoint) -> None:
        if replaced.uuid in self._pinned_gone():
            warnings.warn(
                f"The pinned checkpoint at step {replaced.step} was replaced by a new save; its "
                "bytes stay in .ckptdb/trash until it is unpinned."
            )

    def _prune(self) -> None:
        with warnings.warning_afterwards():
            self._prune_or_warn()

    def _prune_or_warn(self) -> None:
        future: Future[None] = Future()
        try:
            self.remove_old_checkpoints()
            future.set_result(None)
        except JournalInDoubt as error:
            self._tell_of_doubt(error)
            return
        except Exception as error:  # noqa: BLE001  # a failed prune must not break a save
            future.set_exception(error)
            self._report("prune", self._directory, error)
        self._warn_on_delete_failure(future)

    @staticmethod
    def _warn_on_delete_failure(future: Future[None]) -> None:
        """Warn that pruning failed; silent when it did not."""
        error = future.exception()
        if error is not None:
            warnings.warn(
                f"Failed to prune old checkpoints: {error!r}. The new checkpoint is safe; "
                "`ckptdb gc` shows what could go."
            )

    def _empty_trash(self, *, everything: bool = False) -> None:
        try:
            # In the background nobody is asked: the loop has begun to change the run again.
            self._index.ensure_deletable()
            self._publisher.empty_trash(everything=everything)
        except JournalInDoubt as error:
            self._tell_of_doubt(error)
        except OSError as error:
            self._report("prune", self._directory, error)
            if isinstance(error, DeletionIncomplete):
                warnings.warn(f"Failed to prune old checkpoints: {error}")
                return
            warnings.warn(
                f"Failed to prune old checkpoints: {error!r}. They are out of sight in "
                f"{self._directory}/.ckptdb/trash; `ckptdb gc` tries again."
            )

    def _tell_of_doubt(self, error: JournalInDoubt) -> None:
        """Say once that nothing is deleted any more; saving goes on."""
        if self._is_doubt_told:
            return
        self._is_doubt_told = True
        self._report("prune", self._directory, error)
        warnings.warn(f"{error} Checkpoints are saved as usual.")

    def _discard(
        self, path: Path, *, reason: str = "discarded: the save raised an error",
        uuid: str | None = None,
    ) -> None:  # fmt: skip
        self._parents.discard(path)
        try:
            self._index.check_journal()
            retired = self._publisher.discard(path, reason=reason, uuid=uuid)
            self._index.record(retired.gone, retired.span)
            self._hooks.report_deleted(retired.gone)
            self._background.submit(self._empty_trash)
        except (OSError, CkptdbError) as error:
            _logger.warning("%s could not be discarded: %s", path, error)
            self._report("discard", path, error)


def _find_cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it is gone; whatever is relative leads nowhere


def _find_unranked(catalog: Catalog, run_id: int, memo: dict[str, Any], metric: str) -> Unranked:
    if metric not in memo:
        memo[metric] = catalog.find_unranked(run_id, metric)
    found: Unranked = memo[metric]
    return found


def _ignoring(unranked: Unranked, metric: str | None) -> Iterator[str]:
    """Yield a warning for each reason for which checkpoints are not ranked."""
    kinds = (
        (unranked.lacking, f"that do not have metric '{metric}'. {_ADVICE}"),
        (unranked.not_finite, f"whose value of metric '{metric}' is not finite. {_NOT_FINITE}"),
    )
    for steps, why in kinds:
        if steps:
            yield f"Ignoring {len(steps)} checkpoint(s) at step(s) {list(steps)} {why}"


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
