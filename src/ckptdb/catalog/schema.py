"""Tables and indexes of the catalog; its views are in `views`.

Paths are in POSIX style, and relative to the root when they are below it. Times are ISO-8601 in
UTC. Flags are the integers 1 and 0, so that ``WHERE pinned = 1`` works on every engine.
"""

from __future__ import annotations

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

from ckptdb.catalog import trust
from ckptdb.catalog.view_dialects import ViewDialect
from ckptdb.catalog.views import views

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause

REVISIONS: Final = ("0001", "0002")
"""Every revision of this schema, oldest first; one file each in migrations/versions."""

HEAD: Final = REVISIONS[-1]
VERSION_TABLE: Final = "ckptdb_version"

FINGERPRINT: Final = "010cc88d44ddf652743388014c98c2e9260706e6edbcfe18eb6ac896ab517055"
"""Fingerprint (`definitions.fingerprint`) of the schema that `create_all` makes on SQLite; a test
prints the new one. Another version of SQLAlchemy may write the same schema in other words; then the
definitions are compared one by one."""

APPLICATION_ID: Final = 0x636B7074
"""Application id in the header of our SQLite files: ``ckpt`` in ASCII."""

# Options of one dialect are in `info`, and `create_all` passes them on. An argument such as
# `postgresql_where=` would import that dialect, which takes longer than importing all of ckptdb.
metadata: Final = MetaData(
    # A migration can change a constraint only by its name.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Statuses are literals, here and in every query. The planner uses a partial index only when the
# query visibly implies the index's condition, and it does not know the value of a parameter.
IS_FINAL: Final = text("status = 'final'")
IS_TMP: Final = text("status = 'tmp'")
IS_DELETED: Final = text("status = 'deleted'")
IS_RANKED: Final = text(trust.ranked())
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
    # The stamp of the directory when it was last indexed.
    Column("stamp", Text),
    # 0 when a writer has advanced the stamp and no listing has confirmed it yet.
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
    # The reason that was given when the checkpoint was rejected.
    Column("rejected", Text),
    # Kinds for code and queries, beside the sentences of `deleted_reason` and `problem`. Their
    # values are `DeletedKind` and `ProblemKind` of core.records.
    Column("deleted_kind", Text),
    Column("problem_kind", Text),
    UniqueConstraint("run_id", "uuid"),
    # All checkpoints of a run by step, deleted ones included.
    Index(None, "run_id", "step"),
    # Cascades and SET NULL look for children by this column.
    Index(None, "parent_id"),
    # At most one checkpoint of a step is published. This index also finds the latest one.
    _partial_index("uq_checkpoints_final", "run_id", "step", where=IS_FINAL, unique=True),
    # Few rows among a million: saves that are under way, or that a crash has left.
    _partial_index("ix_checkpoints_tmp", "run_id", "step", where=IS_TMP),
    # Deletions of a run by time. The status is always the same, but only with it SQLite counts
    # deletions in this index alone, and prefers it to the one by step. With the size, the freed
    # bytes are summed in the index as well.
    _partial_index(
        "ix_checkpoints_deleted", "run_id", "status", "deleted_at", "size_bytes", where=IS_DELETED
    ),
)

metrics: Final = Table(
    "metrics",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    # Run and step are copies of the checkpoint's, for the ranking indexes. No foreign key: the
    # deletion of a run reaches metrics through checkpoints, and a second way would need an index
    # that contains history.
    Column("run_id", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    # Double, because REAL has only 4 bytes on PostgreSQL.
    Column("value", Double),
    Column("source", Text, nullable=False),
    Column("reported_at", Text, nullable=False),
    # 1 exactly when the checkpoint is trusted; see `trust`. The ranking indexes contain nothing
    # else, so that deleted history does not slow down best and top-k. They end in `live`, because
    # SQLite would otherwise read the row to check a condition that the index implies.
    _flag("live"),
    PrimaryKeyConstraint("checkpoint_id", "name"),
    _partial_index("ix_metrics_ranking", "name", "value", "step", "live", where=IS_RANKED),
    _partial_index(
        "ix_metrics_run_ranking", "run_id", "name", "value", "step", "live", where=IS_RANKED
    ),
    # Few metrics are late; nearly all came with their checkpoints.
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
    # A copy of the checkpoint's, as in `metrics`. The column comes after those of the primary key:
    # before one of them, SQLite 3.40 reports a table without rowid as damaged.
    Column("run_id", Integer, nullable=False),
    PrimaryKeyConstraint("checkpoint_id", "resumed_at", "host", "pid"),
    Index(None, "run_id", "resumed_at"),
    info={"with_rowid": False},
)

# Alembic writes this table, too. `metadata` does not have it, because its naming convention is
# not Alembic's.
version: Final = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)


def create_all(connection: Connection, view_dialect: ViewDialect) -> None:
    """Make tables, indexes, views and the version row, inside the caller's transaction."""
    is_sqlite = connection.dialect.name == "sqlite"
    for table in (*metadata.sorted_tables, version):
        if is_sqlite:
            table.dialect_options["sqlite"]["with_rowid"] = table.info.get("with_rowid", True)
        connection.execute(CreateTable(table))
        # Sorted, because the planner prefers the older of two equal indexes, and SQLAlchemy has
        # the indexes of a table in a set.
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            index.dialect_options[connection.dialect.name]["where"] = index.info.get("where")
            connection.execute(CreateIndex(index))
    for name, select in views(view_dialect).items():
        connection.execute(text(f"CREATE VIEW {name} AS {select.strip()}"))
    connection.execute(version.insert().values(version_num=HEAD))
    if is_sqlite:
        connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))
