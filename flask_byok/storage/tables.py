"""All tables: session documents, accounts' keys, their use and the audit log.

A host's own Alembic may make them from :data:`metadata`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

#: One row per session. Times of sessions are seconds since 1970. ``revision`` is new with each change.
session_documents = Table(
    "byok_session_documents",
    metadata,
    Column("ref", String(64), primary_key=True),
    Column("revision", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

#: One row per session id: the session that it leads to.
session_names = Table(
    "byok_session_names",
    metadata,
    Column("sid", String(128), primary_key=True),
    Column("ref", String(64), nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

#: One row per app, named after its SECRET_KEY: it shows whether the encryption key is the right one.
#: The row ``audit`` holds the secret that keys the audit log of accounts.
canaries = Table(
    "byok_canary",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("sealed", Text, nullable=False),
)

# Times of accounts are whole milliseconds since 1970.

#: One row a key. ``owner`` is ``user:<id>``, ``team:<id>`` or ``system``, and ``tier`` the part of
#: it before the colon. ``id`` grows with time, so that pages have an order. ``version`` counts the
#: changes; a verdict is about the version beside it. ``set_at`` is when the key itself was last saved,
#: NULL where that is when the record was created.
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
    Column("set_at", BigInteger, nullable=True),
    UniqueConstraint("owner", "provider", "slot", name="uq_byok_credentials_owner"),
    Index("ix_byok_credentials_tier", "tier", "id"),
)

#: What has come out of a session once never does so again, and counts there no longer: ``origin`` is
#: the version of the session's record, which was promoted, replaced by an account's key or cleared.
promotions = Table(
    "byok_promotions",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("origin", String(64), primary_key=True),
    Column("promoted_at", BigInteger, nullable=False),
)

#: One row for each key, day (ISO 8601, UTC) and outcome; ``1970-01-01`` stands for all days that are
#: long ago. It stays when the key is deleted. ``tier`` is the part of the owner before the colon.
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

#: One chain for each owner. ``hash`` is keyed and covers all other columns, ``previous`` is that of the
#: row before. ``version`` is the key's after the event, 0 if the event deleted it, NULL if it changed none.
#: ``was`` and ``became`` are keyed hashes of the key's record before and after the event, NULL if there
#: was none.
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
    Column("version", BigInteger, nullable=True),
    Column("request_id", Text, nullable=True),
    Column("fingerprint", String(64), nullable=True),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("was", String(64), nullable=True),
    Column("became", String(64), nullable=True),
)

#: The end of each chain: the number and the hash of its last row. Every change of an owner's keys holds
#: this row until it ends, so changes of one owner's keys come one after the other. The checkpoint is
#: the number and the hash of the last row that was pruned; 0 and empty if none was. ``seal`` is keyed and
#: covers the other columns.
audit_heads = Table(
    "byok_audit_heads",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("checkpoint", BigInteger, nullable=False),
    Column("checkpoint_hash", String(64), nullable=False),
    Column("seal", String(64), nullable=False),
)
