"""The three databases that a catalog can live in: a SQLite file, memory, PostgreSQL."""

import itertools
import os
import subprocess
import time
from contextlib import closing

import pytest
from sqlalchemy import create_engine, make_url
from tests.support import requirements

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate

_NUMBERS = itertools.count()


def _start(pgserver, data):
    # It waits ten seconds for its server, which a busy machine may not have started by then.
    for _ in range(9):
        try:
            return pgserver.get_server(data)
        except (subprocess.TimeoutExpired, AssertionError):
            time.sleep(1)
    return pgserver.get_server(data)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A real PostgreSQL server that a wheel of the test dependencies brings along."""
    pgserver = pytest.importorskip("pgserver", reason=requirements.POSTGRES)
    runtime = tmp_path_factory.mktemp("runtime")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    # Not below pytest's own directory: the server's user must be able to enter it as well.
    server = _start(pgserver, tmp_path_factory.mktemp("postgres"))
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server):
    """URL of a new, empty PostgreSQL database."""
    name = f"test_{os.getpid()}_{next(_NUMBERS)}"
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    url = make_url(postgres_server).set(database=name)
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "memory", pytest.param("postgresql", marks=pytest.mark.postgres)])
def catalog(request, tmp_path):
    """An empty catalog in each kind of database."""
    if request.param == "memory":
        database = Database.in_memory(tmp_path)
    elif request.param == "sqlite":
        database = Database.open(locate(tmp_path), create=True)
    else:
        url = request.getfixturevalue("postgres_url")
        database = Database.open(locate(url), create=True)
    with closing(database):
        yield Catalog(database)
