"""Tables of what outlives a session: accounts' keys, their use and the audit log.

They share their metadata with the session tables. Times are whole milliseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from .sql_tables import metadata

__all__ = [
    "audit",
    "audit_heads",
    "credentials",
    "metadata",
    "promotions",
    "usage",
]

#: One row a key. ``owner`` is ``user:<id>``, ``team:<id>`` or ``system``, and ``tier`` the part of
#: it before the colon. ``id`` grows with time, so that pages have an order. ``version`` counts the
#: changes; a verdict is about the version beside it.
credentials = Table(
    "byok_credentials",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("tier", String(10), nullable=False),
    Column("provider", String(100), nullable=False),
    Column("slot", String(100), nullable=False),
    Column("ciphertext", Text, nullable=False),
    Column("key_id", String(32), nullable=False, index=True),
    Column("hint", String(255), nullable=False),
    Column("label", Text, nullable=True),
    Column("description", Text, nullable=True),
    Column("active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=True, index=True),
    Column("last_used_at", BigInteger, nullable=True),
    Column("usage_count", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("verdict", String(32), nullable=True),
    Column("verdict_at", BigInteger, nullable=True),
    Column("verdict_version", BigInteger, nullable=True),
    UniqueConstraint("owner", "provider", "slot", name="uq_byok_credentials_owner"),
    Index("ix_byok_credentials_tier", "tier", "id"),
)

#: What has come out of a session once never does so again: ``origin`` is the version of the
#: session's record.
promotions = Table(
    "byok_promotions",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("origin", String(64), primary_key=True),
    Column("promoted_at", BigInteger, nullable=False),
)

#: One row for each key, day (ISO 8601, UTC) and outcome. It stays when the key is deleted. ``tier`` is
#: the part of the owner before the colon.
usage = Table(
    "byok_usage",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("provider", String(100), primary_key=True),
    Column("credential_id", String(32), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("outcome", String(16), primary_key=True),
    Column("tier", String(10), nullable=False),
    Column("uses", BigInteger, nullable=False),
    Column("last_used_at", BigInteger, nullable=False),
    Index("ix_byok_usage_tier", "tier", "day"),
)

#: One chain an owner. ``hash`` is keyed and covers all other columns, ``previous`` the row before.
audit = Table(
    "byok_audit",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("provider", String(100), nullable=False),
    Column("slot", String(100), nullable=False),
    Column("credential_id", String(32), nullable=False),
    Column("request_id", Text, nullable=True),
    Column("fingerprint", String(64), nullable=True),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

#: The end of each chain. Every change of an owner's keys holds this row to its end, so they come
#: one after the other.
audit_heads = Table(
    "byok_audit_heads",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("seal", String(64), nullable=False),
)
