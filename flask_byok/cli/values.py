"""Settings as ``check`` shows them, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from ..sealing.keyring import Keyring
from ..settings import Settings
from .common import printable

_HIDDEN = "set"


def shown_settings(settings: Settings, keyring: Keyring) -> dict[str, str]:
    """Return the value of each setting as text: encryption keys by their ids, addresses without passwords."""
    current, *fallbacks = keyring.key_ids
    made_up = " (made up for this run)" if settings.encryption_key is None else ""
    known = {
        "encryption_key": f"key id {current}{made_up}",
        "encryption_key_fallbacks": ", ".join(f"key id {key_id}" for key_id in fallbacks) or "-",
        "redis": shown_address(settings.redis),
        "database_url": shown_address(settings.database_url),
        "base_urls": ", ".join(
            f"{id}={shown_address(url)}" for id, url in settings.base_urls.items()
        ),
    }
    return {
        each.name: printable(
            known.get(each.name) or _shown(getattr(settings, each.name), each.repr)
        )
        for each in fields(settings)
    }


def _shown(value: Any, may_be_shown: bool) -> str:
    if value is None or value == () or value == frozenset() or value == {}:
        return "-"
    if not may_be_shown:
        return _HIDDEN
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, tuple | frozenset):
        each = map(str, value if isinstance(value, tuple) else sorted(value))
        return ", ".join(each)
    if isinstance(value, Mapping) or type(value).__module__.split(".")[0] not in (
        "builtins",
        "pathlib",
    ):
        return type(value).__name__  # an object's own repr may contain secrets
    return str(value)


def shown_address(value: Any) -> str:
    """Return an address without user, password, query and fragment."""
    if value is None:
        return "-"
    # A SQLAlchemy engine has a URL; the repr of a Redis client contains its password.
    url = getattr(value, "url", value)
    text = url.render_as_string() if hasattr(url, "render_as_string") else url
    if not isinstance(text, str):
        return type(value).__name__
    try:
        parts = urlsplit(text)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return _HIDDEN
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" or not parts.scheme:
        return _HIDDEN  # the password contains a slash, a question mark or a hash
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
