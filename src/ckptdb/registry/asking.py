"""Questions about runs and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckptdb.catalog import adhoc
from ckptdb.catalog.adhoc import Relation
from ckptdb.catalog.catalog import Seen
from ckptdb.disk import scan
from ckptdb.errors import (
    InvalidChoice,
    UnknownDirection,
    UnknownMetric,
)
from ckptdb.records import (
    MODES,
    STATUSES,
    Ancestor,
    Checkpoint,
    Curve,
    Mode,
    Rows,
    Run,
    Status,
)
from ckptdb.registry.tree import PathLike, Tree


class Asking(Tree):
    """Answers from the catalog, about what is on disk."""

    def runs(self) -> tuple[Run, ...]:
        """Return every run, by name."""
        return tuple(seen.run for seen in self._catalog().runs())

    def checkpoints(
        self,
        *,
        run: PathLike | None = None,
        status: Status | None = None,
        limit: int | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return checkpoints by run and step.

        Args:
            run: Name, path or uuid prefix; None for all, or for the run that was opened.
            status: Only ``tmp``, ``final`` or ``deleted`` ones.
            limit: At most so many, those with the highest steps.

        Raises:
            InvalidChoice: There is no such status.
        """
        if status is not None and status not in STATUSES:
            raise InvalidChoice("status", status, STATUSES)
        seen = self._find_scope(run)
        run_id = None if seen is None else seen.id
        return self._catalog().checkpoints(run_id=run_id, status=status, limit=limit)

    def get(self, step: int, *, run: PathLike | None = None) -> Checkpoint:
        """Return the checkpoint at a step: the live one, else the last one that was there.

        Raises:
            UnknownCheckpoint: There never was one.
        """
        return self._get_at(self._get_run(run), step)

    def lineage(self, step: int, *, run: PathLike | None = None) -> tuple[Ancestor, ...]:
        """Return the checkpoint at a step and those it descends from, the nearest first.

        The first save after `CheckpointManager.resume` has the one that it returned as its
        parent; any later one the save before it.

        Raises:
            UnknownCheckpoint: There never was one.
        """
        seen = self._get_run(run)
        return self._catalog().lineage(seen.id, self._get_at(seen, step).uuid)

    def best(
        self, metric: str | None = None, *, mode: Mode | None = None, run: PathLike | None = None
    ) -> Checkpoint | None:
        """Return the live checkpoint with the best finite value of a metric.

        Ties go to the higher step. Of a run without a metric the best is the latest.

        Args:
            metric: As written in training_info.json; None for the run's own.
            mode: ``"min"`` when lower is better; None when the run says so itself.
            run: Name, path or uuid prefix; None for all, or for the run that was opened.

        Raises:
            UnknownMetric: No checkpoint has it; the message lists those that exist.
            UnknownDirection: Nothing says whether low or high is better.
            InvalidChoice: The mode is neither.
        """
        seen = self._find_scope(run)
        if metric is None and seen is not None and seen.run.metric_name is None:
            return self.latest(run=seen.run.directory)
        found = self.top(1, metric, mode=mode, run=run)
        return found[0] if found else None

    def top(
        self,
        count: int,
        metric: str | None = None,
        *,
        mode: Mode | None = None,
        run: PathLike | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return the live checkpoints with the best finite values, best first; see `best`."""
        seen = self._find_scope(run)
        run_id = None if seen is None else seen.id
        name, direction = self._ranking(metric, mode, seen)

        def ask(limit: int) -> tuple[Checkpoint, ...]:
            return self._catalog().top(limit, name, direction, run_id=run_id)

        found = self._existing(ask, count)
        if not found and name not in self._catalog().metric_names(run_id):
            raise UnknownMetric(name, self._catalog().metric_names(run_id))
        return found

    def best_of_runs(
        self, metric: str | None = None, *, mode: Mode | None = None
    ) -> tuple[Checkpoint, ...]:
        """Return the best checkpoint of each run, by the run's name; see `best`.

        A run without any finite value of the metric has none.

        Args:
            metric: None for each run's own, which may differ.
            mode: None when the runs say so themselves.

        Raises:
            UnknownMetric: No run has it; the message lists those that exist.
            UnknownDirection: Nothing says whether low or high is better.
            InvalidChoice: The mode is neither.
        """
        if self._run is not None:
            found = self.best(metric, mode=mode)
            return () if found is None else (found,)
        if metric is not None:
            metric, mode = self._ranking(metric, mode, None)
        elif mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        catalog = self._catalog()
        best = catalog.best_of_runs(metric, mode)
        if not best and metric is not None and metric not in catalog.metric_names():
            raise UnknownMetric(metric, catalog.metric_names())
        here = {cp.run_uuid: cp for cp in best if scan.is_published(cp.path)}
        for gone in best:
            if gone.run_uuid not in here:
                here |= self._look_behind(gone, metric, mode)
        return tuple(here[cp.run_uuid] for cp in best if cp.run_uuid in here)

    def latest(self, *, run: PathLike | None = None) -> Checkpoint | None:
        """Return the run's checkpoint with the highest step; of all runs, the newest one."""
        seen = self._find_scope(run)
        run_id = None if seen is None else seen.id

        def ask(limit: int) -> tuple[Checkpoint, ...]:
            return self._catalog().newest(limit, run_id=run_id)

        existing = self._existing(ask, 1)
        return existing[0] if existing else None

    def curves(
        self,
        metric: str | None = None,
        *,
        runs: Sequence[PathLike] = (),
        mode: Mode | None = None,
    ) -> tuple[str, tuple[Curve, ...]]:
        """Return a metric's name and how it went in each run that has it, by the run's name.

        Args:
            metric: None for the runs' own, if that is one.
            runs: Only these; all of them, or the run that was opened, when empty.
            mode: Its direction where it is not the run's own metric.

        Raises:
            UnknownMetric: No run has it; the message lists those that exist.
            UnknownDirection: The runs have several of their own, or none.
            InvalidChoice: The mode is neither.
        """
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        catalog = self._catalog()
        scopes = list({seen.id: seen for seen in map(self._get_run, runs)}.values())
        if not scopes and self._run is not None:
            scopes = [self._get_run(None)]
        known = scopes or catalog.runs()
        if metric is None:
            own = {seen.run.metric_name for seen in known} - {None}
            if len(own) != 1:
                raise UnknownDirection(None)
            metric = str(own.pop())
        found = adhoc.curves(catalog.database, metric, [seen.id for seen in scopes] or None)
        if not found:
            raise UnknownMetric(metric, catalog.metric_names())
        return metric, tuple(
            Curve(
                seen.run.name,
                seen.run.uuid,
                mode or (seen.run.mode if seen.run.metric_name == metric else None),
                *found[seen.id],
            )
            for seen in known
            if seen.id in found
        )

    def query(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        *,
        limit: int | None = 100_000,
        timeout_seconds: float = 30.0,
    ) -> Rows:
        """Answer SQL over the catalog, read-only and bounded; ``:name`` stands for a parameter.

        Raises:
            QueryRefused: It would change something.
            QueryFailed: It is wrong.
            QueryTimeout: It ran for too long.
        """
        database = self._catalog().database
        return adhoc.query(database, sql, parameters, limit=limit, timeout_seconds=timeout_seconds)

    def summary(self) -> Rows:
        """Return one row per run: counts, bytes on disk, best, latest, last activity."""
        return self.query(adhoc.SUMMARY, limit=None)

    def schema(self) -> tuple[Relation, ...]:
        """Return the tables and views that SQL can name."""
        return adhoc.describe(self._catalog().database)

    def _ranking(
        self, metric: str | None, mode: Mode | None, seen: Seen | None
    ) -> tuple[str, Mode]:
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        if metric is not None and mode is not None:
            return metric, mode
        own = self._catalog().own_metrics() if seen is None else _own_metric(seen.run)
        if metric is None:
            named = {name for name, _ in own}
            if len(named) != 1:
                raise UnknownDirection(None)
            metric = named.pop()
        if mode is not None:
            return metric, mode
        modes = {direction for name, direction in own if name == metric}
        if len(modes) == 1:
            return metric, modes.pop()
        known = self._catalog().metric_names(None if seen is None else seen.id)
        if metric not in known:
            raise UnknownMetric(metric, known)
        raise UnknownDirection(metric)

    def _look_behind(
        self, gone: Checkpoint, metric: str | None, mode: Mode | None
    ) -> dict[str, Checkpoint]:
        """Return the best that is there of a run whose best in the index is not, by its uuid."""
        seen = self._catalog().find_run(gone.run_uuid)
        if seen is None:
            return {}
        name, direction = metric or seen.run.metric_name, mode or seen.run.mode

        def ask(limit: int) -> tuple[Checkpoint, ...]:
            if name is None:
                return self._catalog().newest(limit, run_id=seen.id)
            return self._catalog().top(limit, name, direction, run_id=seen.id)

        return {found.run_uuid: found for found in self._existing(ask, 1)}

    def _existing(
        self, ask: Callable[[int], tuple[Checkpoint, ...]], count: int
    ) -> tuple[Checkpoint, ...]:
        """Answer only with checkpoints that are there, healing the runs of those that are not."""
        limit, healed = count, set[Path]()
        while True:
            found = ask(limit)
            here = [checkpoint for checkpoint in found if scan.is_published(checkpoint.path)]
            if len(here) == len(found) or len(here) >= count:
                return tuple(here[:count])
            stale = {cp.path.parent for cp in found if cp not in here} - healed
            for directory in stale:
                self._heal(directory)
            healed |= stale
            if not stale:
                # Of a run that is not there nothing is recorded as gone: look behind it.
                if len(found) < limit:
                    return tuple(here)
                limit *= 2


def _own_metric(run: Run) -> set[tuple[str, Mode]]:
    return set() if run.metric_name is None else {(run.metric_name, run.mode)}
