"""Kinds beside the sentences: how a checkpoint went, and what sort of problem it has.

Frozen: what this made stays what it made, whatever becomes of schema.py and views.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The sentences of revision 0001, as far as they tell the kind.
DELETED_KINDS = """
    UPDATE checkpoints SET deleted_kind = CASE
        WHEN deleted_reason LIKE 'retention:%' THEN 'retention'
        WHEN deleted_reason = 'by hand' THEN 'manual'
        WHEN deleted_reason LIKE 'replaced%' THEN 'replaced'
        WHEN deleted_reason LIKE 'discarded%' THEN 'discarded'
        WHEN deleted_reason = 'vanished: another run took its directory' THEN 'displaced'
        WHEN deleted_reason LIKE 'vanished%' THEN 'vanished'
        ELSE 'unknown' END
    WHERE status = 'deleted'
"""

PROBLEM_KINDS = """
    UPDATE checkpoints SET problem_kind = CASE
        WHEN problem NOT LIKE 'damaged%' THEN 'unreadable'
        WHEN problem LIKE '%differs from its checksum%' THEN 'corrupt'
        ELSE 'damaged' END
    WHERE problem IS NOT NULL
"""

REASON = "c.deleted_reason AS deleted_reason,"
REASON_AND_KIND = f"{REASON}\n       c.deleted_kind AS deleted_kind,"


def upgrade() -> None:
    """Make them."""
    op.add_column("checkpoints", sa.Column("deleted_kind", sa.Text))
    op.add_column("checkpoints", sa.Column("problem_kind", sa.Text))
    op.execute(DELETED_KINDS)
    op.execute(PROBLEM_KINDS)
    for view, query in _views().items():
        op.execute(f"DROP VIEW {view}")
        op.execute(f"CREATE VIEW {view} AS {query.replace(REASON, REASON_AND_KIND)}")


def downgrade() -> None:
    """Take them away."""
    views = _views()
    for view in views:
        op.execute(f"DROP VIEW {view}")
    op.drop_column("checkpoints", "problem_kind")
    op.drop_column("checkpoints", "deleted_kind")
    for view, query in views.items():
        op.execute(f"CREATE VIEW {view} AS {query}")


def _views() -> dict[str, str]:
    """Return the queries of the views that get the kind, as revision 0001 made them."""
    found: dict[str, str] = {}
    for part in ("common", op.get_context().dialect.name):
        file = Path(__file__).with_name(down_revision) / f"{part}.toml"
        found |= tomllib.loads(file.read_text(encoding="utf-8"))
    return {view: found[view].strip() for view in ("deletions", "checkpoint_history")}
