"""Watching runs: their checkpoints as they are saved, for evaluators."""

from __future__ import annotations

import logging
import reprlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.candidates import Wanted
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint
from ckptdb.core.stamp import Stamp
from ckptdb.disk import (
    checkpoint_identity,
    identity,
    leases,
    names,
    published_name,
    root_marker,
    run_stamp,
)
from ckptdb.disk.run_finder import Runs
from ckptdb.errors import (
    CatalogError,
    CatalogMissing,
    InvalidWatch,
    RunLocked,
)
from ckptdb.reconcile.fallback import EXPECTED, Fallback
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.run import index_run
from ckptdb.reconcile.run_location import find_there
from ckptdb.registry.arrivals import ArrivalQueue, Arrivals, Share, Stop, Waiting
from ckptdb.registry.opened import PathLike
from ckptdb.registry.tree import Tree

POLL_SECONDS = 5.0
"""Seconds between two looks without a new checkpoint. A look reads one stamp per run."""

_T = TypeVar("_T")
_Query = Callable[[Catalog, int], _T]
"""Asks a catalog about a run, by id."""
_logger = logging.getLogger("ckptdb")


class WatchMethods(Tree):
    """Methods of `Registry` that yield checkpoints as they are saved."""

    def watch(
        self,
        run: PathLike | None = None,
        *,
        lease: str | None = None,
        lease_seconds: float = leases.SECONDS,
        poll_seconds: float | None = POLL_SECONDS,
        existing: bool = True,
        stop: Stop | None = None,
    ) -> Arrivals:
        """Yield every final, trusted checkpoint once: those that are there, and those to come.

        They come by run and step, later ones as they are saved. A checkpoint that is deleted
        before its turn is passed over; a step that is saved again comes again.

        With a lease, each checkpoint goes to only one of the processes that use the same name, on
        any host, and is not deleted while that process has it. Requesting the next one records
        that it is done: no process of that name gets it again. When the loop is left, or its
        process dies, another process gets it.

        Args:
            run: Name, path or uuid prefix; None for those at or below what was opened, those
                that begin later included.
            lease: Name of the evaluation, e.g. ``"mmlu"``.
            lease_seconds: Time after which a lease of a process on another machine ends unless it
                is renewed; that happens in the background.
            poll_seconds: Time between two looks; None to end when no checkpoint is left.
            existing: Yield also the checkpoints that are there already.
            stop: An event, or a function that returns whether to end before the next checkpoint.

        Raises:
            InvalidWatch: Lists everything that is wrong with the arguments.
            UnknownRun: There is no such run.
            CatalogMissing: There is no run at all, and none is waited for.
        """
        faults = tuple(_find_faults(lease, lease_seconds, poll_seconds, stop))
        if faults:
            raise InvalidWatch(faults)
        directories = self._find_watched(run, waits=poll_seconds is not None)
        answers = _Answers(self._catalog, partial(self._healing.heal, strict=True), self.close)
        looker = _Looker(answers, directories)
        share = None if lease is None else Share(lease, lease_seconds)
        queue = ArrivalQueue(
            looker.look, looker.load, share=share, poll_seconds=poll_seconds, stop=stop
        )
        if not existing:
            queue.pass_over()
        return Arrivals(queue)

    def _find_watched(self, run: PathLike | None, *, waits: bool) -> Callable[[], Iterable[Path]]:
        """Return a function that lists the directories of the runs."""
        one = self.run if run is None else self._run_names.match(run).run.directory
        if one is not None:
            return lambda: (one,)
        top = self._place.directory
        if top is None:
            return self._find_known
        known: set[Path] = set()
        try:
            # One behind a symlink is not found by looking.
            known.update(self._find_known())
        except CatalogMissing:
            if not waits:
                raise
        except CatalogError as error:
            _logger.info("runs are found by looking only: %s", error)
        runs = Runs(top, other_roots=not self._place.is_chosen and not root_marker.is_root(top))
        return lambda: sorted(known.union(runs.find()))

    def _find_known(self) -> list[Path]:
        return [seen.run.directory for seen in self._bounds.find_runs()]


