"""The baseline: tables, indexes and views. The queries of the views stand in ``0001/``.

Frozen: what this made stays what it made, whatever becomes of schema.py and views.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ID = 0x636B7074


def upgrade() -> None:
    """Make them."""
    _runs()
    _checkpoints()
    _metrics()
    _tags()
    _resumes()
    for name, query in _views().items():
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")
    if op.get_context().dialect.name == "sqlite":
        op.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def downgrade() -> None:
    """Take them away."""
    for name in _views():
        op.execute(f"DROP VIEW {name}")
    for table in ("resumes", "tags", "metrics", "checkpoints", "runs"):
        op.drop_table(table)


def _views() -> dict[str, str]:
    """Return the query of each view, by its name."""
    found: dict[str, str] = {}
    for part in ("common", op.get_context().dialect.name):
        file = Path(__file__).with_name(revision) / f"{part}.toml"
        found |= tomllib.loads(file.read_text(encoding="utf-8"))
    return found


def _flag(table: str, name: str) -> sa.Column[int]:
    check = sa.CheckConstraint(f"{name} IN (0, 1)", name=op.f(f"ck_{table}_{name}"))
    return sa.Column(name, sa.Integer, check, nullable=False, server_default=sa.text("0"))


def _partial_index(
    name: str, table: str, columns: list[str], where: str, *, unique: bool = False
) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=sa.text(where),
        postgresql_where=sa.text(where),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uuid", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text),
        sa.Column("metric_name", sa.Text),
        _flag("runs", "higher_is_better"),
        sa.Column("forked_from", sa.Text),
        sa.Column("config", sa.Text),
        sa.Column("stamp", sa.Text),
        _flag("runs", "stamp_verified"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("uuid", name="uq_runs_uuid"),
    )
    op.create_index("ix_runs_directory", "runs", ["directory"])
    op.create_index("ix_runs_name", "runs", ["name"])


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("uuid", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("parent_id", sa.Integer),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("finalized_at", sa.Text),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("file_count", sa.BigInteger),
        sa.Column(
            "status",
            sa.Text,
            sa.CheckConstraint(
                "status IN ('tmp', 'final', 'deleted')", name=op.f("ck_checkpoints_status")
            ),
            nullable=False,
        ),
        sa.Column("deleted_at", sa.Text),
        sa.Column("deleted_reason", sa.Text),
        _flag("checkpoints", "pinned"),
        sa.Column("notes", sa.Text),
        sa.Column("problem", sa.Text),
        sa.Column("info", sa.Text, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("fingerprint", sa.Text),
        sa.Column("rejected", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("run_id", "uuid", name="uq_checkpoints_run_id_uuid"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_checkpoints_run_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["checkpoints.id"], name="fk_checkpoints_parent_id", ondelete="SET NULL"
        ),
    )
    columns = ["run_id", "step"]
    _partial_index(
        "ix_checkpoints_deleted",
        "checkpoints",
        ["run_id", "status", "deleted_at", "size_bytes"],
        "status = 'deleted'",
    )
    op.create_index("ix_checkpoints_parent_id", "checkpoints", ["parent_id"])
    op.create_index("ix_checkpoints_run_id_step", "checkpoints", columns)
    _partial_index("ix_checkpoints_tmp", "checkpoints", columns, "status = 'tmp'")
    _partial_index("uq_checkpoints_final", "checkpoints", columns, "status = 'final'", unique=True)


def _metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Text, nullable=False),
        _flag("metrics", "live"),
        sa.PrimaryKeyConstraint("checkpoint_id", "name", name="pk_metrics"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name="fk_metrics_checkpoint_id",
            ondelete="CASCADE",
        ),
        sqlite_with_rowid=False,
    )
    ranked = "live = 1 AND value IS NOT NULL"
    _partial_index("ix_metrics_ranking", "metrics", ["name", "value", "step", "live"], ranked)
    _partial_index(
        "ix_metrics_run_ranking", "metrics", ["run_id", "name", "value", "step", "live"], ranked
    )
    late = "source <> 'training_info'"
    _partial_index("ix_metrics_late", "metrics", ["run_id", "checkpoint_id"], late)


def _tags() -> None:
    op.create_table(
        "tags",
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "name", name="pk_tags"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_tags_checkpoint_id", ondelete="CASCADE"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tags_name", "tags", ["name"])


def _resumes() -> None:
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
