"""How often keys in sessions were used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flask_byok.storage.sql_types import name

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what is counted beside the keys of sessions; none of these was counted before."""
    for column in (
        sa.Column("usage_count", sa.BigInteger, nullable=True),
        sa.Column("last_used_at", sa.BigInteger, nullable=True),
        sa.Column("counted", name(16), nullable=True),
    ):
        op.add_column("byok_session_keys", column)
