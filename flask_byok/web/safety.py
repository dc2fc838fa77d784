"""Find settings that put keys at risk, the host's and this package's, for the log and ``flask byok check``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..settings import MAX_SESSION_LIFETIMES, Settings

#: From this lifetime on, an unattended browser is a risk.
WIDE_SESSION = timedelta(days=7)


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
