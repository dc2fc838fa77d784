"""The wing of accounts: keys of users, teams and the system in a database, and what is done with them there."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import UnreadableCredentialError
from ..model.credential import CredentialRecord, Fields
from ..sealing.keyring import Canary, Keyring

if TYPE_CHECKING:
    from .store.keys import AccountStore

_WRONG_KEY = (
    "BYOK_ENCRYPTION_KEY is not the one that this database's keys are sealed with. Set the right one, or add it to "
    "BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, none of these keys opens any more, and the audit log cannot go on: "
    "set BYOK_DATABASE_URL to a new database."
)


def open_accounts(
    engine_or_url: Any, keyring: Keyring, *, tolerant: bool = False, **opening: Any
) -> AccountStore:
    """Return the store of accounts' keys in a database.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tolerant: read keys without a look at the canary.
    :param opening: how to open a URL, see ``storage.sql.Database``.
    """
    from ..storage.sql import Database
    from ..storage.tables import metadata
    from .store.audit import hold_secret
    from .store.keys import AccountStore

    database = Database(engine_or_url, metadata.sorted_tables, **opening)
    return AccountStore(
        database, AuditSecret(keyring, partial(hold_secret, database), tolerant=tolerant)
    )


class AuditSecret(Canary):
    """The canary of the accounts' database: 32 random bytes that key the audit log and the fingerprints of keys."""

    def __init__(
        self, keyring: Keyring, hold: Callable[..., str], *, tolerant: bool = False
    ) -> None:
        # The canaries of apps have names of 16 hex digits.
        text = secrets.token_bytes(32)
        super().__init__(keyring, "audit", hold, text, _WRONG_KEY, tolerant)

    def fingerprint(self, fields: Fields) -> str:
        """Return a keyed hash of a key (64 hex digits); rotation of the encryption key keeps it."""
        plain = sorted((name, one.reveal()) for name, one in fields.items())
        message = b"fingerprint" + msgspec.json.encode(plain)
        return hmac.digest(self.secret(), message, "sha256").hex()

    def fingerprint_of(self, record: CredentialRecord) -> str | None:
        """Return the fingerprint of an account's stored key, None if it does not open."""
        try:
            fields, _ = self.keyring.open_record(record.owner, record)
        except UnreadableCredentialError:
            return None
        return self.fingerprint(fields)
