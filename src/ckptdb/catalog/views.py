"""Views of the catalog: tables that answer the most frequent questions.

A name in braces stands for SQL that depends on the database (`view_dialects`) or that has one
definition elsewhere (`trust`).
"""

# ruff: noqa: S608  # the texts are all constants of this package

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ckptdb.catalog import trust
from ckptdb.catalog.view_dialects import ViewDialect

if TYPE_CHECKING:
    from collections.abc import Mapping


_DAYS: Final = """(
                365.25 * ({year}) - 0.25 * (({year}) % 4) + CAST(SUBSTR({0}, 9, 2) AS INTEGER)
                + CASE SUBSTR({0}, 6, 2) WHEN '03' THEN 0 WHEN '04' THEN 31 WHEN '05' THEN 61
                    WHEN '06' THEN 92 WHEN '07' THEN 122 WHEN '08' THEN 153 WHEN '09' THEN 184
                    WHEN '10' THEN 214 WHEN '11' THEN 245 WHEN '12' THEN 275 WHEN '01' THEN 306
                    ELSE 337 END)"""
_YEAR: Final = (
    "CAST(SUBSTR({0}, 1, 4) AS INTEGER) - CASE WHEN SUBSTR({0}, 6, 2) < '03' THEN 1 ELSE 0 END"
)
_SECONDS: Final = f"""(86400 * {_DAYS.format("{0}", year=_YEAR)}
                + 3600 * CAST(SUBSTR({{0}}, 12, 2) AS INTEGER)
                + 60 * CAST(SUBSTR({{0}}, 15, 2) AS INTEGER)
                + CAST(SUBSTR({{0}}, 18, 6) AS DOUBLE PRECISION))"""
"""SQL that turns a time into seconds, for the years 1901 to 2099, in which every fourth year is a
leap year; the computed year begins in March. SQLite, DuckDB and PostgreSQL have no such
function in common."""


def _gap(begin: str, end: str) -> str:
    """Return SQL for the seconds between two times, to the millisecond."""
    return f"ROUND(1000 * ({_SECONDS.format(end)} - {_SECONDS.format(begin)})) / 1000.0"


VIEWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # PARTITION BY has both the run's name and its id, because SQLite applies a filter before
        # the ranking only when its column is there. CROSS JOIN makes SQLite begin with the runs;
        # otherwise it reads every live metric.
        "leaderboard": """
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
              AND {ranked_m}
        """,
        # Subqueries per run instead of GROUP BY over history: a partial index answers each one.
        "run_summary": """
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
                      AND {doubted_c}) AS problems,
                   (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'final') AS bytes_on_disk,
                   CASE r.higher_is_better WHEN 1 THEN
                       (SELECT m.step FROM metrics m
                        WHERE m.run_id = r.id AND m.name = r.metric_name
                          AND {ranked_m}
                        ORDER BY m.value DESC, m.step DESC LIMIT 1)
                   ELSE
                       (SELECT m.step FROM metrics m
                        WHERE m.run_id = r.id AND m.name = r.metric_name
                          AND {ranked_m}
                        ORDER BY m.value, m.step DESC LIMIT 1)
                   END AS best_step,
                   CASE r.higher_is_better WHEN 1 THEN
                       (SELECT MAX(m.value) FROM metrics m
                        WHERE m.run_id = r.id AND m.name = r.metric_name
                          AND {ranked_m})
                   ELSE
                       (SELECT MIN(m.value) FROM metrics m
                        WHERE m.run_id = r.id AND m.name = r.metric_name
                          AND {ranked_m})
                   END AS best_value,
                   (SELECT c.step FROM checkpoints c
                    WHERE c.run_id = r.id AND {trusted_c}
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
        """,
        # The join goes from the run through its checkpoints, because no index of the metrics
        # contains deleted history.
        "metric_history": """
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
        """,
        "deletions": """
            SELECT r.name AS run,
                   c.step AS step,
                   c.path AS path,
                   c.deleted_at AS deleted_at,
                   c.deleted_reason AS deleted_reason,
                   c.deleted_kind AS deleted_kind,
                   c.size_bytes AS size_bytes,
                   r.id AS run_id,
                   c.id AS checkpoint_id
            FROM runs r
            JOIN checkpoints c ON c.run_id = r.id
            WHERE c.status = 'deleted'
        """,
        # The view goes back one step. The whole line of a run of N checkpoints would be N²/2 rows,
        # and a recursive query can follow the steps itself. A resumption after the child was saved
        # began another branch, and does not count.
        "lineage": """
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
        """,
        # All metrics in one column, because a view cannot have as many as there are names.
        "checkpoint_history": """
            SELECT r.name AS run,
                   c.step AS step,
                   c.status AS status,
                   r.metric_name AS metric,
                   (SELECT m.value FROM metrics m
                    WHERE m.checkpoint_id = c.id AND m.name = r.metric_name) AS value,
                   (SELECT {metrics_object} FROM metrics m
                    WHERE m.checkpoint_id = c.id) AS metrics,
                   c.size_bytes AS size_bytes,
                   c.finalized_at AS finalized_at,
                   c.deleted_at AS deleted_at,
                   c.deleted_reason AS deleted_reason,
                   c.deleted_kind AS deleted_kind,
                   c.pinned AS pinned,
                   c.path AS path,
                   r.id AS run_id,
                   c.id AS checkpoint_id
            FROM runs r
            JOIN checkpoints c ON c.run_id = r.id
        """,
        # `freeable_bytes` is the size of what `gc` would delete if it kept only the best and the
        # latest. It never deletes pinned or rejected checkpoints, nor those with a problem.
        "disk_usage": """
            SELECT r.name AS run,
                   r.directory AS directory,
                   (SELECT COUNT(*) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'final') AS checkpoints,
                   (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'final') AS bytes_on_disk,
                   (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'final' AND c.pinned = 0
                      AND {undoubted_c}
                      AND c.step <> (
                          SELECT n.step FROM checkpoints n
                          WHERE n.run_id = r.id AND {trusted_n}
                          ORDER BY n.step DESC LIMIT 1)
                      AND c.step <> COALESCE(
                          CASE r.higher_is_better WHEN 1 THEN
                              (SELECT m.step FROM metrics m
                               WHERE m.run_id = r.id AND m.name = r.metric_name
                                 AND {ranked_m}
                               ORDER BY m.value DESC, m.step DESC LIMIT 1)
                          ELSE
                              (SELECT m.step FROM metrics m
                               WHERE m.run_id = r.id AND m.name = r.metric_name
                                 AND {ranked_m}
                               ORDER BY m.value, m.step DESC LIMIT 1)
                          END, -1)) AS freeable_bytes,
                   (SELECT COUNT(*) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'deleted') AS deleted,
                   (SELECT CAST(COALESCE(SUM(c.size_bytes), 0) AS BIGINT) FROM checkpoints c
                    WHERE c.run_id = r.id AND c.status = 'deleted') AS freed_bytes,
                   r.id AS run_id
            FROM runs r
        """,
        # The previous save is the highest lower step that had been saved by then; after a resume
        # from an earlier step some lower steps are newer. The usual pace is the one from the lowest
        # to the highest step, unless the highest was saved first. CROSS JOIN makes SQLite look
        # these two up once per run instead of once per save.
        "saves": """
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
                       """
        + _gap("p.finalized_at", "c.finalized_at")
        + """ AS seconds,
                       l.step - f.step AS run_steps,
                       """
        + _gap("f.finalized_at", "l.finalized_at")
        + """ AS run_seconds,
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
        """,
        "config_values": "{config_values}",
        "config_changes": "{config_changes}",
    }
)


