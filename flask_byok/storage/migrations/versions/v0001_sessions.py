"""Session keys, and what tells a wrong encryption key.

Version 0.1.0 made these tables without Alembic: what is there already stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flask_byok.storage.sql_types import name, prose

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of session keys and of canaries."""
    op.create_table(
        "byok_sessions",
        sa.Column("ref", name(64), primary_key=True),
        sa.Column("sid", name(128), nullable=True),
        sa.Column("owner", prose(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("dead", sa.Boolean, nullable=False),
        if_not_exists=True,
    )
    for column, unique in (("sid", True), ("expires_at", False)):
        op.create_index(
            f"ix_byok_sessions_{column}",
            "byok_sessions",
            [column],
            unique=unique,
            if_not_exists=True,
        )
    op.create_table(
        "byok_session_keys",
        sa.Column("ref", name(64), primary_key=True),
        sa.Column("scope", name(1), primary_key=True),
        sa.Column("provider", name(100), primary_key=True),
        sa.Column("record", prose(), nullable=False),
        sa.Column("verdict", prose(), nullable=True),
        if_not_exists=True,
    )
    op.create_table(
        "byok_canary",
        sa.Column("name", name(100), primary_key=True),
        sa.Column("sealed", prose(), nullable=False),
        if_not_exists=True,
    )
