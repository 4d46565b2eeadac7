"""Views of what people ask most, and the sizes of what was deleted in an index.

Frozen: what this made stays what it made, whatever becomes of schema.py and views.py.
"""

# ruff: noqa: E501  # put together from pieces, so that lines are as long as they are

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CHECKPOINT_HISTORY_SQLITE = """
    SELECT r.name AS run,
           c.step AS step,
           c.status AS status,
           r.metric_name AS metric,
           (SELECT m.value FROM metrics m
            WHERE m.checkpoint_id = c.id AND m.name = r.metric_name) AS value,
           (SELECT '{' || COALESCE(GROUP_CONCAT('"' || CASE
        WHEN NOT m.name GLOB '*[\x01-\x1f"]*' AND m.name NOT LIKE '%\\%' THEN m.name
        WHEN m.name GLOB '*[\x01-\x08\x0b\x0c\x0e-\x1f]*' THEN 'hex:' || HEX(m.name)
        ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(m.name,
            '\\', '\\\\'), '"', '\\"'), '\t', '\\t'), '\n', '\\n'), '\r', '\\r')
        END || '"' || ':' || CASE WHEN m.value IS NULL THEN 'null'
        WHEN CAST(CAST(m.value AS TEXT) AS DOUBLE PRECISION) = m.value THEN CAST(m.value AS TEXT)
        ELSE PRINTF('%!.17g', m.value) END), '') || '}' FROM metrics m
            WHERE m.checkpoint_id = c.id) AS metrics,
           c.size_bytes AS size_bytes,
           c.finalized_at AS finalized_at,
           c.deleted_at AS deleted_at,
           c.deleted_reason AS deleted_reason,
           c.pinned AS pinned,
           c.path AS path,
           r.id AS run_id,
           c.id AS checkpoint_id
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id
"""

CHECKPOINT_HISTORY_POSTGRESQL = """
    SELECT r.name AS run,
           c.step AS step,
           c.status AS status,
           r.metric_name AS metric,
           (SELECT m.value FROM metrics m
            WHERE m.checkpoint_id = c.id AND m.name = r.metric_name) AS value,
           (SELECT COALESCE(CAST(JSON_OBJECT_AGG(m.name, m.value ORDER BY m.name) AS text), '{}') FROM metrics m
            WHERE m.checkpoint_id = c.id) AS metrics,
           c.size_bytes AS size_bytes,
           c.finalized_at AS finalized_at,
           c.deleted_at AS deleted_at,
           c.deleted_reason AS deleted_reason,
           c.pinned AS pinned,
           c.path AS path,
           r.id AS run_id,
           c.id AS checkpoint_id
    FROM runs r
    JOIN checkpoints c ON c.run_id = r.id
"""

DISK_USAGE = """
    SELECT r.name AS run,
           r.directory AS directory,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS checkpoints,
           (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final') AS bytes_on_disk,
           (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'final' AND c.pinned = 0
              AND c.problem IS NULL AND c.rejected IS NULL
              AND c.step <> (
                  SELECT n.step FROM checkpoints n
                  WHERE n.run_id = r.id AND n.status = 'final' AND n.problem IS NULL
                    AND n.rejected IS NULL
                  ORDER BY n.step DESC LIMIT 1)
              AND c.step <> COALESCE(
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
                  END, -1)) AS freeable_bytes,
           (SELECT COUNT(*) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'deleted') AS deleted,
           (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
            WHERE c.run_id = r.id AND c.status = 'deleted') AS freed_bytes,
           r.id AS run_id
    FROM runs r
"""

