"""SQL of the views that differs between SQLite and PostgreSQL."""

# ruff: noqa: S608  # the texts are all constants of this package

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ViewDialect:
    """SQL of one kind of database, for the views.

    Attributes:
        metrics_object: All rows of ``metrics m`` as one JSON object.
        config_values: The query of the view of that name.
        config_changes: Likewise.
    """

    metrics_object: str
    config_values: str
    config_changes: str


PREVIOUS: Final = """(
            SELECT b.id FROM runs b
            WHERE b.created_at < r.created_at
            ORDER BY b.created_at DESC, b.id DESC LIMIT 1)"""
"""The run that was begun before ``runs r``."""

# DuckDB parses the views of a SQLite file itself, so they use only functions that it has, too.
# Before version 3.41, SQLite lets a view call no JSON function but those that return a table
# (`trusted_schema` is off). So the JSON text is put together here.
_QUOTED: Final = """'"' || CASE
                WHEN NOT {0} GLOB '*[\x01-\x1f"]*' AND {0} NOT LIKE '%\\%' THEN {0}
                WHEN {0} GLOB '*[\x01-\x08\x0b\x0c\x0e-\x1f]*' THEN 'hex:' || HEX({0})
                ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE({0},
                    '\\', '\\\\'), '"', '\\"'), '\t', '\\t'), '\n', '\\n'), '\r', '\\r')
                END || '"'"""
"""A text as a JSON string; a text with other control characters, which is rare, as its bytes."""
_EXACT: Final = """CASE WHEN {0} IS NULL THEN 'null'
                WHEN CAST(CAST({0} AS TEXT) AS DOUBLE PRECISION) = {0} THEN CAST({0} AS TEXT)
                ELSE PRINTF('%!.17g', {0}) END"""
"""A number with all its digits, because SQLite casts a number to text with fifteen."""

_LEAF: Final = """{0}.fullkey <> '$'
        AND (LOWER({0}.type) NOT IN ('object', 'array') OR {0}.value IN ('{{}}', '[]'))"""
_KEY: Final = "REPLACE(SUBSTR({0}.fullkey, 3), '\"', '')"
# A value for people: a string without quotation marks; true, false and null as words.
_SHOWN: Final = """CASE WHEN LOWER({0}.type) IN ('true', 'false', 'null') THEN LOWER({0}.type)
               ELSE {0}.value END"""
# The text "1" differs from the number 1; the numbers 1 and 1.0 are equal.
_IS_TEXT: Final = "CASE WHEN LOWER({0}.type) IN ('text', 'varchar') THEN 1 ELSE 0 END"
_SIDE: Final = f"""
        SELECT r.name AS run, p.name AS previous, '{{1}}' AS side, j.fullkey AS path,
               {_KEY.format("j")} AS key, {_SHOWN.format("j")} AS shown,
               {_IS_TEXT.format("j")} AS is_text, r.id AS run_id, p.id AS previous_id
        FROM runs r
        JOIN runs p ON p.id = {PREVIOUS}
        CROSS JOIN JSON_TREE({{0}}.config) j
        WHERE {_LEAF.format("j").replace("{}", "{{}}")}
"""

SQLITE: Final = ViewDialect(
    metrics_object=(
        f"'{{' || COALESCE(GROUP_CONCAT({_QUOTED.format('m.name')} || ':'"
        f" || {_EXACT.format('m.value')}), '') || '}}'"
    ),
    config_values=f"""
    SELECT r.name AS run,
           {_KEY.format("j")} AS key,
           {_SHOWN.format("j")} AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN JSON_TREE(r.config) j
    WHERE {_LEAF.format("j")}
    """,
    # Windows instead of GROUP BY, because SQLite applies a filter on the run to the table of runs
    # only through windows.
    config_changes=f"""
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
        FROM ({_SIDE.format("r", "new")}
            UNION ALL {_SIDE.format("p", "old")}
        ) d
        WINDOW w AS (PARTITION BY d.run_id, d.run, d.previous_id, d.previous, d.path)
    ) g
    WHERE g.place = 1 AND (g.sides = 1 OR g.texts = 1 OR g.value <> g.previous_value)
    """,
)


# PostgreSQL has no json_tree(). JSON with a NUL in a text cannot be cast to jsonb.
_LEAVES: Final = """
        WITH RECURSIVE tree(key, node) AS (
            SELECT e.key, e.value FROM JSONB_EACH(
                CAST(CASE WHEN POSITION('\\u0000' IN {0}.config) = 0 THEN {0}.config END AS jsonb)
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
        WHERE JSONB_TYPEOF(node) NOT IN ('object', 'array') OR CAST(node AS text) IN ('{{}}', '[]')
    """
_NODE: Final = """CASE JSONB_TYPEOF({0}) WHEN 'string' THEN {0} #>> CAST(ARRAY[] AS text[])
               ELSE CAST({0} AS text) END"""

POSTGRES: Final = ViewDialect(
    metrics_object=(
        "COALESCE(CAST(JSON_OBJECT_AGG(m.name, m.value ORDER BY m.name) AS text), '{}')"
    ),
    config_values=f"""
    SELECT r.name AS run,
           leaf.key AS key,
           {_NODE.format("leaf.node")} AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN LATERAL ({_LEAVES.format("r")}) leaf
    """,
    config_changes=f"""
    SELECT r.name AS run,
           p.name AS previous,
           d.key AS key,
           {_NODE.format("d.node")} AS value,
           {_NODE.format("d.old_node")} AS previous_value,
           r.id AS run_id,
           p.id AS previous_id
    FROM runs r
    JOIN runs p ON p.id = {PREVIOUS}
    CROSS JOIN LATERAL (
        SELECT COALESCE(x.key, y.key) AS key, x.node AS node, y.node AS old_node
        FROM ({_LEAVES.format("r")}) x
        FULL JOIN ({_LEAVES.format("p")}) y ON y.key = x.key
        WHERE x.node IS DISTINCT FROM y.node
    ) d
    """,
)
