"""Revisions of the schema: the one that a catalog has, and the upgrade to the newest.

Alembic is imported inside the function that migrates: finding a revision needs only a SELECT, and
Alembic takes as long to import as everything else together.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from ckptdb.catalog.definitions import Definition, find_intruder, fingerprint
from ckptdb.catalog.schema import (
    APPLICATION_ID,
    FINGERPRINT,
    HEAD,
    REVISIONS,
    VERSION_TABLE,
    create_all,
    version,
)
from ckptdb.catalog.sqlite import Sqlite
from ckptdb.errors import (
    CatalogBroken,
    CatalogForeign,
    CatalogMissing,
    CatalogOutdated,
    CatalogTampered,
    CatalogTooNew,
    CatalogUnusable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from ckptdb.catalog.dialects import Dialect
    from ckptdb.catalog.location import Location

_REVISION: Final = select(version.c.version_num)


def find(connection: Connection, dialect: Dialect, location: Location) -> str | None:
    """Return the revision of a schema, None for an empty database.

    Raises:
        CatalogForeign: It is the database of another application.
        CatalogBroken: It has lost its revision.
        CatalogTampered: The schema holds something that no revision makes.
    """
    owner, found = dialect.contents(connection)
    relations = {one.name: one for one in found if one.kind in ("table", "view")}
    if owner not in {0, APPLICATION_ID} or (relations and VERSION_TABLE not in relations):
        raise CatalogForeign(str(location))
    if not found:
        return None
    if location.file is not None:
        # Before the SELECT of the revision: a hostile table could make that hang.
        _refuse_intruder(location, [relations[VERSION_TABLE]], HEAD)
    row = connection.execute(_REVISION).first()
    if row is None:
        raise CatalogBroken(str(location), "it does not say its revision")
    revision = str(row[0])
    if location.file is not None and revision in REVISIONS:
        _refuse_intruder(location, found, revision)
    dialect.remember(connection)
    return revision


def refuse_other(location: Location, revision: str) -> None:
    """Refuse a revision that is not the newest.

    Raises:
        CatalogTooNew: A newer version of ckptdb made it.
        CatalogOutdated: It is older.
    """
    if revision not in REVISIONS:
        raise CatalogTooNew(str(location), revision)
    if revision != HEAD:
        raise CatalogOutdated(str(location), revision)


def upgrade(
    connection: Connection, dialect: Dialect, location: Location
) -> tuple[str, str, Path | None]:
    """Bring an older schema to the newest revision, inside the caller's transaction.

    Returns:
        The revision before, the one after, and the copy that was kept, if any.
    """
    revision = find(connection, dialect, location)
    if revision is None:
        raise CatalogMissing(str(location))
    if revision not in REVISIONS:
        raise CatalogTooNew(str(location), revision)
    if revision == HEAD:
        return revision, HEAD, None
    # Inside the transaction: nobody else can write between the copy and the change.
    copy = dialect.keep_copy(revision)
    _migrate(connection, "head")
    dialect.remember(connection)
    return revision, HEAD, copy


def _refuse_intruder(location: Location, found: Sequence[Definition], revision: str) -> None:
    if revision == HEAD and fingerprint(found) == FINGERPRINT:
        return
    intruder = find_intruder(found, made_by(revision))
    if intruder is not None:
        raise CatalogTampered(str(location), intruder)


def script_location() -> Path:
    """Return the directory of the migrations: in the package, or beside src in a checkout."""
    here = Path(__file__).resolve()
    for directory in (here.parents[1] / "migrations", here.parents[3] / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise CatalogUnusable("migrations", "this installation came without them; reinstall ckptdb")


@cache
def made_by(revision: str) -> Mapping[str, Definition]:
    """Return by name what a revision makes on SQLite."""
    dialect = Sqlite(None, create=True, durable=False)
    memory = dialect.engine()
    try:
        with memory.connect() as connection:
            if revision == HEAD:
                create_all(connection, dialect.view_dialect)
            else:
                _migrate(connection, revision)
            return {one.name: one for one in dialect.contents(connection)[1]}
    finally:
        memory.dispose()


def _migrate(connection: Connection, revision: str) -> None:
    from alembic import command  # 200 ms, and almost never needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
