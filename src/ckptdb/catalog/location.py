"""Where a catalog is: from what a person names to a file or a URL."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ckptdb.errors import CatalogUnusable

FOLDER: Final = ".ckptdb"
FILE: Final = "catalog.db"
_IN_MEMORY: Final = frozenset({None, "", ":memory:"})


@dataclass(frozen=True, slots=True)
class Location:
    """Where a catalog is; ``str()`` of it is what to show a person.

    Attributes:
        url: SQLAlchemy URL.
        file: The SQLite file, None for any other database.
        base: What stored relative paths are relative to: the root, when the file is
            ``<root>/.ckptdb/catalog.db``. None when every path is stored absolute.
    """

    # Not in the repr: it may hold a password.
    url: str = field(repr=False)
    file: Path | None
    base: Path | None

    def __str__(self) -> str:
        if self.file is not None:
            return str(self.file)
        return make_url(self.url).render_as_string(hide_password=True)

    @property
    def in_memory(self) -> bool:
        """Whether it is a SQLite database that lives and dies with its `Database`."""
        return self.file is None and self.url.startswith("sqlite")

    @property
    def notes(self) -> Path | None:
        """The folder for notes about runs of which it lacks changes; None of a server's."""
        if self.file is None:
            return None
        own = self.file.parent.name == FOLDER
        return self.file.with_name("unindexed" if own else f"{self.file.name}.unindexed")


def fixed(choice: str | os.PathLike[str]) -> str:
    """Return a choice of catalog that means the same after a change of directory; see `locate`.

    A leading ``~/`` stands for the home directory, since no shell has seen what a config says.
    """
    name = os.fspath(choice)
    if isinstance(choice, str) and "://" in choice:
        with suppress(ArgumentError, ValueError):  # `locate` says what is wrong with it
            url = make_url(choice)
            if url.get_backend_name() == "sqlite" and url.database not in _IN_MEMORY:
                url = url.set(database=_absolute(str(url.database)))
                return url.render_as_string(hide_password=False)
        return choice
    return _absolute(name) if name and "\0" not in name else name


def _absolute(name: str) -> str:
    if name.startswith("~/"):
        name = os.path.expanduser(name)
    try:
        # Path.absolute() would keep "..", and no run would seem to be below the root.
        path = os.path.abspath(name)
    except FileNotFoundError:
        return name  # there is no directory any more that it could be relative to
    # What ends so is a directory, which need not be there yet.
    return f"{path}/" if name.endswith("/") and not path.endswith("/") else path


def locate(choice: str | os.PathLike[str]) -> Location:
    """Return where a choice of catalog leads; looks only at directories, creates nothing.

    Paths are made absolute by name alone: symbolic links are not resolved.

    Args:
        choice: A SQLAlchemy URL, a database file, or a directory, which stands for
            ``<directory>/.ckptdb/catalog.db``.

    Raises:
        CatalogUnusable: The URL is malformed, its driver is not installed, or the directory
            that the file would be in does not exist.
    """
    name = os.fspath(choice)
    if isinstance(choice, str) and "://" in choice:
        return _locate_url(choice)
    if not name or "\0" in name:
        raise CatalogUnusable(repr(name), "it is neither a path nor a database URL")
    path = Path(_absolute(name))
    if name.endswith("/") or path.is_dir():
        path = path / FOLDER / FILE
    return _locate_file(path)


def _locate_file(file: Path) -> Location:
    # Our own folder is made on creation, any other one is the caller's.
    own = file.parent.name == FOLDER
    must_exist = file.parent.parent if own else file.parent
    if not must_exist.is_dir():
        raise CatalogUnusable(str(file), f"there is no directory {must_exist}")
    base = file.parent.parent if own and file.name == FILE else None
    return Location(url=f"sqlite:///{file}", file=file, base=base)


def _locate_url(choice: str) -> Location:
    try:
        url = make_url(choice)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        # Shown without the rest, which may hold a password in an unexpected place.
        displayed = choice.partition("://")[0] + "://..."
        raise CatalogUnusable(displayed, "it is not a valid database URL") from error
    displayed = url.render_as_string(hide_password=True)
    if backend == "postgresql":
        return _locate_postgres(url)
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise CatalogUnusable(displayed, "only SQLite and PostgreSQL are supported")
    if url.query:
        raise CatalogUnusable(displayed, "options after '?' are not supported for SQLite")
    if url.database in _IN_MEMORY:
        return Location(url="sqlite://", file=None, base=None)
    return _locate_file(Path(_absolute(str(url.database))))


def _locate_postgres(url: URL) -> Location:
    displayed = url.render_as_string(hide_password=True)
    if url.drivername not in {"postgresql", "postgresql+psycopg"}:
        raise CatalogUnusable(displayed, "for PostgreSQL only the driver psycopg is supported")
    try:
        # Named, because what stands for "postgresql" alone differs between SQLAlchemy versions.
        url = url.set(drivername="postgresql+psycopg")
        url.get_dialect().import_dbapi()
    except ImportError as error:
        why = "its driver is missing; `pip install 'ckptdb[postgres]'`"
        raise CatalogUnusable(displayed, why) from error
    return Location(url=url.render_as_string(hide_password=False), file=None, base=None)
