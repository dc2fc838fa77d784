"""flask-byok: people bring their own API keys to a Flask app, and the app keeps them safely.

``import flask_byok`` loads no SDK, no SQLAlchemy, no Redis and no HTTP client: the modules that need one import it when
they first use it.
"""

__version__ = "0.1.0"

from types import ModuleType as _Module

from .catalog import (
    Auth as Auth,
    CheckSpec as CheckSpec,
    Field as Field,
    ModelInfo as ModelInfo,
    ProviderSpec as ProviderSpec,
    Rule as Rule,
)
from .errors import (
    ByokError as ByokError,
    ConfigurationError as ConfigurationError,
    CredentialError as CredentialError,
    EndpointNotAllowedError as EndpointNotAllowedError,
    FreshLoginRequiredError as FreshLoginRequiredError,
    InvalidFieldError as InvalidFieldError,
    KeyExistsError as KeyExistsError,
    KeyNotFoundError as KeyNotFoundError,
    KeyRefusedError as KeyRefusedError,
    MalformedApiKeyError as MalformedApiKeyError,
    MissingCredentialError as MissingCredentialError,
    NotAllowedError as NotAllowedError,
    OwnerRequiredError as OwnerRequiredError,
    ProviderLockedError as ProviderLockedError,
    ProviderError as ProviderError,
    ProviderUnavailableError as ProviderUnavailableError,
    RateLimitedError as RateLimitedError,
    RejectedCredentialError as RejectedCredentialError,
    RevealDisabledError as RevealDisabledError,
    SessionRequiredError as SessionRequiredError,
    StoreError as StoreError,
    StreamIncompleteError as StreamIncompleteError,
    UnknownProviderError as UnknownProviderError,
    UnreadableCredentialError as UnreadableCredentialError,
    VersionConflictError as VersionConflictError,
)
from .extension import BYOK as BYOK
from .factory import (
    get_chat_model_with_api_key as get_chat_model_with_api_key,
    get_provider_with_api_key as get_provider_with_api_key,
)
from .model.credential import (
    Credential as Credential,
    Secret as Secret,
    Validation as Validation,
    Verdict as Verdict,
)
from .providers import BaseProvider as BaseProvider
from .redaction import sentry_before_send as sentry_before_send
from .web.problems import problem_response as problem_response
from .signals import (
    key_cleared as key_cleared,
    key_expiring as key_expiring,
    key_promoted as key_promoted,
    key_rejected as key_rejected,
    key_set as key_set,
    key_used as key_used,
    key_validated as key_validated,
)

#: The public names: all that are imported above, but no submodule.
__all__ = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_") and not isinstance(value, _Module)
)
