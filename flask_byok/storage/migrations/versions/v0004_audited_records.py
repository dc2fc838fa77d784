"""When a key itself was last saved, and what the audit log has seen of its record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flask_byok.storage.sql_types import name

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns, empty: an old key counts as saved when it was created, and old rows are whole without."""
    op.add_column("byok_credentials", sa.Column("set_at", sa.BigInteger, nullable=True))
    for column in ("was", "became"):
        op.add_column("byok_audit", sa.Column(column, name(64), nullable=True))
    for checkpoint in (
        sa.Column("checkpoint", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("checkpoint_hash", name(64), nullable=False, server_default=""),
    ):
        op.add_column("byok_audit_heads", checkpoint)
