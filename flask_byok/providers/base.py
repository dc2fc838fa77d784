"""What all provider objects share: one credential, one client, and errors without the key."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, NoReturn

from .. import metrics
from ..catalog.endpoints import told
from ..catalog.spec import ProviderSpec
from ..errors import (
    ConfigurationError,
    EndpointNotAllowedError,
    InvalidFieldError,
    MissingCredentialError,
)
from ..http import Endpoint, Outbound
from ..model.credential import Credential, Outcome, Secret, clean_api_key
from .installed import require_sdk
from .outcomes import NO_KEY, Count, Outcomes, Report, ignore, one_call, refused_by_us

#: A chat message as OpenAI writes it: ``{"role": "user", "content": "…"}``.
Message = Mapping[str, Any]

#: The classes by the name of their adapter; the package fills it.
ADAPTERS: dict[str, type[BaseProvider]] = {}


def make_provider(
    spec: ProviderSpec, credential: Credential, outbound: Outbound, **options: Any
) -> BaseProvider:
    """Return a new provider object for this one credential. No SDK is loaded before its client is used.

    :param options: see :class:`BaseProvider`.
    """
    make = spec.provider_class or ADAPTERS[spec.adapter]
    spec = told(spec, credential.fields)
    provider: BaseProvider = make(spec, credential, outbound, **options)
    return provider


def load_sdks(specs: Iterable[ProviderSpec]) -> None:
    """Import the SDKs of these providers, as far as they are installed.

    One whose import fails is left to the first call, which says what is wrong.
    """
    makers = {spec.provider_class or ADAPTERS[spec.adapter] for spec in specs}
    for module in filter(None, {getattr(maker, "sdk", "") for maker in makers}):
        with suppress(Exception):
            import_module(module)


class BaseProvider(ABC):
    """A provider together with one credential, for one use. It is never cached or shared.

    :param report: called when the provider rejects the key, in calls with ``client`` too.
    :param count: called with the outcome of each call, once; also of calls with ``client``.
    :param counted_as: who calls, as :attr:`Caller.counted_as` names people: calls of their own servers are limited.
    :param model: the default model of this object, instead of the catalog's.
    :param options: passed to the SDK's client: ``timeout`` (seconds), ``max_retries``, ``default_headers``, and
        others that ``allowed_options`` names. The rest could decide where the key goes, and raises an error.
    """

    #: How the SDK is installed, for the message if it is missing.
    extra: ClassVar[str]
    #: The SDK's module, to import at the start; empty to import nothing before the first call.
    sdk: ClassVar[str] = ""
    #: The paths below the base URL that answer conversations: 401 there means a bad key. Elsewhere a call may want
    #: another kind of key, and only an answer that names the key's fault counts.
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
        report: Report = ignore,
        count: Count = ignore,
        counted_as: str | None = None,
        model: str | None = None,
        **options: Any,
    ) -> None:
        if others := options.keys() - self.allowed_options:
            raise ConfigurationError(
                f"{', '.join(sorted(others))}: not an option here. There are "
                f"{', '.join(sorted(self.allowed_options))}; endpoints are set with BYOK_BASE_URLS."
            )
        #: The provider's id.
        self.name = spec.id
        #: The provider's name as people read it.
        self.display_name = spec.name
        #: The present credential of this object; it does not show the key.
        self.credential = credential
        #: The sources of the keys that calls were made with, in order.
        self.served: dict[str, None] = {}
        self._former: list[Credential] = []
        self._spec = spec
        self._outbound = outbound
        self._counted_as = counted_as
        self._outcomes = Outcomes(spec, credential, self._noting(count), report, self.paths)
        self._default_model = model or spec.default_model
        self._options = options

    @property
    def source(self) -> str:
        """The tier that the credential came from, or ``argument``."""
        return str(self.credential.source)

    @property
    def is_configured(self) -> bool:
        """True if every field that the provider requires has a value."""
        return all(
            self.credential.reveal(field.name) or field.name == "base_url"
            for field in self._spec.fields
            if field.required
        )

    @property
    def api_key(self) -> str:
        """The API key. Setting it changes this object only."""
        return self.credential.api_key

    @api_key.setter
    def api_key(self, api_key: str) -> None:
        self.set_api_key(api_key)

    def set_api_key(self, api_key: str) -> None:
        """Use another key from now on, in this object only.

        :raises MalformedApiKeyError: this cannot be a key.
        :raises EndpointNotAllowedError: the object's address belongs to the key that it was made with.
        """
        if self.credential.trust == "personal":
            text = "This address was given with a key of its own, and gets no other."
            raise EndpointNotAllowedError(text, provider=self.name)
        cleaned = clean_api_key(api_key)
        self._former.append(self.credential)  # the log redactor knows a key while this lives
        self.credential = dataclasses.replace(
            self.credential,
            source="argument",
            fields={**self.credential.fields, "api_key": Secret(cleaned)},
            hint=self._spec.hint({"api_key": Secret(cleaned)}),
            version=None,
        )
        self.__dict__.pop("client", None)
        # Calls with this key say nothing about the stored one.
        self._outcomes = Outcomes(self._spec, self.credential, self._noting(), paths=self.paths)

    def _noting(self, count: Count = ignore) -> Count:
        """Return a callback that notes the present source as one that served, and counts."""
        served, source = self.served, self.source  # not this object: the callback may outlive it

        def note(outcome: Outcome) -> None:
            served[source] = None
            count(outcome)

        return note

    def to_dict(self) -> dict[str, Any]:
        """Return safe facts, never the key."""
        return {
            "provider": self.name,
            "name": self.display_name,
            "is_configured": self.is_configured,
            "source": self.source,
            "hint": self.credential.hint,
        }

    @cached_property
    def client(self) -> Any:
        """The provider's own SDK client, made on first use and kept by this object alone.

        :raises MissingCredentialError: there is no key.
        :raises ConfigurationError: the SDK is not installed, or too old.
        """
        if not self.is_configured:
            text = f"No API key for {self.display_name} is configured."
            raise MissingCredentialError(text, provider=self.name)
        # Checks the endpoint again: the rules can have changed since the key was saved.
        endpoint = Endpoint(self.credential.base_url, self.credential.trust)
        http_client = self._outbound.client_for(endpoint, self._outcomes.observe, self._counted_as)
        http_client.event_hooks = {"request": [self._outcomes.authenticate]}
        require_sdk(self.extra, self.name)
        try:
            return self._make_client(http_client)
        except (ImportError, TypeError) as error:
            fault = type(error).__name__
        raise ConfigurationError(
            f"The SDK for {self.display_name} cannot be used as it is installed ({fault}): "
            f"pip install 'flask-byok[{self.extra}]'.",
            provider=self.name,
        )

    def stream_chat(self, messages: Sequence[Message], model: str | None = None) -> Iterator[str]:
        """Yield the answer to a conversation, piece by piece. The call is made at the first piece.

        :param model: instead of the object's default model.
        :raises RejectedCredentialError: the provider rejected the key.
        :raises ProviderUnavailableError: no answer, or no end of it, for another reason.
        """
        client, chosen = self.client, model or self._default_model
        if not chosen:
            text = f"{self.display_name} has no default model: name one."
            raise InvalidFieldError(text, provider=self.name)
        if metrics.sinks:
            metrics.record("streams_open", 1, self.name)
        try:
            yield from self._outcomes.follow(self._stream(client, messages, chosen))
        finally:
            if metrics.sinks:
                metrics.record("streams_open", -1, self.name)

    def _client_options(self, http_client: Any) -> dict[str, Any]:
        """Return what the SDKs of OpenAI and Anthropic make their client of."""
        base_url = self.credential.base_url
        api_key = self.api_key or NO_KEY
        fixed = {"api_key": api_key, "base_url": base_url, "http_client": http_client}
        return {"max_retries": 1, **self._options, **fixed}

    @abstractmethod
    def _make_client(self, http_client: Any) -> Any:
        """Build the SDK's client on our HTTP client.

        :raises ImportError: the SDK is not installed.
        """

    @abstractmethod
    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        """Yield the answer; the SDK's errors pass."""

    def __repr__(self) -> str:
        hint = self.credential.hint
        return f"<{type(self).__name__} {self.name} source={self.source} hint={hint!r}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a provider object cannot be pickled or copied: it holds a key")


