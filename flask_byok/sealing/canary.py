"""Refuse, at the start, an encryption key that is not the one the stores were used with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, OutdatedTablesError, StoreError, UnreadableCredentialError
from ..keys.sessions import Sessions
from ..web.anew import is_beginning_anew
from .keyring import Context, Keyring

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_WRONG_ENCRYPTION_KEY = (
    "BYOK_ENCRYPTION_KEY is not the one that this store was used with. Set the right one; if it was replaced on "
    "purpose, put the old one into BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, no key stored so far opens any more; "
    "to begin anew, delete the canary {name!r}: 'byok:canary:{name}' in Redis, or its row in the table byok_canary; "
    "'flask byok audit restart' then begins a new audit log of accounts."
)

# What is sealed at the first start and must open at every later one.
_CANARY = b"flask-byok"

_logger = logging.getLogger("flask_byok")


def check_sessions(keyring: Keyring, sessions: Sessions, name: str, *, throw_away: bool) -> None:
    """Refuse an encryption key that is not the one this store was used with.

    :param name: tells this app's canary from other apps' in the same store.
    :param throw_away: in debug mode and tests keys come and go; then it is only logged.
    :raises ConfigurationError: the canary, sealed at an earlier start, does not open.
    """
    try:
        open_sessions(keyring, sessions, name)
    except OutdatedTablesError as error:
        # The command that upgrades them needs the app; whatever else does is told so at each use.
        _logger.error("%s", error)
    except ConfigurationError as error:
        if not (throw_away or is_beginning_anew()):
            raise
        _logger.warning("%s", error)
    except StoreError:
        _logger.warning("The key store does not answer: the encryption key could not be checked.")


def open_sessions(keyring: Keyring, sessions: Sessions, name: str) -> None:
    """Open the canary of an app's session store, or leave one there.

    :raises ConfigurationError: it does not open, or the store's tables are too old for any.
    :raises StoreError: the store does not answer.
    """
    context = Context("canary", "system", name)
    fresh = keyring.seal(_CANARY, context)
    canary = sessions.hold(name, fresh)
    if not _opens(keyring, canary, context):
        raise ConfigurationError(_WRONG_ENCRYPTION_KEY.format(name=name))
    if keyring.needs_rotation(canary):
        sessions.hold(name, fresh, replace=True)


def check_accounts(accounts: AccountStore, *, throw_away: bool) -> None:
    """Refuse an encryption key that is not the one this database was used with.

    :param throw_away: in debug mode and tests keys come and go; then it is only logged.
    :raises ConfigurationError: the database's canary does not open.
    """
    try:
        accounts.canary.secret()
    except OutdatedTablesError as error:
        _logger.error("%s", error)  # as for sessions
    except ConfigurationError as error:
        if not (throw_away or is_beginning_anew()):
            raise
        _logger.warning("%s", error)
    except StoreError:
        _logger.warning("The database does not answer: the encryption key could not be checked.")


def _opens(keyring: Keyring, canary: str, context: Context) -> bool:
    try:
        return keyring.open(canary, context) == _CANARY
    except UnreadableCredentialError:
        return False
