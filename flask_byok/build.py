"""Build one app's parts from its settings."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flask import Flask

from .catalog import PROVIDERS, Catalog, ProviderSpec
from .errors import (
    ConfigurationError,
    OutdatedTablesError,
    StoreError,
    UnreadableCredentialError,
)
from .keyring import Context, Keyring, generate_encryption_key
from .owners import ACCOUNT_TIERS, Tier
from .resolver import Resolver
from .session_keys import SessionKeys
from .settings import MAX_SESSION_LIFETIMES, Settings
from .stores.base import SessionStore
from .stores.operator import EnvironmentKeys, SecretFileKeys
from .tiers import AccountTiers, OperatorTier, SessionTier, TierReader
from .web.anew import is_beginning_anew

if TYPE_CHECKING:
    from .stores.accounts import AccountStore

_MISSING_ENCRYPTION_KEY = (
    "BYOK_ENCRYPTION_KEY is not set. Make one with 'flask byok generate-key', and set it in the app's config, in the "
    "environment, or in a file named by BYOK_ENCRYPTION_KEY_FILE. Keep a copy: without it no stored key opens."
)

_WRONG_ENCRYPTION_KEY = (
    "BYOK_ENCRYPTION_KEY is not the one that this store was used with. Set the right one; if it was replaced on "
    "purpose, put the old one into BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, no key stored so far opens any more; "
    "to begin anew, delete the canary {name!r}: 'byok:canary:{name}' in Redis, or its row in the table byok_canary; "
    "'flask byok audit restart' then begins a new audit log of accounts."
)

# What is sealed at the first start and must open at every later one.
_CANARY = b"flask-byok"

_logger = logging.getLogger("flask_byok")


def build_keyring(settings: Settings, *, throw_away: bool) -> Keyring:
    """Return the keyring; with ``throw_away`` (debug, testing) a missing encryption key is made up for this run.

    :raises ConfigurationError: there is no encryption key, or one is malformed.
    """
    encryption_key = settings.encryption_key
    if encryption_key is None:
        if not throw_away:
            raise ConfigurationError(_MISSING_ENCRYPTION_KEY)
        warnings.warn(
            "BYOK_ENCRYPTION_KEY is not set: using a throw-away key, so stored keys are lost at the next start, and "
            "accounts are kept in memory, in no database.",
            stacklevel=4,
        )
        encryption_key = generate_encryption_key()
    return Keyring(encryption_key, settings.encryption_key_fallbacks, cipher=settings.cipher)


def check_encryption_key(
    keyring: Keyring, sessions: SessionStore, name: str, *, throw_away: bool
) -> None:
    """Refuse an encryption key that is not the one this store was used with.

    :param name: tells this app's canary from other apps' in the same store.
    :param throw_away: in debug mode and tests keys come and go; then it is only logged.
    :raises ConfigurationError: the canary, sealed at an earlier start, does not open.
    """
    context = Context("canary", "system", name)
    fresh = keyring.seal(_CANARY, context)
    try:
        canary = _hold_canary(sessions, name, fresh)
        if canary is None:
            return
        if _opens(keyring, canary, context):
            if keyring.needs_rotation(canary):
                sessions.canary(name, fresh, replace=True)
        elif throw_away or is_beginning_anew():
            _logger.warning(_WRONG_ENCRYPTION_KEY.format(name=name))
        else:
            raise ConfigurationError(_WRONG_ENCRYPTION_KEY.format(name=name))
    except StoreError:
        _logger.warning("The key store does not answer: the encryption key could not be checked.")


def _hold_canary(sessions: SessionStore, name: str, fresh: str) -> str | None:
    """Return the canary, None where the store's tables are too old for any."""
    try:
        return sessions.canary(name, fresh)
    except OutdatedTablesError as error:
        # The command that upgrades them needs the app; whatever else does is told so at each use.
        _logger.error("%s", error)
        return None


def _opens(keyring: Keyring, canary: str, context: Context) -> bool:
    try:
        return keyring.open(canary, context) == _CANARY
    except UnreadableCredentialError:
        return False


def build_catalog(settings: Settings, registered: Iterable[ProviderSpec]) -> Catalog:
    """Return the providers that are on: the catalog, other packages' and the host's own.

    :raises ConfigurationError: two have the same id, or ``BYOK_PROVIDERS`` names an unknown one.
    """
    others = [entry.load() for entry in entry_points(group="flask_byok.providers")]
    catalog = Catalog([*PROVIDERS, *others, *registered])
    for setting, ids in (
        ("BYOK_LOCKED_PROVIDERS", settings.locked_providers),
        ("BYOK_BASE_URLS", settings.base_urls),
    ):
        if unknown := sorted(name for name in ids if name not in catalog):
            raise ConfigurationError(f"{setting} names unknown providers: {', '.join(unknown)}.")
    for name in settings.base_urls:
        if (spec := catalog.get(name)).id != name:
            # Read by id; under an alias it would be ignored, and keys would go elsewhere.
            raise ConfigurationError(f"BYOK_BASE_URLS names {name!r}, an alias: use {spec.id!r}.")
    if settings.providers is not None:
        catalog = catalog.only(settings.providers)
    catalog = Catalog(_at_operators_address(spec, settings) for spec in catalog)
    if settings.allow_custom_providers:
        return catalog
    return Catalog(spec for spec in catalog if not spec.personal_base_url)