def views(view_dialect: ViewDialect) -> Mapping[str, str]:
    """Return the query of each view, in the order in which they are made."""
    parts = asdict(view_dialect) | {
        "ranked_m": trust.ranked("m"),
        "trusted_c": trust.trusted("c"),
        "trusted_n": trust.trusted("n"),
        "undoubted_c": trust.undoubted("c"),
        "doubted_c": trust.doubted("c"),
    }
    return {name: query.format_map(parts) for name, query in VIEWS.items()}


PURPOSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "runs": "One row per run: one directory of checkpoints.",
        "checkpoints": "One row per checkpoint, live or gone; status is tmp, final or deleted.",
        "metrics": "One row per checkpoint and metric; value is finite or NULL.",
        "tags": "One row per checkpoint and tag.",
        "resumes": "One row each time that training continued from a checkpoint.",
        "ckptdb_version": "The schema's revision.",
        "leaderboard": "Each run's live checkpoints by the run's own metric; rank 1 is the best.",
        "run_summary": "One row per run: counts, bytes on disk, best, latest, last activity.",
        "metric_history": "Every value of every metric, deleted checkpoints included.",
        "deletions": "What was deleted, when and why.",
        "lineage": "Every checkpoint with the one that training continued from.",
        "checkpoint_history": "Every checkpoint, deleted ones too, with all its metrics as JSON.",
        "disk_usage": "Bytes of each run: on disk, beyond best and latest, and freed so far.",
        "saves": "Every save with the seconds since the one before, and how usual that is.",
        "config_values": "Every value of each run's newest configuration, by dotted key.",
        "config_changes": "What each run's configuration changed of the run's begun before it.",
    }
)
"""What each table and view is for, in one line."""

EXAMPLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "runs": "SELECT name, directory, metric_name FROM runs ORDER BY created_at DESC",
        "checkpoints": (
            "SELECT step, size_bytes, abspath(path) FROM checkpoints "
            "WHERE status = 'final' AND pinned = 1"
        ),
        "metrics": "SELECT DISTINCT name FROM metrics ORDER BY name",
        "tags": (
            "SELECT t.name, r.name AS run, c.step FROM tags t "
            "JOIN checkpoints c ON c.id = t.checkpoint_id JOIN runs r ON r.id = c.run_id"
        ),
        "resumes": (
            "SELECT r.name AS run, resumed_at, host FROM resumes "
            "JOIN runs r ON r.id = run_id ORDER BY resumed_at DESC"
        ),
        "ckptdb_version": "SELECT version_num FROM ckptdb_version",
        "leaderboard": "SELECT run, step, value, path FROM leaderboard WHERE rank = 1",
        "run_summary": "SELECT run, best_step, best_value, latest_step FROM run_summary",
        "metric_history": (
            "SELECT step, value, status FROM metric_history "
            "WHERE run = :run AND name = 'val:loss' ORDER BY step"
        ),
        "deletions": (
            "SELECT run, step, deleted_at, deleted_reason FROM deletions "
            "ORDER BY deleted_at DESC LIMIT 20"
        ),
        "lineage": (
            "SELECT step, parent_step FROM lineage "
            "WHERE run = :run AND parent_resumed_at IS NOT NULL ORDER BY step"
        ),
        "checkpoint_history": (
            "SELECT step, status, value, metrics FROM checkpoint_history "
            "WHERE run = :run ORDER BY step"
        ),
        "disk_usage": (
            "SELECT run, bytes_on_disk, freeable_bytes, freed_bytes FROM disk_usage "
            "ORDER BY freeable_bytes DESC"
        ),
        "saves": (
            "SELECT step, saved_at, seconds, times_usual FROM saves "
            "WHERE run = :run AND times_usual > 2 ORDER BY times_usual DESC"
        ),
        "config_values": "SELECT run, value FROM config_values WHERE key = 'optimizer.lr'",
        "config_changes": (
            "SELECT key, previous_value, value FROM config_changes WHERE run = :run ORDER BY key"
        ),
    }
)
"""A question to each table and view; ``:run`` is the name of a run."""
