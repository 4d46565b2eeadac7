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

CHECKPOINT_HISTORY_SQLITE = r"""
    SELECT r.name AS run,
           c.step AS step,
           c.status AS status,
           r.metric_name AS metric,
           (SELECT m.value FROM metrics m
            WHERE m.checkpoint_id = c.id AND m.name = r.metric_name) AS value,
           (SELECT '{' || COALESCE(GROUP_CONCAT('"' || CASE
        WHEN m.name GLOB '*[' || CHAR(1) || '-' || CHAR(8) || CHAR(11) || CHAR(12) || CHAR(14)
            || '-' || CHAR(31) || ']*' THEN 'hex:' || HEX(m.name)
        ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(m.name, '\', '\\'), '"', '\"'),
            CHAR(9), '\t'), CHAR(10), '\n'), CHAR(13), '\r') END || '"' || ':' || COALESCE(m.value, 'null')), '') || '}' FROM metrics m
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

SAVES_SQLITE = """
    SELECT s.run AS run,
           s.step AS step,
           s.status AS status,
           s.saved_at AS saved_at,
           s.previous_step AS previous_step,
           s.seconds AS seconds,
           s.seconds * s.run_steps / NULLIF(s.run_seconds * (s.step - s.previous_step), 0)
               AS times_usual,
           s.size_bytes AS size_bytes,
           s.run_id AS run_id,
           s.checkpoint_id AS checkpoint_id
    FROM (
        SELECT r.name AS run,
               c.step AS step,
               c.status AS status,
               c.finalized_at AS saved_at,
               p.step AS previous_step,
               ROUND((JULIANDAY(c.finalized_at) - JULIANDAY(p.finalized_at)) * 86400.0, 3) AS seconds,
               l.step - f.step AS run_steps,
               (JULIANDAY(l.finalized_at) - JULIANDAY(f.finalized_at)) * 86400.0 AS run_seconds,
               c.size_bytes AS size_bytes,
               r.id AS run_id,
               c.id AS checkpoint_id
        FROM runs r
        LEFT JOIN checkpoints f ON f.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at IS NOT NULL
            ORDER BY b.step, b.id LIMIT 1)
        LEFT JOIN checkpoints l ON l.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at IS NOT NULL
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        CROSS JOIN checkpoints c
        LEFT JOIN checkpoints p ON p.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = c.run_id AND b.step < c.step
              AND b.finalized_at <= c.finalized_at
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        WHERE c.run_id = r.id AND c.finalized_at IS NOT NULL
    ) s
"""

SAVES_POSTGRESQL = """
    SELECT s.run AS run,
           s.step AS step,
           s.status AS status,
           s.saved_at AS saved_at,
           s.previous_step AS previous_step,
           s.seconds AS seconds,
           s.seconds * s.run_steps / NULLIF(s.run_seconds * (s.step - s.previous_step), 0)
               AS times_usual,
           s.size_bytes AS size_bytes,
           s.run_id AS run_id,
           s.checkpoint_id AS checkpoint_id
    FROM (
        SELECT r.name AS run,
               c.step AS step,
               c.status AS status,
               c.finalized_at AS saved_at,
               p.step AS previous_step,
               CAST(EXTRACT(EPOCH FROM CAST(c.finalized_at AS timestamptz) - CAST(p.finalized_at AS timestamptz)) AS double precision) AS seconds,
               l.step - f.step AS run_steps,
               CAST(EXTRACT(EPOCH FROM CAST(l.finalized_at AS timestamptz) - CAST(f.finalized_at AS timestamptz)) AS double precision) AS run_seconds,
               c.size_bytes AS size_bytes,
               r.id AS run_id,
               c.id AS checkpoint_id
        FROM runs r
        LEFT JOIN checkpoints f ON f.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at IS NOT NULL
            ORDER BY b.step, b.id LIMIT 1)
        LEFT JOIN checkpoints l ON l.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = r.id AND b.finalized_at IS NOT NULL
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        CROSS JOIN checkpoints c
        LEFT JOIN checkpoints p ON p.id = (
            SELECT b.id FROM checkpoints b
            WHERE b.run_id = c.run_id AND b.step < c.step
              AND b.finalized_at <= c.finalized_at
            ORDER BY b.step DESC, b.id DESC LIMIT 1)
        WHERE c.run_id = r.id AND c.finalized_at IS NOT NULL
    ) s
"""

CONFIG_VALUES_SQLITE = """
    SELECT r.name AS run,
           REPLACE(SUBSTR(j.fullkey, 3), '"', '') AS key,
           CASE WHEN j.type IN ('true', 'false', 'null') THEN j.type ELSE j.value END AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN JSON_TREE(r.config) j
    WHERE j.fullkey <> '$'
            AND (j.type NOT IN ('object', 'array') OR j.value IN ('{}', '[]'))
