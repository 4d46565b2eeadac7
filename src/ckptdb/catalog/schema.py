"""Tables, indexes and views of the catalog.

Paths are POSIX style and relative to the root when below it. Times are ISO-8601 in UTC. Yes and
no are the integers 1 and 0, so that ``WHERE pinned = 1`` means the same on every engine.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, TextClause

REVISIONS: Final = ("0001", "0002", "0003", "0004")
"""Every revision of this schema, oldest first; one file each in migrations/versions."""

HEAD: Final = REVISIONS[-1]
VERSION_TABLE: Final = "ckptdb_version"

APPLICATION_ID: Final = 0x636B7074
"""What SQLite files of ours carry in their header: ``ckpt`` in ASCII."""

# What only one dialect knows stands in `info`, and `create_all` hands it over. As an argument,
# e.g. `postgresql_where=`, it would import that dialect, which takes longer than all of ours.
metadata: Final = MetaData(
    # Migrations can only change what has a name.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# The literals stay literals, here and in every query: a partial index is only used when the
# planner can see that the query implies its condition, and it cannot look into a parameter.
IS_FINAL: Final = text("status = 'final'")
IS_TMP: Final = text("status = 'tmp'")
IS_DELETED: Final = text("status = 'deleted'")
IS_RANKED: Final = text("live = 1 AND value IS NOT NULL")
IS_LATE: Final = text("source <> 'training_info'")


def _flag(name: str) -> Column[int]:
    check = CheckConstraint(f"{name} IN (0, 1)", name=name)
    return Column(name, Integer, check, nullable=False, server_default=text("0"))


def _partial_index(name: str, *columns: str, where: TextClause, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, info={"where": where})


runs: Final = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uuid", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("directory", Text, nullable=False),
    Column("created_at", Text),
    Column("metric_name", Text),
    _flag("higher_is_better"),
    Column("forked_from", Text),
    Column("config", Text),
    # What the directory looked like when it was last indexed.
    Column("stamp", Text),
    # 0: a writer advanced the stamp, no listing has confirmed it yet.
    _flag("stamp_verified"),
    UniqueConstraint("uuid"),
    Index(None, "directory"),
    Index(None, "name"),
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("uuid", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("path", Text, nullable=False),
    Column("parent_id", ForeignKey("checkpoints.id", ondelete="SET NULL")),
    Column("created_at", Text, nullable=False),
    Column("finalized_at", Text),
    Column("size_bytes", BigInteger),
    Column("file_count", BigInteger),
    Column(
        "status",
        Text,
        CheckConstraint("status IN ('tmp', 'final', 'deleted')", name="status"),
        nullable=False,
    ),
    Column("deleted_at", Text),
    Column("deleted_reason", Text),
    _flag("pinned"),
    Column("notes", Text),
    Column("problem", Text),
    Column("info", Text, nullable=False, server_default=text("'{}'")),
    Column("fingerprint", Text),
    # Why somebody has put it aside.
    Column("rejected", Text),
    UniqueConstraint("run_id", "uuid"),
    # All of a run by step, whatever became of them.
    Index(None, "run_id", "step"),
    # Cascades and SET NULL look for children by this column.
    Index(None, "parent_id"),
    # At most one is published; also the way to the latest one.
    _partial_index("uq_checkpoints_final", "run_id", "step", where=IS_FINAL, unique=True),
    # A handful of rows among a million: what is being written, or was left by a crash.
    _partial_index("ix_checkpoints_tmp", "run_id", "step", where=IS_TMP),
    # Deletions of a run in the order of time. With status, though it is always the same:
    # only so SQLite counts them in the index alone, and prefers it to the one by step.
    _partial_index("ix_checkpoints_deleted", "run_id", "status", "deleted_at", where=IS_DELETED),
)

metrics: Final = Table(
    "metrics",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    # The checkpoint's own, repeated for the ranking indexes. Not a foreign key: deleting a run
    # gets here through its checkpoints, and a second way would need an index on history.
    Column("run_id", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    # Double, because REAL has only 4 bytes on PostgreSQL.
    Column("value", Double),
    Column("source", Text, nullable=False),
    Column("reported_at", Text, nullable=False),
    # 1 exactly when the checkpoint is final, has no problem and is not rejected. The ranking
    # indexes hold nothing else, so deleted history cannot slow down best and top-k. They end in
    # `live`, because SQLite would otherwise look into the row for a condition it knows to be true.
    _flag("live"),
    PrimaryKeyConstraint("checkpoint_id", "name"),
    _partial_index("ix_metrics_ranking", "name", "value", "step", "live", where=IS_RANKED),
    _partial_index(
        "ix_metrics_run_ranking", "run_id", "name", "value", "step", "live", where=IS_RANKED
    ),
    # A handful among all that came with their checkpoints.
    _partial_index("ix_metrics_late", "run_id", "checkpoint_id", where=IS_LATE),
    info={"with_rowid": False},
)

tags: Final = Table(
    "tags",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    PrimaryKeyConstraint("checkpoint_id", "name"),
    Index(None, "name"),
    info={"with_rowid": False},
)

resumes: Final = Table(
    "resumes",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
    Column("resumed_at", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    # The checkpoint's own, repeated as in `metrics`. Behind the key: where it stands before a part
    # of it, SQLite 3.40 takes a table without rowid for damaged.
    Column("run_id", Integer, nullable=False),
    PrimaryKeyConstraint("checkpoint_id", "resumed_at", "host", "pid"),
    Index(None, "run_id", "resumed_at"),
    info={"with_rowid": False},
)

# Alembic writes this table too; kept out of `metadata`, whose naming is not Alembic's.
version: Final = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)

VIEWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The run's name and id are both in PARTITION BY, because only then a filter on either
        # is applied before the ranking instead of after it. CROSS JOIN makes SQLite begin with
        # the runs: it would rather read every live metric.
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
              AND m.live = 1 AND m.value IS NOT NULL
        """,
        # Subqueries by run, not GROUP BY over history: each is answered by a partial index.
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
        """,
        # Goes from the run through its checkpoints: metrics have no index on deleted history.
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
                   c.size_bytes AS size_bytes,
                   r.id AS run_id,
                   c.id AS checkpoint_id
            FROM runs r
            JOIN checkpoints c ON c.run_id = r.id
            WHERE c.status = 'deleted'
        """,
        # One step back, not the whole line: of a run of N checkpoints that would be N²/2 rows.
        # A recursive query takes as many steps as it wants.
        "lineage": """
            SELECT r.name AS run,
                   c.step AS step,
                   c.status AS status,
                   p.step AS parent_step,
                   p.status AS parent_status,
                   (SELECT MAX(s.resumed_at) FROM resumes s
                    WHERE s.checkpoint_id = p.id) AS parent_resumed_at,
                   r.id AS run_id,
                   c.id AS checkpoint_id,
                   p.id AS parent_id
            FROM runs r
            JOIN checkpoints c ON c.run_id = r.id
            LEFT JOIN checkpoints p ON p.id = c.parent_id
        """,
    }
)

PURPOSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "runs": "One row per run: one directory of checkpoints.",
        "checkpoints": "One row per checkpoint, live or gone; status is tmp, final or deleted.",
        "metrics": "One row per checkpoint and metric; value is finite or NULL.",
        "tags": "One row per checkpoint and tag.",
        "resumes": "One row each time that training continued from a checkpoint.",
        VERSION_TABLE: "The schema's revision.",
        "leaderboard": "Each run's live checkpoints by the run's own metric; rank 1 is the best.",
        "run_summary": "One row per run: counts, bytes on disk, best, latest, last activity.",
        "metric_history": "Every value of every metric, deleted checkpoints included.",
        "deletions": "What was deleted, when and why.",
        "lineage": "Every checkpoint with the one that training continued from.",
    }
)
"""What each table and view is for, in one line."""


def create_all(connection: Connection) -> None:
    """Make tables, indexes, views and the version row, inside the caller's transaction."""
    is_sqlite = connection.dialect.name == "sqlite"
    for table in (*metadata.sorted_tables, version):
        if is_sqlite:
            table.dialect_options["sqlite"]["with_rowid"] = table.info.get("with_rowid", True)
        connection.execute(CreateTable(table))
        # Sorted, because the planner breaks ties by age and a table holds its indexes in a set.
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.dialect_options[connection.dialect.name]["where"] = index.info.get("where")
            connection.execute(CreateIndex(index))
    for name, select in VIEWS.items():
        connection.execute(text(f"CREATE VIEW {name} AS {select.strip()}"))
    connection.execute(version.insert().values(version_num=HEAD))
    if is_sqlite:
        connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))
