"""flask-byok: people bring their own API keys to a Flask app, and the app keeps them safely.

Names are imported when they are first used, so ``import flask_byok`` loads no SDK, no database and no HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import Auth, CheckSpec, Field, ProviderSpec, Rule
    from .errors import (
        ByokError,
        ConfigurationError,
        CredentialError,
        EndpointNotAllowedError,
        FreshLoginRequiredError,
        InvalidFieldError,
        KeyExistsError,
        KeyNotFoundError,
        KeyRefusedError,
        MalformedApiKeyError,
        MissingCredentialError,
        NotAllowedError,
        OwnerRequiredError,
        ProviderLockedError,
        ProviderUnavailableError,
        RateLimitedError,
        RejectedCredentialError,
        RevealDisabledError,
        SessionRequiredError,
        StoreError,
        UnknownProviderError,
        UnreadableCredentialError,
        VersionConflictError,
    )
    from .extension import BYOK
    from .factory import get_chat_model_with_api_key, get_provider_with_api_key
    from .model.credential import Credential, Secret, Validation, Verdict
    from .providers import BaseProvider
    from .redaction import sentry_before_send
    from .signals import (
        key_cleared,
        key_expiring,
        key_promoted,
        key_rejected,
        key_set,
        key_used,
        key_validated,
    )

__version__ = "0.1.0"

_HOMES = {
    "catalog": ("Auth", "CheckSpec", "Field", "ProviderSpec", "Rule"),
    "model.credential": ("Credential", "Secret", "Validation", "Verdict"),
    "errors": (
        "ByokError",
        "ConfigurationError",
        "CredentialError",
        "EndpointNotAllowedError",
        "FreshLoginRequiredError",
        "InvalidFieldError",
        "KeyExistsError",
        "KeyNotFoundError",
        "KeyRefusedError",
        "MalformedApiKeyError",
        "MissingCredentialError",
        "NotAllowedError",
        "OwnerRequiredError",
        "ProviderLockedError",
        "ProviderUnavailableError",
        "RateLimitedError",
        "RejectedCredentialError",
        "RevealDisabledError",
        "SessionRequiredError",
        "StoreError",
        "UnknownProviderError",
        "UnreadableCredentialError",
        "VersionConflictError",
    ),
    "extension": ("BYOK",),
    "factory": ("get_chat_model_with_api_key", "get_provider_with_api_key"),
    "providers": ("BaseProvider",),
    "redaction": ("sentry_before_send",),
    "signals": (
        "key_cleared",
        "key_expiring",
        "key_promoted",
        "key_rejected",
        "key_set",
        "key_used",
        "key_validated",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BYOK",
    "Auth",
    "BaseProvider",
    "ByokError",
    "CheckSpec",
    "ConfigurationError",
    "Credential",
    "CredentialError",
    "EndpointNotAllowedError",
    "Field",
    "FreshLoginRequiredError",
    "InvalidFieldError",
    "KeyExistsError",
    "KeyNotFoundError",
    "KeyRefusedError",
    "MalformedApiKeyError",
    "MissingCredentialError",
    "NotAllowedError",
    "OwnerRequiredError",
    "ProviderLockedError",
    "ProviderSpec",
    "ProviderUnavailableError",
    "RateLimitedError",
    "RejectedCredentialError",
    "RevealDisabledError",
    "Rule",
    "Secret",
    "SessionRequiredError",
    "StoreError",
    "UnknownProviderError",
    "UnreadableCredentialError",
    "Validation",
    "Verdict",
    "VersionConflictError",
    "get_chat_model_with_api_key",
    "get_provider_with_api_key",
    "key_cleared",
    "key_expiring",
    "key_promoted",
    "key_rejected",
    "key_set",
    "key_used",
    "key_validated",
    "sentry_before_send",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