"""

CONFIG_VALUES_POSTGRESQL = r"""
    SELECT r.name AS run,
           leaf.key AS key,
           CASE JSONB_TYPEOF(leaf.node) WHEN 'string' THEN leaf.node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(leaf.node AS text) END AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN LATERAL (
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\u0000' IN r.config) = 0 THEN r.config END AS jsonb)
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

CONFIG_DIFFERENCES_SQLITE = r"""
    SELECT a.name AS run,
           b.name AS other,
           REPLACE(SUBSTR(d.key, 3), '"', '') AS key,
           v.value AS value,
           w.value AS other_value,
           a.id AS run_id,
           b.id AS other_id
    FROM runs a
    CROSS JOIN runs b
    CROSS JOIN JSON_EACH((
        SELECT '{' || GROUP_CONCAT(
            '"' || CASE
                WHEN differing.path GLOB '*[' || CHAR(1) || '-' || CHAR(8) || CHAR(11) || CHAR(12) || CHAR(14)
                    || '-' || CHAR(31) || ']*' THEN 'hex:' || HEX(differing.path)
                ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(differing.path, '\', '\\'), '"', '\"'),
                    CHAR(9), '\t'), CHAR(10), '\n'), CHAR(13), '\r') END || '"' || ':{' || differing.sides || '}') || '}'
        FROM (
            SELECT found.path AS path, GROUP_CONCAT(found.side || CASE found.kind
                WHEN 'real' THEN found.shown ELSE '"' || CASE
                WHEN found.shown GLOB '*[' || CHAR(1) || '-' || CHAR(8) || CHAR(11) || CHAR(12) || CHAR(14)
                    || '-' || CHAR(31) || ']*' THEN 'hex:' || HEX(found.shown)
                ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE(found.shown, '\', '\\'), '"', '\"'),
                    CHAR(9), '\t'), CHAR(10), '\n'), CHAR(13), '\r') END || '"' END) AS sides
            FROM (
                SELECT x.fullkey AS path, '"a":' AS side, CASE WHEN x.type IN ('true', 'false', 'null') THEN x.type ELSE x.value END AS shown,
                    REPLACE(x.type, 'integer', 'real') AS kind
                FROM JSON_TREE(a.config) x WHERE x.fullkey <> '$'
            AND (x.type NOT IN ('object', 'array') OR x.value IN ('{}', '[]'))
                UNION ALL
                SELECT y.fullkey, '"b":', CASE WHEN y.type IN ('true', 'false', 'null') THEN y.type ELSE y.value END, REPLACE(y.type, 'integer', 'real')
                FROM JSON_TREE(b.config) y WHERE y.fullkey <> '$'
            AND (y.type NOT IN ('object', 'array') OR y.value IN ('{}', '[]'))
            ) found
            GROUP BY found.path
            HAVING COUNT(*) = 1 OR COUNT(DISTINCT found.shown) = 2 OR COUNT(DISTINCT found.kind) = 2
        ) differing
    )) d
    LEFT JOIN JSON_EACH(d.value) v ON v.key = 'a'
    LEFT JOIN JSON_EACH(d.value) w ON w.key = 'b'
    WHERE b.id <> a.id AND b.config <> a.config
"""

CONFIG_DIFFERENCES_POSTGRESQL = r"""
    SELECT a.name AS run,
           b.name AS other,
           d.key AS key,
           CASE JSONB_TYPEOF(d.node) WHEN 'string' THEN d.node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(d.node AS text) END AS value,
           CASE JSONB_TYPEOF(d.other_node) WHEN 'string' THEN d.other_node #>> CAST(ARRAY[] AS text[])
               ELSE CAST(d.other_node AS text) END AS other_value,
           a.id AS run_id,
           b.id AS other_id
    FROM runs a
    JOIN runs b ON b.id <> a.id
    CROSS JOIN LATERAL (
        SELECT COALESCE(x.key, y.key) AS key, x.node AS node, y.node AS other_node
        FROM (
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\u0000' IN a.config) = 0 THEN a.config END AS jsonb)
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
                CAST(CASE WHEN POSITION('\u0000' IN b.config) = 0 THEN b.config END AS jsonb)
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
        "saves": SAVES_SQLITE if on_sqlite else SAVES_POSTGRESQL,
        "config_values": CONFIG_VALUES_SQLITE if on_sqlite else CONFIG_VALUES_POSTGRESQL,
        "config_differences": CONFIG_DIFFERENCES_SQLITE
        if on_sqlite
        else CONFIG_DIFFERENCES_POSTGRESQL,
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
