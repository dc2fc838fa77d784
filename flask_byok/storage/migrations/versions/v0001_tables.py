"""All tables: session documents, accounts' keys, their use and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    _sessions()
    _credentials()
    _usage()
    _audit()


def _sessions() -> None:
    op.create_table(
        "byok_session_documents",
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("revision", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "byok_session_names",
        sa.Column("sid", sa.String(128), primary_key=True),
        sa.Column("ref", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "byok_canary",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
    )


def _credentials() -> None:
    op.create_table(
        "byok_credentials",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("tier", sa.String(10), nullable=False),
        sa.Column("provider", sa.String(100), nullable=False),
        sa.Column("slot", sa.String(100), nullable=False),
        sa.Column("ciphertext", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False, index=True),
        sa.Column("hint", sa.String(255), nullable=False),
        sa.Column("label", sa.Text, nullable=True),
        sa.Column("description", sa.Text, nullable=True),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=True, index=True),
        sa.Column("last_used_at", sa.BigInteger, nullable=True),
        sa.Column("usage_count", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=True),
        sa.Column("verdict_at", sa.BigInteger, nullable=True),
        sa.Column("verdict_version", sa.BigInteger, nullable=True),
        sa.Column("set_at", sa.BigInteger, nullable=True),
        sa.UniqueConstraint("owner", "provider", "slot", name="uq_byok_credentials_owner"),
    )
    op.create_index("ix_byok_credentials_tier", "byok_credentials", ["tier", "id"])
    op.create_table(
        "byok_promotions",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("origin", sa.String(64), primary_key=True),
        sa.Column("promoted_at", sa.BigInteger, nullable=False),
    )


def _usage() -> None:
    op.create_table(
        "byok_usage",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("provider", sa.String(100), primary_key=True),
        sa.Column("credential_id", sa.String(32), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("tier", sa.String(10), nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_byok_usage_tier", "byok_usage", ["tier", "day"])


def _audit() -> None:
    op.create_table(
        "byok_audit",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False, index=True),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("provider", sa.String(100), nullable=False),
        sa.Column("slot", sa.String(100), nullable=False),
        sa.Column("credential_id", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=True),
        sa.Column("request_id", sa.Text, nullable=True),
        sa.Column("fingerprint", sa.String(64), nullable=True),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("was", sa.String(64), nullable=True),
        sa.Column("became", sa.String(64), nullable=True),
    )
    op.create_table(
        "byok_audit_heads",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("checkpoint", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_hash", sa.String(64), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
    )
