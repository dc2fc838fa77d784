"""What the demo runs on: files in a folder of its own, or what REDIS_URL and DATABASE_URL name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachelib.file import FileSystemCache
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from flask_byok.sealing.keyring import generate_encryption_key

from .failure import UnusableSettingError

#: Providers in the order in which the demo offers them.
PROVIDERS = ("demo", "openai", "anthropic", "google", "groq", "xai", "openrouter")


def app_config(environ: Mapping[str, str], folder: Path, demo_url: str) -> dict[str, Any]:
    """Return the app's configuration.

    :param folder: for files; deleted when the demo stops.
    :param demo_url: base URL of the fake provider.
    :raises UnusableSettingError: a server does not answer, or its URL is none.
    """
    config: dict[str, Any] = {
        "INSTANCE_PATH": str(folder),
        "SECRET_KEY": environ.get("SECRET_KEY") or secrets.token_hex(32),
        "BYOK_PROVIDERS": PROVIDERS,
        # People who try the demo act faster than usual.
        "BYOK_SET_RATE": "100/minute",
        "BYOK_BASE_URLS": {"demo": demo_url},
    }
    if not _has_encryption_key(environ):
        # For a demo that forgets everything. An app sets the same one at each start.
        config["BYOK_ENCRYPTION_KEY"] = generate_encryption_key()
    if url := environ.get("DATABASE_URL"):
        config["BYOK_DATABASE_URL"] = database_url(url)
        _require_encryption_key(environ)
    if url := environ.get("REDIS_URL"):
        return config | {"SESSION_TYPE": "redis", "SESSION_REDIS": redis_client(url)}
    sessions = FileSystemCache(str(folder / "sessions"), threshold=0, mode=0o600)
    return config | {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": sessions}


def _has_encryption_key(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("BYOK_ENCRYPTION_KEY") or environ.get("BYOK_ENCRYPTION_KEY_FILE"))


def _require_encryption_key(environ: Mapping[str, str]) -> None:
    """Refuse to fill a database that would be unreadable after the next start."""
    if not _has_encryption_key(environ):
        raise UnusableSettingError(
            "The database at DATABASE_URL stays when the demo stops, and so must the key that its content is sealed "
            "with: set BYOK_ENCRYPTION_KEY to 64 hex digits, such as from python -c 'import secrets; "
            "print(secrets.token_hex(32))', the same at each start, or unset DATABASE_URL to run without."
        )


def redis_client(url: str) -> Redis:
    """Return a client with short time limits: every request with a session cookie waits for it.

    :raises UnusableSettingError: no Redis answers there.
    """
    try:
        client = Redis.from_url(
            url, socket_connect_timeout=0.2, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)
        )
        client.ping()
    except (RedisError, ValueError) as error:
        # Without the URL: it may hold a password.
        raise UnusableSettingError(
            f"No Redis answers at REDIS_URL ({type(error).__name__}). Start one, correct the address "
            "(such as redis://127.0.0.1:6379/0), or unset REDIS_URL to run without."
        ) from None
    return client


def database_url(url: str) -> str:
    """Return the URL with the driver that the extra ``postgres`` installs.

    :raises UnusableSettingError: no database answers there.
    """
    scheme, colon, rest = url.partition(":")
    if scheme in ("postgres", "postgresql"):
        url = f"postgresql+psycopg{colon}{rest}"
    try:
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        raise UnusableSettingError(
            f"No database answers at DATABASE_URL ({type(error).__name__}). Start one, correct the address "
            "(such as postgresql://user:password@127.0.0.1:5432/name), or unset DATABASE_URL to run without."
        ) from None
    return url


def describe_stores(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return texts that name the stores of sessions, their keys and the keys in accounts."""
    database = (
        "the database at DATABASE_URL" if environ.get("DATABASE_URL") else f"SQLite in {folder}"
    )
    redis = bool(environ.get("REDIS_URL"))
    return {
        "sessions": "Redis" if redis else f"files in {folder}",
        "keys": f"{'Redis' if redis else database}, encrypted",
        "accounts": f"{database}, encrypted",
    }
