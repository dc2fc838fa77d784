"""Find a wrong encryption key at the start: each store keeps a sealed text that only the right one opens.

The text of a session store is fixed. That of the accounts' database is random, and keys the audit log: the log
therefore outlives a change of the encryption key, as rotation seals this one text again.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Mapping

import msgspec

from ..errors import ConfigurationError, OutdatedTablesError, StoreError, UnreadableCredentialError
from ..model.credential import SealedRecord, Secret
from .keyring import Context, Keyring

_WRONG = (
    "BYOK_ENCRYPTION_KEY is not the one that this store was used with. Set the right one; if it was replaced on "
    "purpose, put the old one into BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, no key stored so far opens any more; "
    "to start with empty sessions, delete the canary {name!r}: 'byok:canary:{name}' in Redis, or its row in the table "
    "byok_canary."
)
_WRONG_FOR_ACCOUNTS = (
    "BYOK_ENCRYPTION_KEY is not the one that this database's keys are sealed with. Set the right one, or add it to "
    "BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, none of these keys opens any more, and the audit log cannot go on: "
    "set BYOK_DATABASE_URL to a new database."
)
_SESSION_TEXT = b"flask-byok"
#: Set in click's context by a command that shows a wrong encryption key, so needs an app in spite of it.
SHOWS_WRONG_KEY = "flask_byok.shows_wrong_encryption_key"
#: The name of the accounts' canary; those of apps have 16 hex digits.
_AUDIT = "audit"

_logger = logging.getLogger("flask_byok")


#: Returns the text under a name: the given one if there is none, or to ``replace`` it. See ``Sessions.hold``.
Hold = Callable[..., str]


class Canary:
    """A sealed text in a store.

    :param name: tells an app's canary from those of other apps in the same store.
    :param text: what is sealed at the first start; by default that of an app's session store.
    :param wrong: the message for an encryption key that does not open it.
    """

    def __init__(
        self,
        keyring: Keyring,
        name: str,
        hold: Hold,
        *,
        text: bytes = _SESSION_TEXT,
        wrong: str = _WRONG,
    ) -> None:
        self._keyring = keyring
        self._name = name
        self._hold = hold
        self._text = text
        self._wrong = wrong.format(name=name)
        self._context = Context("canary", "system", name)
        self._opened: bytes | None = None

    def secret(self) -> bytes:
        """Return the text, sealed at the first call ever and read once by each process.

        :raises ConfigurationError: it does not open, or the store's tables are too old.
        :raises StoreError: the store does not answer.
        """
        if self._opened is None:
            held = self._hold(self._name, self._keyring.seal(self._text, self._context))
            try:
                self._opened = self._keyring.open(held, self._context)
            except UnreadableCredentialError:
                raise ConfigurationError(self._wrong) from None
        return self._opened

    def reseal(self) -> bool:
        """Seal the text with the current encryption key; return False if that has sealed it already."""
        sealed = self._keyring.seal(self.secret(), self._context)
        if not self._keyring.needs_rotation(self._hold(self._name, sealed)):
            return False
        self._hold(self._name, sealed, replace=True)
        return True


class AuditSecret(Canary):
    """The canary of the accounts' database: 32 random bytes that key the audit log."""

    def __init__(self, keyring: Keyring, hold: Hold) -> None:
        text = secrets.token_bytes(32)
        super().__init__(keyring, _AUDIT, hold, text=text, wrong=_WRONG_FOR_ACCOUNTS)

    @property
    def seal_prefix(self) -> str:
        """The first characters of every ciphertext that is sealed now."""
        return self._keyring.seal_prefix

    def fingerprint(self, fields: Mapping[str, Secret]) -> str:
        """Return a keyed hash of a key (64 hex digits); rotation of the encryption key keeps it."""
        plain = sorted((name, one.reveal()) for name, one in fields.items())
        message = b"fingerprint" + msgspec.json.encode(plain)
        return hmac.digest(self.secret(), message, "sha256").hex()

    def fingerprint_of(self, record: SealedRecord) -> str | None:
        """Return the fingerprint of an account's stored key, None if it does not open."""
        try:
            fields, _ = self._keyring.open_record("account", record.owner, record)
        except UnreadableCredentialError:
            return None
        return self.fingerprint(fields)


def check_at_start(open_canary: Callable[[], object], *, tolerant: bool) -> None:
    """Refuse a wrong encryption key; a store that does not answer, or has old tables, is only logged.

    :param open_canary: ``Canary.secret`` or ``Canary.reseal``.
    :param tolerant: only log a wrong encryption key, too.
    :raises ConfigurationError: the canary does not open.
    """
    try:
        open_canary()
    except OutdatedTablesError as error:
        # The command that upgrades them needs the app; each use of the store raises this again.
        _logger.error("%s", error)
    except ConfigurationError as error:
        if not tolerant:
            raise
        _logger.warning("%s", error)
    except StoreError:
        _logger.warning("A store does not answer: the encryption key could not be checked.")
