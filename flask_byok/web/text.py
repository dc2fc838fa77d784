"""Every text that the settings show, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Texts of the templates.
TEXT: Mapping[str, str] = {
    "lang": "en",
    "title": "API keys",
    "open": "API keys",
    "open_page": "API keys, as a page",
    "settings": "Settings",
    "close": "Close",
    "back": "Back",
    "save": "Save",
    "validate": "Check",
    "clear": "Remove",
    "reveal": "Show key",
    "confirm_question": "Remove this key?",
    "confirm_several": "Remove all your keys for this provider?",
    "confirm": "Remove",
    "cancel": "Cancel",
    "retry": "Try again",
    "get_key": "Get a key",
    "new_window": "opens in a new tab",
    "hint": "Key",
    "checked": "Checked",
    "persist": "Keep in my account",
    "more": "More",
    "change": "Save label and expiry",
    "label": "Label",
    "expires": "Expires after",
    "expires_never": "Without a date, the key works until you remove it.",
    "expires_cap": "Without a date, the key works until {date}, the longest that this site allows.",
    "expires_on": "Expires on",
    "expired_on": "Expired on",
    "precedence_title": "Which key is used?",
    "precedence": "The first of these that has a key:",
    "locked": "Managed by your administrator.",
    "no_providers": "This app has no providers switched on.",
}

#: The badge of a tier, by the vocabulary of ``BYOK_LABELS``; the empty tier means that no key is in use.
BADGES: Mapping[str, Mapping[str, str]] = {
    "default": {
        **dict.fromkeys(("session", "user"), "YOUR KEY"),
        **dict.fromkeys(("team", "system", "secret", "env"), "SHARED"),
        "": "NOT SET",
        "standalone": "STANDALONE",
    },
    "env": {
        **dict.fromkeys(("session", "user", "team", "system"), "SET"),
        **dict.fromkeys(("secret", "env"), "ENV"),
        "": "none",
        "standalone": "STANDALONE",
    },
}

#: Where the key in use is stored, by its tier.
PLACES: Mapping[str, str] = {
    "session": "For this session only",
    "user": "In your account",
    "team": "Your team's key",
    **dict.fromkeys(("system", "secret", "env"), "Shared by this site"),
}

#: The state of a key; "soon" is an active key that expires within days.
CHIPS: Mapping[str, str] = {
    "active": "Active",
    "soon": "Expires soon",
    "inactive": "Inactive",
    "expired": "Expired",
    "rejected": "Rejected",
    "unreadable": "Unreadable",
}

TIERS: Mapping[str, str] = {
    "session": "your key for this session",
    "user": "your key in your account",
    "team": "your team's key",
    "system": "this app's shared key",
    "secret": "this app's key from a secret file",
    "env": "this app's key from its environment",
}

#: The question about a key that could be kept, and the answers as (action, value, text). The key is ``waiting`` since
#: before the sign-in, or the person's ``own`` in the session; another key may be in the account or in the session.
OFFERS: Mapping[str, tuple[str, Sequence[tuple[str, str, str]]]] = {
    "waiting": (
        "You added this key before signing in: {hint}. Use it with this account?",
        [("promote", "keep", "Use this key")],
    ),
    "waiting_beside_user": (
        "You added this key before signing in: {hint}. Your account has another key.",
        [("promote", "replace", "Use this key"), ("confirm", "session", "Keep my account's key")],
    ),
    "waiting_in_account": (
        "You added this key before signing in: {hint}. Your account already has it.",
        [("promote", "keep", "Keep my account's key")],
    ),
    "waiting_beside_session": (
        "You added this key before signing in: {hint}. You have another key for this session.",
        [("promote", "replace", "Use this key")],
    ),
    "own": (
        "This key is deleted when you sign out.",
        [("promote", "keep", "Keep in my account")],
    ),
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
    "csrf": "The page was open for too long. Please try again.",
    "key_not_found": "This key no longer exists.",
    "key_missing": "There is no key to check.",
    "key_rejected": "The provider rejected this key.",
    "key_unreadable": "The stored key cannot be read. Save it again.",
    "malformed_api_key": "This is not an API key. Check what you pasted.",
    "endpoint_not_allowed": "This address is not allowed.",
    "invalid_field": "A field has an invalid value.",
    "not_allowed": "This is not allowed.",
    "owner_required": "Please sign in first.",
    "provider_locked": "This provider is managed by your administrator.",
    "provider_unavailable": "The provider is not available right now.",
    "rate_limited": "Too many attempts. Please wait a moment and try again.",
    "session_required": "Your session was not ready. Please try again.",
    "store_unavailable": "The key store is not available right now. Please try again in a moment.",
    "unknown_provider": "This provider is not available here.",
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

#: Texts of the script, which reads them from the element's ``data-text-*`` attributes.
MESSAGES: Mapping[str, str] = {
    **OUTCOMES,
    "shared_now": "The shared key is now in use.",
    "account_now": "The key in your account is now in use.",
    "models": "Models available: {count}.",
    "gone": REASONS["key_not_found"],
    "expires": TEXT["expires"],
    "load_failed": "Failed to load API keys",
    "network": "No connection to the server. Please try again.",
    "unexpected": "The server gave an unexpected answer.",
    "working": "Working…",
}
