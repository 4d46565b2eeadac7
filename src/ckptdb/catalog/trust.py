"""Which checkpoints are ranked and counted: in SQL, what `Checkpoint.is_trusted` says in Python.

One place, because a question that forgets a part of it answers with what somebody has rejected.
For the metrics of live checkpoints `metrics.live` is kept as the answer.
"""

from __future__ import annotations


def undoubted(table: str) -> str:
    """Return the condition that nothing speaks against a checkpoint, be it live or gone."""
    return f"{table}.problem IS NULL AND {table}.rejected IS NULL"


def doubted(table: str) -> str:
    """Return the opposite of `undoubted`."""
    return f"({table}.problem IS NOT NULL OR {table}.rejected IS NOT NULL)"


def trusted(table: str) -> str:
    """Return the condition that a checkpoint is published and nothing speaks against it."""
    return f"{table}.status = 'final' AND {undoubted(table)}"
