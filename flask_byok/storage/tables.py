"""All tables: session documents, accounts' keys, their use and the audit log.

A host's own Alembic may make them from :data:`metadata`.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()


def _table(name: str, *parts: sa.schema.SchemaItem) -> sa.Table:
    return sa.Table(name, metadata, *parts)


#: One row per session. Times of sessions are seconds since 1970. ``revision`` is new with each change.
session_documents = _table(
    "byok_session_documents",
    sa.Column("ref", sa.String(64), primary_key=True),
    sa.Column("revision", sa.String(16), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)

#: One row per session id: the session that it leads to.
session_names = _table(
    "byok_session_names",
    sa.Column("sid", sa.String(128), primary_key=True),
    sa.Column("ref", sa.String(64), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)

#: One row per app, named after its SECRET_KEY: it shows whether the encryption key is the right one.
#: The row ``audit`` holds the secret that keys the audit log of accounts.
canaries = _table(
    "byok_canary",
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("sealed", sa.Text, nullable=False),
)

# Times of accounts are whole milliseconds since 1970.

#: One row a key. ``owner`` is ``user:<id>``, ``team:<id>`` or ``system``, and ``tier`` the part of
#: it before the colon. ``id`` grows with time, so that pages have an order. ``version`` counts the
#: changes; a verdict is about the version beside it. ``set_at`` is when the key itself was last saved,
#: NULL where that is when the record was created.
credentials = _table(
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
    sa.Index("ix_byok_credentials_tier", "tier", "id"),
    sa.Index("ix_byok_credentials_provider", "provider", "tier", "id"),
)

#: What has come out of a session once never does so again, and counts there no longer: ``origin`` is
#: the version of the session's record, which was promoted, replaced by an account's key or cleared.
promotions = _table(
    "byok_promotions",
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("origin", sa.String(64), primary_key=True),
    sa.Column("promoted_at", sa.BigInteger, nullable=False),
)

#: One row for each key, day (ISO 8601, UTC) and outcome; ``1970-01-01`` stands for all days that are
#: long ago. It stays when the key is deleted. ``tier`` is the part of the owner before the colon.
#: Tokens are in the rows of the outcome ``used``.
usage = _table(
    "byok_usage",
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("provider", sa.String(100), primary_key=True),
    sa.Column("credential_id", sa.String(32), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("outcome", sa.String(16), primary_key=True),
    sa.Column("tier", sa.String(10), nullable=False),
    sa.Column("uses", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("last_used_at", sa.BigInteger, nullable=False),
    sa.Index("ix_byok_usage_tier", "tier", "day"),
)

#: One chain for each owner. ``hash`` is keyed and covers all other columns, ``previous`` is that of the
#: row before. ``version`` is the key's after the event, 0 if the event deleted it, NULL if it changed none.
#: ``was`` and ``became`` are keyed hashes of the key's record before and after the event, NULL if there
#: was none.
audit = _table(
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

#: The end of each chain: the number and the hash of its last row. Every change of an owner's keys holds
#: this row until it ends, so changes of one owner's keys come one after the other. The checkpoint is
#: the number and the hash of the last row that was pruned; 0 and empty if none was. ``seal`` is keyed and
#: covers the other columns.
audit_heads = _table(
    "byok_audit_heads",
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("checkpoint", sa.BigInteger, nullable=False),
    sa.Column("checkpoint_hash", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=False),
)
