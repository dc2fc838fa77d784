"""A random secret that the database keeps sealed.

It opens with the right encryption key only, so a wrong one shows at start-up and not at somebody's
first call. It also keys the audit log, which therefore outlives a change of the encryption key:
rotation seals one row anew.
"""

from __future__ import annotations

import secrets
from contextlib import suppress

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from ...errors import ConfigurationError, UnreadableCredentialError
from ...sealing.keyring import Context, Keyring
from ...storage.database import Database
from ...storage.sql import HELD, HOLD, REPLACE
from ...storage.tables import audit_heads

#: The row's; those of apps have 16 hex digits.
NAME = "audit"
_CONTEXT = Context("canary", "system", NAME)
_WRONG = (
    "BYOK_ENCRYPTION_KEY is not the one that this database's keys are sealed with. Set the right "
    "one, or add it to BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, none of these keys opens any more; "
    "'flask byok audit restart' then begins a new audit log under the one that is set now."
)
_GONE = (
    "The row 'audit' in byok_canary is gone, without which nobody can tell whether the audit log is whole. "
    "Restore that table from a backup, or begin a new log with 'flask byok audit restart'."
)


class Canary:
    """Makes the secret, opens it, and seals it anew."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring
        self._secret: bytes | None = None

    def secret(self) -> bytes:
        """Return the secret, made at first use: 32 random bytes.

        :raises ConfigurationError: the encryption key is the wrong one, or the row is gone though
            there is an audit log.
        """
        if self._secret is None:
            self._secret = self._open(self._database.call(self._find_or_add))
        return self._secret

    def look_up(self, connection: Connection) -> bytes:
        """Return the secret as it is now, if it opens; the log may have been begun anew meanwhile."""
        found = connection.execute(HELD, {"called": NAME}).scalar()
        if found is not None:
            with suppress(ConfigurationError):
                self._secret = self._open(found)
        return self.secret()

    def replace(self, connection: Connection) -> bytes:
        """Put a new secret in the place of whatever is there; what the old one keyed no longer verifies."""
        secret = secrets.token_bytes(32)
        values = self._values(secret)
        if connection.execute(REPLACE, values).rowcount == 0:
            connection.execute(HOLD, values)
        self._secret = None  # until that is committed
        return secret

    def reseal(self) -> bool:
        """Seal the secret with the current encryption key and say whether it was not already."""
        secret = self.secret()

        def work(connection: Connection) -> bool:
            found = connection.execute(HELD, {"called": NAME}).scalar_one()
            if not self._keyring.needs_rotation(found):
                return False
            connection.execute(REPLACE, self._values(secret))
            return True

        return self._database.change(work)

    def _find_or_add(self) -> str:
        with self._database.transactions.single() as connection:
            found = connection.execute(HELD, {"called": NAME}).scalar()
            if found is None and connection.execute(select(audit_heads.c.owner).limit(1)).first():
                raise ConfigurationError(_GONE)
            if found is None:
                try:
                    connection.execute(HOLD, self._values(secrets.token_bytes(32)))
                except IntegrityError:
                    connection.rollback()  # another worker was first
                found = connection.execute(HELD, {"called": NAME}).scalar_one()
            return str(found)

    def _values(self, secret: bytes) -> dict[str, str]:
        return {"called": NAME, "text": self._keyring.seal(secret, _CONTEXT)}

    def _open(self, ciphertext: str) -> bytes:
        try:
            return self._keyring.open(ciphertext, _CONTEXT)
        except UnreadableCredentialError:
            raise ConfigurationError(_WRONG) from None