class _Answers:
    """Answers about runs as they are on disk, from the catalog or, when that fails, from memory.

    Args:
        open_catalog: Returns the catalog.
        heal: Brings the catalog to what is on disk in a run, or raises why it cannot.
        close: Closes the catalog; the next question opens it again.
    """

    def __init__(
        self,
        open_catalog: Callable[[], Catalog],
        heal: Callable[[Path], object],
        close: Callable[[], None],
    ) -> None:
        self._open = open_catalog
        self._heal = heal
        self._close = close
        self._fallback = Fallback()

    def query(self, directory: Path, query: _Query[_T]) -> tuple[IndexedRun, _T] | None:
        """Return a run as the index has it, and the answer; None when the run is not there."""
        try:
            if not self._fallback.is_active:
                stored = self._open_current()
                self._heal(directory)
                if answer := _put(query, stored, directory):
                    return answer
        except (CatalogError, RunLocked, OSError) as error:
            self._give_up(error)
        memory = self._fallback.get_memory()
        try:
            index_run(memory, directory, depth="changes")
        except OSError as error:
            _logger.info("%s cannot be looked at now: %s", directory, error)
            return None
        return _put(query, memory, directory)

    def recall(self, directory: Path, query: _Query[_T]) -> _T | None:
        """Return the answer of the index as it is, without a look at the disk."""
        try:
            is_active = self._fallback.is_active
            catalog = self._fallback.find_memory() if is_active else self._open_current()
            answer = None if catalog is None else _put(query, catalog, directory)
        except CatalogError as error:
            self._give_up(error)
            return None
        return answer[1] if answer else None

    def _open_current(self) -> Catalog:
        opened = self._open()
        if not opened.database.replaced():
            return opened
        self._close()
        return self._open()

    def _give_up(self, error: Exception) -> None:
        is_first = self._fallback.activate(error, is_expected=isinstance(error, EXPECTED))
        with suppress(CatalogError):
            self._close()
        _logger.info("the catalog is given up for now: %s", error)
        if is_first:
            warnings.warn(f"{error} Checkpoints are found by looking at the directories.")


def _put(query: _Query[_T], to: Catalog, directory: Path) -> tuple[IndexedRun, _T] | None:
    seen = find_there(to, directory)
    return None if seen is None else (seen, query(to, seen.id))


@dataclass(frozen=True, slots=True)
class _LastLook:
    """Checkpoints of a run at its last look, and whether an equal stamp proves them current."""

    stamp: Stamp
    is_sure: bool
    here: tuple[Waiting, ...]


class _Looker:
    """Finds the checkpoints of runs again and again; reads only runs that have changed.

    Args:
        answers: Answers about the runs.
        directories: Returns the directories of the runs.
    """

    def __init__(self, answers: _Answers, directories: Callable[[], Iterable[Path]]) -> None:
        self._answers = answers
        self._directories = directories
        self._looked: dict[Path, _LastLook] = {}

    def look(self) -> Iterator[tuple[Waiting, ...]]:
        """Yield the published, trusted checkpoints of each run, by step."""
        for directory in self._directories():
            here = self._look_at(directory)
            if here:
                yield here

    def load(self, one: Waiting) -> Checkpoint | None:
        """Return the record of a checkpoint, None when it is not there any more."""

        def find(catalog: Catalog, run_id: int) -> Checkpoint | None:
            found = catalog.checkpoints.list_all(run_id=run_id, status="final", steps=[one.step])
            return next((cp for cp in found if cp.uuid == one.uuid and cp.is_trusted), None)

        found = self._answers.recall(one.directory, find)
        if found is None and (answer := self._answers.query(one.directory, find)):
            found = answer[1]
        return found if _is_there(one) else None

    def _look_at(self, directory: Path) -> tuple[Waiting, ...]:
        stamp = run_stamp.find_stamp(directory)
        if stamp is None:
            return ()
        before = self._looked.get(directory)
        if before is not None and before.is_sure and stamp.is_same(before.stamp):
            return before.here
        answer = self._answers.query(
            directory, lambda catalog, run_id: catalog.candidates.of_run(run_id, Wanted())
        )
        if answer is None:
            return ()
        seen, found = answer
        here = tuple(Waiting(directory, seen.run.uuid, cp.step, cp.uuid) for cp in found)
        is_sure = is_exact(seen, stamp)
        self._looked[directory] = _LastLook(stamp, is_sure, here)
        return here


def _is_there(one: Waiting) -> bool:
    path = one.directory / names.final_name(one.step)
    try:
        if not published_name.is_published(path):
            return False
        who = identity.identify(one.directory)
        return checkpoint_identity.find_uuid(who, path, one.step, through_link=True) == one.uuid
    except OSError:
        return False


def _find_faults(
    lease: object, lease_seconds: object, poll_seconds: object, stop: object
) -> Iterator[str]:
    if lease is not None and not names.can_name_a_lease(lease):
        text = reprlib.repr(lease)
        yield f"lease must be a short line of printable text, not {text}"
    if not _is_time(lease_seconds):
        yield f"lease_seconds must be a number above 0, not {lease_seconds!r}"
    if poll_seconds is not None and not _is_time(poll_seconds):
        yield f"poll_seconds must be a number above 0 or None, not {poll_seconds!r}"
    if stop is not None and not callable(stop) and not hasattr(stop, "is_set"):
        yield f"stop must be an event or a function, not {stop!r}"


def _is_time(seconds: object) -> bool:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return 0 < seconds <= threading.TIMEOUT_MAX
