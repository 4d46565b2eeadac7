"""Views for people.

Frozen: what this made stays what it made, whatever becomes of schema.py.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LEADERBOARD = """
    SELECT r.name AS run,
           c.step AS step,
           m.name AS metric,
           m.value AS value,
           ROW_NUMBER() OVER (
               PARTITION BY r.id, r.name
               ORDER BY CASE r.higher_is_better WHEN 1 THEN -m.value ELSE m.value END,
                        m.step DESC
           ) AS rank,
           c.path AS path,
           c.size_bytes AS size_bytes,
           c.finalized_at AS finalized_at,
           c.pinned AS pinned,
           r.id AS run_id,
           c.id AS checkpoint_id,
           c.uuid AS uuid
    FROM runs r
    CROSS JOIN metrics m
    JOIN checkpoints c ON c.id = m.checkpoint_id
    WHERE m.run_id = r.id AND m.name = r.metric_name
      AND m.live = 1 AND m.value IS NOT NULL
"""

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

METRIC_HISTORY = """
    SELECT r.name AS run,
           c.step AS step,
           m.name AS name,
           m.value AS value,
           c.status AS status,
           m.source AS source,
           m.reported_at AS reported_at,
           r.id AS run_id,
           c.id AS checkpoint_id
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id
    JOIN metrics m ON m.checkpoint_id = c.id
"""

DELETIONS = """
    SELECT r.name AS run,
           c.step AS step,
           c.path AS path,
           c.deleted_at AS deleted_at,
           c.deleted_reason AS deleted_reason,
           c.size_bytes AS size_bytes,
           r.id AS run_id,
           c.id AS checkpoint_id
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id
    WHERE c.status = 'deleted'
"""


def upgrade() -> None:
    """Make them."""
    op.execute(f"CREATE VIEW leaderboard AS {LEADERBOARD.strip()}")
    op.execute(f"CREATE VIEW run_summary AS {RUN_SUMMARY.strip()}")
    op.execute(f"CREATE VIEW metric_history AS {METRIC_HISTORY.strip()}")
    op.execute(f"CREATE VIEW deletions AS {DELETIONS.strip()}")


def downgrade() -> None:
    """Take them away."""
    for view in ("deletions", "metric_history", "run_summary", "leaderboard"):
        op.execute(f"DROP VIEW {view}")
