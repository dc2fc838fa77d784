"""Find settings that put keys at risk, the host's and this package's, for the log and ``flask byok check``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..settings import MAX_SESSION_LIFETIMES, Settings

#: From this lifetime on, an unattended browser is a risk.
WIDE_SESSION = timedelta(days=7)

#: Settings of Flask's and its CSRF protection: the default, the safe values, and the risk of another.
_OF_FLASK = (
    ("SESSION_COOKIE_SECURE", False, (True,), "the session cookie also travels over plain HTTP"),
    ("SESSION_COOKIE_HTTPONLY", True, (True,), "scripts can read the session cookie"),
    ("SESSION_COOKIE_SAMESITE", None, ("Lax", "Strict"), "requests of other sites have the cookie"),
    ("WTF_CSRF_ENABLED", True, (True,), "other sites can change keys"),
)


def unsafe_settings(config: Mapping[str, Any], *, debug: bool) -> list[str]:
    """Return a sentence with advice for each unsafe setting of the host."""
    found = ["Debug mode is on: error pages show local variables. Turn it off."] if debug else []
    for name, default, safe, risk in _OF_FLASK:
        value = config.get(name, default)
        if value not in safe and not (value and True in safe):
            found.append(f"{name} is {value!r}: {risk}. Set it to {' or '.join(map(repr, safe))}.")
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
