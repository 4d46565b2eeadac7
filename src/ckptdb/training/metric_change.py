"""Change of the metric that a run is ranked by: warned about, and applied by the second prune.

The first prune by a new metric keeps also what the rules by the metric before keep, so that a
mistake in the configuration deletes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ckptdb.core import warnings
from ckptdb.core.ranking import RankedBy
from ckptdb.disk import identity
from ckptdb.disk.publish import Publisher
from ckptdb.errors import CkptdbError
from ckptdb.retention import Policy

_logger = logging.getLogger("ckptdb")


class RankingChange:
    """The difference between a manager's metric and the one that its run has recorded.

    Args:
        publisher: Publisher of the run.
        is_accepted: Prune by the new metric at once, without a warning.
    """

    def __init__(self, publisher: Publisher, *, is_accepted: bool) -> None:
        self._publisher = publisher
        self._is_accepted = is_accepted
        self._has_warned = False

    def find_previous(self, policy: Policy) -> Policy | None:
        """Return the rules by the recorded metric, when they are other ones."""
        before = self._find_recorded(_find_ranking(policy))
        if before is None:
            return None
        previous = replace(policy, metric=before.metric, mode=before.mode)
        return None if previous.rules == policy.rules and not policy.at_most else previous

    def warn(self, ranked_by: RankedBy, get_policy: Callable[[], Policy]) -> None:
        """Warn once that a run is ranked by another metric from now on."""
        before = None if self._has_warned else self._find_recorded(ranked_by)
        # A manager that neither ranks nor deletes by a metric changes nothing.
        if before is None or (ranked_by.metric is None and not self.find_previous(get_policy())):
            return
        self._has_warned = True
        warnings.warn(
            f"{self._publisher.directory} was judged by {before} until now, and is by {ranked_by} "
            "from here on. The first prune keeps what either keeps, later ones go by the new one. "
            "If that is not meant, correct metric_name and higher_is_better; if it is, "
            "accept_metric_change=True prunes by the new one at once."
        )

    def settle(self, policy: Policy) -> None:
        """Record that a prune has applied the rules before for the last time."""
        try:
            self._publisher.record_pruned_by(_find_ranking(policy))
        except (OSError, CkptdbError) as error:
            # The next prune keeps the same checkpoints once more.
            _logger.warning(
                "%s: the metric of its prune is not recorded: %s", self._publisher.directory, error
            )

    def _find_recorded(self, ranked_by: RankedBy) -> RankedBy | None:
        """Return the recorded ranking of the run, when it is another one."""
        if self._is_accepted:
            return None
        try:
            before = identity.identify(self._publisher.directory).ranked_by
        except OSError:
            return None
        return None if before == ranked_by else before


def _find_ranking(policy: Policy) -> RankedBy:
    if policy.metric is None or policy.mode is None:
        return RankedBy()
    return RankedBy(policy.metric, policy.mode)
