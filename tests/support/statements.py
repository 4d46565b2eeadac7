"""What is sent to catalogs, seen by the tests that count it or ask for its plan."""

from contextlib import contextmanager

from sqlalchemy import Engine, event

from ckptdb.catalog import driver


@contextmanager
def sent():
    """Collect each statement with its parameters, of many rows those of the first."""
    found = []
    send = driver.send

    def note(connection, cursor, statement, parameters, context, executemany):
        found.append((statement, parameters[0] if executemany else parameters))

    def note_and_send(connection, statement, values):
        if connection.dialect.paramstyle == "qmark":  # where it goes past SQLAlchemy
            found.append((statement, values if isinstance(values, tuple) else values[0]))
        return send(connection, statement, values)

    event.listen(Engine, "before_cursor_execute", note)
    driver.send = note_and_send
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        driver.send = send
