"""Questions about runs and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ckptdb.catalog import query, relations
from ckptdb.catalog.relations import Relation
from ckptdb.catalog.spool import Spool
from ckptdb.core.ranking import MODES, Mode
from ckptdb.core.records import (
    STATUSES,
    Ancestor,
    Checkpoint,
    Curve,
    Run,
    Status,
)
from ckptdb.core.rows import Rows
from ckptdb.disk import names, run_listing
from ckptdb.errors import InvalidChoice, MetricNotChosen, NothingFinite, UnknownMetric
from ckptdb.reconcile.run_location import Whereabouts
from ckptdb.registry.opened import PathLike
from ckptdb.registry.tree import Tree


class QueryMethods(Tree):
    """Methods of `Registry` that answer from the catalog."""

    def runs(self) -> tuple[Run, ...]:
        """Return the runs at or below what was opened, by name; of a catalog all of them."""
        self._catalogs.refresh()
        self._completeness.ensure()
        return tuple(seen.run for seen in self._bounds.find_runs())

    def own_metric(self, found: Iterable[Checkpoint]) -> str | None:
        """Return the own metric of the runs of some checkpoints, if they share one."""
        catalog = self._catalog()
        runs = map(catalog.runs.find, {checkpoint.run_uuid for checkpoint in found})
        metrics = {seen.run.metric_name for seen in runs if seen}
        return metrics.pop() if len(metrics) == 1 else None

    def checkpoints(
        self,
        *,
        run: PathLike | None = None,
        status: Status | None = None,
        limit: int | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Return checkpoints by run and step.

        Args:
            run: Name, path or uuid prefix; None for those at or below what was opened.
            status: Only ``tmp``, ``final`` or ``deleted`` checkpoints.
            limit: Most checkpoints to return, those with the highest steps.

        Raises:
            InvalidChoice: There is no such status.
        """
        if status is not None and status not in STATUSES:
            raise InvalidChoice("status", status, STATUSES)
        scope = self._find_scope(run)
        return self._catalog().checkpoints.list_all(
            run_id=scope.run_id, among=scope.among, status=status, limit=limit
        )

    def passed_over(
        self, answer: Iterable[Checkpoint], *, run: PathLike | None = None
    ) -> tuple[tuple[Path, str], ...]:
        """Return entries named like a newer checkpoint that cannot be read as one, and why.

        Such an entry is a file or a dangling symlink, for example to a disk that is not mounted.
        The runs are listed for it, and nothing else is read.

        Args:
            answer: Checkpoints of an answer; only newer steps of their runs are returned.
            run: As in that call, for an answer without checkpoints.
        """
        newest: dict[Path, int] = {}
        for checkpoint in answer:
            directory = checkpoint.path.parent
            newest[directory] = max(checkpoint.step, newest.get(directory, -1))
        if not newest and (seen := self._find_scope(run).seen):
            newest[seen.run.directory] = -1
        found = []
        for directory, step in newest.items():
            for other, why in sorted(run_listing.find_obstructed(directory).items()):
                if other > step:
                    found.append((directory / names.final_name(other), why))
        return tuple(found)

    def get(self, step: int, *, run: PathLike | None = None) -> Checkpoint:
        """Return the checkpoint at a step: the live one, else the last deleted one.

        Raises:
            UnknownCheckpoint: There never was one.
        """
        self._catalogs.refresh()
        return self._get_at(self._run_names.get(run), step)

    def lineage(self, step: int, *, run: PathLike | None = None) -> tuple[Ancestor, ...]:
        """Return the checkpoint at a step and its ancestors, the nearest first.

        The parent of the first save after `CheckpointManager.resume` is the checkpoint that was
        resumed; the parent of any later save is the save before.

        Raises:
            UnknownCheckpoint: There never was one.
        """
        self._catalogs.refresh()
        seen = self._run_names.get(run)
        return self._catalog().lineage.ancestors(seen.id, self._get_at(seen, step).uuid)

    def curves(
        self,
        metric: str | None = None,
        *,
        runs: Sequence[PathLike] = (),
        mode: Mode | None = None,
    ) -> tuple[str, tuple[Curve, ...]]:
        """Return a metric's name, and its curve in each run that has it, by the run's name.

        Args:
            metric: None for the runs' own metric, if they share one.
            runs: Only these; when empty, those at or below what was opened.
            mode: Direction of the metric where it is not the run's own.

        Raises:
            UnknownMetric: No run has it; the message lists those that exist.
            NothingFinite: None of these runs has a finite value of it.
            MetricNotChosen: The runs have several of their own, or none.
            NoRuns: There is none.
            InvalidChoice: The mode is neither.
        """
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        self._catalogs.refresh()
        chosen = list({seen.id: seen for seen in map(self._run_names.get, runs)}.values())
        if not chosen and self.run is not None:
            chosen = [self._run_names.get(None)]
        if not chosen:
            self._completeness.ensure()
        catalog = self._catalog()
        among = None if chosen else self._bounds.find_among()
        known = chosen or catalog.runs.list_all(among=among)
        if not known:
            raise self._bounds.explain_no_runs()
        if metric is None:
            own = {seen.run.metric_name for seen in known} - {None}
            if len(own) != 1:
                raise MetricNotChosen(own)
            metric = str(own.pop())
        ids = [seen.id for seen in chosen] or among
        found = catalog.metrics.curves(metric, among=ids)
        if not found:
            names = catalog.metrics.names(among=among)
            if metric in names:
                raise NothingFinite(metric, [seen.run.name for seen in chosen])
            raise UnknownMetric(metric, names)
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
        """Answer SQL over the whole catalog, read-only and bounded.

        On SQLite a separate process answers, which the system ends when it uses too much.

        Args:
            sql: The query; ``:name`` is a parameter. It sees all runs of the catalog, wherever the
                registry was opened; ``runs.directory`` has the place of each.
            parameters: Values by name.
            limit: Most rows of the answer.
            timeout_seconds: Most time of the whole call.

        Raises:
            QueryRefused: The query would change something.
            QueryFailed: The query is wrong.
            ParameterMissing: The query names a parameter that has no value.
            QueryTimeout: The query ran for too long.
            QueryTooLarge: The query or its answer is too large.
        """
        self._catalogs.refresh()
        self._completeness.ensure()
        database = self._catalog().database
        return query.run(
            database,
            sql,
            parameters,
            limit=limit,
            timeout_seconds=timeout_seconds,
            workers=self._catalogs.workers,
        )

    def query_apart(
        self,
        sql: str,
        parameters: Mapping[str, object] | None = None,
        *,
        limit: int | None = 100_000,
        timeout_seconds: float = 30.0,
    ) -> AbstractContextManager[Spool]:
        """Answer SQL like `query`; enter the answer, which may be larger than memory."""
        self._catalogs.refresh()
        self._completeness.ensure()
        return query.run_apart(
            self._catalog().database,
            sql,
            parameters,
            limit=limit,
            timeout_seconds=timeout_seconds,
            workers=self._catalogs.workers,
        )

    def query_here(self, sql: str) -> Rows:
        """Answer SQL of this package in this process, without limits."""
        self._catalogs.refresh()
        self._completeness.ensure()
        return query.run(self._catalog().database, sql, limit=None)

    def summary(self) -> Rows:
        """Return one row per run: counts, bytes on disk, best, latest, last activity.

        Raises:
            NoRunsBelow: No run lies at or below the directory that was opened.
        """
        self._catalogs.refresh()
        self._completeness.ensure()
        among = self._bounds.find_among()
        if among == ():
            raise self._bounds.explain_no_runs()
        return self._catalog().runs.summary(among=among)

    def whereabouts(self, uuids: Iterable[str]) -> dict[str, Whereabouts]:
        """Return, by uuid, whether runs are where the catalog has them.

        ``"here"``, ``"missing"`` when there is no such directory, ``"replaced"`` when it is
        another run's by now, ``"unclear"`` when the directory does not name its run.
        """
        runs = map(self._catalog().runs.find, set(uuids))
        return {seen.run.uuid: self._bounds.find_whereabouts(seen) for seen in runs if seen}

    def schema(self) -> tuple[Relation, ...]:
        """Return the tables and views that SQL can name."""
        return relations.describe(self._catalog().database)
