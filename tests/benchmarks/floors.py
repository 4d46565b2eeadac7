"""The least work that could answer a question, in tables of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    create_engine,
    insert,
    select,
)

_metadata = MetaData()
_ranked = Table(
    "ranked",
    _metadata,
    Column("run_id", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("value", Double),
    Column("path", Text),
    Index("by_value", "run_id", "name", "value", "step", "path"),
)
_OURS = (_ranked.c.run_id == bindparam("run_id"), _ranked.c.name == bindparam("name"))
_BEST = select(_ranked.c.step).where(*_OURS).order_by(_ranked.c.value).limit(1)
_LATEST = select(_ranked.c.step).where(*_OURS).order_by(_ranked.c.step.desc()).limit(1)
_TOP = select(_ranked.c.path).where(*_OURS).order_by(_ranked.c.value).limit(10)


class Asked:
    """One stamp and one SELECT, built before, through SQLAlchemy Core on an open connection.

    Args:
        run: Whose stamp is taken.
        file: Where the table is made.
        values: By step, of the live checkpoints.
    """

    def __init__(self, run: Path, file: Path, values: Iterable[tuple[int, float]]) -> None:
        self._run = os.fspath(run)
        self._journal = os.fspath(run / ".ckptdb" / "journal.jsonl")
        engine = create_engine(f"sqlite:///{file}", isolation_level="AUTOCOMMIT")
        self._connection: Connection = engine.connect()
        _metadata.create_all(self._connection)
        rows = [
            {"run_id": 1, "name": "val:loss", "step": s, "value": v, "path": f"step_{s}"}
            for s, v in values
        ]
        self._connection.exec_driver_sql("BEGIN")
        self._connection.execute(insert(_ranked), rows)
        self._connection.exec_driver_sql("COMMIT")
        self._stamp = self._look()

    def best(self) -> str:
        """Answer with a path."""
        return f"{self._run}/step_{self._ask(_BEST).scalar()}"

    def latest(self) -> str:
        """Answer with a path."""
        return f"{self._run}/step_{self._ask(_LATEST).scalar()}"

    def top(self) -> list[str]:
        """Answer with ten paths."""
        return [f"{self._run}/{row.path}" for row in self._ask(_TOP)]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._connection.engine.dispose()

    def _ask(self, statement: Any) -> Any:
        assert self._look() == self._stamp
        return self._connection.execute(statement, {"run_id": 1, "name": "val:loss"})

    def _look(self) -> tuple[int, int, int]:
        found = os.stat(self._run)
        try:
            size = os.lstat(self._journal).st_size
        except FileNotFoundError:
            size = 0
        return found.st_mtime_ns, found.st_nlink, size
