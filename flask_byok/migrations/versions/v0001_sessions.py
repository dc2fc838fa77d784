"""Session keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of session keys."""
    op.create_table(
        "byok_sessions",
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("sid", sa.String(128), nullable=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("dead", sa.Boolean, nullable=False),
    )
    op.create_index("ix_byok_sessions_sid", "byok_sessions", ["sid"], unique=True)
    op.create_index("ix_byok_sessions_expires_at", "byok_sessions", ["expires_at"])
    op.create_table(
        "byok_session_keys",
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("scope", sa.String(1), primary_key=True),
        sa.Column("provider", sa.String(100), primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=True),
    )
