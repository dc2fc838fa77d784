"""The wing of accounts: keys of users, teams and the system in a database, and what is done with them there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sealing.keyring import Keyring
    from .store.keys import AccountStore


def open_accounts(engine_or_url: Any, keyring: Keyring, *, own_file: bool = False) -> AccountStore:
    """Return the store of accounts' keys in a database.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param own_file: nothing else uses the file at this address; an older version's tables in it are
        upgraded at the first use.
    """
    from ..sealing.keyring import AuditSecret
    from ..storage.sql import Database
    from ..storage.tables import metadata
    from .store.audit import hold_secret
    from .store.keys import AccountStore

    database = Database(engine_or_url, metadata.sorted_tables, own_file=own_file)
    return AccountStore(database, AuditSecret(keyring, hold_secret(database)))