SAVES = """
    SELECT s.run AS run,
           s.step AS step,
           s.status AS status,
           s.saved_at AS saved_at,
           s.previous_step AS previous_step,
           s.seconds AS seconds,
           CASE WHEN s.run_seconds > 0 THEN
               s.seconds * s.run_steps / (s.run_seconds * (s.step - s.previous_step))
               END AS times_usual,
           s.size_bytes AS size_bytes,
           s.run_id AS run_id,
           s.checkpoint_id AS checkpoint_id
    FROM (
        SELECT r.name AS run,
               c.step AS step,
               c.status AS status,
               c.finalized_at AS saved_at,
               p.step AS previous_step,
               ROUND(1000 * ((86400 * (
        365.25 * (CAST(SUBSTR(c.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(c.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) - 0.25 * ((CAST(SUBSTR(c.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(c.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) % 4) + CAST(SUBSTR(c.finalized_at, 9, 2) AS INTEGER)
        + CASE SUBSTR(c.finalized_at, 6, 2) WHEN '03' THEN 0 WHEN '04' THEN 31 WHEN '05' THEN 61
            WHEN '06' THEN 92 WHEN '07' THEN 122 WHEN '08' THEN 153 WHEN '09' THEN 184
            WHEN '10' THEN 214 WHEN '11' THEN 245 WHEN '12' THEN 275 WHEN '01' THEN 306
            ELSE 337 END)
        + 3600 * CAST(SUBSTR(c.finalized_at, 12, 2) AS INTEGER)
        + 60 * CAST(SUBSTR(c.finalized_at, 15, 2) AS INTEGER)
        + CAST(SUBSTR(c.finalized_at, 18, 6) AS DOUBLE PRECISION)) - (86400 * (
        365.25 * (CAST(SUBSTR(p.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(p.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) - 0.25 * ((CAST(SUBSTR(p.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(p.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) % 4) + CAST(SUBSTR(p.finalized_at, 9, 2) AS INTEGER)
        + CASE SUBSTR(p.finalized_at, 6, 2) WHEN '03' THEN 0 WHEN '04' THEN 31 WHEN '05' THEN 61
            WHEN '06' THEN 92 WHEN '07' THEN 122 WHEN '08' THEN 153 WHEN '09' THEN 184
            WHEN '10' THEN 214 WHEN '11' THEN 245 WHEN '12' THEN 275 WHEN '01' THEN 306
            ELSE 337 END)
        + 3600 * CAST(SUBSTR(p.finalized_at, 12, 2) AS INTEGER)
        + 60 * CAST(SUBSTR(p.finalized_at, 15, 2) AS INTEGER)
        + CAST(SUBSTR(p.finalized_at, 18, 6) AS DOUBLE PRECISION)))) / 1000.0 AS seconds,
               l.step - f.step AS run_steps,
               ROUND(1000 * ((86400 * (
        365.25 * (CAST(SUBSTR(l.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(l.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) - 0.25 * ((CAST(SUBSTR(l.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(l.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) % 4) + CAST(SUBSTR(l.finalized_at, 9, 2) AS INTEGER)
        + CASE SUBSTR(l.finalized_at, 6, 2) WHEN '03' THEN 0 WHEN '04' THEN 31 WHEN '05' THEN 61
            WHEN '06' THEN 92 WHEN '07' THEN 122 WHEN '08' THEN 153 WHEN '09' THEN 184
            WHEN '10' THEN 214 WHEN '11' THEN 245 WHEN '12' THEN 275 WHEN '01' THEN 306
            ELSE 337 END)
        + 3600 * CAST(SUBSTR(l.finalized_at, 12, 2) AS INTEGER)
        + 60 * CAST(SUBSTR(l.finalized_at, 15, 2) AS INTEGER)
        + CAST(SUBSTR(l.finalized_at, 18, 6) AS DOUBLE PRECISION)) - (86400 * (
        365.25 * (CAST(SUBSTR(f.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(f.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) - 0.25 * ((CAST(SUBSTR(f.finalized_at, 1, 4) AS INTEGER) - CASE WHEN SUBSTR(f.finalized_at, 6, 2) < '03' THEN 1 ELSE 0 END) % 4) + CAST(SUBSTR(f.finalized_at, 9, 2) AS INTEGER)
        + CASE SUBSTR(f.finalized_at, 6, 2) WHEN '03' THEN 0 WHEN '04' THEN 31 WHEN '05' THEN 61
            WHEN '06' THEN 92 WHEN '07' THEN 122 WHEN '08' THEN 153 WHEN '09' THEN 184
            WHEN '10' THEN 214 WHEN '11' THEN 245 WHEN '12' THEN 275 WHEN '01' THEN 306
            ELSE 337 END)
        + 3600 * CAST(SUBSTR(f.finalized_at, 12, 2) AS INTEGER)
        + 60 * CAST(SUBSTR(f.finalized_at, 15, 2) AS INTEGER)
        + CAST(SUBSTR(f.finalized_at, 18, 6) AS DOUBLE PRECISION)))) / 1000.0 AS run_seconds,
               c.size_bytes AS size_bytes,
               r.id AS run_id,
               c.id AS checkpoint_id
        FROM runs r
        LEFT JOIN checkpoints f ON f.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at LIKE '____-__-__T__:__:__.___Z'
            ORDER BY b.step, b.id LIMIT 1)
        LEFT JOIN checkpoints l ON l.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at LIKE '____-__-__T__:__:__.___Z'
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        CROSS JOIN checkpoints c
        LEFT JOIN checkpoints p ON p.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = c.run_id AND b.step < c.step
              AND b.finalized_at <= c.finalized_at
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        WHERE c.run_id = r.id AND c.finalized_at LIKE '____-__-__T__:__:__.___Z'
    ) s
"""

