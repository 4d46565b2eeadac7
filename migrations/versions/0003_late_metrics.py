"""An index of the metrics that came later than their checkpoint.

Frozen: what this made stays what it made, whatever becomes of schema.py.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make it."""
    op.execute(
        "CREATE INDEX ix_metrics_late ON metrics (run_id, checkpoint_id) "
        "WHERE source <> 'training_info'"
    )


def downgrade() -> None:
    """Take it away."""
    op.execute("DROP INDEX ix_metrics_late")
