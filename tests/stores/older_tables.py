"""Databases as older versions of the tables left them, with what was in them."""

from __future__ import annotations

import time

from alembic import command
from sqlalchemy import Engine, text

from flask_byok.accounts.store.audit import head_seal, row_hash
from flask_byok.keys.session_store import encode_record
from flask_byok.sealing.keyring import Context
from flask_byok.storage import migrate
from flask_byok.storage.engine import Transactions
from tests.accounts.account_kinds import ANN, KEYRING

from .contract import make_record

#: A session that somebody was in the midst of, and the record in it.
SID, REF, RECORD = "sid-1", "ref-1", make_record()
_SESSION = text(
    "INSERT INTO byok_sessions (ref, sid, owner, created_at, expires_at, dead)"
    " VALUES (:ref, :sid, '', :now, :now + 60, :dead)"
)
_SESSION_KEY = text(
    "INSERT INTO byok_session_keys (ref, scope, provider, record)"
    " VALUES (:ref, 'v', 'openai', :record)"
)
_CREDENTIAL = text(
    "INSERT INTO byok_credentials (id, owner, tier, provider, slot, ciphertext, key_id, hint,"
    " active, created_at, updated_at, usage_count, version)"
    " VALUES ('1', :owner, 'user', 'openai', '', 'sealed', 'a', 'sk-…', :yes, 1, 1, 7, 3)"
)
_USE = text(
    "INSERT INTO byok_usage (owner, provider, credential_id, day, outcome, tier, uses, last_used_at)"
    " VALUES (:owner, 'openai', '1', '2024-02-29', 'used', 'user', 7, 1)"
)
_CANARY = text("INSERT INTO byok_canary (name, sealed) VALUES ('audit', :sealed)")
_HEAD = text(
    "INSERT INTO byok_audit_heads (owner, number, hash, seal) VALUES (:owner, 1, :hash, :seal)"
)
_ROW = {
    **{"owner": ANN, "number": 1, "at": 1, "actor": ANN, "action": "set", "outcome": "done"},
    **{"provider": "openai", "slot": "", "credential_id": "1", "version": 3},
    **{"request_id": None, "fingerprint": None, "previous": ""},
}


def upgrade_to(engine: Engine, revision: str) -> None:
    """Stop at an older revision."""
    with Transactions(engine).several() as connection:
        command.upgrade(migrate._config(connection=connection), revision)


def made_by_first_version(engine: Engine) -> None:
    """Make the tables as version 0.1.0 does, without Alembic."""
    upgrade_to(engine, "0001")
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {migrate.VERSION_TABLE}"))


def made_by_first_migration(engine: Engine) -> None:
    """Make the tables of the first revision."""
    upgrade_to(engine, "0001")


def made_by_second_migration(engine: Engine) -> None:
    """Make the tables of the second revision, with a key in an account, its uses and its log."""
    upgrade_to(engine, "0002")
    fill_account(engine)


def made_by_third_migration(engine: Engine) -> None:
    """Make the tables of the third revision, with the same in them."""
    upgrade_to(engine, "0003")
    fill_account(engine)


def fill_account(engine: Engine) -> None:
    """Put a key into an account, with its uses and its log, as versions did whose log did not cover records."""
    secret, canary = b"s" * 32, Context("canary", "system", "audit")
    row = {**_ROW, "hash": row_hash(secret, _ROW | {"was": None, "became": None})}
    head = {"owner": ANN, "number": 1, "hash": row["hash"], "checkpoint": 0, "checkpoint_hash": ""}
    head = {"owner": ANN, "hash": row["hash"], "seal": head_seal(secret, head)}
    columns = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    with engine.begin() as connection:
        connection.execute(_CREDENTIAL, {"owner": ANN, "yes": True})
        connection.execute(_USE, {"owner": ANN})
        connection.execute(_CANARY, {"sealed": KEYRING.seal(secret, canary)})
        connection.execute(text(f"INSERT INTO byok_audit ({columns}) VALUES ({values})"), row)
        connection.execute(_HEAD, head)


def begin_session(engine: Engine) -> None:
    """Put a session with a key into it, as a version did that counts no uses in sessions."""
    with engine.begin() as connection:
        connection.execute(_SESSION, {"ref": REF, "sid": SID, "now": time.time(), "dead": False})
        values = {"ref": REF, "record": encode_record(RECORD).decode()}
        connection.execute(_SESSION_KEY, values)
