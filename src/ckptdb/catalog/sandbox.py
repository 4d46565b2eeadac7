"""A connection to SQLite that can read everything, change nothing, and make nothing huge."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from ckptdb.catalog import functions

LONGEST_VALUE_BYTES: Final = 16 << 20
"""No string or blob may be longer, not even in between: ``zeroblob(1e9)`` is a typo."""

MOST_COLUMNS: Final = 500
"""Of an answer, and of everything in between."""


class Authorizer:
    """Authorizer that SQLite calls before each action; remembers the first refused action."""

    def __init__(self) -> None:
        self.refusal: str | None = None

    def __call__(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """Answer SQLITE_OK to what only reads."""
        if action in _READING or (action == sqlite3.SQLITE_FUNCTION and second not in _UNSAFE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and _only_tells(str(first).lower(), second):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_UPDATE and first == "sqlite_master":
            # The first use of json_each() needs this action. A true UPDATE of it comes no
            # further: "table sqlite_master may not be modified".
            return sqlite3.SQLITE_OK
        if self.refusal is None:
            self.refusal = _refusal(action, first, second)
        return sqlite3.SQLITE_DENY


def confine(raw: sqlite3.Connection, base: Path | None, authorizer: Authorizer) -> None:
    """Leave to a connection nothing but reading the catalog that it was opened on.

    Args:
        raw: Best opened with ``mode=ro``, too.
        base: What ``abspath(path)`` prepends.
        authorizer: Of its own: it remembers.
    """
    raw.text_factory = lambda found: found.decode(errors="replace")
    functions.define(raw, base, LONGEST_VALUE_BYTES)
    # Without this, views could not call these functions. The authorizer limits all others.
    raw.execute("PRAGMA trusted_schema = ON")
    raw.execute("PRAGMA mmap_size = 0")
    raw.execute("PRAGMA query_only = ON")
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
    raw.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, MOST_COLUMNS)
    # A pattern takes its length times that of the text, within a single step.
    raw.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
    raw.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    raw.set_authorizer(authorizer)


_READING: Final = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}

# The last one compares every key with every other one, within a single step.
_UNSAFE: Final = {"load_extension", "fts3_tokenizer", "json_patch"}

NOT_ITS_FAULT: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
}
"""Error codes of SQLite for a query that is fine and a catalog that is not."""

_PRAGMAS_WITH_ARGUMENT: Final = {
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_list",
    "table_xinfo",
}

_PRAGMAS: Final = _PRAGMAS_WITH_ARGUMENT | {
    "application_id",
    "collation_list",
    "compile_options",
    "database_list",
    "encoding",
    "freelist_count",
    "function_list",
    "journal_mode",
    "page_count",
    "page_size",
    "pragma_list",
    "schema_version",
    "user_version",
}

_REFUSALS: Final = {
    sqlite3.SQLITE_INSERT: "it would insert into {0}",
    sqlite3.SQLITE_UPDATE: "it would update {0}",
    sqlite3.SQLITE_DELETE: "it would delete from {0}",
    sqlite3.SQLITE_ATTACH: "it would open another file",
    sqlite3.SQLITE_DETACH: "it would detach a database",
    sqlite3.SQLITE_PRAGMA: "PRAGMA {0} is not one that only reads",
    sqlite3.SQLITE_TRANSACTION: "it would begin or end a transaction",
    sqlite3.SQLITE_SAVEPOINT: "it would set a savepoint",
    sqlite3.SQLITE_ANALYZE: "it would collect statistics",
    sqlite3.SQLITE_REINDEX: "it would rebuild an index",
    sqlite3.SQLITE_FUNCTION: "the function {1} is not allowed",
}


def _only_tells(pragma: str, argument: str | None) -> bool:
    return pragma in (_PRAGMAS if argument is None else _PRAGMAS_WITH_ARGUMENT)


def _refusal(action: int, first: str | None, second: str | None) -> str:
    if first is not None and first.startswith(("sqlite_master", "sqlite_temp_master")):
        return "it would change the schema"
    return _REFUSALS.get(action, "it would change the schema").format(first, second)
