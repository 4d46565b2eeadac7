"""Steps of a run's best and latest checkpoints, with warnings about those that are not ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.ranking import Mode
from ckptdb.core.recorded import Unranked
from ckptdb.training.index import RunIndex

_ADVICE = "Consider enabling val_at_end or adjusting val_period to align with max_steps."
_NOT_FINITE = "NaN and infinite values are never ranked; look at what computes them."


def find_latest(index: RunIndex) -> int | None:
    """Return the highest step."""
    return index.query(
        lambda catalog, run_id, _: catalog.ranking.find_latest_step(run_id), nothing=None
    )


def find_best(index: RunIndex, metric: str, mode: Mode) -> tuple[int | None, bool]:
    """Return the step with the best finite value of a metric.

    Warns of checkpoints that are not ranked.

    Returns:
        The step, None without one; and whether there are checkpoints and none is ranked.
    """

    def find(catalog: Catalog, run_id: int, memo: dict[str, Any]) -> tuple[int | None, Unranked]:
        unranked = _find_unranked(catalog, run_id, memo, metric)
        return catalog.ranking.find_best_step(run_id, metric, mode), unranked

    nothing: tuple[int | None, Unranked] = (None, Unranked())
    step, unranked = index.query(find, nothing=nothing)
    for text in _describe_unranked(unranked, metric):
        warnings.warn(text)
    has_only_unranked = step is None and unranked != Unranked()
    if has_only_unranked:
        finite = " with a finite value" if unranked.not_finite else ""
        advice = _NOT_FINITE if unranked.not_finite else _ADVICE
        warnings.warn(
            f"No checkpoints contain metric '{metric}'{finite}. Returning latest checkpoint. "
            f"{advice}",
        )
    return step, has_only_unranked


def find_top(index: RunIndex, metric: str | None, mode: Mode, count: int) -> tuple[int, ...]:
    """Return the steps with the best finite values of a metric; without one, the highest steps.

    Warns of checkpoints that are not ranked.
    """

    def find(
        catalog: Catalog, run_id: int, memo: dict[str, Any]
    ) -> tuple[tuple[int, ...], Unranked]:
        if metric is None:
            return catalog.ranking.newest_steps(run_id, count), Unranked()
        unranked = _find_unranked(catalog, run_id, memo, metric)
        return catalog.ranking.top_steps(run_id, metric, mode, count), unranked

    nothing: tuple[tuple[int, ...], Unranked] = ((), Unranked())
    steps, unranked = index.query(find, nothing=nothing)
    for text in _describe_unranked(unranked, metric):
        warnings.warn(text)
    return steps


def _find_unranked(catalog: Catalog, run_id: int, memo: dict[str, Any], metric: str) -> Unranked:
    if metric not in memo:
        memo[metric] = catalog.ranking.unranked(run_id, metric)
    found: Unranked = memo[metric]
    return found


def _describe_unranked(unranked: Unranked, metric: str | None) -> Iterator[str]:
    """Yield a warning for each reason for which checkpoints are not ranked."""
    kinds = (
        (unranked.lacking, f"that do not have metric '{metric}'. {_ADVICE}"),
        (unranked.not_finite, f"whose value of metric '{metric}' is not finite. {_NOT_FINITE}"),
    )
    for steps, why in kinds:
        if steps:
            yield f"Ignoring {len(steps)} checkpoint(s) at step(s) {list(steps)} {why}"