# For the adapters


def split_system(messages: Sequence[Message]) -> tuple[str, list[dict[str, str]]]:
    """Return the system's instructions as one text, and the conversation: messages with ``role`` and ``content``.

    :raises InvalidFieldError: a message has another role, or content other than text.
    """
    system: list[str] = []
    turns: list[dict[str, str]] = []
    for message in messages:
        role, text = message.get("role"), _text(message.get("content"))
        if role in ("system", "developer"):
            system.append(text)
        elif role in ("user", "assistant"):
            turns.append({"role": role, "content": text})
        else:
            raise InvalidFieldError("A message's role is one of system, user and assistant.")
    return "\n\n".join(system), turns


def _text(content: Any) -> str:
    """Read a text, or OpenAI's list of text parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidFieldError("A message's content is text.")
    return "".join(map(str, texts))


class IsolatedClient:
    """Mixed into the client of OpenAI's or Anthropic's SDK: it takes its arguments and nothing from the environment.

    So do the copies that it makes of itself. Both SDKs mix in ``OPENAI_CUSTOM_HEADERS`` or
    ``ANTHROPIC_CUSTOM_HEADERS`` and have no switch for that.

    :raises ConfigurationError: this release of the SDK keeps its headers in another place.
    """

    #: Arguments that the SDK would look up in the environment if they were missing or None.
    silent: ClassVar[tuple[str, ...]]
    api_key: Any
    _custom_headers: Any

    def __init__(self, **options: Any) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        super().__init__(**{**dict.fromkeys(self.silent, ""), **given})
        for name in self.silent:
            setattr(self, name, given.get(name) or None)
        if not isinstance(getattr(self, "_custom_headers", None), Mapping):
            raise ConfigurationError(
                f"This release of the SDK ({type(self).__module__}) does not let flask-byok remove the operator's "
                "custom headers. Use an earlier release."
            )
        self._custom_headers = dict(given.get("default_headers", {}))
        # The redactor knows a key as long as its Secret lives, and this client can outlive everything else.
        self._secret = Secret(str(self.api_key))

    def request(self, *args: Any, **options: Any) -> Any:
        """Make a call; with all its retries it counts once.

        :raises RateLimitedError: too many calls of people's own servers are running.
        """
        with one_call():
            try:
                return super().request(*args, **options)  # type: ignore[misc]  # the SDK's
            except Exception as error:
                if (refused := refused_by_us(error)) is None:
                    raise
        # Raised out here, so that the SDK's error, which holds the request and its key, does not hang on it.
        raise refused


def refuse_web_socket(*args: Any, **options: Any) -> NoReturn:
    """Take the place of an SDK's function that returns the address of its WebSockets.

    They open connections of their own, past the guarded transport.

    :raises ConfigurationError: always.
    """
    raise ConfigurationError(
        "Realtime and live sessions are not offered with people's keys: their WebSockets would connect to any "
        "address and through the operator's proxy. Use calls and streams."
    )
