"""The index as a whole: creating, reconciling, verifying and upgrading it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from ckptdb.catalog import engine
from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.files import look_at
from ckptdb.catalog.schema import HEAD
from ckptdb.catalog.set_aside import set_aside
from ckptdb.core import warnings
from ckptdb.core.jsonable import JsonRecord
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Run
from ckptdb.disk import identity, root_marker, run_finder, run_listing
from ckptdb.disk.verified import DEPTHS, VerifyDepth
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogForeign,
    CatalogMissing,
    CatalogNotBegun,
    CatalogReadOnly,
    CatalogTampered,
    CatalogUnusable,
    DirectoryMissing,
    InvalidChoice,
    RootsBelow,
    UnknownRun,
)
from ckptdb.reconcile.location import find_location
from ckptdb.reconcile.report import ReconcileReport
from ckptdb.reconcile.run import index_run
from ckptdb.reconcile.run_location import find_there
from ckptdb.reconcile.tree import reconcile_tree
from ckptdb.registry.absorb import Absorption, absorbing
from ckptdb.registry.opened import OpenedPlace, PathLike, find_enclosing_run
from ckptdb.registry.tree import Tree
from ckptdb.registry.verification import Verification, Verifier

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class CatalogStatus(JsonRecord):
    """State of a catalog, as `Registry.status` returns it.

    Attributes:
        revision: Revision of the schema; None when the catalog does not exist.
        integrity: ``"ok"``, ``"missing"``, ``"empty"`` (a file of 0 bytes), or the damage.
    """

    location: str
    exists: bool
    revision: str | None
    head: str
    size_bytes: int | None
    integrity: str
    runs: int
    checkpoints: int


class IndexMethods(Tree):
    """Methods of `Registry` that bring the catalog of a tree to what is on disk."""

    @classmethod
    def init(cls, directory: PathLike) -> tuple[Self, ReconcileReport]:
        """Mark a directory as a root, index what is below it, absorb catalogs of single runs.

        Raises:
            CatalogMissing: There is no such directory.
        """
        root = Path(os.path.abspath(directory))
        if not root.is_dir():
            raise DirectoryMissing(root)
        root_marker.mark_root(root)
        registry = cls(OpenedPlace(find_location(root), root))
        return registry, registry.reconcile()

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

        A broken catalog is set aside and built again. A directory with runs outside any root
        becomes a root, as by `init`, and runs that were roots of their own become part of it.

        Args:
            path: A run or a tree; None for what was opened. Runs of another root are compared
                with the catalog of that root.
            dry_run: Only report what would be done.
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
            return self._reconcile(top, look, on_run, dry_run=dry_run, full=full)
        with type(self).open(top) as other:
            return other._reconcile(top, look, on_run, dry_run=dry_run, full=full)  # noqa: SLF001  # one of us

    def verify(
        self,
        *,
        run: PathLike | None = None,
        depth: VerifyDepth = "contents",
        max_seconds: float | None = None,
        on_checkpoint: Callable[[], None] | None = None,
    ) -> Verification:
        """Compare every file with its manifest; return the live checkpoints, problems included.

        A checkpoint without a manifest cannot be compared, and is counted apart. Where the catalog
        may only be read, the answer comes from the files alone.

        Args:
            run: Name, path or uuid prefix; None for those at or below what was opened.
            depth: ``"contents"`` reads the files that have checksums, ``"sizes"`` none.
            max_seconds: Time to stop after; the next call continues with the checkpoint that was
                verified longest ago.
            on_checkpoint: Called after each checkpoint.

        Raises:
            InvalidChoice: There is no such depth.
        """
        if depth not in DEPTHS:
            raise InvalidChoice("depth", depth, DEPTHS)
        scope = self._find_scope(run)
        look = partial(
            self._verify,
            [scope.seen] if scope.seen else self._find_runs_there(),
            depth=depth,
            max_seconds=max_seconds,
            on_checkpoint=on_checkpoint or (lambda: None),
        )
        try:
            return look(self._catalog())
        except (CatalogUnusable, OSError) as error:
            if not _is_forbidden(error):
                raise
            why = str(error).removesuffix(".")
        with closing(Database.in_memory(self.location.base)) as database:
            found = look(Catalog(database), only_read=True)
        return replace(found, unrecorded=why)

    def _verify(
        self,
        wanted: Sequence[IndexedRun],
        catalog: Catalog,
        *,
        depth: VerifyDepth,
        max_seconds: float | None,
        on_checkpoint: Callable[[], None],
        only_read: bool = False,
    ) -> Verification:
        runs, ours, not_seen = list[IndexedRun](), list[IndexedRun](), dict[Path, str]()
        for seen in wanted:
            directory = seen.run.directory
            try:
                found = self._index_to_verify(catalog, seen)
                if isinstance(found, str):
                    not_seen[directory] = found
                    continue
                runs.append(found)
                # A run that cannot be written to is included: the error is reported.
                ours += [found] if _is_ours(directory) and not only_read else []
            except OSError as error:
                not_seen[directory] = f"cannot be read ({error.strerror})"
        verifier = Verifier(catalog, depth, max_seconds=max_seconds, on_checkpoint=on_checkpoint)
        return replace(verifier.verify(runs, ours=ours), not_seen=not_seen)

    def _find_runs_there(self) -> list[IndexedRun]:
        """Return the runs at or below what was opened, without those that others replaced."""
        known = self._bounds.find_runs()
        return [seen for seen in known if self._bounds.find_whereabouts(seen) != "replaced"]

    def _index_to_verify(self, catalog: Catalog, seen: IndexedRun) -> IndexedRun | str:
        """Bring the index to what is in a run; return that run, or why it cannot be looked at."""
        directory = seen.run.directory
        where = self._bounds.find_whereabouts(seen)
        if where in ("missing", "replaced"):
            return "is not there" if where == "missing" else "is another run's by now"
        report = index_run(catalog, directory)
        # A copied run has got another identity by now.
        found = find_there(catalog, directory)
        if found is None and report.blocked:
            return f"cannot be indexed: {report.blocked}"
        return found or seen

    def forget(self, run: PathLike) -> Run:
        """Remove a run from the index and return it; its directory is not touched."""
        seen = self._run_names.match(run)
        self._catalogs.get_for_writing().runs.delete(seen.id)
        return seen.run

    def status(self) -> CatalogStatus:
        """Return the location and state of the catalog; never raises because of that state."""
        location = self.location
        file = location.file
        look = None if file is None else look_at(file)
        exists = self._place.refused is None and (file is None or look is not None)
        size = look.size_bytes if look is not None and exists else None
        revision, integrity, counts = None, "missing", (0, 0)
        if exists:
            try:
                database = Database.open(location)
                revision, integrity = database.revision(), database.integrity()
                counts = Catalog(database).checkpoints.counts()
                database.close()
            except CatalogMissing:
                integrity = "empty"
            except CatalogError as error:
                integrity = str(error)
        return CatalogStatus(str(location), exists, revision, HEAD, size, integrity, *counts)

    def explain_location(self) -> tuple[str, ...]:
        """Return why this catalog is used: the marked roots above, and which of them counts."""
        if self._place.is_chosen or self._place.directory is None:
            return (f"{self.location} was named.",)
        found = []
        for marker in root_marker.find_markers(self._place.directory):
            found.append(f"{marker}: " + ("used." if marker.counts else "not used."))
            if marker.counts:
                break
        return tuple(found)

    def explain_missing(self) -> CatalogError:
        """Return the error that explains why there is no catalog."""
        if self._place.refused is not None:
            return self._place.refused
        where = self._place.directory or Path(str(self.location))
        if any(run_finder.find_runs(where)):
            return CatalogNotBegun(self.location.base or where)
        return _nothing_at(where)

    def upgrade(self) -> tuple[str, str, Path | None]:
        """Upgrade the catalog to this version's schema; return both revisions and the copy."""
        self.close()
        return engine.upgrade(self.location)

    def _reconcile(
        self,
        top: Path,
        look: Callable[..., ReconcileReport],
        on_run: Callable[[Path], None],
        *,
        dry_run: bool,
        full: bool,
    ) -> ReconcileReport:
        if not self._has_begun() and not any(run_finder.find_runs(top)):
            raise _nothing_at(top)
        if dry_run:
            own = Absorption(self.location.base)

            def compare(run: Path) -> None:
                own.compare(run)
                on_run(run)

            return own.complete(look(self._catalog_or_empty(), on_run=compare, dry_run=True))
        notes = self._healing.claim_notes(top)
        aside = self._make_usable()
        try:
            report = self._look(look, on_run, quick=not full)
        except CatalogBroken:
            # Damaged as a database, found by its check, or as a catalog, found by reading it.
            self.close()
            aside = set_aside(self.location)
            report = self._look(look, on_run, quick=not full)
        if self._is_whole(top):
            self._catalog().database.set_complete()
        blocked = {run.directory for run in report.runs if run.blocked}
        for note in notes:
            if note.directory not in blocked:
                note.remove()
        return replace(report, set_aside=aside)

    def _is_whole(self, top: Path) -> bool:
        """Tell whether a directory has all runs of the catalog."""
        base = self.location.base
        return top == base if base is not None else not run_listing.is_run(top)

    def _look(
        self,
        look: Callable[..., ReconcileReport],
        on_run: Callable[[Path], None],
        *,
        quick: bool,
    ) -> ReconcileReport:
        catalog = self._catalogs.get(create=True)
        database = catalog.database
        with (
            absorbing(self.location.base, database) as (own, take),
            database.checked(quick=quick),
        ):

            def begin(run: Path) -> None:
                take(run)
                on_run(run)

            return own.complete(look(catalog, on_run=begin))

    def _catalog_or_empty(self) -> Catalog:
        try:
            return Catalog(Database.open(self.location))
        except CatalogMissing:
            return Catalog(Database.in_memory(self.location.base))
        except CatalogBroken as error:
            warnings.warn(str(error))
            return Catalog(Database.in_memory(self.location.base))

    def _make_usable(self) -> Path | None:
        """Set aside a file that cannot be opened as a catalog; return its new path."""
        self.close()
        try:
            self._catalogs.use(Catalog(self._catalogs.open_database(create=True)))
        except CatalogBroken as error:
            if self.location.base is None and not isinstance(error, CatalogTampered):
                # A file that the user named may be anything, a script or weights: never move it.
                raise CatalogForeign(str(self.location)) from error
            return set_aside(self.location)
        return None

    def _top(self, path: PathLike | None) -> Path:
        if path is not None:
            top = Path(os.path.abspath(path))
            if not top.is_dir():
                raise DirectoryMissing(top)
            return find_enclosing_run(top) or top
        top_here = self.directory or self.location.base
        if top_here is None:
            raise UnknownRun(str(self.location), ())
        return top_here

    def _answers_for(self, top: Path) -> bool:
        """Tell whether a directory belongs to this catalog, and not to that of another root."""
        return self._place.is_chosen or self.location.base in (top, _root_of(top))

    def _has_begun(self) -> bool:
        file, base = self.location.file, self.location.base
        return file is None or file.exists() or (base is not None and root_marker.is_root(base))


def _is_forbidden(error: CatalogUnusable | OSError) -> bool:
    """Tell whether an error only means that this user may not write, or not here."""
    cause = error if isinstance(error, OSError) else error.__cause__
    forbidden = isinstance(cause, OSError) and cause.errno in _FORBIDDEN
    return forbidden or isinstance(error, CatalogReadOnly)


def _is_ours(directory: Path) -> bool:
    """Tell whether ckptdb has written to a run before, and so may write to it again."""
    # Not Path.exists: a directory that this user may not read must not be written to either.
    return os.path.exists(identity.hidden(directory) / "run.json")


def _nothing_at(top: Path) -> CatalogMissing:
    others = {root_marker.find_root(run) for run in run_finder.find_runs(top, other_roots=True)}
    return RootsBelow(top, sorted(filter(None, others))) if others else CatalogMissing(top)


def _root_of(directory: Path) -> Path | None:
    """Return the root that a directory belongs to.

    A run that is a root of its own belongs to the root that it lies in.
    """
    root = root_marker.find_root(directory)
    if root is not None and run_listing.is_run(root):
        return root_marker.find_root(root.parent) or root
    return root
