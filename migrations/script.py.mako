"""${message}."""

from __future__ import annotations

from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Only add: within a major version older readers must keep working."""
    ${upgrades or "pass"}


def downgrade() -> None:
    """Take away what was added."""
    ${downgrades or "pass"}
