"""Build one app's parts from its settings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from typing import Any, cast

import click
from flask import Flask
from werkzeug.serving import is_running_from_reloader

from . import signals
from .accounts.wing import Wing, open_accounts
from .catalog import PROVIDERS, Catalog, ProviderSpec
from .catalog.endpoints import shown
from .errors import ConfigurationError, OutdatedTablesError, StoreError
from .http import Outbound
from .keys.documents import Documents
from .keys.operator import OperatorKeys
from .keys.ports import Accounts
from .keys.service import Service
from .keys.sessions import Sessions
from .model.owner import ACCOUNT_TIERS
from .providers import load_sdks
from .sealing.keyring import SHOWS_WRONG_KEY, Canary, Keyring, generate_encryption_key, is_guessable
from .settings import MAX_SESSION_LIFETIMES, Settings
from .storage.rates import RateLimiter
from .web.host_setup import GUESSABLE_FALLBACK, FoundDatabase
from .web.session_binding import app_name, secret_keys

_MISSING_ENCRYPTION_KEY = (
    "BYOK_ENCRYPTION_KEY is not set. Make one with 'flask byok generate-key', and set it in the app's config, in the "
    "environment, or in a file named by BYOK_ENCRYPTION_KEY_FILE. Keep a copy: without it no stored key opens."
)
_GUESSABLE = (
    "BYOK_ENCRYPTION_KEY is no secret: it is easy to guess. Make another with 'flask byok generate-key'. If keys were "
    "stored with it, put it into BYOK_ENCRYPTION_KEY_FALLBACKS and run 'flask byok rotate'."
)

_logger = logging.getLogger("flask_byok")


def build_service(
    app: Flask, settings: Settings, registered: Iterable[ProviderSpec], database: FoundDatabase
) -> Service:
    """Return the service on all its parts.

    :param registered: providers of the host's own.
    :param database: for accounts, and for sessions where Redis is not.
    :raises ConfigurationError: the parts cannot be built, or the stores were used with another encryption key.
    """
    # In debug mode and tests encryption keys come and go.
    throw_away = app.debug or app.testing
    command = click.get_current_context(silent=True)
    tolerant = throw_away or (command is not None and SHOWS_WRONG_KEY in command.meta)
    keyring = build_keyring(settings, throw_away=throw_away)
    catalog, settings = build_catalog(settings, registered)
    names = [app_name(one) for one in secret_keys(app)]
    documents, canary = open_documents(settings, database), None
    if settings.encryption_key is not None:  # one that was made up for this run says nothing
        # That of the oldest SECRET_KEY first: the new one's may not be there yet.
        for name in reversed(names):
            canary = Canary(keyring, name, documents.hold, tolerant=tolerant, before=canary)
            _check_at_start(canary.reseal, tolerant=tolerant)
    accounts = build_accounts(settings, keyring, database, documents, tolerant=tolerant)
    sessions = Sessions(
        documents,
        ttl=settings.session_ttl,
        max_age=settings.session_ttl * MAX_SESSION_LIFETIMES,
        over=accounts.over if accounts.tiers else None,
        canary=canary,
    )
    operator = OperatorKeys(settings, config=app.config)
    for sentence in operator.faults(catalog):
        _logger.warning("%s", sentence)
    # Of the commands only Flask's run serves, and not in the process that watches files for it.
    watches = command and command.params.get("reload") and not is_running_from_reloader()
    serves = command is None or (command.info_name == "run" and not watches)
    if serves and not throw_away:
        # 1 to 3 seconds of CPU, at the start and not in a worker's first call, where all its threads would wait. Not in
        # a thread: a server that forks meanwhile (gunicorn --preload) would leave its children a locked import.
        load_sdks(catalog)
    # The oldest SECRET_KEY's name: workers of before and after its rotation count together.
    limiter = partial(RateLimiter, store=documents, app=names[-1])
    return Service(
        settings=settings,
        catalog=catalog,
        keyring=keyring,
        sessions=sessions,
        accounts=accounts,
        outbound=build_outbound(settings),
        operator=operator,
        validate_limit=limiter(settings.validate_rate, setting="BYOK_VALIDATE_RATE"),
        set_limit=limiter(settings.set_rate, setting="BYOK_SET_RATE"),
        notify=lambda event, facts: getattr(signals, event).send(app, **facts),
    )


def build_outbound(settings: Settings) -> Outbound:
    """Return what calls providers.

    :raises ConfigurationError: the certificate authorities or the environment's proxy cannot be used.
    """
    # The HTTP client is loaded by an app, not by `import flask_byok`.
    from .http.proxies import tls_context

    return Outbound(
        allow_private=settings.allow_private_endpoints,
        tls=tls_context(settings.ca_file and str(settings.ca_file)),
        ports=settings.endpoint_ports,
        proxy=settings.proxy,
    )


def build_keyring(settings: Settings, *, throw_away: bool) -> Keyring:
    """Return the keyring; with ``throw_away`` (debug, testing) a missing encryption key is made up for this run.

    A current key that is no secret is refused. A fallback still opens what it sealed, so it is only warned of.

    :raises ConfigurationError: there is no encryption key, it is no secret, or one is malformed.
    """
    encryption_key = settings.encryption_key
    if encryption_key is None:
        if not throw_away:
            raise ConfigurationError(_MISSING_ENCRYPTION_KEY)
        warnings.warn(
            "BYOK_ENCRYPTION_KEY is not set: using a throw-away key, so stored keys are lost at the next start, and "
            "accounts are kept in memory, in no database.",
            stacklevel=5,
        )
        encryption_key = generate_encryption_key()
    if is_guessable(encryption_key):
        raise ConfigurationError(_GUESSABLE)
    if any(map(is_guessable, settings.encryption_key_fallbacks)):
        _logger.warning(GUESSABLE_FALLBACK)
    return Keyring(encryption_key, settings.encryption_key_fallbacks, cipher=settings.cipher)


def build_catalog(
    settings: Settings, registered: Iterable[ProviderSpec]
) -> tuple[Catalog, Settings]:
    """Return the providers that are on: the catalog, other packages' and the host's own; and the settings by their ids.

    :raises ConfigurationError: two have the same id, or a setting names an unknown one, or one twice.
    """
    others = [entry.load() for entry in entry_points(group="flask_byok.providers")]
    catalog = Catalog([*PROVIDERS, *others, *registered])
    urls, locked = settings.base_urls, settings.locked_providers
    by_id = {catalog.named(each, "BYOK_BASE_URLS").id: url for each, url in urls.items()}
    if len(by_id) < len(urls):
        raise ConfigurationError("BYOK_BASE_URLS names a provider twice, by its id and an alias.")
    locked = frozenset(catalog.named(each, "BYOK_LOCKED_PROVIDERS").id for each in locked)
    settings = replace(settings, base_urls=by_id, locked_providers=locked)
    if settings.providers is not None:
        catalog = catalog.only(settings.providers)
    specs = [_at_operators_address(spec, settings) for spec in catalog]
    own = settings.allow_custom_providers
    offered = (s for s in specs if s.base_url or s.id in by_id or (own and s.personal_base_url))
    return Catalog(offered), settings


def _at_operators_address(spec: ProviderSpec, settings: Settings) -> ProviderSpec:
    """Do not ask people for a base URL that the operator has set, nor for what goes with their own."""
    if spec.id not in settings.base_urls:
        return spec
    own = {"base_url", *shown(spec)}
    return replace(spec, fields=tuple(f for f in spec.fields if f.name not in own))


def open_documents(settings: Settings, database: FoundDatabase) -> Documents:
    """Return the store for session keys: the one that is set, else Redis if it is configured, else the database.

    :raises ConfigurationError: the setting names no store.
    """
    store = settings.session_store
    if store == "redis":
        if not settings.redis:
            raise ConfigurationError(
                "BYOK_SESSION_STORE is 'redis', but neither BYOK_REDIS nor SESSION_REDIS is set."
            )
        from .storage.redis import RedisDocuments

        return RedisDocuments(
            settings.redis, wait=settings.redis_wait, timeout=settings.redis_timeout
        )
    if store == "database":
        from .storage.sql import SqlDocuments

        return SqlDocuments(database.place, **_opening(settings, database))
    if isinstance(store, str):
        raise ConfigurationError(
            "BYOK_SESSION_STORE names no store; use 'redis', 'database' or a store object. An address is BYOK_REDIS."
        )
    return cast(Documents, store)


def build_accounts(
    settings: Settings,
    keyring: Keyring,
    database: FoundDatabase,
    documents: Documents,
    *,
    tolerant: bool,
) -> Accounts:
    """Return the wing for keys that outlive the session, or its stand-in if no tier is kept in the database.

    :param tolerant: a wrong encryption key is only logged.
    :raises ConfigurationError: there is no place for it.
    """
    if ACCOUNT_TIERS.isdisjoint(settings.precedence):
        return Accounts()
    if settings.encryption_key is None:
        # A real database, and its audit log, are not for what a made-up key seals.
        store = open_accounts("sqlite://", keyring)
    else:
        place = database.place
        if settings.session_store == "database":  # the same one: share its connections
            place = getattr(documents, "engine", place)
        store = open_accounts(place, keyring, tolerant=tolerant, **_opening(settings, database))
    _check_at_start(store.canary.secret, tolerant=tolerant)
    return Wing(store, keyring, settings)


def _opening(settings: Settings, database: FoundDatabase) -> dict[str, Any]:
    """Return how the database is opened; see ``storage.engine.open_engine``."""
    return {
        "own_file": database.own_file,
        "timeout": settings.database_timeout,
        "connections": settings.database_connections,
    }


def _check_at_start(open_canary: Callable[[], object], *, tolerant: bool) -> None:
    """Refuse a wrong encryption key; a store that does not answer, or has old tables, is only logged.

    :param open_canary: ``Canary.secret`` or ``Canary.reseal``.
    :param tolerant: only log a wrong encryption key, too.
    :raises ConfigurationError: the canary does not open.
    """
    try:
        open_canary()
    except ConfigurationError as error:
        # The command that upgrades tables needs the app; each use of the store raises this again.
        if not tolerant and not isinstance(error, OutdatedTablesError):
            raise
        _logger.error("%s", error)
    except StoreError:
        _logger.warning("A store does not answer: the encryption key could not be checked.")