CONFIG_VALUES_SQLITE = """
    SELECT r.name AS run,
           REPLACE(SUBSTR(j.fullkey, 3), '"', '') AS key,
           CASE WHEN LOWER(j.type) IN ('true', 'false', 'null') THEN LOWER(j.type)
               ELSE j.value END AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN JSON_TREE(r.config) j
    WHERE j.fullkey <> '$'
        AND (LOWER(j.type) NOT IN ('object', 'array') OR j.value IN ('{}', '[]'))
"""

CONFIG_VALUES_POSTGRESQL = """
    SELECT r.name AS run,
           leaf.key AS key,
           CASE JSONB_TYPEOF(leaf.node) WHEN 'string' THEN leaf.node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(leaf.node AS text) END AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN LATERAL (
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\\u0000' IN r.config) = 0 THEN r.config END AS jsonb)
            ) e
            UNION ALL
            SELECT tree.key || child.name, child.node
            FROM tree
            CROSS JOIN LATERAL (
                SELECT '.' || e.key, e.value FROM JSONB_EACH(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'object' THEN tree.node END) e
                UNION ALL
                SELECT '[' || (e.place - 1) || ']', e.value FROM JSONB_ARRAY_ELEMENTS(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'array' THEN tree.node END)
                    WITH ORDINALITY e(value, place)
            ) child(name, node)
        )
        SELECT key, node FROM tree
        WHERE JSONB_TYPEOF(node) NOT IN ('object', 'array') OR CAST(node AS text) IN ('{}', '[]')
    ) leaf
"""

CONFIG_CHANGES_SQLITE = """
    SELECT g.run AS run,
           g.previous AS previous,
           g.key AS key,
           g.value AS value,
           g.previous_value AS previous_value,
           g.run_id AS run_id,
           g.previous_id AS previous_id
    FROM (
        SELECT d.run, d.previous, d.key, d.run_id, d.previous_id,
               MAX(CASE d.side WHEN 'new' THEN d.shown END) OVER w AS value,
               MAX(CASE d.side WHEN 'old' THEN d.shown END) OVER w AS previous_value,
               COUNT(*) OVER w AS sides,
               SUM(d.is_text) OVER w AS texts,
               ROW_NUMBER() OVER w AS place
        FROM (
        SELECT r.name AS run, p.name AS previous, 'new' AS side, j.fullkey AS path,
               REPLACE(SUBSTR(j.fullkey, 3), '"', '') AS key, CASE WHEN LOWER(j.type) IN ('true', 'false', 'null') THEN LOWER(j.type)
               ELSE j.value END AS shown,
               CASE WHEN LOWER(j.type) IN ('text', 'varchar') THEN 1 ELSE 0 END AS is_text, r.id AS run_id, p.id AS previous_id
        FROM runs r
        JOIN runs p ON p.id = (
            SELECT b.id FROM runs b
            WHERE b.created_at < r.created_at
            ORDER BY b.created_at DESC, b.id DESC LIMIT 1)
        CROSS JOIN JSON_TREE(r.config) j
        WHERE j.fullkey <> '$'
        AND (LOWER(j.type) NOT IN ('object', 'array') OR j.value IN ('{}', '[]'))

            UNION ALL
        SELECT r.name AS run, p.name AS previous, 'old' AS side, j.fullkey AS path,
               REPLACE(SUBSTR(j.fullkey, 3), '"', '') AS key, CASE WHEN LOWER(j.type) IN ('true', 'false', 'null') THEN LOWER(j.type)
               ELSE j.value END AS shown,
               CASE WHEN LOWER(j.type) IN ('text', 'varchar') THEN 1 ELSE 0 END AS is_text, r.id AS run_id, p.id AS previous_id
        FROM runs r
        JOIN runs p ON p.id = (
            SELECT b.id FROM runs b
            WHERE b.created_at < r.created_at
            ORDER BY b.created_at DESC, b.id DESC LIMIT 1)
        CROSS JOIN JSON_TREE(p.config) j
        WHERE j.fullkey <> '$'
        AND (LOWER(j.type) NOT IN ('object', 'array') OR j.value IN ('{}', '[]'))

        ) d
        WINDOW w AS (PARTITION BY d.run_id, d.run, d.previous_id, d.previous, d.path)
    ) g
    WHERE g.place = 1 AND (g.sides = 1 OR g.texts = 1 OR g.value <> g.previous_value)
"""

