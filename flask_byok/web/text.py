"""Texts of the settings that depend on a state, and those of the script; the others stand in the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ALL_ERRORS
from ..model.owner import PERSONAL_TIERS, Tier

_OWN: dict[str, str] = dict.fromkeys(PERSONAL_TIERS, "YOUR KEY")

#: The badge of a tier, by the vocabulary of ``BYOK_LABELS``; the empty tier means that no key is in use.
BADGES: Mapping[str, Mapping[str, str]] = {
    "default": {**dict.fromkeys(Tier, "SHARED"), **_OWN, "": "NOT SET"},
    "env": {**dict.fromkeys(Tier, "SET"), "secret": "ENV", "env": "ENV", "": "none"},
}

#: Where the key in use is stored, by its tier.
PLACES: Mapping[str, str] = {
    "session": "For this session only",
    "user": "In your account",
    "team": "Your team's key",
    **dict.fromkeys(("system", "secret", "env"), "Shared by this site"),
}

TIERS: Mapping[str, str] = {
    "session": "your key for this session",
    "user": "your key in your account",
    "team": "your team's key",
    "system": "this app's shared key",
    "secret": "this app's key from a secret file",
    "env": "this app's key from its environment",
}

_WAITING = "You added this key before signing in: {hint}."
_USE = ("promote", "keep", "Use this key")
_REPLACE = ("promote", "replace", "Use this key")

#: The question about a key that could be kept, and the answers as (action, value, text). The key is ``waiting`` since
#: before the sign-in, or the person's ``own`` in the session; another key may be in the account or in the session.
OFFERS: Mapping[str, tuple[str, Sequence[tuple[str, str, str]]]] = {
    "waiting": (f"{_WAITING} Use it with this account?", [_USE]),
    "waiting_beside_user": (
        f"{_WAITING} Your account has a key already.",
        [_REPLACE, ("confirm", "session", "Keep my account's key")],
    ),
    "waiting_beside_session": (f"{_WAITING} You have another key for this session.", [_REPLACE]),
    "own": ("This key is deleted when you sign out.", [("promote", "keep", "Keep in my account")]),
    "own_beside_user": (
        "This key is deleted when you sign out. Until then, it is used instead of your account's key.",
        [("promote", "replace", "Replace my account's key")],
    ),
}

VERDICTS: Mapping[str, str] = {
    "valid": "The key works.",
    "valid_restricted": "The key works, but its permissions are narrow.",
    "valid_no_credit": "The key is good, but the account has no credit left.",
    "valid_rate_limited": "The key is good, but over its rate limit right now.",
    "invalid": "The provider rejected this key. Check that you copied all of it, or create a new one.",
    "disabled": "The provider has disabled this key.",
    "wrong_provider": "This key belongs to another provider.",
    "admin_key_refused": "This is an admin key, which can do far more than a call needs.",
    "unreachable": "The provider could not be reached, so the key was not checked.",
    "unchecked": "The key could not be checked.",
}

#: Why an action failed, by the error's code: a page that was loaded again has only the code.
REASONS: Mapping[str, str] = {
    **{kind.code: f"{kind.title}. {kind.advice}".strip() for kind in ALL_ERRORS},
    "csrf": "The page was open for too long. Please try again.",
    "key_not_found": "This key no longer exists.",
    "key_unreadable": "The stored key cannot be read. Save it again.",
    "malformed_api_key": "This is not an API key. Check what you pasted.",
    "provider_locked": "This provider is managed by your administrator.",
    "rate_limited": "Too many attempts. Please wait a moment and try again.",
    "session_required": "Your session was not ready. Please try again.",
}

#: The result of an action, by the code that the form leaves in the next page's query.
OUTCOMES: Mapping[str, str] = {
    "saved": "Key saved",
    "changed": "Changes saved",
    "cleared": "Key removed",
    "nothing_cleared": "There was no key to remove",
    "promoted": "Key added to your account",
    "kept": "Your existing key was kept",
    "save_failed": "Failed to save key",
    "change_failed": "Failed to save changes",
    "clear_failed": "Failed to remove key",
    "validate_failed": "Failed to check key",
    "promote_failed": "Failed to add key to your account",
}

#: What the look of a typed key tells.
LOOKS_LIKE = "This looks like a key for {name}."

#: Texts of the script, which reads them from the element's ``data-text-*`` attributes.
MESSAGES: Mapping[str, str] = {
    **OUTCOMES,
    "shared_now": "The shared key is now in use.",
    "account_now": "The key in your account is now in use.",
    "models": "Models available: {count}.",
    "gone": REASONS["key_not_found"],
    "expires": "Expires after",
    "load_failed": "Failed to load API keys",
    "stale": "The list is out of date",
    "network": "No connection to the server. Please try again.",
    "unexpected": "The server gave an unexpected answer.",
    "working": "Working…",
    "looks_like": LOOKS_LIKE,
}
