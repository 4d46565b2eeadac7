"""Query plans of the statements that a catalog is sent."""

from contextlib import contextmanager

from tests.support.statements import sent


@contextmanager
def plans(catalog):
    """Collect how SQLite looks for what is asked: one line per table, by statement."""
    found = {}
    with sent() as statements:
        yield found
    with catalog.database.read() as connection:
        raw = connection.connection.dbapi_connection
        for statement, parameters in statements:
            rows = raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            found[statement] = "\n".join(str(row[-1]) for row in rows)
