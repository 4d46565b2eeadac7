"""How Alembic reaches a catalog.

Within ckptdb, on the connection that is handed over, in its transaction. From the command line
of a checkout, on the catalog that ``-x catalog=`` names, else CKPTDB_CATALOG, else alembic.ini.
Logging is never configured here: that would silence the loggers of the program around us.
"""

from __future__ import annotations

import os
from contextlib import closing

from alembic import context
from sqlalchemy import Connection

from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.schema import VERSION_TABLE, metadata


def _choice() -> str:
    named = context.get_x_argument(as_dictionary=True).get("catalog")
    choice = named or os.environ.get("CKPTDB_CATALOG")
    return choice or context.config.get_main_option("sqlalchemy.url") or "catalog.db"


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _print_sql() -> None:
    dialect = locate(_choice()).url.partition(":")[0]
    context.configure(dialect_name=dialect.partition("+")[0], version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()


def _run() -> None:
    connection = context.config.attributes.get("connection")
    if context.is_offline_mode():
        _print_sql()
    elif connection is not None:
        _migrate(connection)
    else:
        location = locate(_choice())
        database = Database.unchecked(location, create=True)
        # One writing transaction around everything: all of it happens, or nothing.
        with closing(database), database.write() as own:
            _migrate(own)


_run()
