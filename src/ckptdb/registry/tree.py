"""A place that was opened: which catalog it has, which runs, and how they are kept true."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.files import Look, look_at
from ckptdb.catalog.location import Location, locate
from ckptdb.catalog.worker import Workers
from ckptdb.core import warnings
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    fsutil,
    identity,
    names,
    scan,
)
from ckptdb.disk.paths import find_place
from ckptdb.disk.pending_index import Note, Notes
from ckptdb.disk.safe_path import Place
from ckptdb.errors import (
    AmbiguousRun,
    CatalogError,
    CatalogMissing,
    CatalogReadOnly,
    DirectoryMissing,
    NoRuns,
    NoRunsBelow,
    RootRefused,
    RunLocked,
    RunNotHere,
    RunOutside,
    UnknownCheckpoint,
    UnknownRun,
)
from ckptdb.reconcile import ReconcileDepth, RunReport, index_run, reconcile_run
from ckptdb.reconcile.run_location import Whereabouts, find_there, find_whereabouts
from ckptdb.registry.scope import Below, Scope
from ckptdb.training.index import find_location, fixed_choice

PathLike = str | os.PathLike[str]
_SHORTEST_UUID_PREFIX = 4
_COMPARED_SECONDS = 2.0
"""For how long answers to a reader rest on one look at all runs: a page asks many questions."""
NAMED = 5
"""How many runs a sentence names at most."""


class Tree:
    """A root, a run or a catalog, and the catalog that answers for it."""

    def __init__(
        self,
        location: Location,
        directory: Path | None,
        run: Path | None,
        *,
        chosen: bool = False,
        whole: bool = False,
    ) -> None:
        """Use `Registry.open`."""
        self.location = location
        self._directory = directory
        self._run = run
        self._chosen = chosen
        self._whole = whole
        self._doubted = False
        self._decides = False
        self._opened: Catalog | None = None
        self._workers = Workers()
        self._copied: Look | None = None
        self._copied_for: CatalogError | None = None
        self._compared_at = -math.inf
        self._refused: RootRefused | None = None
        self._told: set[str] = set()
        self._own_root: Path | None = None

    @classmethod
    def open(cls, location: PathLike = ".", *, catalog: PathLike | None = None) -> Self:
        """Open a root, a run, anything inside them, a catalog file or a database URL.

        What names no run is about those at or below the directory that was opened; inside a run
        about that one, and of a catalog about all of its runs.

        Args:
            location: What to look at.
            catalog: Another catalog than the one found there.

        Raises:
            CatalogUnusable: The location or the chosen catalog cannot be one.
            CatalogMissing: There is no such directory.
        """
        name = os.fspath(location)
        if "://" in name:
            return cls(locate(name), None, None, chosen=True, whole=True)
        path = Path(os.path.abspath(name))
        if path.is_file():
            found = locate(path)
            return cls(found, found.base, None, chosen=True, whole=True)
        if not path.is_dir():
            raise DirectoryMissing(path)
        path = _behind_links(path)
        choice = fixed_choice(catalog)
        run = enclosing_run(path)
        top = run or path
        try:
            return cls(find_location(top, choice), top, run, chosen=bool(choice))
        except RootRefused as error:
            opened = cls(Location("sqlite://", None, top), top, run)
            opened._refused = error
            return opened

    @property
    def run(self) -> Path | None:
        """The run that was opened; None for a root or a catalog."""
        return self._run

    @property
    def directory(self) -> Path | None:
        """The directory whose runs are meant where none is named; None for all of a catalog."""
        return None if self._whole else self._run or self._directory

    def close(self) -> None:
        """Close the catalog; the next call opens it again."""
        self._workers.close()
        if self._opened is not None:
            self._opened.database.close()
        self._opened = self._copied = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- which catalog -------------------------------------------------------------------

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
        except CatalogReadOnly as error:
            # Half a transaction is in it, of somebody else's catalog.
            if create or self._directory is None:
                raise
            self._tell(f"{error} Until then answers come from the files.")
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
        if self._refused is not None and create:
            raise self._refused
        if self._refused is not None and base is not None:
            self._tell(f"{self._refused} Until then answers come from the files.")
            raise CatalogMissing(base)
        if create and base is not None and self._directory is not None:
            identity.mark_root(base)
        return Database.open(self.location, create=create, upgrade=create)

    def _index_in_memory(self, directory: Path) -> Database:
        database = Database.in_memory(self.location.base or directory)
        catalog, found = Catalog(database), False
        for run in scan.find_runs(directory, other_roots=True):
            found = True
            index_run(catalog, run)
        if not found:
            raise CatalogMissing(directory)
        return database

    def _refresh(self) -> None:
        """Begin a question with the catalog that is there now, and not with one it replaced.

        Within a question it stays the same: its rows have ids of their own.
        """
        opened, file = self._opened, self.location.file
        if opened is None or file is None or self._doubted:
            return
        if self._copied is not None:
            changed = self._copied != look_at(file)
        elif opened.database.location.in_memory:
            changed = look_at(file) is not None
        else:
            changed = opened.database.replaced()
        if changed:
            self.close()

    # --- which run -----------------------------------------------------------------------

    def _find_scope(self, run: PathLike | None) -> Scope:
        """Return what a question is about; a single run is compared with its directory.

        Raises:
            NoRunsBelow: No run lies at or below the directory that was opened.
        """
        self._refresh()
        if run is not None or self._run is not None:
            return Scope(self._get_run(run))
        self._complete()
        among = self._find_among()
        if among == ():
            raise self._nothing_here()
        return Scope(among=among)

    def _find_among(self) -> tuple[int, ...] | None:
        """Return which runs lie at or below what was opened; None for all of the catalog."""
        top = self.directory
        if top is not None and top != self.location.base:
            places = self._catalog().places().items()
            inside = {number: place for number, place in places if self._is_inside(place)}
            return Below(top).find(inside)
        if self._find_own_root() is None or not self._find_outside():
            return None
        places = self._catalog().places().items()
        return tuple(number for number, place in places if self._is_inside(place))

    def _is_inside(self, place: Path) -> bool:
        """Tell whether a row's directory lies in what was pointed at.

        That is the root that the catalog belongs to, and the directory that was opened. A catalog
        that belongs to no root has its runs anywhere, by their absolute paths.
        """
        if not place.is_absolute() or ".." in place.parts or "\0" in str(place):
            return False
        tops = [top for top in (self._find_own_root(), self._directory) if top is not None]
        return self._find_own_root() is None or any(place.is_relative_to(top) for top in tops)

    def _find_own_root(self) -> Path | None:
        """Return the root whose catalog this is; None of one that was put anywhere else."""
        base = self.location.base
        if base is None or not self._chosen:
            return base
        if self._own_root is None and identity.is_root(base):
            self._own_root = base
        return self._own_root

    def _leads_outside(self, place: Path) -> bool:
        """Tell whether a link leads out of what was pointed at."""
        return self._find_own_root() is not None and self._find_top(os.path.realpath(place)) is None

    def _find_top(self, real: str) -> Path | None:
        """Return that part of what was pointed at which a path without links is in."""
        tops = (self._find_own_root(), self._directory)
        found = (Path(os.path.realpath(top)) for top in tops if top is not None)
        return next((top for top in found if Path(real).is_relative_to(top)), None)

    def _find_place_inside(self, directory: Path) -> Place:
        """Return which directory a run is now, wherever links have led until now.

        Raises:
            RunNotHere: It is none that lies within what was pointed at.
        """
        place = find_place(directory)
        if place is None:
            raise RunNotHere(directory.name, directory, "for there is no such directory")
        if self._find_own_root() is None:
            return place
        real = os.path.realpath(directory)
        top = self._find_top(real)
        # Once more, and through no link: the directory may have been swapped for one in between.
        if top is None or find_place(Path(real), below=top) != place:
            raise RunNotHere(directory.name, directory, "where a link leads out of the root")
        return place

    def _find_outside(self) -> tuple[IndexedRun, ...]:
        """Return the runs that the catalog has outside of what was pointed at; says so once."""
        ids = [
            number
            for number, place in self._catalog().places(perhaps_outside=True).items()
            if not self._is_inside(place)
        ]
        if not ids:
            return ()
        outside = self._catalog().runs(among=ids)
        named = [f"{seen.run.uuid[:8]} at {seen.run.directory}" for seen in outside[:NAMED]]
        some = ", ".join(named) + ", …" * (len(outside) > NAMED)
        self._tell(
            f"{self.location} has {len(outside)} run(s) outside {self.location.base} ({some}): "
            "those are left out. `ckptdb forget` drops one; -C DIR with --catalog asks about it."
        )
        return outside

    def _runs(self) -> tuple[IndexedRun, ...]:
        """Return the runs at or below what was opened, by name."""
        return self._catalog().runs(among=self._find_among())

    def _runs_there(self) -> list[IndexedRun]:
        """Return the runs at or below what was opened, but for those whose place others took."""
        return [seen for seen in self._runs() if self._find_whereabouts(seen) != "replaced"]

    def _nothing_here(self) -> NoRuns:
        top = self.directory
        if top is None or top == self.location.base:
            return NoRuns(str(self.location))
        return NoRunsBelow(top, str(self.location), indexed=not any(scan.find_runs(top)))

    def _get_run(self, run: PathLike | None) -> IndexedRun:
        if run is None and self._run is not None:
            seen = self._find_at(self._run)
            if seen is None:
                raise UnknownRun(str(self._run), [s.run.name for s in self._catalog().runs()])
            return seen
        seen = self._match(run)
        if not self._is_inside(seen.run.directory):
            raise RunOutside(seen.run.name, seen.run.directory, str(self.location))
        settled = self._find_settled(seen.run.directory)
        if settled is not None and settled.id == seen.id:
            return settled
        self._heal(seen.run.directory)
        return self._catalog().find_run(seen.run.uuid) or seen

    def _get_at(self, seen: IndexedRun, step: int, *, uuid: str | None = None) -> Checkpoint:
        found = self._catalog().checkpoints(run_id=seen.id, steps=[names.as_step(step)])
        found = tuple(checkpoint for checkpoint in found if uuid in (None, checkpoint.uuid))
        if not found:
            raise UnknownCheckpoint(seen.run.name, step)
        return found[-1]

    def _match(self, run: PathLike | None) -> IndexedRun:
        self._complete()
        if run is None:
            return self._match_here()
        name = os.fspath(run)
        places = self._places(name)
        called = self._catalog().find_runs_called(name, places)
        if not all(self._is_inside(seen.run.directory) for seen in called):
            return self._match_outside(name, called)
        found = self._match_path(name, places, called) or self._match_name(name, called)
        if found is None:
            known = self._catalog().runs()
            found = _only(name, [seen for seen in known if _is_uuid_prefix(name, seen.run.uuid)])
        if found is None:
            raise UnknownRun(name, {seen.run.name for seen in known})
        return found

    def _match_outside(self, name: str, called: Sequence[IndexedRun]) -> IndexedRun:
        """Return one of some runs, of which not all are inside what was pointed at."""
        inside = [seen for seen in called if self._is_inside(seen.run.directory)]
        found = _only(name, inside or called)
        if found is None:
            raise UnknownRun(name, {seen.run.name for seen in called})
        return found

    def _match_here(self) -> IndexedRun:
        known = self._runs()
        if not known:
            raise self._nothing_here()
        found = known if len(known) == 1 else self._present(known) or known
        return _only(None, found) or found[0]

    def _match_path(
        self, name: str, places: Sequence[Path], called: Sequence[IndexedRun]
    ) -> IndexedRun | None:
        found = [
            seen
            for place in places
            if (seen := self._find_in(place, [s for s in called if s.run.directory == place]))
        ]
        here = [seen for seen in found if seen.run.directory.is_dir()]
        # As if the command had been started where it was told to stand.
        nearest = [seen for seen in here if seen.run.directory == places[0]]
        return _only(name, nearest or here or found)

    def _match_name(self, name: str, called: Sequence[IndexedRun]) -> IndexedRun | None:
        named: dict[Path, list[IndexedRun]] = {}
        for seen in called:
            if seen.run.name == name:
                named.setdefault(seen.run.directory, []).append(seen)
        each = (self._find_in(directory, seen) for directory, seen in named.items())
        found = list({seen.id: seen for seen in each if seen}.values())
        here = [seen for seen in found if seen.run.directory.is_dir()]
        top = self.directory
        below = [seen for seen in here if top is not None and Below(top).holds(seen.run.directory)]
        return _only(name, below or here or found)

    def _find_in(self, place: Path, rows: Sequence[IndexedRun]) -> IndexedRun | None:
        """Return the run that a directory means: the one that is there, else the last that was.

        Args:
            place: The directory.
            rows: What the catalog has there.
        """
        last = max(rows, key=lambda seen: seen.id, default=None)
        try:
            who = identity.find(place)
        except OSError:
            return last
        if who is None:
            return last
        known = self._catalog().find_run(who.run.uuid)
        if known is not None and known.run.directory == place:
            return known
        if not who.marked or who.problem:
            return last
        if known is None and last is None and identity.find_root(place) != self.location.base:
            return None  # of somebody else's root
        self._heal(place)
        if find_there(self._catalog(), place) is None:
            self._heal(place, strict=True)  # which says why
        return find_there(self._catalog(), place)

    def _present(self, known: Sequence[IndexedRun]) -> list[IndexedRun]:
        """Return those of some runs that are where the catalog has them, as far as can be told."""
        return [seen for seen in known if self._find_whereabouts(seen) in ("here", "unclear")]

    def _find_whereabouts(self, seen: IndexedRun) -> Whereabouts:
        if not self._is_inside(seen.run.directory):
            return "missing"
        return find_whereabouts(self._catalog(), seen.run.uuid, seen.run.directory)

    def _places(self, name: str) -> list[Path]:
        """Return the directories that a name may mean: below what was opened first."""
        tops = (self.directory, Path.cwd(), self.location.base)
        found = (Path(os.path.abspath(top / name)) for top in tops if top is not None)
        return list(dict.fromkeys(found))

    # --- staying true --------------------------------------------------------------------

    def _heal(self, directory: Path, *, strict: bool = False) -> RunReport | None:
        """Bring one run up to date as far as that is possible without a usable catalog.

        With ``strict`` what makes it impossible is raised: nothing may be deleted by an old index.
        """
        if not self._is_inside(directory) or not directory.is_dir():
            return None
        seen = self._find_by_identity(directory)
        if _is_settled(seen, directory):
            return None
        return self._heal_unsettled(directory, seen, strict=strict)

    def _heal_unsettled(
        self, directory: Path, seen: IndexedRun | None, *, strict: bool = False
    ) -> RunReport | None:
        before = None if seen is None else seen.run.directory
        try:
            report = index_run(self._catalog(), directory, depth="changes")
        except CatalogError as error:
            if strict:
                raise
            if not self._copy(error):
                return None
        except (RunLocked, OSError):
            if strict:
                raise
            return None
        else:
            if before is not None and before != directory:
                self._heal(before)  # where it came from, another one may be by now
            return report
        return self._heal(directory)

    def _copy(self, why: CatalogError) -> bool:
        """Go on with a copy in memory of a catalog that cannot be written; tell whether there is.

        It can be brought to what is on disk all the same, for the answer to be true.
        """
        opened, file = self._catalog().database, self.location.file
        if opened.location.in_memory or self._decides:
            return False  # what goes is decided by the files themselves, and that is told
        seen = None if file is None else look_at(file)
        try:
            copy = opened.find_copy()
        except CatalogError:
            copy = None
        if copy is None or seen is None:
            self._tell(f"{why} Answers may lack what was saved since it was last written.")
            return False
        self.close()
        self._opened, self._copied, self._copied_for = Catalog(copy), seen, why
        return True

    def _tell(self, sentence: str) -> None:
        """Warn of something once."""
        if sentence not in self._told:
            self._told.add(sentence)
            warnings.warn(sentence)

    # --- seeing all of it ----------------------------------------------------------------

    def _complete(self) -> None:
        """Let the catalog know all runs before a question that may be about any of them.

        A catalog that a save has begun knows only that run, and one that could not be written for
        a while lacks what was saved then.
        """
        base = self.location.base
        catalog = self._catalog()
        if catalog.database.location.in_memory and self._copied is None:
            return
        self._heal_for_readers()
        self._heal_cut_short()
        for note in self._notes().find():
            self._settle(note)
        if base is None:
            self._tell_unseen(self._catalog())
            return
        if self._catalog().database.is_complete():
            return
        try:
            self._look_everywhere(base)
        except CatalogError as error:
            if self._copy(error):
                self._look_everywhere(base)
            else:
                self._tell(f"{error} It has not seen all runs yet: those are left out.")

    def _heal_for_readers(self) -> None:
        """Compare all runs with their directories where nobody keeps the catalog true for us.

        Who may write it is not asked: what a trainer has left out there, it has left a note about.
        But one that may not write to the root either, as of another user, can leave none.
        """
        file = self.location.file
        now = time.monotonic()
        if file is None or now < self._compared_at + _COMPARED_SECONDS or _may_write(file):
            return
        for seen in self._catalog().runs():
            if not self._is_inside(seen.run.directory):
                continue
            stamp = scan.find_stamp(seen.run.directory)
            if stamp is not None and seen.stamp != str(stamp):
                self._heal(seen.run.directory)
        self._compared_at = time.monotonic()

    def _heal_cut_short(self) -> None:
        """Compare the runs whose trainer was killed after a save and before it could record it."""
        staged = self._catalog().checkpoints(status="tmp")
        here = (cp.path for cp in staged if self._is_inside(cp.path.parent))
        for directory in {path.parent for path in here if not fsutil.is_folder(path)}:
            self._heal(directory)

    def _settle(self, note: Note) -> None:
        """Bring the catalog to a run that it was behind on; whoever acts takes the note away."""
        if not self._is_inside(note.directory):
            return
        if not note.directory.is_dir() or not scan.is_run(note.directory):
            return  # moved, or not mounted: `reconcile` of the whole tree will tell
        self._heal(note.directory)

    def _look_everywhere(self, base: Path) -> None:
        """Index every run of a tree that the catalog does not know; nothing else is written."""
        passed_over: list[str] = []
        for listing in scan.list_runs(base):
            directory = listing.directory
            try:
                if self._catalog().find_run_at(directory) is not None:
                    self._heal(directory)
                    continue
                index_run(self._catalog(), directory, depth="changes", listing=listing)
            except (RunLocked, OSError) as error:
                passed_over.append(f"{directory}: {error}")
        if passed_over:
            self._tell(
                f"{self.location} has not seen all runs yet ({'; '.join(passed_over)}); "
                "`ckptdb reconcile` completes it."
            )
        else:
            self._catalog().database.set_complete()

    def _tell_unseen(self, catalog: Catalog) -> None:
        """Name the runs here that a catalog elsewhere has never been told of."""
        top = None if self._run is not None else self._directory
        if top is None or catalog.database.is_complete():
            return
        unseen = [run for run in scan.find_runs(top) if catalog.find_run_at(run) is None]
        if not unseen:
            with suppress(CatalogError):
                catalog.database.set_complete()
            return
        some = ", ".join(run.name for run in unseen[:NAMED]) + ", …" * (len(unseen) > NAMED)
        self._tell(
            f"{self.location} has not seen {len(unseen)} runs below {top} ({some}); "
            f"`ckptdb --catalog {self.location} reconcile {top}` adds them."
        )

    def _find_at(self, directory: Path) -> IndexedRun | None:
        """Return the run in a directory, brought up to date as far as that is possible."""
        seen = self._find_by_identity(directory)
        if _is_settled(seen, directory):
            return seen
        if directory.is_dir():
            self._heal_unsettled(directory, seen)
        return find_there(self._catalog(), directory)

    def _find_settled(self, directory: Path) -> IndexedRun | None:
        """Return the run in a directory that is surely as it was when it was last indexed."""
        seen = self._find_by_identity(directory)
        return seen if _is_settled(seen, directory) else None

    def _find_by_identity(self, directory: Path) -> IndexedRun | None:
        """Return the run that a directory says it is, wherever the catalog has that."""
        try:
            who = identity.find(directory)
        except OSError:
            return None  # not for us to see now
        return None if who is None else self._catalog().find_run(who.run.uuid)

    def _follow(self, changed: Iterable[Path], *, depth: ReconcileDepth = "changes") -> bool:
        """Bring the index to what has just been done to runs; tell whether it could be."""
        if self._doubted or self._copied is not None:
            self.close()  # a disk that was full has space now
        for directory in changed:
            notes = self._claim_notes(directory)
            try:
                reconcile_run(self._catalog_to_write(), directory, depth=depth)
            except (CatalogError, OSError) as error:
                self._note(directory)
                if not self._doubted:
                    warnings.warn(f"Recorded in {directory}; the index follows later: {error}")
                return False
            for note in notes:
                note.remove()
        return True

    def _claim_notes(self, top: Path) -> list[Note]:
        """Take the notes about runs at or below a directory, before these are looked at."""
        notes: list[Note] = []
        for note in self._notes().find():
            with suppress(OSError):
                if note.directory.is_relative_to(top):
                    notes.append(note.claim())
        return notes

    def _note(self, directory: Path) -> None:
        """Leave a note for those who come later that the catalog is behind on a run."""
        with suppress(OSError):
            self._notes().add(directory, identity.identify(directory).run.uuid)

    def _notes(self) -> Notes:
        return Notes(self.location.notes, self.location.base)


def _behind_links(path: Path) -> Path:
    """Return a directory as the root names it that it is in, should links lead there."""
    if identity.find_root(path) is None and not scan.is_run(path):
        real = Path(os.path.realpath(path))
        if real != path and identity.find_root(real) is not None:
            return real
    return path


def enclosing_run(path: Path) -> Path | None:
    """Return the run that a directory is or lies in, as far as the next root."""
    for folder in (path, *path.parents):
        if scan.is_run(folder):
            return folder
        marker = identity.find_marker(folder, below=path)
        if marker is not None and marker.counts:
            return None
    return None


def is_ours(directory: Path) -> bool:
    """Tell whether ckptdb has written to a run, and may do so without being asked to."""
    # Not Path.exists: what this user may not look into is not to be written to either.
    return os.path.exists(identity.hidden(directory) / "run.json")


def _may_write(file: Path) -> bool:
    """Tell whether this process may write a catalog, and the journal beside it."""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK | os.X_OK)


def _is_settled(seen: IndexedRun | None, directory: Path) -> bool:
    """Tell whether a run surely is as it was when it was last indexed, in that directory."""
    if seen is None or not seen.verified or seen.run.directory != directory:
        return False
    stamp = scan.find_stamp(directory)
    return stamp is not None and seen.stamp == str(stamp) and stamp.is_settled()


def _only(name: str | None, matches: Sequence[IndexedRun]) -> IndexedRun | None:
    if len(matches) < 2:  # noqa: PLR2004  # no choice
        return matches[0] if matches else None
    times = Counter(seen.run.directory for seen in matches)
    raise AmbiguousRun(
        name,
        [
            str(seen.run.directory)
            if times[seen.run.directory] == 1
            else f"{seen.run.uuid} (was {seen.run.directory})"
            for seen in matches
        ],
    )


def _is_uuid_prefix(name: str, uuid: str) -> bool:
    return len(name) >= _SHORTEST_UUID_PREFIX and uuid.startswith(name)
