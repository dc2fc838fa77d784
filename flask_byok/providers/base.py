"""What all provider objects share: one credential, one client, and errors without the key."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from ..catalog import ProviderSpec
from ..errors import (
    ByokError,
    ConfigurationError,
    EndpointNotAllowedError,
    InvalidFieldError,
    MissingCredentialError,
)
from ..http import Endpoint, Outbound
from ..keys.usage import Count
from ..model.credential import Credential, Secret, clean_api_key, make_hint
from .failures import Failure, describe, failure_of
from .outcomes import Call, Outcomes, Report

#: A chat message as OpenAI writes it: ``{"role": "user", "content": "…"}``.
Message = Mapping[str, Any]


class BaseProvider(ABC):
    """A provider together with one credential, for one use. It is never cached or shared.

    :param report: called when the provider refuses the key, in calls with ``client`` too.
    :param count: called with the outcome of each call, once; also of calls with ``client``.
    :param model: used where a call names none; else the catalog's default model is.
    :param options: passed to the SDK's client: ``timeout`` (seconds), ``max_retries`` and ``default_headers``, and
        what else ``allowed_options`` names. Others could decide where the key goes, and are refused.
    """

    #: How the SDK is installed, for the message where it is missing.
    extra: ClassVar[str]
    #: Where answers are asked for, below the base URL: 401 there means a bad key. Elsewhere another kind of key
    #: may be wanted, and only an answer that names the key's fault counts.
    paths: ClassVar[frozenset[str]] = frozenset()
    #: The options that are passed on.
    allowed_options: ClassVar[frozenset[str]] = frozenset(
        {"timeout", "max_retries", "default_headers"}
    )

    def __init__(
        self,
        spec: ProviderSpec,
        credential: Credential,
        outbound: Outbound,
        *,
        report: Report | None = None,
        count: Count | None = None,
        model: str | None = None,
        **options: Any,
    ) -> None:
        if others := options.keys() - self.allowed_options:
            raise ConfigurationError(
                f"{', '.join(sorted(others))}: not an option here. There are "
                f"{', '.join(sorted(self.allowed_options))}; endpoints are set with BYOK_BASE_URLS."
            )
        self._spec = spec
        self._credential = credential
        self._outbound = outbound
        self._report = report
        self._outcomes = None
        if count is not None or report is not None:
            self._outcomes = Outcomes(spec, credential, count, report, self.paths)
        self._default_model = model or spec.default_model
        self._options = options
        self._client: Any = None

    @property
    def name(self) -> str:
        """The provider's id."""
        return self._spec.id

    @property
    def display_name(self) -> str:
        """The provider's name as people read it."""
        return self._spec.name

    @property
    def credential(self) -> Credential:
        """The credential that the object is on now; it does not show the key."""
        return self._credential

    @property
    def source(self) -> str:
        """The tier that the credential came from, or ``argument``."""
        return str(self._credential.source)

    @property
    def is_configured(self) -> bool:
        """Say whether every field that the provider requires has a value."""
        return all(
            self._credential.reveal(field.name) or field.name == "base_url"
            for field in self._spec.fields
            if field.required
        )

    @property
    def api_key(self) -> str:
        """The API key. Setting it changes this object only."""
        return self._credential.api_key

    @api_key.setter
    def api_key(self, api_key: str) -> None:
        self.set_api_key(api_key)

    def set_api_key(self, api_key: str) -> None:
        """Use another key from now on, in this object only.

        :raises MalformedApiKeyError: this cannot be a key.
        :raises EndpointNotAllowedError: the object's address belongs to the key that it was made with.
        """
        if self._credential.trust == "personal":
            raise EndpointNotAllowedError(
                "This address was given with a key of its own, and gets no other.",
                provider=self.name,
            )
        cleaned = clean_api_key(api_key)
        self._credential = dataclasses.replace(
            self._credential,
            source="argument",
            fields={**self._credential.fields, "api_key": Secret(cleaned)},
            hint=make_hint(cleaned, self._spec.prefixes),
            version=None,
        )
        self._client = None
        # What happens with this key says nothing about the stored one.
        self._report = self._outcomes = None

    def to_dict(self) -> dict[str, Any]:
        """Return safe facts, never the key."""
        return {
            "provider": self.name,
            "name": self.display_name,
            "is_configured": self.is_configured,
            "source": self.source,
            "hint": self._credential.hint,
        }

    @property
    def client(self) -> Any:
        """The provider's own SDK client, made on first use and kept by this object alone.

        :raises MissingCredentialError: there is no key.
        :raises ConfigurationError: the SDK is not installed.
        """
        if self._client is None:
            self._client = self._build_client()
        return self._client

    def stream_chat(self, messages: Sequence[Message], model: str | None = None) -> Iterator[str]:
        """Yield the answer to a conversation, piece by piece. The call is made at the first piece.

        :param model: the object's own model where it is left out.
        :raises RejectedCredentialError: the provider refused the key.
        :raises ProviderUnavailableError: no answer, or no end of it, for another reason.
        """
        client, chosen = self.client, self._model(model)
        call = Call(self._outcomes)
        try:
            yield from call.follow(self._stream(client, messages, chosen))
            return
        except ByokError:
            raise
        except Exception as error:
            failure = failure_of(error)
        # Raised out here: inside, the SDK's error would hang on it, with the request and its key.
        raise self._raised(failure, call)

    def _build_client(self) -> Any:
        if not self.is_configured:
            raise MissingCredentialError(
                f"No API key for {self.display_name} is configured.", provider=self.name
            )
        # Checks the endpoint again: what may be called can have changed since the key was saved.
        observe = None if self._outcomes is None else self._outcomes.observe
        http_client = self._outbound.client_for(self._endpoint, observe)
        try:
            return self._make_client(http_client)
        except ImportError:
            pass
        raise ConfigurationError(
            f"The SDK for {self.display_name} is not installed: "
            f"pip install 'flask-byok[{self.extra}]'.",
            provider=self.name,
        )

    @property
    def _endpoint(self) -> Endpoint:
        return Endpoint(self._credential.base_url, self._credential.trust)

    def _model(self, model: str | None) -> str:
        chosen = model or self._default_model
        if not chosen:
            raise InvalidFieldError(
                f"{self.display_name} has no default model: name one.", provider=self.name
            )
        return chosen

    def _raised(self, failure: Failure, call: Call) -> ByokError:
        error, verdict = describe(self._spec, self._credential, failure)
        call.failed(rejected=verdict is not None)
        if verdict is not None and self._report is not None:
            self._report(verdict)
        return error

    @abstractmethod
    def _make_client(self, http_client: Any) -> Any:
        """Build the SDK's client on our HTTP client.

        :raises ImportError: the SDK is not installed.
        """

    @abstractmethod
    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        """Yield the answer; whatever the SDK raises passes."""

    def __repr__(self) -> str:
        hint = self._credential.hint
        return f"<{type(self).__name__} {self.name} source={self.source} hint={hint!r}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a provider object cannot be pickled or copied: it holds a key")
