"""Every error flask-byok raises, in one tree.

::

    ByokError
      ConfigurationError
        OutdatedTablesError
      UnknownProviderError          404 unknown_provider
      ProviderLockedError           403 provider_locked
      OwnerRequiredError            401 owner_required
      SessionRequiredError          409 session_required
      NotAllowedError               403 not_allowed
      RevealDisabledError           403 reveal_disabled
      FreshLoginRequiredError       403 fresh_login_required
      MalformedApiKeyError          422 malformed_api_key
      KeyRefusedError               422 key_refused
      KeyExistsError                409 key_exists
      KeyNotFoundError              404 key_not_found
      VersionConflictError          412 version_conflict
      CredentialError
        MissingCredentialError      409 key_missing
        RejectedCredentialError     409 key_rejected
        UnreadableCredentialError   409 key_unreadable
      EndpointNotAllowedError       422 endpoint_not_allowed
      ProviderError
        ProviderUnavailableError    502 provider_unavailable
        NoCreditError               402 no_credit
        ProviderRateLimitedError    429 provider_rate_limited
        ProviderOverloadedError     503 provider_overloaded
        ContextTooLongError         413 context_too_long
        ModelUnknownError           404 model_unknown
        NotPermittedError           403 not_permitted
        RegionBlockedError          403 region_blocked
        ContentFilteredError        422 content_filtered
        RequestRefusedError         422 request_refused
        StreamIncompleteError       502 stream_incomplete
      RateLimitedError              429 rate_limited
      InvalidFieldError             422 invalid_field
      StoreError                    503 store_unavailable

Messages are our own sentences. They never contain a key, part of one, or a provider's text (which can contain the key).
"""

from __future__ import annotations

from typing import Any, ClassVar


class ByokError(Exception):
    """Root of every error of this package; one ``except`` catches all of them."""

    #: Machine-readable name, stable across releases.
    code: ClassVar[str] = "byok_error"
    #: HTTP status that the web layer answers with.
    status: ClassVar[int] = 500
    #: Short human title of the problem (RFC 9457 ``title``).
    title: ClassVar[str] = "flask-byok failed"
    #: Sentence that follows the title if there is no message.
    advice: ClassVar[str] = ""
    #: Seconds to wait before another try, never rounded down, or None.
    retry_after: int | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        provider: str | None = None,
        tier: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message or (f"{self.title}. {self.advice}" if self.advice else self.title))
        self.retry_after = self.retry_after if retry_after is None else retry_after
        #: Id of the provider concerned, or None.
        self.provider = provider
        #: Tier concerned, or None.
        self.tier = tier


class ConfigurationError(ByokError):
    """Raised by ``init_app`` when a setting is missing, malformed or unsafe."""

    code = "configuration"
    title = "flask-byok is not set up correctly"


class OutdatedTablesError(ConfigurationError):
    """Raised when the database's tables are older than this version, or cannot be made or used."""


class UnknownProviderError(ByokError):
    """Raised when a provider id is not in the catalog or is switched off."""

    code, status, title = "unknown_provider", 404, "This provider is not available here"


class ProviderLockedError(ByokError):
    """Raised when a person sets a key for a provider that only the operator may configure."""

    code, status, title = "provider_locked", 403, "This provider is managed by the operator"


class OwnerRequiredError(ByokError):
    """Raised when an action needs a signed-in user and the caller is a visitor."""

    code, status, title = "owner_required", 401, "Please sign in first"


class SessionRequiredError(ByokError):
    """Raised when a session key is written before the session is established, or after it ended."""

    code, status, title = "session_required", 409, "Load the list of keys first, then try again"


class NotAllowedError(ByokError):
    """Raised when the caller lacks permission."""

    code, status, title = "not_allowed", 403, "This is not allowed"


class RevealDisabledError(ByokError):
    """Raised when a key's value is requested and the operator does not allow showing it."""

    code, status, title = "reveal_disabled", 403, "Keys are not shown here"


class FreshLoginRequiredError(ByokError):
    """Raised when a key's value is requested without a recent sign-in."""

    code, status, title = "fresh_login_required", 403, "Please sign in again"


class InvalidFieldError(ByokError):
    """Raised when a field of a request has an invalid value."""

    code, status, title = "invalid_field", 422, "A field has an invalid value"


class MalformedApiKeyError(ByokError):
    """Raised when the text cannot be an API key: it is empty, too long, or has odd characters."""

    code, status, title = "malformed_api_key", 422, "This is not an API key"


