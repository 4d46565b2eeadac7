"""Ranking checkpoints: the best by one metric or by two, and the latest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from ckptdb.catalog.selection import By, Selection
from ckptdb.core.conditions import (
    COLUMNS,
    Condition,
    parse,
    written,
)
from ckptdb.core.ranking import MODES, Mode
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint, Run
from ckptdb.core.times import parse_time
from ckptdb.errors import (
    CkptdbError,
    InvalidChoice,
    MetricGone,
    NothingFinite,
    NothingToChoose,
    UnknownDirection,
    UnknownMetric,
    UnknownName,
)
from ckptdb.registry.opened import PathLike
from ckptdb.registry.scope import Scope
from ckptdb.registry.tree import Tree


class RankingMethods(Tree):
    """Methods of `Registry` that rank the checkpoints on disk, or those of all history."""

    def best(
        self,
        metric: str | None = None,
        *,
        mode: Mode | None = None,
        run: PathLike | None = None,
        where: str | None = None,
        tie: By | None = None,
        ever: bool = False,
        at: str | datetime | None = None,
    ) -> Checkpoint | None:
        """Return the live checkpoint with the best finite value of a metric.

        Ties go to the higher step. Of a run without a metric the best is the latest.

        Args:
            metric: As written in training_info.json; None for the run's own.
            mode: ``"min"`` when lower is better; None when the run says so itself.
            run: Name, path or uuid prefix; None for those at or below what was opened.
            where: Rank only checkpoints for which this SQL expression holds, over the columns of
                a checkpoint and its metrics, e.g. ``'kl < 0.1 AND "val:loss" < 0.5'``.
            tie: A second metric and its mode, which decides between equal values.
            ever: Rank deleted checkpoints, too; the one that is returned may be deleted.
            at: Rank the checkpoints that were published at this time, by the metrics that were
                reported until then: ISO-8601, in UTC when it names no zone, or e.g.
                ``"2 hours ago"``. The record has the metrics of that time; all else, rejections
                and problems too, is as it is now. The checkpoint may be deleted since.

        Raises:
            UnknownMetric: No checkpoint has it; the message lists those that exist.
            NothingFinite: Every value is NaN or infinite; the message lists the steps.
            UnknownDirection: Neither the call nor a run says whether low or high is better.
            InvalidCondition: The condition is not one expression, or names an unknown metric.
            InvalidTime: ``at`` is no point in time.
            InvalidChoice: The mode is neither ``"min"`` nor ``"max"``.
        """
        scope = self._find_scope(run)
        one = scope.seen
        if metric is None and tie is None and one is not None and one.run.metric_name is None:
            selection = self._selection(None, scope, where=where, ever=ever, at=at)
            found = self._published.choose(selection, 1)
        else:
            found = self.top(1, metric, mode=mode, run=run, where=where, tie=tie, ever=ever, at=at)
        return found[0] if found else None

    def top(
        self,
        count: int,
        metric: str | None = None,
        *,
        mode: Mode | None = None,
        run: PathLike | None = None,
        where: str | None = None,
        tie: By | None = None,
        ever: bool = False,
        at: str | datetime | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the live checkpoints with the best finite values, best first; see `best`."""
        scope = self._find_scope(run)
        by = self._ranking(metric, mode, scope)
        selection = self._selection(by, scope, where=where, tie=tie, ever=ever, at=at)
        found = self._published.choose(selection, count)
        if not found:
            self._explain_nothing(by[0], scope, selection)
        return found

    def pareto(
        self,
        metric: str | None = None,
        *,
        against: By,
        mode: Mode | None = None,
        run: PathLike | None = None,
        where: str | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the live checkpoints that no other one dominates in two metrics.

        A checkpoint dominates another one when it is better in one metric and no worse in the
        other. Best first by the first metric; checkpoints without a finite value of both are
        left out.

        Args:
            metric: See `best`, also for the other arguments and the errors.
            against: The second metric and its mode, e.g. ``("kl", "min")``.
            mode: Direction of the first metric.
            run: Only this run.
            where: Rank only checkpoints for which this condition holds.
        """
        scope = self._find_scope(run)
        by = self._ranking(metric, mode, scope)
        selection = self._selection(by, scope, where=where, tie=against)
        front = self._published.find_pareto_front(selection, against[1])
        if not front:
            self._explain_nothing(by[0], scope, selection)
            self._explain_nothing(against[0], scope, selection)
        return front

    def best_of_runs(
        self, metric: str | None = None, *, mode: Mode | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return the best checkpoint of each run at or below what was opened, by the run's name.

        A run without a finite value of the metric is left out; see `best`.

        Args:
            metric: None for each run's own metric, which may differ.
            mode: None for the direction of each run.

        Raises:
            UnknownMetric: No run has the metric; the message lists those that exist.
            UnknownDirection: Neither the call nor a run says whether low or high is better.
            InvalidChoice: The mode is neither ``"min"`` nor ``"max"``.
        """
        if self.run is not None:
            found = self.best(metric, mode=mode)
            return () if found is None else (found,)
        scope = self._find_scope(None)
        if metric is not None:
            metric, mode = self._ranking(metric, mode, scope)
        elif mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        catalog = self._catalog()
        best = catalog.ranking.best_of_runs(metric, mode, among=scope.among)
        if not best:
            own = {seen.run.metric_name for seen in self._find_runs(scope)} - {None}
            for name in sorted(filter(None, own)) if metric is None else [metric]:
                self._explain_nothing(name, scope, Selection(by=(name, "min")))
        here = {cp.run_uuid: cp for cp in best if self._published.contain(cp)}
        for gone in best:
            if gone.run_uuid not in here:
                here |= self._find_next_best(gone, metric, mode)
        return tuple(here[cp.run_uuid] for cp in best if cp.run_uuid in here)

    def latest(self, *, run: PathLike | None = None) -> Checkpoint | None:
        """Return the run's checkpoint with the highest step; of several runs, the newest one."""
        scope = self._find_scope(run)
        selection = Selection(by=None, run_id=scope.run_id, among=scope.among)
        found = self._published.choose(selection, 1)
        return found[0] if found else None

    def explain_nothing(
        self,
        *metrics: str | None,
        run: PathLike | None = None,
        where: str | None = None,
        ever: bool = False,
        at: str | datetime | None = None,
    ) -> CkptdbError:
        """Return the error that explains why `best`, `top`, `pareto` or `latest` returned nothing.

        Args:
            metrics: Metrics of the ranking; None for the runs' own, none at all for the step.
            run: As in that call, like all others.
            where: The condition.
            ever: Deleted checkpoints were ranked, too.
            at: The time of the ranking.
        """
        scope = self._find_scope(run)
        if not self._find_runs(scope):
            return self._bounds.explain_no_runs()
        selection = self._selection(None, scope, where=where, ever=ever, at=at)
        own = {seen.run.metric_name for seen in self._find_runs(scope)} - {None}
        named = [name for name in metrics if name is not None]
        ranked_by = named if len(named) == len(metrics) else [*sorted(filter(None, own)), *named]
        if not selection.is_history and (gone := self._find_gone(ranked_by, scope)):
            return gone
        if not ranked_by or not self._published.choose(selection, 1):
            return NothingToChoose(where)
        return NothingToChoose(where, lacking=ranked_by)

    def _find_gone(self, metrics: Sequence[str], scope: Scope) -> MetricGone | None:
        """Return the error about the first metric that no trusted checkpoint of these runs has."""
        catalog = self._catalog()
        runs = [seen for seen in self._find_runs(scope) if catalog.checkpoints.count_live(seen.id)]
        for metric in metrics if runs else ():
            if not any(
                catalog.ranking.count_ranked(seen.id, metric)
                or catalog.ranking.unranked(seen.id, metric).not_finite
                for seen in runs
            ):
                named = [] if scope.seen is None else [scope.seen.run.name]
                return MetricGone(metric, named, self._list_metrics(scope))
        return None

    def in_place_of(self, gone: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint that is published now at the path of a deleted one.

        A step that was saved again has the path of the checkpoint before, which `best` with
        ``ever`` or ``at`` may return.
        """
        seen = None if gone.status != "deleted" else self._catalog().runs.find(gone.run_uuid)
        if seen is None:
            return None
        found = self._catalog().recorded.records(seen.id, steps=[gone.step], gone=()).values()
        return next((cp for cp in found if self._published.contain(cp)), None)

    def _ranking(self, metric: str | None, mode: Mode | None, scope: Scope) -> tuple[str, Mode]:
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        if metric is not None and mode is not None:
            return metric, mode
        if scope.seen is None:
            own = self._catalog().runs.own_metrics(among=scope.among)
        else:
            own = _own_metric(scope.seen.run)
        if metric is None:
            named = {name for name, _ in own}
            if not named and not self._find_runs(scope):
                raise self._bounds.explain_no_runs()
            if len(named) != 1:
                raise UnknownDirection(None)
            metric = named.pop()
        if mode is not None:
            return metric, mode
        modes = {direction for name, direction in own if name == metric}
        if len(modes) == 1:
            return metric, modes.pop()
        self._check_metric(metric, scope)
        raise UnknownDirection(metric)

    def _selection(
        self,
        by: By | None,
        scope: Scope,
        *,
        where: str | None = None,
        tie: By | None = None,
        ever: bool = False,
        at: str | datetime | None = None,
    ) -> Selection:
        condition = None if where is None else parse(where)
        if condition is not None:
            self._check_condition(condition, scope)
        if tie is not None:
            metric, mode = tie
            if mode not in MODES:
                raise InvalidChoice("mode", mode, MODES)
            self._check_metric(metric, scope)
        then = None if at is None else parse_time(at, now=time.time())
        return Selection(
            by=by,
            tie=tie,
            run_id=scope.run_id,
            among=scope.among,
            where=condition,
            ever=ever,
            at=then,
        )

    def _check_condition(self, condition: Condition, scope: Scope) -> None:
        unknown = self._find_unknown(condition.metrics, scope)
        if unknown is not None:
            known = map(written, self._list_metrics(scope))
            raise UnknownName(condition.text, unknown, COLUMNS, known)

    def _check_metric(self, metric: str, scope: Scope) -> None:
        if self._find_unknown([metric], scope) is not None:
            raise UnknownMetric(metric, self._list_metrics(scope))

    def _explain_nothing(self, metric: str, scope: Scope, selection: Selection) -> None:
        """Raise why a ranking by a metric is empty, unless it is just empty."""
        runs = self._find_runs(scope)
        is_live = any(self._catalog().checkpoints.count_live(seen.id) for seen in runs)
        if not is_live and metric in {seen.run.metric_name for seen in runs}:
            return  # the name is right, and there is no checkpoint
        self._check_metric(metric, scope)
        if selection.at is not None:
            return  # before the first report there is no value
        not_finite = {}
        for seen in runs:
            if self._catalog().ranking.count_ranked(seen.id, metric):
                return  # no ranked checkpoint meets the condition
            if steps := self._catalog().ranking.unranked(seen.id, metric).not_finite:
                not_finite[seen.run.name] = steps
        if not_finite:
            raise NothingFinite(metric, not_finite)

    def _find_runs(self, scope: Scope) -> list[IndexedRun]:
        if scope.seen is not None:
            return [scope.seen]
        return [
            s for s in self._catalog().runs.list_all() if scope.among is None or s.id in scope.among
        ]

    def _find_unknown(self, metrics: Sequence[str], scope: Scope) -> str | None:
        return self._catalog().metrics.find_unknown(metrics, scope.run_id, among=scope.among)

    def _list_metrics(self, scope: Scope) -> tuple[str, ...]:
        return self._catalog().metrics.names(scope.run_id, among=scope.among)

    def _find_next_best(
        self, gone: Checkpoint, metric: str | None, mode: Mode | None
    ) -> dict[str, Checkpoint]:
        """Return the best published checkpoint of a run whose best one is missing, by run uuid."""
        seen = self._catalog().runs.find(gone.run_uuid)
        if seen is None:
            return {}
        name = metric or seen.run.metric_name
        by = None if name is None else (name, mode or seen.run.mode)
        found = self._published.find_existing(Selection(by=by, run_id=seen.id), 1)
        return {checkpoint.run_uuid: checkpoint for checkpoint in found}


def _own_metric(run: Run) -> set[tuple[str, Mode]]:
    return set() if run.metric_name is None else {(run.metric_name, run.mode)}