CONFIG_CHANGES_POSTGRESQL = """
    SELECT r.name AS run,
           p.name AS previous,
           d.key AS key,
           CASE JSONB_TYPEOF(d.node) WHEN 'string' THEN d.node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(d.node AS text) END AS value,
           CASE JSONB_TYPEOF(d.old_node) WHEN 'string' THEN d.old_node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(d.old_node AS text) END AS previous_value,
           r.id AS run_id,
           p.id AS previous_id
    FROM runs r
    JOIN runs p ON p.id = (
            SELECT b.id FROM runs b
            WHERE b.created_at < r.created_at
            ORDER BY b.created_at DESC, b.id DESC LIMIT 1)
    CROSS JOIN LATERAL (
        SELECT COALESCE(x.key, y.key) AS key, x.node AS node, y.node AS old_node
        FROM (
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\\u0000' IN r.config) = 0 THEN r.config END AS jsonb)
            ) e
            UNION ALL
            SELECT tree.key || child.name, child.node
            FROM tree
            CROSS JOIN LATERAL (
                SELECT '.' || e.key, e.value FROM JSONB_EACH(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'object' THEN tree.node END) e
                UNION ALL
                SELECT '[' || (e.place - 1) || ']', e.value FROM JSONB_ARRAY_ELEMENTS(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'array' THEN tree.node END)
                    WITH ORDINALITY e(value, place)
            ) child(name, node)
        )
        SELECT key, node FROM tree
        WHERE JSONB_TYPEOF(node) NOT IN ('object', 'array') OR CAST(node AS text) IN ('{}', '[]')
    ) x
        FULL JOIN (
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\\u0000' IN p.config) = 0 THEN p.config END AS jsonb)
            ) e
            UNION ALL
            SELECT tree.key || child.name, child.node
            FROM tree
            CROSS JOIN LATERAL (
                SELECT '.' || e.key, e.value FROM JSONB_EACH(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'object' THEN tree.node END) e
                UNION ALL
                SELECT '[' || (e.place - 1) || ']', e.value FROM JSONB_ARRAY_ELEMENTS(
                    CASE JSONB_TYPEOF(tree.node) WHEN 'array' THEN tree.node END)
                    WITH ORDINALITY e(value, place)
            ) child(name, node)
        )
        SELECT key, node FROM tree
        WHERE JSONB_TYPEOF(node) NOT IN ('object', 'array') OR CAST(node AS text) IN ('{}', '[]')
    ) y ON y.key = x.key
        WHERE x.node IS DISTINCT FROM y.node
    ) d
"""


def upgrade() -> None:
    """Make them."""
    _index_deleted("run_id", "status", "deleted_at", "size_bytes")
    for name, query in _views(op.get_context().dialect.name).items():
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")


def downgrade() -> None:
    """Take them away."""
    for name in reversed(_views(op.get_context().dialect.name)):
        op.execute(f"DROP VIEW {name}")
    _index_deleted("run_id", "status", "deleted_at")


def _views(dialect: str) -> dict[str, str]:
    on_sqlite = dialect == "sqlite"
    return {
        "checkpoint_history": CHECKPOINT_HISTORY_SQLITE
        if on_sqlite
        else CHECKPOINT_HISTORY_POSTGRESQL,
        "disk_usage": DISK_USAGE,
        "saves": SAVES,
        "config_values": CONFIG_VALUES_SQLITE if on_sqlite else CONFIG_VALUES_POSTGRESQL,
        "config_changes": CONFIG_CHANGES_SQLITE if on_sqlite else CONFIG_CHANGES_POSTGRESQL,
    }


def _index_deleted(*columns: str) -> None:
    """Make the index of what is gone anew."""
    op.drop_index("ix_checkpoints_deleted", "checkpoints")
    where = sa.text("status = 'deleted'")
    op.create_index(
        "ix_checkpoints_deleted",
        "checkpoints",
        [*columns],
        sqlite_where=where,
        postgresql_where=where,
    )
