"""RankingMethods among checkpoints: the best ones, by one metric or by two, and the latest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ckptdb.catalog.selection import By, Selection, pareto_front, ranked
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
from ckptdb.disk import published_name
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
from ckptdb.reconcile.run_location import find_whereabouts
from ckptdb.registry.opened import PathLike
from ckptdb.registry.scope import Scope
from ckptdb.registry.tree import Tree
from ckptdb.training import load_history


class RankingMethods(Tree):
    """Answers with what is on disk, unless history is asked for."""

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
            where: Only those for which this SQL expression holds, over the columns of a
                checkpoint and its metrics, e.g. ``'kl < 0.1 AND "val:loss" < 0.5'``.
            tie: A second metric and its mode, which decides among equal values.
            ever: Deleted ones, too; what is returned may be gone.
            at: Of what was published and not yet deleted at that moment, by what had been
                reported until then: ISO-8601, in UTC when it names no zone, or e.g.
                ``"2 hours ago"``. The record has the metrics of that moment; all else,
                rejections and problems too, is as it is now. It may be gone.

        Raises:
            UnknownMetric: No checkpoint has it; the message lists those that exist.
            NothingFinite: It is NaN or infinite wherever it is; the message says where.
            UnknownDirection: Nothing says whether low or high is better.
            InvalidCondition: It is not one expression, or names what nobody has.
            InvalidTime: That is no point in time.
            InvalidChoice: The mode is neither.
        """
        scope = self._find_scope(run)
        one = scope.seen
        if metric is None and tie is None and one is not None and one.run.metric_name is None:
            asked = self._selection(None, scope, where=where, ever=ever, at=at)
            found = self._choose(asked, 1)
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
        asked = self._selection(by, scope, where=where, tie=tie, ever=ever, at=at)
        found = self._choose(asked, count)
        if not found:
            self._explain_nothing(by[0], scope, asked)
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
        """Return the live checkpoints that no other one beats in both of two metrics.

        One that is as good in one metric and better in the other does; equal ones stay together.
        Best first by the first metric. Those that lack a finite value of either are left out.

        Args:
            metric: See `best`, also for the other arguments and what is raised.
            against: The second metric and its mode, e.g. ``("kl", "min")``.
            mode: Of the first metric.
            run: Only this one.
            where: Only those for which it holds.
        """
        scope = self._find_scope(run)
        by = self._ranking(metric, mode, scope)
        asked = self._selection(by, scope, where=where, tie=against)
        healed, lost = set[Path](), set[int]()
        while True:
            catalog = self._catalog()
            points = [p for p in ranked(catalog.database, asked) if p.id not in lost]
            front = catalog.chosen([p.id for p in pareto_front(points, against[1])])
            gone = {n: cp.path.parent for n, cp in front.items() if not self._is_there(cp)}
            if not gone:
                break
            stale = set(gone.values()) - healed
            healed |= self._heal_all(stale)
            if not stale:
                # Of a run that is not there nothing is recorded as gone: look behind it.
                lost |= gone.keys()
        if not front:
            self._explain_nothing(by[0], scope, asked)
            self._explain_nothing(against[0], scope, asked)
        return tuple(front.values())

    def best_of_runs(
        self, metric: str | None = None, *, mode: Mode | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return the best checkpoint of each run at or below what was opened, by the run's name.

        A run without any finite value of the metric has none; see `best`.

        Args:
            metric: None for each run's own, which may differ.
            mode: None when the runs say so themselves.

        Raises:
            UnknownMetric: No run has it; the message lists those that exist.
            UnknownDirection: Nothing says whether low or high is better.
            InvalidChoice: The mode is neither.
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
        best = catalog.best_of_runs(metric, mode, among=scope.among)
        if not best:
            own = {seen.run.metric_name for seen in self._seen_in(scope)} - {None}
            for name in sorted(filter(None, own)) if metric is None else [metric]:
                self._explain_nothing(name, scope, Selection(by=(name, "min")))
        here = {cp.run_uuid: cp for cp in best if self._is_there(cp)}
        for gone in best:
            if gone.run_uuid not in here:
                here |= self._look_behind(gone, metric, mode)
        return tuple(here[cp.run_uuid] for cp in best if cp.run_uuid in here)

    def latest(self, *, run: PathLike | None = None) -> Checkpoint | None:
        """Return the run's checkpoint with the highest step; of several runs, the newest one."""
        scope = self._find_scope(run)
        asked = Selection(by=None, run_id=scope.run_id, among=scope.among)
        found = self._choose(asked, 1)
        return found[0] if found else None

    def explain_nothing(
        self,
        *metrics: str | None,
        run: PathLike | None = None,
        where: str | None = None,
        ever: bool = False,
        at: str | datetime | None = None,
    ) -> CkptdbError:
        """Return the error that says why `best`, `top`, `pareto` or `latest` returned nothing.

        Args:
            metrics: What was ranked by; None for the runs' own, none at all by the step.
            run: As it was asked; likewise the others.
            where: The condition.
            ever: Whether deleted ones counted, too.
            at: The moment.
        """
        scope = self._find_scope(run)
        if not self._seen_in(scope):
            return self._bounds.explain_no_runs()
        asked = self._selection(None, scope, where=where, ever=ever, at=at)
        own = {seen.run.metric_name for seen in self._seen_in(scope)} - {None}
        named = [name for name in metrics if name is not None]
        ranked_by = named if len(named) == len(metrics) else [*sorted(filter(None, own)), *named]
        if not asked.is_history and (gone := self._find_gone(ranked_by, scope)):
            return gone
        if not ranked_by or not self._choose(asked, 1):
            return NothingToChoose(where)
        return NothingToChoose(where, lacking=ranked_by)

    def _find_gone(self, metrics: Sequence[str], scope: Scope) -> MetricGone | None:
        """Return the error about the first metric that nothing has which counts, should others."""
        catalog = self._catalog()
        runs = [seen for seen in self._seen_in(scope) if catalog.count_live(seen.id)]
        for metric in metrics if runs else ():
            if not any(
                catalog.count_ranked(seen.id, metric)
                or catalog.find_unranked(seen.id, metric).not_finite
                for seen in runs
            ):
                named = [] if scope.seen is None else [scope.seen.run.name]
                return MetricGone(metric, named, self._names(scope))
        return None

    def in_place_of(self, gone: Checkpoint) -> Checkpoint | None:
        """Return the checkpoint that is published now where one that is gone was.

        A step that was saved again has the path of the one before: what `best` with ``ever`` or
        ``at`` returns may name it.
        """
        seen = None if gone.status != "deleted" else self._catalog().find_run(gone.run_uuid)
        if seen is None:
            return None
        found = self._catalog().contents(seen.id, steps=[gone.step], gone=()).values()
        return next((cp for cp in found if self._is_there(cp)), None)

    def _ranking(self, metric: str | None, mode: Mode | None, scope: Scope) -> tuple[str, Mode]:
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        if metric is not None and mode is not None:
            return metric, mode
        if scope.seen is None:
            own = self._catalog().own_metrics(among=scope.among)
        else:
            own = _own_metric(scope.seen.run)
        if metric is None:
            named = {name for name, _ in own}
            if not named and not self._seen_in(scope):
                raise self._bounds.explain_no_runs()
            if len(named) != 1:
                raise UnknownDirection(None)
            metric = named.pop()
        if mode is not None:
            return metric, mode
        modes = {direction for name, direction in own if name == metric}
        if len(modes) == 1:
            return metric, modes.pop()
        self._must_have(metric, scope)
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
            self._must_make_sense(condition, scope)
        if tie is not None:
            metric, mode = tie
            if mode not in MODES:
                raise InvalidChoice("mode", mode, MODES)
            self._must_have(metric, scope)
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

    def _must_make_sense(self, condition: Condition, scope: Scope) -> None:
        unknown = self._find_unknown(condition.metrics, scope)
        if unknown is not None:
            raise UnknownName(condition.text, unknown, COLUMNS, map(written, self._names(scope)))

    def _must_have(self, metric: str, scope: Scope) -> None:
        if self._find_unknown([metric], scope) is not None:
            raise UnknownMetric(metric, self._names(scope))

    def _explain_nothing(self, metric: str, scope: Scope, asked: Selection) -> None:
        """Say why nothing is ranked by a metric, where more is known than that nothing is."""
        runs = self._seen_in(scope)
        is_live = any(self._catalog().count_live(seen.id) for seen in runs)
        if not is_live and metric in {seen.run.metric_name for seen in runs}:
            return  # nobody has misspelt it: there is nothing
        self._must_have(metric, scope)
        if asked.at is not None:
            return  # what was not there yet has no value either
        not_finite = {}
        for seen in runs:
            if self._catalog().count_ranked(seen.id, metric):
                return  # the condition holds for none of them
            if steps := self._catalog().find_unranked(seen.id, metric).not_finite:
                not_finite[seen.run.name] = steps
        if not_finite:
            raise NothingFinite(metric, not_finite)

    def _seen_in(self, scope: Scope) -> list[IndexedRun]:
        if scope.seen is not None:
            return [scope.seen]
        return [s for s in self._catalog().runs() if scope.among is None or s.id in scope.among]

    def _find_unknown(self, metrics: Sequence[str], scope: Scope) -> str | None:
        return self._catalog().find_unknown_metric(metrics, scope.run_id, among=scope.among)

    def _names(self, scope: Scope) -> tuple[str, ...]:
        return self._catalog().metric_names(scope.run_id, among=scope.among)

    # --- what is there ------------------------------------------------------------------

    def _choose(self, asked: Selection, count: int) -> tuple[Checkpoint, ...]:
        choose = self._recall if asked.is_history else self._existing
        found = choose(asked, count)
        # A loop may ask here what to continue from, and save with a manager.
        for run in {checkpoint.path.parent for checkpoint in found}:
            load_history.note_look(run)
        return found

    def _look_behind(
        self, gone: Checkpoint, metric: str | None, mode: Mode | None
    ) -> dict[str, Checkpoint]:
        """Return the best that is there of a run whose best in the index is not, by its uuid."""
        seen = self._catalog().find_run(gone.run_uuid)
        if seen is None:
            return {}
        name = metric or seen.run.metric_name
        by = None if name is None else (name, mode or seen.run.mode)
        found = self._existing(Selection(by=by, run_id=seen.id), 1)
        return {checkpoint.run_uuid: checkpoint for checkpoint in found}

    def _existing(self, asked: Selection, count: int) -> tuple[Checkpoint, ...]:
        """Answer only with checkpoints that are there, healing the runs of those that are not."""
        limit, healed = count, set[Path]()
        while True:
            found = self._ask(asked, limit)
            here = [checkpoint for checkpoint in found if self._is_there(checkpoint)]
            if len(here) == len(found) or len(here) >= count:
                return tuple(here[:count])
            stale = {cp.path.parent for cp in found if cp not in here} - healed
            healed |= self._heal_all(stale)
            if not stale:
                # Of a run that is not there nothing is recorded as gone: look behind it.
                if len(found) < limit:
                    return tuple(here)
                limit *= 2

    def _recall(self, asked: Selection, count: int) -> tuple[Checkpoint, ...]:
        """Answer from history; what is gone from disk is recorded as gone before."""
        found = self._ask(asked, count)
        stale = {cp.path.parent for cp in found if cp.status == "final" and not self._is_there(cp)}
        return self._ask(asked, count) if self._heal_all(stale) else found

    def _is_there(self, checkpoint: Checkpoint) -> bool:
        # It may have been replaced since it was chosen, or its run: then its path is another one's.
        if checkpoint.status != "final" or not self._bounds.contain(checkpoint.path.parent):
            return False
        if not published_name.is_published(checkpoint.path):
            return False
        where = find_whereabouts(self._catalog(), checkpoint.run_uuid, checkpoint.path.parent)
        return where in ("here", "unclear")

    def _heal_all(self, runs: set[Path]) -> set[Path]:
        for directory in runs:
            self._healing.heal(directory)
        return runs

    def _ask(self, asked: Selection, count: int) -> tuple[Checkpoint, ...]:
        catalog = self._catalog()
        if asked.is_plain and asked.by is None:
            return catalog.newest(count, run_id=asked.run_id, among=asked.among)
        if asked.is_plain and asked.by is not None:
            return catalog.top(count, *asked.by, run_id=asked.run_id, among=asked.among)
        ids = [one.id for one in ranked(catalog.database, asked, count)]
        found = catalog.chosen(ids).values()
        return tuple(cp if asked.at is None else cp.as_of(asked.at) for cp in found)


def _own_metric(run: Run) -> set[tuple[str, Mode]]:
    return set() if run.metric_name is None else {(run.metric_name, run.mode)}