class KeyRefusedError(ByokError):
    """Raised when a check forbids storing the key; what was stored before stays."""

    code, status, title = "key_refused", 422, "The key was not saved"

    def __init__(self, validation: Any, *, provider: str) -> None:
        super().__init__(validation.reason, provider=provider)
        #: The check's result, a :class:`~flask_byok.Validation`.
        self.validation = validation


class KeyExistsError(ByokError):
    """Raised when a key is created in a slot that is taken."""

    code, status, title = "key_exists", 409, "There is a key already"


class KeyNotFoundError(ByokError):
    """Raised when a stored key does not exist, or belongs to another owner."""

    code, status, title = "key_not_found", 404, "There is no such key"


class VersionConflictError(ByokError):
    """Raised when a stored key has changed since the version that the caller saw."""

    code, status, title = "version_conflict", 412, "The key has changed in the meantime"


class CredentialError(ByokError):
    """Raised when no tier has a usable credential; see the three subclasses."""

    code, status, title = "credential", 409, "There is no usable key"


class MissingCredentialError(CredentialError):
    """Raised when no tier has a key for the provider."""

    code, title = "key_missing", "No API key is configured for this provider"


class RejectedCredentialError(CredentialError):
    """Raised when the provider rejected the key that would be used."""

    code, title = "key_rejected", "The provider rejected this API key"


class UnreadableCredentialError(CredentialError):
    """Raised when none of the encryption keys opens a stored key."""

    code, title = "key_unreadable", "The stored API key cannot be read"


class EndpointNotAllowedError(ByokError):
    """Raised when keys may not be sent to a base URL."""

    code, status, title = "endpoint_not_allowed", 422, "This address may not be called"


class ProviderError(ByokError):
    """Raised when a call fails at the provider for a reason other than the key; see the subclasses.

    Its ``retry_after`` is what the provider asks for, if it does.
    """

    code, status, title = "provider_error", 502, "The provider did not answer the call"


class ProviderUnavailableError(ProviderError):
    """Raised when the provider cannot be reached, or has a fault of its own."""

    code, title = "provider_unavailable", "The provider is not available"


class NoCreditError(ProviderError):
    """Raised when the account of the key has no credit left, or has reached its spending limit."""

    code, status, title = "no_credit", 402, "The account at the provider has no credit left"


class ProviderRateLimitedError(ProviderError):
    """Raised when the provider takes no more calls with this key for now."""

    code, status, title = "provider_rate_limited", 429, "The provider limits calls with this key"


class ProviderOverloadedError(ProviderError):
    """Raised when the provider has too much to do for all who ask."""

    code, status, title = "provider_overloaded", 503, "The provider has too much to do"


class ContextTooLongError(ProviderError):
    """Raised when the conversation is longer than the model can read."""

    code, status, title = "context_too_long", 413, "The conversation is too long"


class ModelUnknownError(ProviderError):
    """Raised when the provider has no such model, or has retired it."""

    code, status, title = "model_unknown", 404, "The provider does not have this model"


class NotPermittedError(ProviderError):
    """Raised when the key may not make this call: its scopes, organization, host or address range."""

    code, status, title = "not_permitted", 403, "This key may not make this call"


class RegionBlockedError(ProviderError):
    """Raised when the provider does not serve the country that the call comes from."""

    code, status, title = "region_blocked", 403, "The provider does not serve this region"


class ContentFilteredError(ProviderError):
    """Raised when the provider's filter refuses the request."""

    code, status, title = "content_filtered", 422, "The provider's filter refused the request"


class RequestRefusedError(ProviderError):
    """Raised when the provider does not accept the request, whatever the key."""

    code, status, title = "request_refused", 422, "The provider did not accept the request"


class StreamIncompleteError(ProviderError):
    """Raised when an answer ends without the provider's own end mark, or is no stream at all."""

    code, title = "stream_incomplete", "The provider's answer is not complete"


class RateLimitedError(ByokError):
    """Raised when a caller exceeds a rate limit."""

    code, status, title = "rate_limited", 429, "Too many attempts"

    def __init__(self, message: str | None = None, *, retry_after: int = 60) -> None:
        seconds = "1 second" if retry_after == 1 else f"{retry_after} seconds"
        text = f"{self.title}. Try again in {seconds}."
        super().__init__(message or text, retry_after=retry_after)


class StoreError(ByokError):
    """Raised when a key store does not answer."""

    code, status, title = "store_unavailable", 503, "The key store is not available right now"
    advice = "Please try again in a moment."
    retry_after = 1


#: Every class of the tree.
ALL_ERRORS = [k for k in globals().values() if isinstance(k, type) and issubclass(k, ByokError)]
#: The errors of calls, by their codes.
ERRORS_OF_CALLS = {kind.code: kind for kind in ALL_ERRORS if issubclass(kind, ProviderError)}