def _at_operators_address(spec: ProviderSpec, settings: Settings) -> ProviderSpec:
    """Ask nobody for a base URL that the operator has set."""
    if spec.id not in settings.base_urls:
        return spec
    return replace(spec, fields=tuple(f for f in spec.fields if f.name != "base_url"))


def build_session_store(app: Flask, settings: Settings) -> SessionStore:
    """Return the store for session keys: as set, else Redis where it is configured, else the database.

    :raises ConfigurationError: the setting names no store.
    """
    chosen = settings.session_store or ("redis" if settings.redis else "database")
    if chosen == "redis":
        return _redis_store(settings)
    if chosen == "database":
        return _database_store(app, settings)
    if not isinstance(chosen, str):
        return cast(SessionStore, chosen)
    raise ConfigurationError(
        f"BYOK_SESSION_STORE is {chosen!r}; use 'redis', 'database' or a store object."
    )


def build_account_store(
    app: Flask, settings: Settings, keyring: Keyring, sessions: SessionStore
) -> AccountStore | None:
    """Return the store for keys that outlive the session, None where no tier of the lookup order is kept there.

    :raises ConfigurationError: there is no place for it.
    """
    if ACCOUNT_TIERS.isdisjoint(settings.precedence):
        return None
    from .stores.accounts import AccountStore

    if settings.encryption_key is None:
        # What a made-up key seals is nobody else's: a real database, and its audit log, are left alone.
        return AccountStore("sqlite://", keyring)
    database, embedded = find_database(app, settings), _embedded_url(app)
    if database == embedded:
        _require_writable(Path(app.instance_path))
    engine = getattr(sessions, "engine", None) if _is_ours(settings) else None
    return AccountStore(engine or database, keyring, own_file=database == embedded)


def check_accounts(accounts: AccountStore, *, throw_away: bool) -> None:
    """Refuse an encryption key that is not the one this database was used with.

    :param throw_away: in debug mode and tests keys come and go; then it is only logged.
    :raises ConfigurationError: the database's canary does not open.
    """
    try:
        accounts.canary.secret()
    except OutdatedTablesError as error:
        _logger.error("%s", error)  # as above
    except ConfigurationError as error:
        if not (throw_away or is_beginning_anew()):
            raise
        _logger.warning("%s", error)
    except StoreError:
        _logger.warning("The database does not answer: the encryption key could not be checked.")


def build_resolver(
    settings: Settings, sessions: SessionStore, accounts: AccountStore | None, keyring: Keyring
) -> Resolver:
    """Return the resolver with a reader for each tier."""
    readers: list[TierReader] = [
        SessionTier(sessions, SessionKeys(sessions, accounts), keyring, settings),
        OperatorTier(Tier.SECRET, SecretFileKeys(settings.secrets_dir), settings),
        OperatorTier(Tier.ENV, EnvironmentKeys(), settings),
    ]
    if accounts is not None:
        readers.append(AccountTiers(accounts, keyring, settings))
    return Resolver(readers, settings)


def find_database(app: Flask, settings: Settings) -> Any:
    """Return where the database is: as set, else the host's engine, else a file in the instance folder."""
    return settings.database_url or _host_engine(app) or _embedded_url(app)


def _redis_store(settings: Settings) -> SessionStore:
    if not settings.redis:
        raise ConfigurationError(
            "BYOK_SESSION_STORE is 'redis', but neither BYOK_REDIS nor SESSION_REDIS is set."
        )
    from .stores.redis import RedisSessionStore

    return RedisSessionStore(
        settings.redis,
        ttl=settings.session_ttl,
        max_age=settings.session_ttl * MAX_SESSION_LIFETIMES,
        wait=settings.redis_wait,
    )


def _database_store(app: Flask, settings: Settings) -> SessionStore:
    from .stores.sql import SqlSessionStore

    database = find_database(app, settings)
    return SqlSessionStore(
        database,
        ttl=settings.session_ttl,
        max_age=settings.session_ttl * MAX_SESSION_LIFETIMES,
        own_file=database == _embedded_url(app),
    )


def _is_ours(settings: Settings) -> bool:
    """Say whether the session store is the one that we made on the same database: they then share its connections."""
    return settings.session_store == "database" or not (settings.session_store or settings.redis)


def _require_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigurationError(
            f"Keys in accounts need a database, and {folder} cannot be written. Set BYOK_DATABASE_URL, or leave user, "
            "team and system out of BYOK_PRECEDENCE."
        )


def _host_engine(app: Flask) -> Any:
    """Return the engine of the host's Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, or None where it has none (yet)."""
    extension = app.extensions.get("sqlalchemy")
    if extension is None:
        return None
    with app.app_context():
        try:
            return extension.engine
        except (AttributeError, KeyError):
            return None  # asynchronous engines only


def _embedded_url(app: Flask) -> str:
    return f"sqlite:///{Path(app.instance_path) / 'byok.sqlite3'}"
