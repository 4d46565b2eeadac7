"""Registry: many runs, for people and tools."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckptdb import upkeep
from ckptdb.catalog import adhoc, engine
from ckptdb.catalog.adhoc import Relation
from ckptdb.catalog.catalog import Catalog, Seen
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import FILE, Location, locate
from ckptdb.catalog.schema import HEAD
from ckptdb.disk import identity, info, names, scan
from ckptdb.disk.journal import Fact
from ckptdb.disk.publish import Publisher
from ckptdb.errors import (
    AmbiguousRun,
    CatalogBroken,
    CatalogError,
    CatalogForeign,
    CatalogLocked,
    CatalogMissing,
    CatalogNotBegun,
    CatalogUnusable,
    CheckpointGone,
    DirectoryMissing,
    InvalidAnnotation,
    InvalidChoice,
    NoRuns,
    RootsBelow,
    RunLocked,
    UnknownCheckpoint,
    UnknownDirection,
    UnknownMetric,
    UnknownRun,
)
from ckptdb.index import find_location
from ckptdb.reconcile import ReconcileReport, RunReport, reconcile_run, reconcile_tree
from ckptdb.records import (
    MODES,
    STATUSES,
    TRAINING_INFO,
    Checkpoint,
    Mode,
    Rows,
    Run,
    Status,
    metrics_of,
    utc,
)
from ckptdb.retention import Decision, Policy
from ckptdb.upkeep import Collected

PathLike = str | os.PathLike[str]
_SHORTEST_UUID_PREFIX = 4
_NO_LIMIT = Policy()
_UNUSABLE = (CatalogLocked, CatalogBroken, CatalogUnusable)


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    """What `Registry.status` tells about the catalog itself.

    Attributes:
        revision: Of its schema; None when it does not exist.
        integrity: ``"ok"``, ``"missing"``, ``"empty"`` (a file of 0 bytes), or what is wrong.
    """

    location: str
    exists: bool
    revision: str | None
    head: str
    size_bytes: int | None
    integrity: str
    runs: int
    checkpoints: int

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class Registry:
    """Runs and checkpoints below a root, in a run, or in a catalog; made by `open`.

    Reading creates nothing: without a catalog the tree is indexed in memory. A run that is
    asked about by name is compared with its directory first; answers over all runs are
    compared only as far as the checkpoints that they name.
    """

    def __init__(
        self, location: Location, directory: Path | None, run: Path | None, *, chosen: bool = False
    ) -> None:
        """Use `Registry.open`."""
        self.location = location
        self._directory = directory
        self._run = run
        self._chosen = chosen
        self._doubted = False
        self._opened: Catalog | None = None

    @classmethod
    def open(cls, location: PathLike = ".", *, catalog: PathLike | None = None) -> Self:
        """Open a root, a run, anything inside them, a catalog file or a database URL.

        Args:
            location: What to look at.
            catalog: Another catalog than the one found there.

        Raises:
            CatalogUnusable: The location or the chosen catalog cannot be one.
            CatalogMissing: There is no such directory.
        """
        name = os.fspath(location)
        if "://" in name:
            return cls(locate(name), None, None, chosen=True)
        path = Path(os.path.abspath(name))
        if path.is_file():
            found = locate(path)
            return cls(found, found.base, None, chosen=True)
        if not path.is_dir():
            raise DirectoryMissing(path)
        choice = catalog or os.environ.get("CKPTDB_CATALOG")
        run = _enclosing_run(path)
        found = find_location(run or path, choice)
        return cls(found, run or path, run, chosen=bool(choice))

    @property
    def run(self) -> Path | None:
        """The run that was opened; None for a root or a catalog."""
        return self._run

    def close(self) -> None:
        """Close the catalog; the next call opens it again."""
        if self._opened is not None:
            self._opened.database.close()
        self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- questions ----------------------------------------------------------------------

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

    def latest(self, *, run: PathLike | None = None) -> Checkpoint | None:
        """Return the run's checkpoint with the highest step; of all runs, the newest one."""
        seen = self._find_scope(run)
        run_id = None if seen is None else seen.id

        def ask(limit: int) -> tuple[Checkpoint, ...]:
            return self._catalog().newest(limit, run_id=run_id)

        existing = self._existing(ask, 1)
        return existing[0] if existing else None

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

    # --- the index ----------------------------------------------------------------------

    def reconcile(
        self,
        path: PathLike | None = None,
        *,
        dry_run: bool = False,
        full: bool = False,
        on_run: Callable[[Path], None] | None = None,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> ReconcileReport:
        """Bring the index to what is on disk, and finish what crashes interrupted.

        A catalog that is broken is set aside and built anew. A directory with runs that is in no
        root becomes one, as by `init`, and runs that were roots of their own become part of it.

        Args:
            path: A run or a tree; None for all of the root, or the run that was opened. What
                lies in another root is compared with the catalog of that one.
            dry_run: Only say what would be done.
            full: Read everything again and compare every file with its manifest.
            on_run: Called before each run.
            on_checkpoint: Called after each checkpoint.

        Raises:
            CatalogMissing: There is no catalog, and nothing to make one of.
        """
        top = self._top(path)
        look = partial(
            reconcile_tree,
            top=top,
            depth="full" if full else "files",
            on_checkpoint=on_checkpoint,
        )
        on_run = on_run or (lambda _: None)
        if self._answers_for(top):
            return self._reconcile(top, look, on_run, dry_run=dry_run)
        with type(self).open(top) as other:
            return other._reconcile(top, look, on_run, dry_run=dry_run)  # noqa: SLF001  # one of us

    def _reconcile(
        self,
        top: Path,
        look: Callable[..., ReconcileReport],
        on_run: Callable[[Path], None],
        *,
        dry_run: bool,
    ) -> ReconcileReport:
        if not self._has_begun() and not any(scan.find_runs(top)):
            others = {identity.find_root(run) for run in scan.find_runs(top, other_roots=True)}
            raise RootsBelow(top, sorted(filter(None, others))) if others else CatalogMissing(top)
        if dry_run:
            return look(self._catalog_or_empty(), on_run=on_run, dry_run=True)
        aside = self._make_usable()
        try:
            report = self._look(look, on_run)
        except CatalogBroken:
            # Sound as a database and nonsense as a catalog: only reading all of it can tell.
            self.close()
            aside = engine.set_aside(self.location)
            report = self._look(look, on_run)
        return replace(report, set_aside=aside)

    def _look(
        self, look: Callable[..., ReconcileReport], on_run: Callable[[Path], None]
    ) -> ReconcileReport:
        catalog = self._catalog(create=True)
        with _absorbing(self.location.base) as absorb:

            def begin(run: Path) -> None:
                absorb(run)
                on_run(run)

            return look(catalog, on_run=begin)

    def verify(
        self,
        *,
        run: PathLike | None = None,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> tuple[Checkpoint, ...]:
        """Compare every file with its manifest; return the live checkpoints, problems included.

        Args:
            run: Name, path or uuid prefix; None for all, or for the run that was opened.
            on_checkpoint: Called after each checkpoint.
        """
        seen = self._find_scope(run)
        runs = [seen] if seen else list(self._catalog().runs())
        catalog = self._catalog_to_write()
        for found in runs:
            if found.run.directory.is_dir():
                reconcile_run(
                    catalog,
                    found.run.directory,
                    depth="full",
                    touch_disk=_is_ours(found.run.directory),
                    on_checkpoint=on_checkpoint,
                )
        run_id = None if seen is None else seen.id
        return catalog.checkpoints(run_id=run_id, status="final")

    def forget(self, run: PathLike) -> Run:
        """Drop a run from the index; its directory is not touched. Returns what was dropped."""
        seen = self._match(run)
        self._catalog_to_write().forget(seen.id)
        return seen.run

    def status(self) -> CatalogStatus:
        """Return where the catalog is and how it does; never raises because of its state."""
        location = self.location
        file = location.file
        exists = file is None or file.exists()
        size = file.stat().st_size if file is not None and exists else None
        revision, integrity, counts = None, "missing", (0, 0)
        if exists:
            try:
                database = Database.open(location)
                revision, integrity = database.revision(), database.integrity()
                counts = Catalog(database).counts()
                database.close()
            except CatalogMissing:
                integrity = "empty"
            except CatalogError as error:
                integrity = str(error)
        return CatalogStatus(str(location), exists, revision, HEAD, size, integrity, *counts)

    def explain_missing(self) -> CatalogMissing:
        """Return the error that says why there is no catalog, for when there is none."""
        where = self._directory or Path(str(self.location))
        runs = scan.find_runs(where, other_roots=True) if where.is_dir() else ()
        return CatalogNotBegun(self.location.base or where) if any(runs) else CatalogMissing(where)

    def upgrade(self) -> tuple[str, str, Path | None]:
        """Bring the catalog to this version's schema; return revisions before and after, copy."""
        self.close()
        return engine.upgrade(self.location)

    @classmethod
    def init(cls, directory: PathLike) -> tuple[Self, ReconcileReport]:
        """Mark a directory as a root, index what is below it, absorb catalogs of single runs.

        Raises:
            CatalogMissing: There is no such directory.
        """
        root = Path(os.path.abspath(directory))
        if not root.is_dir():
            raise DirectoryMissing(root)
        identity.mark_root(root)
        registry = cls(find_location(root), root, None)
        return registry, registry.reconcile()

    # --- what people add ----------------------------------------------------------------

    def log_metrics(
        self, run: PathLike | None, step: int, values: Mapping[str, Any], *, source: str
    ) -> Checkpoint:
        """Record metrics measured after the save; on disk first. Best and top-k see them.

        Args:
            run: Name, path or uuid prefix; None for the run that was opened.
            step: A live or a deleted checkpoint's.
            values: Numbers by name; scalars of numpy and torch too. A value that is not
                finite is recorded and never ranked.
            source: Who measured it, e.g. ``"lm-eval"``.
        """
        plain = info.plain_numbers(values)
        if set(metrics_of(plain)) != set(plain) or not plain:
            wrong = sorted(map(repr, set(plain) - set(metrics_of(plain)))) or ["no value"]
            raise InvalidAnnotation(f"metrics must be numbers by name, not {', '.join(wrong)}")
        _check_text("source", source)
        if source == TRAINING_INFO:
            raise InvalidAnnotation(f"{TRAINING_INFO!r} is the source of the save itself")
        numbers = metrics_of(plain)
        details = [{"name": n, "value": v, "source": source} for n, v in numbers.items()]
        return self._annotate(run, step, [("metric", detail) for detail in details])

    def pin(self, run: PathLike | None, step: int, *, note: str | None = None) -> Checkpoint:
        """Keep a checkpoint whatever retention says, with an optional note.

        Raises:
            CheckpointGone: It was deleted, and its bytes are gone.
        """
        seen = self._get_run(run)
        found = self._get_at(seen, step)
        left = {leftover.uuid for leftover in scan.list_trash(seen.run.directory)}
        if found.status == "deleted" and found.uuid not in left:
            raise CheckpointGone(seen.run.name, found.step, found.deleted_reason)
        facts: list[tuple[str, dict[str, Any]]] = [("pin", {})]
        if note is not None:
            _check_text("note", note)
            facts.append(("note", {"text": note}))
        return self._record(seen, found, facts)

    def unpin(self, run: PathLike | None, step: int) -> Checkpoint:
        """Leave a checkpoint to retention again."""
        found = self._annotate(run, step, [("unpin", {})])
        if found.status == "deleted":
            # It was replaced while pinned; its bytes were kept in the trash until now.
            Publisher(found.path.parent).empty_trash()
        return found

    def tag(self, run: PathLike | None, step: int, name: str) -> Checkpoint:
        """Give a checkpoint a tag."""
        _check_text("tag", name)
        return self._annotate(run, step, [("tag", {"name": name})])

    def untag(self, run: PathLike | None, step: int, name: str) -> Checkpoint:
        """Take a tag away; taking away what is not there changes nothing."""
        return self._annotate(run, step, [("untag", {"name": name})])

    # --- deleting -----------------------------------------------------------------------

    def gc(
        self, policy: Policy = _NO_LIMIT, *, run: PathLike | None = None, dry_run: bool = False
    ) -> tuple[Collected, ...]:
        """Apply a retention policy and remove what crashes left behind.

        Args:
            policy: Without limits only leftovers are removed. Its metric may be None for
                the run's own.
            run: Name, path or uuid prefix; None for all, or for the run that was opened.
            dry_run: Only say what would go.

        Raises:
            UnknownDirection: The best are to be kept, and a run has no metric. Nothing goes.
            UnknownMetric: The best are to be kept, and no checkpoint of a run has the metric.
        """
        with self._deciding(run):
            scope = self._find_scope(run)
            found = [scope] if scope else list(self._catalog().runs())
            # All of them are judged before anything goes.
            judged = [self._judge(seen, policy, dry_run=dry_run) for seen in found if _exists(seen)]
            collected = tuple(
                upkeep.collect(run, Publisher(run.directory), which, dry_run=dry_run)
                for run, which in judged
            )
            if not dry_run:
                self._follow(one.directory for one in collected if one.decisions or one.leftovers)
            return collected

    def _judge(
        self, seen: Seen, policy: Policy, *, dry_run: bool
    ) -> tuple[Run, tuple[Decision, ...]]:
        catalog, seen, report = self._exact(seen, dry_run=dry_run)
        if report is not None and report.blocked:
            return seen.run, ()  # what cannot be seen whole is not judged
        return seen.run, upkeep.judge(catalog, seen, policy)

    def remove(
        self,
        steps: Iterable[int],
        *,
        run: PathLike | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Collected:
        """Delete checkpoints of a run by hand.

        Args:
            steps: All of them, or nothing goes.
            run: Name, path or uuid prefix; None for the run that was opened.
            force: Also pinned ones.
            dry_run: Only say what would go.

        Raises:
            UnknownCheckpoint: A step has no live checkpoint.
            PinnedCheckpoint: One is pinned.
        """
        wanted = [names.as_step(step) for step in steps]
        with self._deciding(run):
            catalog, seen, _ = self._exact(self._get_run(run), dry_run=dry_run)
            chosen = upkeep.choose(catalog, seen, wanted, force=force)
            publisher = Publisher(seen.run.directory)
            removed = upkeep.remove(seen.run, publisher, chosen, force=force, dry_run=dry_run)
            if not dry_run:
                self._follow([seen.run.directory])
            return removed

    @contextmanager
    def _deciding(self, run: PathLike | None) -> Iterator[None]:
        """Let a deletion be decided by the files when there is no catalog to decide it by."""
        try:
            self._catalog().runs()
        except _UNUSABLE as error:
            if self._directory is None:
                raise
            self._doubt(error)
            here = self._run if run is None else None
            top = here or self.location.base or self._directory
            self._opened = Catalog(self._index_in_memory(top))
        try:
            yield
        finally:
            if self._doubted:
                self._doubted = False
                self.close()

    def _doubt(self, error: Exception) -> None:
        if not self._doubted:
            warnings.warn(
                f"{error} What goes is decided by the files; the catalog follows later.",
                stacklevel=6,
            )
        self._doubted = True

    def _exact(self, seen: Seen, *, dry_run: bool) -> tuple[Catalog, Seen, RunReport | None]:
        """Return a catalog that is true about a run: the stored one, or else one in memory."""
        directory = seen.run.directory
        if not self._doubted or self._catalog().database.location.in_memory:
            try:
                catalog = self._catalog() if dry_run else self._catalog_to_write()
                report = self._heal(directory, strict=True)
                return catalog, catalog.find_run_at(directory) or seen, report
            except (RunLocked, CatalogMissing):
                raise
            except (*_UNUSABLE, OSError) as error:
                self._doubt(error)
        catalog = Catalog(Database.in_memory(self.location.base))
        report = reconcile_run(catalog, directory, depth="changes", touch_disk=False)
        return catalog, catalog.find_run_at(directory) or seen, report

    def _follow(self, changed: Iterable[Path]) -> bool:
        """Bring the index to what has just been done to runs; tell whether it could be."""
        if self._doubted:
            self.close()  # a disk that was full has space now
        for directory in changed:
            try:
                reconcile_run(self._catalog_to_write(), directory, depth="changes")
            except (CatalogError, OSError) as error:
                if not self._doubted:
                    warnings.warn(
                        f"Recorded in {directory}; the index follows later: {error}", stacklevel=4
                    )
                return False
        return True

    # --- which catalog ------------------------------------------------------------------

    def _catalog(self, *, create: bool = False) -> Catalog:
        opened = self._opened
        if opened is not None and not (create and opened.database.location.in_memory):
            return opened
        try:
            database = self._open(create=create)
        except CatalogMissing:
            if self._directory is None:
                raise
            database = self._index_in_memory(self._directory)
        self._opened = Catalog(database)
        return self._opened

    def _catalog_to_write(self) -> Catalog:
        """Return the catalog, upgraded; without one, what was indexed in memory.

        Only `reconcile` and `init` begin one: it would hold no more than the run at hand, and
        hide all others.
        """
        return self._catalog(create=not self._catalog().database.location.in_memory)

    def _open(self, *, create: bool) -> Database:
        base = self.location.base
        if create and base is not None and self._directory is not None:
            identity.mark_root(base)
        return Database.open(self.location, create=create, upgrade=create)

    def _index_in_memory(self, directory: Path) -> Database:
        database = Database.in_memory(self.location.base or directory)
        catalog, found = Catalog(database), False
        for run in scan.find_runs(directory, other_roots=True):
            found = True
            reconcile_run(catalog, run, touch_disk=False)
        if not found:
            raise CatalogMissing(directory)
        return database

    def _catalog_or_empty(self) -> Catalog:
        try:
            return Catalog(Database.open(self.location))
        except CatalogMissing:
            return Catalog(Database.in_memory(self.location.base))
        except CatalogBroken as error:
            warnings.warn(str(error), stacklevel=3)
            return Catalog(Database.in_memory(self.location.base))

    def _make_usable(self) -> Path | None:
        """Set a broken catalog aside; return where it went."""
        self.close()
        try:
            database = self._open(create=True)
            if database.integrity() == "ok":
                self._opened = Catalog(database)
                return None
            database.close()
        except CatalogBroken as error:
            if self.location.base is None:
                # A file that somebody named may be anything, a script or weights: not ours to move.
                raise CatalogForeign(str(self.location)) from error
        return engine.set_aside(self.location)

    def _top(self, path: PathLike | None) -> Path:
        if path is not None:
            top = Path(os.path.abspath(path))
            if not top.is_dir():
                raise DirectoryMissing(top)
            return _enclosing_run(top) or top
        top_here = self._run or self.location.base or self._directory
        if top_here is None:
            raise UnknownRun(str(self.location), ())
        return top_here

    def _answers_for(self, top: Path) -> bool:
        """Whether a directory belongs into this catalog, and not into that of another root."""
        return self._chosen or self.location.base in (top, _root_of(top))

    def _has_begun(self) -> bool:
        file, base = self.location.file, self.location.base
        return file is None or file.exists() or (base is not None and identity.is_root(base))

    # --- which run ----------------------------------------------------------------------

    def _find_scope(self, run: PathLike | None) -> Seen | None:
        """Return the run that a question is about, compared with its directory; None for all."""
        if run is None and self._run is None:
            return None
        return self._get_run(run)

    def _get_run(self, run: PathLike | None) -> Seen:
        if run is None and self._run is not None:
            self._heal(self._run)
            seen = self._catalog().find_run_at(self._run)
            if seen is None:
                raise UnknownRun(str(self._run), [s.run.name for s in self._catalog().runs()])
            return seen
        seen = self._match(run)
        self._heal(seen.run.directory)
        return self._catalog().find_run(seen.run.uuid) or seen

    def _get_at(self, seen: Seen, step: int) -> Checkpoint:
        found = self._catalog().checkpoints(run_id=seen.id, steps=[names.as_step(step)])
        if not found:
            raise UnknownCheckpoint(seen.run.name, step)
        return found[-1]

    def _match(self, run: PathLike | None) -> Seen:
        known = self._catalog().runs()
        if run is None:
            if not known:
                raise NoRuns(str(self.location))
            if len(known) == 1:
                return known[0]
            raise AmbiguousRun(None, [str(seen.run.directory) for seen in known])
        name = os.fspath(run)
        paths = {Path(os.path.abspath(name))}
        if self.location.base is not None:
            paths.add(Path(os.path.abspath(self.location.base / name)))
        for matches in (
            [seen for seen in known if seen.run.directory in paths],
            [seen for seen in known if seen.run.name == name],
            [seen for seen in known if _is_uuid_prefix(name, seen.run.uuid)],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise AmbiguousRun(name, [str(seen.run.directory) for seen in matches])
        raise UnknownRun(name, [seen.run.name for seen in known])

    def _ranking(
        self, metric: str | None, mode: Mode | None, seen: Seen | None
    ) -> tuple[str, Mode]:
        if mode is not None and mode not in MODES:
            raise InvalidChoice("mode", mode, MODES)
        runs = [seen.run] if seen else [found.run for found in self._catalog().runs()]
        own = {(run.metric_name, run.mode) for run in runs if run.metric_name is not None}
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

    # --- staying true -------------------------------------------------------------------

    def _heal(self, directory: Path, *, strict: bool = False) -> RunReport | None:
        """Bring one run up to date as far as that is possible without a usable catalog.

        With ``strict`` what makes it impossible is raised: nothing may be deleted by an old index.
        """
        if not directory.is_dir():
            return None
        catalog = self._catalog()
        ours = _is_ours(directory) and not catalog.database.location.in_memory
        seen, stamp = catalog.find_run_at(directory), scan.find_stamp(directory)
        if seen and stamp and seen.verified and seen.stamp == str(stamp) and stamp.is_settled():
            return None
        try:
            return reconcile_run(catalog, directory, depth="changes", touch_disk=ours)
        except (CatalogError, RunLocked, OSError):
            if strict:
                raise
            return None

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

    def _annotate(
        self, run: PathLike | None, step: int, facts: Sequence[tuple[str, dict[str, Any]]]
    ) -> Checkpoint:
        seen = self._get_run(run)
        return self._record(seen, self._get_at(seen, step), facts)

    def _record(
        self, seen: Seen, found: Checkpoint, facts: Sequence[tuple[str, dict[str, Any]]]
    ) -> Checkpoint:
        at = utc(time.time())
        lines = [Fact(at, kind, found.uuid, details) for kind, details in facts]
        Publisher(seen.run.directory).record(lines)
        if not self._follow([seen.run.directory]):
            return found
        # By uuid: another save may have taken the step meanwhile.
        told = self._catalog().checkpoints(run_id=seen.id, steps=[found.step])
        return next((checkpoint for checkpoint in told if checkpoint.uuid == found.uuid), found)


@contextmanager
def _absorbing(root: Path | None) -> Iterator[Callable[[Path], None]]:
    """Let a root take over the runs below it that were roots of their own.

    Yields what to call before each run is indexed in the root's catalog.
    """
    runs: list[Path] = []

    def absorb(run: Path) -> None:
        if root is None or root not in run.parents or not identity.is_root(run):
            return
        try:
            identity.unmark_root(run)
        except OSError as error:
            warnings.warn(f"{run} keeps a catalog of its own: {error.strerror}", stacklevel=2)
        else:
            runs.append(run)

    yield absorb
    for run in runs:
        # Its content is in the new catalog now, and both were only ever an index.
        with suppress(FileNotFoundError):
            (identity.hidden(run) / FILE).unlink()


def _root_of(directory: Path) -> Path | None:
    """Return the root that a directory belongs to.

    A run that is only a root of its own belongs into the one that it lies in.
    """
    root = identity.find_root(directory)
    if root is not None and scan.is_run(root):
        return identity.find_root(root.parent) or root
    return root


def _enclosing_run(path: Path) -> Path | None:
    """Return the run that a directory is or lies in, as far as the next root."""
    for folder in (path, *path.parents):
        if scan.is_run(folder):
            return folder
        if identity.is_root(folder):
            return None
    return None


def _is_ours(directory: Path) -> bool:
    return (identity.hidden(directory) / "run.json").exists()


def _exists(seen: Seen) -> bool:
    return seen.run.directory.is_dir()


def _is_uuid_prefix(name: str, uuid: str) -> bool:
    return len(name) >= _SHORTEST_UUID_PREFIX and uuid.startswith(name)


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise InvalidAnnotation(f"a {what} must be a line of printable text, not {text!r}")
