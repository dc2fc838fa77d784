"""Look at the host: its database, its SECRET_KEY, and which of its settings put keys at risk."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask

from ..settings import MAX_SESSION_LIFETIMES, Settings

#: From this lifetime on, an unattended browser is a risk.
WIDE_SESSION = timedelta(days=7)

#: The warning if the host's engine comes too late.
LATE_ENGINE = (
    "This app has Flask-SQLAlchemy, but keys are in a SQLite file in the instance folder: BYOK was set up before the "
    "engine was there. Call db.init_app(app) before byok.init_app(app), or set BYOK_DATABASE_URL."
)
_INSTANCE = "a file in the instance folder"

_logger = logging.getLogger("flask_byok")


@dataclass(frozen=True, slots=True)
class FoundDatabase:
    """Where the database is (an engine or an address), and the setting or extension that says so."""

    place: Any
    source: str
    #: True for the file in the instance folder, which nothing else uses.
    own_file: bool = False


def find_database(app: Flask, settings: Settings) -> FoundDatabase:
    """Return the database of an app that is being set up."""
    file = f"sqlite:///{Path(app.instance_path) / 'byok.sqlite3'}"
    if settings.database_url:
        own = settings.database_url == file
        return FoundDatabase(settings.database_url, "BYOK_DATABASE_URL", own)
    engine = host_engine(app)
    if engine is not None:
        return FoundDatabase(engine, "the app's Flask-SQLAlchemy")
    return FoundDatabase(file, _INSTANCE, own_file=True)


def host_engine(app: Flask) -> Any:
    """Return the engine of the host's Flask-SQLAlchemy or Flask-SQLAlchemy-Lite, or None if there is none (yet)."""
    extension = app.extensions.get("sqlalchemy")
    if extension is None:
        return None
    with app.app_context():
        try:
            return extension.engine
        except (AttributeError, KeyError):
            return None  # asynchronous engines only


def is_late(app: Flask, found: FoundDatabase) -> bool:
    """Return True if keys are in the file although the host has a database, which was set up after us."""
    return found.source == _INSTANCE and host_engine(app) is not None


def warn_if_late(app: Flask, found: FoundDatabase) -> None:
    """Log, at the first request only, that the host's database was set up after us."""

    def look() -> None:
        # Another list, since Flask goes through this one.
        hooks = app.before_request_funcs[None]
        app.before_request_funcs[None] = [hook for hook in hooks if hook is not look]
        if is_late(app, found):
            _logger.warning(LATE_ENGINE)

    if found.source == _INSTANCE:
        app.before_request(look)


def index_key(secret_key: str | bytes) -> bytes:
    """Derive the key that hashes session ids; a rotation of the encryption key does not change it."""
    raw = secret_key.encode() if isinstance(secret_key, str) else secret_key
    return hmac.digest(raw, b"flask-byok session index", "sha256")


def app_name(index_key: bytes) -> str:
    """Return a name for the app in a store that several apps share: 16 hex digits, the same in all its processes."""
    return hmac.digest(index_key, b"app name", "sha256").hex()[:16]


def unsafe_settings(config: Mapping[str, Any], *, debug: bool) -> list[str]:
    """Return a sentence with advice for each unsafe setting of the host."""
    found = []
    if debug:
        found.append(
            "Debug mode is on: its error pages show local variables. Turn it off outside development."
        )
    if not config.get("SESSION_COOKIE_SECURE"):
        found.append(
            "SESSION_COOKIE_SECURE is off: the session cookie also travels over plain HTTP. Set it to True."
        )
    if not config.get("SESSION_COOKIE_HTTPONLY", True):
        found.append(
            "SESSION_COOKIE_HTTPONLY is off: scripts can read the session cookie. Set it to True."
        )
    if config.get("SESSION_COOKIE_SAMESITE") not in ("Lax", "Strict"):
        found.append("SESSION_COOKIE_SAMESITE is not set: set it to 'Lax' or 'Strict'.")
    if not config.get("WTF_CSRF_ENABLED", True):
        found.append("WTF_CSRF_ENABLED is off: other sites can change keys. Set it to True.")
    return found


def unsafe_choices(settings: Settings) -> list[str]:
    """Return a sentence with advice for each unsafe setting of our own."""
    found = []
    if settings.encryption_key is None:
        found.append(
            "BYOK_ENCRYPTION_KEY is not set: stored keys are lost at the next start. Make one with "
            "'flask byok generate-key'."
        )
    if settings.session_ttl > WIDE_SESSION:
        longest = settings.session_ttl * MAX_SESSION_LIFETIMES
        found.append(
            f"BYOK_SESSION_TTL is wide: a session's keys can be used for {settings.session_ttl.days} days "
            f"after their last use, and for {longest.days} days in all. Set it to a day or less."
        )
    if settings.allow_reveal:
        found.append(
            "BYOK_ALLOW_REVEAL is on: an attacker who signs in as a user can read that user's keys. Set it to False."
        )
    if settings.allow_private_endpoints:
        found.append(
            "BYOK_ALLOW_PRIVATE_ENDPOINTS is on: people can make your server call addresses in your own "
            "network. Set it to False."
        )
    return found
