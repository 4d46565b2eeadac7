"""Conditions that say in SQL which checkpoints are trusted and ranked.

`core.records.is_trusted` is the same definition in Python. A question that does not take its
condition from here may answer with a checkpoint that somebody has rejected. ``metrics.live`` holds
the result of `trusted` for each metric, because an index cannot look into another table.
"""

from __future__ import annotations


def undoubted(table: str) -> str:
    """Return the condition that a checkpoint, live or deleted, has no problem and no rejection."""
    return f"{table}.problem IS NULL AND {table}.rejected IS NULL"


def doubted(table: str) -> str:
    """Return the opposite of `undoubted`."""
    return f"({table}.problem IS NOT NULL OR {table}.rejected IS NOT NULL)"


def trusted(table: str) -> str:
    """Return the condition that a checkpoint is published, without a problem, and not rejected."""
    return f"{table}.status = 'final' AND {undoubted(table)}"


def ranked(metrics: str = "") -> str:
    """Return the condition that a metric ranks its checkpoint: trusted, with a finite value.

    Args:
        metrics: Name of the table; empty in an index, which knows only its own.
    """
    prefix = f"{metrics}." if metrics else ""
    return f"{prefix}live = 1 AND {prefix}value IS NOT NULL"
