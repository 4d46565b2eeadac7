"""The logical content of a catalog file, for comparing two of them."""

import sqlite3
from contextlib import closing
from pathlib import Path

# Ids are numbers by order of insertion, stamps and fingerprints say when somebody looked.
NOT_LOGICAL = {
    "id",
    "run_id",
    "checkpoint_id",
    "parent_id",
    "stamp",
    "stamp_verified",
    "fingerprint",
}
TABLES = {
    "runs": "SELECT t.* FROM runs t",
    "checkpoints": """
        SELECT r.uuid AS run_uuid, p.uuid AS parent_uuid, t.* FROM checkpoints t
        JOIN runs r ON r.id = t.run_id LEFT JOIN checkpoints p ON p.id = t.parent_id
    """,
    "metrics": """
        SELECT r.uuid AS run_uuid, c.uuid AS uuid, t.* FROM metrics t
        JOIN checkpoints c ON c.id = t.checkpoint_id JOIN runs r ON r.id = t.run_id
    """,
    "tags": """
        SELECT r.uuid AS run_uuid, c.uuid AS uuid, t.* FROM tags t
        JOIN checkpoints c ON c.id = t.checkpoint_id JOIN runs r ON r.id = c.run_id
    """,
    "resumes": """
        SELECT r.uuid AS run_uuid, c.uuid AS uuid, t.* FROM resumes t
        JOIN checkpoints c ON c.id = t.checkpoint_id JOIN runs r ON r.id = t.run_id
    """,
}


def dump_catalog(file: Path) -> dict[str, list[str]]:
    """Return what a catalog says, table by table, in a form that two catalogs share."""
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return {
            table: sorted(repr(_logical(row)) for row in connection.execute(statement))
            for table, statement in TABLES.items()
        }


def _logical(row: sqlite3.Row) -> dict[str, object]:
    found = {
        key: value for key, value in zip(row.keys(), row, strict=True) if key not in NOT_LOGICAL
    }
    # To have none, and not to have been asked for one, is the same to everybody but reconciling.
    if found.get("config") == "{}":
        found["config"] = None
    return found
