"""Accounts' keys, their use and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flask_byok.storage.sql_types import name, prose

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables of what outlives a session."""
    _credentials()
    _beside_credentials()
    _audit()


def _credentials() -> None:
    op.create_table(
        "byok_credentials",
        sa.Column("id", name(32), primary_key=True),
        sa.Column("owner", name(255), nullable=False),
        sa.Column("tier", name(10), nullable=False),
        sa.Column("provider", name(100), nullable=False),
        sa.Column("slot", name(100), nullable=False),
        sa.Column("ciphertext", prose(), nullable=False),
        sa.Column("key_id", name(32), nullable=False),
        sa.Column("hint", name(255), nullable=False),
        sa.Column("label", prose(), nullable=True),
        sa.Column("description", prose(), nullable=True),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=True),
        sa.Column("last_used_at", sa.BigInteger, nullable=True),
        sa.Column("usage_count", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("verdict", name(32), nullable=True),
        sa.Column("verdict_at", sa.BigInteger, nullable=True),
        sa.Column("verdict_version", sa.BigInteger, nullable=True),
        sa.UniqueConstraint("owner", "provider", "slot", name="uq_byok_credentials_owner"),
    )
    op.create_index("ix_byok_credentials_key_id", "byok_credentials", ["key_id"])
    op.create_index("ix_byok_credentials_expires_at", "byok_credentials", ["expires_at"])
    op.create_index("ix_byok_credentials_tier", "byok_credentials", ["tier", "id"])


def _beside_credentials() -> None:
    op.create_table(
        "byok_promotions",
        sa.Column("owner", name(255), primary_key=True),
        sa.Column("origin", name(64), primary_key=True),
        sa.Column("promoted_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "byok_usage",
        sa.Column("owner", name(255), primary_key=True),
        sa.Column("provider", name(100), primary_key=True),
        sa.Column("credential_id", name(32), primary_key=True),
        sa.Column("day", name(10), primary_key=True),
        sa.Column("outcome", name(16), primary_key=True),
        sa.Column("tier", name(10), nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_byok_usage_tier", "byok_usage", ["tier", "day"])


def _audit() -> None:
    op.create_table(
        "byok_audit",
        sa.Column("owner", name(255), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", prose(), nullable=False),
        sa.Column("action", name(32), nullable=False),
        sa.Column("outcome", name(32), nullable=False),
        sa.Column("provider", name(100), nullable=False),
        sa.Column("slot", name(100), nullable=False),
        sa.Column("credential_id", name(32), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=True),
        sa.Column("request_id", prose(), nullable=True),
        sa.Column("fingerprint", name(64), nullable=True),
        sa.Column("previous", name(64), nullable=False),
        sa.Column("hash", name(64), nullable=False),
    )
    op.create_index("ix_byok_audit_at", "byok_audit", ["at"])
    op.create_table(
        "byok_audit_heads",
        sa.Column("owner", name(255), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", name(64), nullable=False),
        sa.Column("seal", name(64), nullable=False),
    )
