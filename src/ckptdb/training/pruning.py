"""Pruning of a run by its manager: select, retire, empty the trash, and warn of what fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.ranking import RankedBy
from ckptdb.core.records import Checkpoint
from ckptdb.errors import DeletionIncomplete, JournalInDoubt, PlanChanged
from ckptdb.retention import Decision, Policy, RetentionPlan
from ckptdb.training import deletions, prune_selection
from ckptdb.training.metric_change import RankingChange
from ckptdb.training.prune_selection import PruneRules, PruneSelection
from ckptdb.training.run_parts import RunParts

_logger = logging.getLogger("ckptdb")


@dataclass(frozen=True, slots=True)
class CurrentRules:
    """Rules of a manager as its attributes are now; a loop may change them at any time.

    Attributes:
        get_policy: Returns the policy; raises when the attributes make no sense.
        prune: Prunes as after a save: a failure becomes a warning.
    """

    ranked_by: RankedBy
    get_policy: Callable[[], Policy]
    prune: Callable[[], None]


class Pruner:
    """Deletes the checkpoints of a run that no retention rule keeps.

    Args:
        parts: Parts of the manager.
        metric_change: Change of the metric that ranks the run.
    """

    def __init__(self, parts: RunParts, metric_change: RankingChange) -> None:
        self._parts = parts
        self._metric_change = metric_change
        self._checked_metrics: set[str] = set()
        self._has_warned_of_doubt = self._has_warned_of_contradiction = False

    def prune(self, current: CurrentRules, *, exclude_latest: bool) -> None:
        """Retire every checkpoint that no rule keeps; see `remove_old_checkpoints`."""
        self._metric_change.warn(current.ranked_by, current.get_policy)
        with warnings.warning_afterwards():
            rules = self._make_rules(current.get_policy(), exclude_latest=exclude_latest)
            selection = self._select(rules)
            if selection.removed:
                self._warn_of_unknown_metrics(rules.policy)
                self._retire(selection.removed)
            elif selection.is_contradicted:
                self._warn_of_contradiction()
            self._parts.index.finish_repairs()
            self._settle(rules, selection)

    def plan(self, current: CurrentRules, *, exclude_latest: bool) -> RetentionPlan:
        """Return the plan of a prune."""
        rules = self._make_rules(current.get_policy(), exclude_latest=exclude_latest)
        return prune_selection.plan_all(self._parts.index, self._parts.directory, rules)

    def apply(self, planned: RetentionPlan, current: CurrentRules) -> None:
        """Carry out a plan, or nothing.

        Raises:
            PlanChanged: Other checkpoints would go by now.
        """
        rules = self._make_rules(current.get_policy(), exclude_latest=planned.exclude_latest)
        selection = self._select(rules)
        if {one.uuid for one in selection.removed} != {one.uuid for one in planned.gone}:
            raise PlanChanged([str(self._parts.directory)])
        self._metric_change.warn(current.ranked_by, current.get_policy)
        with warnings.warning_afterwards():
            if selection.removed:
                self._retire(selection.removed)
            self._settle(rules, selection)

    def attempt(self, prune: Callable[[], None]) -> Future[None]:
        """Prune after a save, which must not fail because of it.

        Args:
            prune: Prunes, and may raise.

        Returns:
            The result, with the error if there was one. A doubt about the journal is no error of
            a prune: it is warned about once.
        """
        future: Future[None] = Future()
        try:
            prune()
            future.set_result(None)
        except JournalInDoubt as error:
            self._warn_of_doubt(error)
            future.set_result(None)
        except Exception as error:  # noqa: BLE001  # a failed prune must not break a save
            future.set_exception(error)
            self._parts.report("prune", self._parts.directory, error)
        return future

    def empty_trash(self, *, everything: bool = False) -> None:
        """Remove the bytes of retired checkpoints; warn when that fails.

        Args:
            everything: Also those of checkpoints that can still be undeleted.
        """
        directory = self._parts.directory
        try:
            # No look for doubt in the background: the loop has begun to change the run again.
            self._parts.index.ensure_deletable()
            self._parts.publisher.empty_trash(everything=everything)
        except JournalInDoubt as error:
            self._warn_of_doubt(error)
        except DeletionIncomplete as error:
            self._parts.report("prune", directory, error)
            warnings.warn(f"Failed to prune old checkpoints: {error}")
        except OSError as error:
            self._parts.report("prune", directory, error)
            warnings.warn(
                f"Failed to prune old checkpoints: {error!r}. They are out of sight in "
                f"{directory}/.ckptdb/trash; `ckptdb gc` tries again."
            )

    def empty_trash_later(self) -> None:
        """Remove the bytes of retired checkpoints in the background."""
        self._parts.background.submit(self.empty_trash)

    def warn_if_pinned(self, replaced: Checkpoint) -> None:
        """Warn when a save has replaced a pinned checkpoint."""

        def find(catalog: Catalog, run_id: int, _: object) -> tuple[str, ...]:
            return catalog.checkpoints.pinned_gone(run_id)

        nothing: tuple[str, ...] = ()
        # A pin is a line in the journal, and changes the stamp whatever the clock says.
        pinned = self._parts.index.query(find, nothing=nothing, trust_own=True)
        if replaced.uuid in pinned:
            warnings.warn(
                f"The pinned checkpoint at step {replaced.step} was replaced by a new save; its "
                "bytes stay in .ckptdb/trash until it is unpinned."
            )

    def _make_rules(self, policy: Policy, *, exclude_latest: bool) -> PruneRules:
        in_use = self._parts.parents.find_in_use(with_saved=exclude_latest)
        previous = self._metric_change.find_previous(policy)
        return PruneRules(policy, exclude_latest, in_use, previous)

    def _select(self, rules: PruneRules) -> PruneSelection:
        return prune_selection.select(self._parts.index, self._parts.directory, rules)

    def _retire(self, removed: Sequence[Decision]) -> None:
        parts = self._parts
        parts.index.check_journal()
        parts.index.ensure_deletable()
        failure: DeletionIncomplete | None = None
        try:
            retired = deletions.retire(parts.publisher, removed)
        except DeletionIncomplete as error:
            failure, retired = error, error.done
        for checkpoint in retired.gone:
            _logger.info("retired %s: %s", checkpoint.path, checkpoint.deleted_reason)
        parts.changes.record(retired.gone, retired.span, gone=retired.gone)
        self.empty_trash_later()
        if failure is not None:
            raise failure

    def _settle(self, rules: PruneRules, selection: PruneSelection) -> None:
        if rules.previous is not None and selection.is_settled:
            self._metric_change.settle(rules.policy)

    def _warn_of_unknown_metrics(self, policy: Policy) -> None:
        if self._checked_metrics.issuperset(policy.named):
            return
        self._checked_metrics.update(policy.named)
        found = prune_selection.find_unknown_metrics(self._parts.index, policy)
        for metric in (*found.unknown, *found.never_finite):
            instead = (
                "the newest are kept in place of the best"
                if metric in policy.ranked_by
                else "a rule that names it keeps none"
            )
            detail = (
                f"; {instead}. Metrics there are: {', '.join(found.known) or 'none'}"
                if metric in found.unknown
                else f" with a finite value, only NaN or infinite ones; {instead}"
            )
            warnings.warn(f"No checkpoint has ever had the metric '{metric}'{detail}.")

    def _warn_of_doubt(self, error: JournalInDoubt) -> None:
        """Warn once that nothing is deleted any more; saving goes on."""
        if self._has_warned_of_doubt:
            return
        self._has_warned_of_doubt = True
        self._parts.report("prune", self._parts.directory, error)
        warnings.warn(f"{error} Checkpoints are saved as usual.")

    def _warn_of_contradiction(self) -> None:
        """Warn once that nothing was deleted, because index and files disagree."""
        if self._has_warned_of_contradiction:
            return
        self._has_warned_of_contradiction = True
        warnings.warn(
            f"Nothing was pruned in {self._parts.directory}: the catalog and the files disagree "
            "about its checkpoints, also after all files were read again. The next prune tries "
            "again; `ckptdb check` names what differs."
        )
