"""Tables of what outlives a session: accounts' keys, their use and the audit log.

They share their metadata with the session tables. Times are whole milliseconds since 1970.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Table,
    UniqueConstraint,
)

from .sql_tables import metadata
from .sql_types import name, prose

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
#: changes; a verdict is about the version beside it. ``set_at`` is when the key itself was last saved,
#: NULL where that is when the record was created.
credentials = Table(
    "byok_credentials",
    metadata,
    Column("id", name(32), primary_key=True),
    Column("owner", name(255), nullable=False),
    Column("tier", name(10), nullable=False),
    Column("provider", name(100), nullable=False),
    Column("slot", name(100), nullable=False),
    Column("ciphertext", prose(), nullable=False),
    Column("key_id", name(32), nullable=False, index=True),
    Column("hint", name(255), nullable=False),
    Column("label", prose(), nullable=True),
    Column("description", prose(), nullable=True),
    Column("active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=True, index=True),
    Column("last_used_at", BigInteger, nullable=True),
    Column("usage_count", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("verdict", name(32), nullable=True),
    Column("verdict_at", BigInteger, nullable=True),
    Column("verdict_version", BigInteger, nullable=True),
    Column("set_at", BigInteger, nullable=True),
    UniqueConstraint("owner", "provider", "slot", name="uq_byok_credentials_owner"),
    Index("ix_byok_credentials_tier", "tier", "id"),
)

#: What has come out of a session once never does so again, and counts there no longer: ``origin`` is
#: the version of the session's record, which was promoted, replaced by an account's key or cleared.
promotions = Table(
    "byok_promotions",
    metadata,
    Column("owner", name(255), primary_key=True),
    Column("origin", name(64), primary_key=True),
    Column("promoted_at", BigInteger, nullable=False),
)

#: One row for each key, day (ISO 8601, UTC) and outcome; ``1970-01-01`` stands for all days that are
#: long ago. It stays when the key is deleted. ``tier`` is the part of the owner before the colon.
usage = Table(
    "byok_usage",
    metadata,
    Column("owner", name(255), primary_key=True),
    Column("provider", name(100), primary_key=True),
    Column("credential_id", name(32), primary_key=True),
    Column("day", name(10), primary_key=True),
    Column("outcome", name(16), primary_key=True),
    Column("tier", name(10), nullable=False),
    Column("uses", BigInteger, nullable=False),
    Column("last_used_at", BigInteger, nullable=False),
    Index("ix_byok_usage_tier", "tier", "day"),
)

#: One chain for each owner. ``hash`` is keyed and covers all other columns, ``previous`` is that of the
#: row before. ``version`` is the key's after the event, 0 if the event deleted it, NULL if it changed none.
#: ``was`` and ``became`` are keyed hashes of the key's record before and after the event, NULL if there
#: was none.
audit = Table(
    "byok_audit",
    metadata,
    Column("owner", name(255), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False, index=True),
    Column("actor", prose(), nullable=False),
    Column("action", name(32), nullable=False),
    Column("outcome", name(32), nullable=False),
    Column("provider", name(100), nullable=False),
    Column("slot", name(100), nullable=False),
    Column("credential_id", name(32), nullable=False),
    Column("version", BigInteger, nullable=True),
    Column("request_id", prose(), nullable=True),
    Column("fingerprint", name(64), nullable=True),
    Column("previous", name(64), nullable=False),
    Column("hash", name(64), nullable=False),
    Column("was", name(64), nullable=True),
    Column("became", name(64), nullable=True),
)

#: The end of each chain: the number and the hash of its last row. Every change of an owner's keys holds
#: this row until it ends, so changes of one owner's keys come one after the other. The checkpoint is
#: the number and the hash of the last row that was pruned; 0 and empty if none was. ``seal`` is keyed and
#: covers the other columns.
audit_heads = Table(
    "byok_audit_heads",
    metadata,
    Column("owner", name(255), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", name(64), nullable=False),
    Column("checkpoint", BigInteger, nullable=False),
    Column("checkpoint_hash", name(64), nullable=False),
    Column("seal", name(64), nullable=False),
)
