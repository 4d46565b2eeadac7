"""What the views say differently to SQLite and to PostgreSQL."""

# ruff: noqa: S608  # put together from what stands here

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a kind of database says what the views need.

    Attributes:
        metrics_object: All rows of ``metrics m`` as one JSON object.
        gap_seconds: Seconds from ``p.finalized_at`` to ``c.finalized_at``.
        run_seconds: Seconds from ``f.finalized_at`` to ``l.finalized_at``.
        config_values: The query of the view of that name.
        config_differences: Likewise.
    """

    metrics_object: str
    gap_seconds: str
    run_seconds: str
    config_values: str
    config_differences: str


# Versions of SQLite before 3.41 let no view call a function about JSON (`trusted_schema` is off),
# but read it as a table; so it is put together by hand.
_QUOTED: Final = r"""'"' || CASE
                WHEN {0} GLOB '*[' || CHAR(1) || '-' || CHAR(8) || CHAR(11) || CHAR(12) || CHAR(14)
                    || '-' || CHAR(31) || ']*' THEN 'hex:' || HEX({0})
                ELSE REPLACE(REPLACE(REPLACE(REPLACE(REPLACE({0}, '\', '\\'), '"', '\"'),
                    CHAR(9), '\t'), CHAR(10), '\n'), CHAR(13), '\r') END || '"'"""
"""A text as JSON; one that holds control characters, which nobody writes, as its bytes."""

_LEAF: Final = """{0}.fullkey <> '$'
            AND ({0}.type NOT IN ('object', 'array') OR {0}.value IN ('{{}}', '[]'))"""
_KEY: Final = "REPLACE(SUBSTR({0}, 3), '\"', '')"
# For people: a string without its quotation marks, and words where SQLite has none.
_SHOWN: Final = "CASE WHEN {0}.type IN ('true', 'false', 'null') THEN {0}.type ELSE {0}.value END"
_KIND: Final = "REPLACE({0}.type, 'integer', 'real')"

SQLITE: Final = Spelling(
    metrics_object=(
        f"'{{' || COALESCE(GROUP_CONCAT({_QUOTED.format('m.name')} || ':'"
        " || COALESCE(m.value, 'null')), '') || '}'"
    ),
    gap_seconds="ROUND((JULIANDAY(c.finalized_at) - JULIANDAY(p.finalized_at)) * 86400.0, 3)",
    run_seconds="(JULIANDAY(l.finalized_at) - JULIANDAY(f.finalized_at)) * 86400.0",
    config_values=f"""
    SELECT r.name AS run,
           {_KEY.format("j.fullkey")} AS key,
           {_SHOWN.format("j")} AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN JSON_TREE(r.config) j
    WHERE {_LEAF.format("j")}
    """,
    config_differences=f"""
    SELECT a.name AS run,
           b.name AS other,
           {_KEY.format("d.key")} AS key,
           v.value AS value,
           w.value AS other_value,
           a.id AS run_id,
           b.id AS other_id
    FROM runs a
    CROSS JOIN runs b
    CROSS JOIN JSON_EACH((
        SELECT '{{' || GROUP_CONCAT(
            {_QUOTED.format("differing.path")} || ':{{' || differing.sides || '}}') || '}}'
        FROM (
            SELECT found.path AS path, GROUP_CONCAT(found.side || CASE found.kind
                WHEN 'real' THEN found.shown ELSE {_QUOTED.format("found.shown")} END) AS sides
            FROM (
                SELECT x.fullkey AS path, '"a":' AS side, {_SHOWN.format("x")} AS shown,
                    {_KIND.format("x")} AS kind
                FROM JSON_TREE(a.config) x WHERE {_LEAF.format("x")}
                UNION ALL
                SELECT y.fullkey, '"b":', {_SHOWN.format("y")}, {_KIND.format("y")}
                FROM JSON_TREE(b.config) y WHERE {_LEAF.format("y")}
            ) found
            GROUP BY found.path
            HAVING COUNT(*) = 1 OR COUNT(DISTINCT found.shown) = 2 OR COUNT(DISTINCT found.kind) = 2
        ) differing
    )) d
    LEFT JOIN JSON_EACH(d.value) v ON v.key = 'a'
    LEFT JOIN JSON_EACH(d.value) w ON w.key = 'b'
    WHERE b.id <> a.id AND b.config <> a.config
    """,
)


# PostgreSQL has no json_tree(). A text with a NUL in it is JSON, but never jsonb.
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

POSTGRES: Final = Spelling(
    metrics_object=(
        "COALESCE(CAST(JSON_OBJECT_AGG(m.name, m.value ORDER BY m.name) AS text), '{}')"
    ),
    gap_seconds=(
        "CAST(EXTRACT(EPOCH FROM CAST(c.finalized_at AS timestamptz)"
        " - CAST(p.finalized_at AS timestamptz)) AS double precision)"
    ),
    run_seconds=(
        "CAST(EXTRACT(EPOCH FROM CAST(l.finalized_at AS timestamptz)"
        " - CAST(f.finalized_at AS timestamptz)) AS double precision)"
    ),
    config_values=f"""
    SELECT r.name AS run,
           leaf.key AS key,
           {_NODE.format("leaf.node")} AS value,
           r.id AS run_id
    FROM runs r
    CROSS JOIN LATERAL ({_LEAVES.format("r")}) leaf
    """,
    config_differences=f"""
    SELECT a.name AS run,
           b.name AS other,
           d.key AS key,
           {_NODE.format("d.node")} AS value,
           {_NODE.format("d.other_node")} AS other_value,
           a.id AS run_id,
           b.id AS other_id
    FROM runs a
    JOIN runs b ON b.id <> a.id
    CROSS JOIN LATERAL (
        SELECT COALESCE(x.key, y.key) AS key, x.node AS node, y.node AS other_node
        FROM ({_LEAVES.format("a")}) x
        FULL JOIN ({_LEAVES.format("b")}) y ON y.key = x.key
        WHERE x.node IS DISTINCT FROM y.node
    ) d
    """,
)
