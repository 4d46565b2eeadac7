"""What became of checkpoints: those that were rejected, and those that training resumed from.

Frozen: what this made stays what it made, whatever becomes of schema.py.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RUN_SUMMARY = """
    SELECT r.name AS run,
           r.directory AS directory,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS final,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'tmp') AS tmp,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'deleted') AS deleted,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final'
              AND (c.problem IS NOT NULL OR c.rejected IS NOT NULL)) AS problems,
           (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS bytes_on_disk,
           CASE r.higher_is_better WHEN 1 THEN
               (SELECT m.step FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL
                ORDER BY m.value DESC, m.step DESC LIMIT 1)
           ELSE
               (SELECT m.step FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL
                ORDER BY m.value, m.step DESC LIMIT 1)
           END AS best_step,
           CASE r.higher_is_better WHEN 1 THEN
               (SELECT MAX(m.value) FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL)
           ELSE
               (SELECT MIN(m.value) FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL)
           END AS best_value,
           (SELECT c.step FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final' AND c.problem IS NULL
              AND c.rejected IS NULL
            ORDER BY c.step DESC LIMIT 1) AS latest_step,
           (SELECT MAX(activity.moment) FROM (
                SELECT r.created_at AS moment
                UNION ALL
                SELECT MAX(c.finalized_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'final'
                UNION ALL
                SELECT MAX(c.created_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'tmp'
                UNION ALL
                SELECT MAX(c.deleted_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'deleted'
            ) activity) AS last_activity,
           r.metric_name AS metric_name,
           r.higher_is_better AS higher_is_better,
           r.id AS run_id,
           r.uuid AS uuid
    FROM runs r
"""

LINEAGE = """
    SELECT r.name AS run,
           c.step AS step,
           c.status AS status,
           p.step AS parent_step,
           p.status AS parent_status,
           (SELECT MAX(s.resumed_at) FROM resumes s
            WHERE s.checkpoint_id = p.id
              AND s.resumed_at <= c.created_at) AS parent_resumed_at,
           r.id AS run_id,
           c.id AS checkpoint_id,
           p.id AS parent_id
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id
    LEFT JOIN checkpoints p ON p.id = c.parent_id
"""

# As 0002 made it.
RUN_SUMMARY_BEFORE = """
    SELECT r.name AS run,
           r.directory AS directory,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS final,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'tmp') AS tmp,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'deleted') AS deleted,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final'
              AND c.problem IS NOT NULL) AS problems,
           (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS bytes_on_disk,
           CASE r.higher_is_better WHEN 1 THEN
               (SELECT m.step FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL
                ORDER BY m.value DESC, m.step DESC LIMIT 1)
           ELSE
               (SELECT m.step FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL
                ORDER BY m.value, m.step DESC LIMIT 1)
           END AS best_step,
           CASE r.higher_is_better WHEN 1 THEN
               (SELECT MAX(m.value) FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL)
           ELSE
               (SELECT MIN(m.value) FROM metrics m
                WHERE m.run_id = r.id AND m.name = r.metric_name
                  AND m.live = 1 AND m.value IS NOT NULL)
           END AS best_value,
           (SELECT c.step FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final' AND c.problem IS NULL
            ORDER BY c.step DESC LIMIT 1) AS latest_step,
           (SELECT MAX(activity.moment) FROM (
                SELECT r.created_at AS moment
                UNION ALL
                SELECT MAX(c.finalized_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'final'
                UNION ALL
                SELECT MAX(c.created_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'tmp'
                UNION ALL
                SELECT MAX(c.deleted_at) FROM checkpoints c
                WHERE c.run_id = r.id AND c.status = 'deleted'
            ) activity) AS last_activity,
           r.metric_name AS metric_name,
           r.higher_is_better AS higher_is_better,
           r.id AS run_id,
           r.uuid AS uuid
    FROM runs r
"""


def upgrade() -> None:
    """Make them."""
    op.execute("DROP VIEW run_summary")
    op.add_column("checkpoints", sa.Column("rejected", sa.Text))
    op.create_table(
        "resumes",
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.Column("resumed_at", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "resumed_at", "host", "pid", name="pk_resumes"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name="fk_resumes_checkpoint_id",
            ondelete="CASCADE",
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_resumes_run_id_resumed_at", "resumes", ["run_id", "resumed_at"])
    op.execute(f"CREATE VIEW run_summary AS {RUN_SUMMARY.strip()}")
    op.execute(f"CREATE VIEW lineage AS {LINEAGE.strip()}")


def downgrade() -> None:
    """Take them away."""
    op.execute("DROP VIEW lineage")
    op.execute("DROP VIEW run_summary")
    op.drop_table("resumes")
    op.drop_column("checkpoints", "rejected")
    op.execute(f"CREATE VIEW run_summary AS {RUN_SUMMARY_BEFORE.strip()}")
