"""Errors about metrics and their direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptdb.errors.base import CkptdbError
from ckptdb.errors.text import listed


class UnknownMetric(CkptdbError, LookupError):
    """No checkpoint has the requested metric.

    Attributes:
        known: Metrics that checkpoints have, by name.
    """

    def __init__(self, metric: str, known: Iterable[str], *, run: str | None = None) -> None:
        self.metric = metric
        self.known = tuple(sorted(known))
        names = ", ".join(self.known)
        hint = f"known metrics: {names}" if names else "no checkpoint has any metric"
        where = "" if run is None else f" of {run!r}"
        super().__init__(f"No checkpoint{where} has the metric {metric!r}; {hint}.")


class NothingFinite(UnknownMetric):
    """The metric exists, but no requested checkpoint has a finite value of it.

    Attributes:
        steps: By run, the steps at which it is NaN or infinite, as far as they were looked for.
    """

    def __init__(
        self,
        metric: str,
        runs: Sequence[str] | Mapping[str, Sequence[int]],
        *,
        known: Iterable[str] = (),
    ) -> None:
        super().__init__(metric, known)
        self.steps = dict(runs) if isinstance(runs, Mapping) else {}
        of = ", ".join(f"{run!r}{_at_steps(self.steps.get(run, ()))}" for run in runs)
        hint = f"; known metrics: {', '.join(self.known)}" if self.known else ""
        where = f" of {of}" if of else ""
        message = f"No checkpoint{where} has a finite value of the metric {metric!r}{hint}."
        self.args = (message,)


class MetricGone(UnknownMetric):
    """Only deleted, rejected or damaged checkpoints have the metric."""

    def __init__(self, metric: str, runs: Sequence[str], known: Iterable[str]) -> None:
        super().__init__(metric, known)
        of = f" of {listed(map(repr, runs))}" if runs else ""
        others = [name for name in self.known if name != metric]
        hint = f"; other metrics: {', '.join(others)}" if others else ""
        message = (
            f"No live checkpoint{of} has a value of the metric {metric!r}: those that have it are "
            f"deleted, rejected or damaged (`ckptdb best --ever` ranks deleted ones){hint}."
        )
        self.args = (message,)


def _at_steps(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    more = ", …" if len(steps) > 10 else ""  # noqa: PLR2004  # a line
    return f" (NaN or infinite at step(s) {', '.join(map(str, steps[:10]))}{more})"


class UnknownDirection(CkptdbError, ValueError):
    """The direction of a metric (low or high is better) is not known."""

    def __init__(self, metric: str | None, *, run: str | None = None) -> None:
        if metric is None:
            what = "" if run is None else f" {run!r}"
            message = f"No metric to rank{what} by: name one (--metric NAME --mode min|max)."
        else:
            message = f"Say whether {metric!r} is better low or high (--mode min|max)."
        super().__init__(message)


class MetricNotChosen(CkptdbError, ValueError):
    """No metric was named to draw, and the runs do not share one."""

    def __init__(self, metrics: Iterable[str | None]) -> None:
        own = ", ".join(sorted(map(str, metrics)))
        why = f"are judged by several ({own})" if own else "have none of their own"
        super().__init__(f"The runs here {why}; name a metric: `ckptdb plot METRIC`.")
