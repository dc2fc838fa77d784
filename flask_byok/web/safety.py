"""Find settings of the host that put keys at risk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unsafe_settings(config: Mapping[str, Any], *, debug: bool) -> list[str]:
    """Return a sentence for each unsafe setting, saying what to do; empty when all is well."""
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
