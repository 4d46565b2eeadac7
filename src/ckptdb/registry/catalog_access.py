"""The catalog that answers for an opened place: stored, indexed in memory, or a copy in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.files import FileState, look_at
from ckptdb.catalog.memory_copy import find_memory_copy
from ckptdb.catalog.worker import Workers
from ckptdb.core import warnings
from ckptdb.disk import root_marker, run_finder
from ckptdb.errors import (
    CatalogBroken,
    CatalogError,
    CatalogLocked,
    CatalogMissing,
    CatalogReadOnly,
    CatalogUnusable,
)
from ckptdb.reconcile.run import index_run
from ckptdb.registry.opened import OpenedPlace

UNUSABLE = (CatalogLocked, CatalogBroken, CatalogUnusable)
"""Errors of a catalog that is there and cannot be used; deletions are then decided by files."""


class CatalogAccess:
    """The catalog of an opened place, opened at the first question.

    Without a stored catalog, the tree is indexed in memory. With one that can only be read, a copy
    in memory is used as soon as the stored one is behind the disk.

    Attributes:
        workers: Processes that answer a user's SQL; closed with the catalog.
    """

    def __init__(self, place: OpenedPlace) -> None:
        self.workers = Workers()
        self._place = place
        self._opened: Catalog | None = None
        self._copied: FileState | None = None
        self._copied_because: CatalogError | None = None
        self._is_deciding = False
        self._is_doubted = False
        self._warned: set[str] = set()

    @property
    def is_copy(self) -> bool:
        """A copy in memory is used, because the catalog itself cannot be written."""
        return self._copied is not None

    @property
    def is_doubted(self) -> bool:
        """A deletion is being decided by the files, because the catalog cannot be used."""
        return self._is_doubted

    def get(self, *, create: bool = False) -> Catalog:
        """Return the catalog.

        Args:
            create: Begin a stored one, and upgrade an old one.

        Raises:
            CatalogMissing: There is no catalog, and no run to index in memory.
        """
        opened = self._opened
        if opened is None or (create and opened.database.location.in_memory):
            self._opened = opened = Catalog(self._open_or_index(create=create))
        return opened

    def get_for_writing(self) -> Catalog:
        """Return the catalog, upgraded; without one, the index in memory.

        Only `reconcile` and `init` begin one: it would hold no more than the run at hand, and
        hide all others.
        """
        return self.get(create=not self.get().database.location.in_memory)

    def open_database(self, *, create: bool) -> Database:
        """Open the stored catalog.

        Raises:
            RootRefused: The root cannot be used, and a catalog was to be created.
            CatalogMissing: There is none.
        """
        base, refused = self._place.location.base, self._place.refused
        if refused is not None and create:
            raise refused
        if refused is not None and base is not None:
            self.warn_once(f"{refused} Until then answers come from the files.")
            raise CatalogMissing(base)
        if create and base is not None and self._place.directory is not None:
            root_marker.mark_root(base)
        return Database.open(self._place.location, create=create, upgrade=create)

    def use(self, catalog: Catalog) -> None:
        """Answer from this catalog until `close`."""
        self._opened = catalog

    def refresh(self) -> None:
        """Begin a question with the catalog that is there now, and not with one it replaced.

        Within a question it stays the same: its rows have ids of their own.
        """
        opened, file = self._opened, self._place.location.file
        if opened is None or file is None or self._is_doubted:
            return
        if self._copied is not None:
            changed = self._copied != look_at(file)
        elif opened.database.location.in_memory:
            changed = look_at(file) is not None
        else:
            changed = opened.database.replaced()
        if changed:
            self.close()

    def close(self) -> None:
        """Close the catalog; the next question opens it again."""
        self.workers.close()
        if self._opened is not None:
            self._opened.database.close()
        self._opened = self._copied = None

    def copy_to_memory(self, why: CatalogError) -> bool:
        """Continue with a copy of a catalog that cannot be written; return whether there is one.

        The copy can be brought to what is on disk, so that answers are true all the same.
        """
        opened, file = self.get().database, self._place.location.file
        if opened.location.in_memory or self._is_deciding:
            return False  # a deletion is decided by the files then, and warns of that
        look = None if file is None else look_at(file)
        try:
            copy = find_memory_copy(opened)
        except CatalogError:
            copy = None
        if copy is None or look is None:
            self.warn_once(f"{why} Answers may lack what was saved since it was last written.")
            return False
        self.close()
        self._opened, self._copied, self._copied_because = Catalog(copy), look, why
        return True

    @contextmanager
    def deciding(self, run: Path | None) -> Iterator[None]:
        """Let a deletion be decided by the files when the catalog cannot be used.

        Args:
            run: The only run that is meant; None when there may be others.
        """
        place = self._place
        if self.is_copy:
            self.close()
        try:
            self.get().runs.list_all()
        except UNUSABLE as error:
            if place.directory is None:
                raise
            self.doubt(error)
            top = run or place.location.base or place.directory
            self._opened = Catalog(self._index_in_memory(top))
        try:
            self._is_deciding = True
            yield
        finally:
            self._is_deciding = False
            if self._is_doubted:
                self._is_doubted = False
                self.close()

    def doubt(self, error: Exception) -> None:
        """Decide the deletion under way by the files; warn of it once."""
        if not self._is_doubted:
            warnings.warn(f"{error} What goes is decided by the files; the catalog follows later.")
        self._is_doubted = True

    def doubt_copy(self) -> None:
        """Decide the deletion under way by the files where only a copy of the catalog is used."""
        if self.is_copy and self._copied_because is not None:
            self.doubt(self._copied_because)

    def warn_once(self, sentence: str) -> None:
        """Warn with a sentence, but never twice with the same one."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(sentence)

    def _open_or_index(self, *, create: bool) -> Database:
        directory = self._place.directory
        try:
            return self.open_database(create=create)
        except CatalogMissing:
            if directory is None:
                raise
        except CatalogReadOnly as error:
            # Half a transaction is in it, of somebody else's catalog.
            if create or directory is None:
                raise
            self.warn_once(f"{error} Until then answers come from the files.")
        return self._index_in_memory(directory)

    def _index_in_memory(self, directory: Path) -> Database:
        database = Database.in_memory(self._place.location.base or directory)
        catalog, found = Catalog(database), False
        for run in run_finder.find_runs(directory, other_roots=True):
            found = True
            index_run(catalog, run)
        if not found:
            raise CatalogMissing(directory)
        return database
