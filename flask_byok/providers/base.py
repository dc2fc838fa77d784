"""What all provider objects share: one credential, one client, and errors without the key."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..catalog.endpoints import told
from ..catalog.models import ModelInfo, model_info, models_of, read_models
from ..catalog.paste import clean_pasted, refuse_admin_key
from ..catalog.spec import ProviderSpec
from ..errors import (
    ByokError,
    ConfigurationError,
    EndpointNotAllowedError,
    InvalidFieldError,
    KeyRefusedError,
    MissingCredentialError,
    ProviderUnavailableError,
)
from ..http.outbound import Endpoint, Outbound, full_url, request_about
from ..model.credential import Credential, Outcome, Secret, Tokens
from ..wires import WIRES
from ..wires.events import StreamEvent, encode
from ..wires.messages import Chat, Facts
from .conversation import Attempt, Conversation
from .installed import require_sdk
from .outcomes import NO_KEY, Count, OurCall, Outcomes, Report, ignore
from .passage import Passage

if TYPE_CHECKING:
    from ..http.live import LiveCall

#: A chat message as OpenAI writes it: ``{"role": "user", "content": "…"}``.
Message = Mapping[str, Any]

_JSON = {"Content-Type": "application/json"}
#: Seconds for a provider's own list of models.
LIST_SECONDS = 10.0

#: Returns the provider object on the next key, after an error; None if there is none, or is not to be one.
Successor = Callable[[ByokError], "BaseProvider | None"]

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


class BaseProvider:
    """A provider together with one credential, for one use. It is never cached or shared.

    :param report: called when the provider rejects the key, in calls with ``client`` too.
    :param count: called with the outcome of each call, once; also of calls with ``client``. Then with the tokens that a
        conversation took.
    :param counted_as: who calls, as :attr:`Caller.counted_as` names people: calls of their own servers are limited.
    :param successor: returns the object whose key takes over a conversation that failed before its first piece.
    :param model: the default model of this object, instead of the catalog's.
    :param options: passed to the SDK's client: ``timeout`` (seconds), ``max_retries``, ``default_headers``, and
        others that ``allowed_options`` names. The rest could decide where the key goes, and raises an error.
    """

    #: How the SDK is installed, for the message if it is missing.
    extra: ClassVar[str] = ""
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
        successor: Successor = ignore,
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
        self._successor = successor
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
        required = (f.name for f in self._spec.fields if f.required and f.name != "base_url")
        return all(map(self.credential.reveal, required))

    @property
    def api_key(self) -> str:
        """The API key. Setting it changes this object only."""
        return self.credential.api_key

    @api_key.setter
    def api_key(self, api_key: str) -> None:
        self.set_api_key(api_key)

    def set_api_key(self, api_key: str) -> None:
        """Use another key from now on, in this object only; it is cleaned as a typed one.

        :raises KeyRefusedError: this is an admin key.
        :raises MalformedApiKeyError: this cannot be a key.
        :raises InvalidFieldError: the provider's credential is no single key.
        :raises EndpointNotAllowedError: the object's address belongs to the key that it was made with.
        """
        if self.credential.trust == "personal":
            text = "This address was given with a key of its own, and gets no other."
            raise EndpointNotAllowedError(text, provider=self.name)
        main = self._spec.main_field
        if main.kind != "secret":
            text = f"A key for {self.display_name} has several fields: make another object."
            raise InvalidFieldError(text, provider=self.name)
        cleaned = clean_pasted(self._spec, main, Secret(api_key))
        fields = {**self.credential.fields, main.name: cleaned or Secret("")}
        if admin := refuse_admin_key(self._spec, fields):
            raise KeyRefusedError(admin, provider=self.name)
        self._former.append(self.credential)  # the log redactor knows a key while this lives
        self.credential = dataclasses.replace(
            self.credential,
            source="argument",
            fields=fields,
            hint=self._spec.hint(fields),
            version=None,
        )
        self.__dict__.pop("client", None)
        self.__dict__.pop("async_client", None)
        self._successor = ignore
        # Calls with this key say nothing about the stored one.
        self._outcomes = Outcomes(self._spec, self.credential, self._noting(), paths=self.paths)

    def _noting(self, count: Count = ignore) -> Count:
        """Return a callback that notes the present source as one that served, and counts."""
        served, source = self.served, self.source  # not this object: the callback may outlive it

        def note(what: Outcome | Tokens) -> None:
            served[source] = None
            count(what)

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
        return self._made(self.http_client, is_async=False)

    @cached_property
    def async_client(self) -> Any:
        """The same for ``async`` code, on the same guarded pool; it works in any event loop. See :attr:`client`."""
        return self._made(self.async_http_client, is_async=True)

    @property
    def http_client(self) -> Any:
        """An ``httpx2.Client`` that calls the provider's address only, and puts the key into each request.

        For the SDKs of other makers that take one. It needs no SDK.
        """
        self._require_key()
        # Checked again: the rules can have changed.
        endpoint = Endpoint(self.credential.base_url, self.credential.trust)
        http_client = self._outbound.client_for(endpoint, self._outcomes.observe, self._counted_as)
        http_client.event_hooks = {"request": [self._outcomes.authenticate]}
        return http_client

    @property
    def async_http_client(self) -> Any:
        """The same as an ``httpx2.AsyncClient``."""
        from ..http.aio import KeylessAsyncClient

        return KeylessAsyncClient(self.http_client)

    def _made(self, http_client: Any, *, is_async: bool) -> Any:
        require_sdk(self.extra, self.name)
        try:
            return self._make_client(http_client, is_async=is_async)
        except (ImportError, TypeError) as error:
            fault = type(error).__name__
        raise ConfigurationError(
            f"The SDK for {self.display_name} cannot be used as it is installed ({fault}): "
            f"pip install 'flask-byok[{self.extra}]'.",
            provider=self.name,
        )

    def converse(
        self, messages: Sequence[Message], model: str | None = None, **params: Any
    ) -> Iterator[StreamEvent | None]:
        """Return the events of an answer, and None about each second in which the provider says nothing.

        No SDK is needed. Messages and params are in OpenAI's words for every provider: ``max_tokens temperature top_p
        stop tools tool_choice response_format reasoning_effort``; ``extra`` is a mapping that goes into the provider's
        body as it is. The request is sent when the first event is read.

        :raises InvalidFieldError: a message or param cannot be sent to this provider.
        :raises MissingCredentialError: there is no key.
        """
        attempt = self._attempt(messages, model, params)

        def following(error: ByokError) -> Attempt | None:
            other = self._successor(error)
            if other is None:
                return None
            self.served[other.source] = None
            return other._attempt(messages, model, params)

        return Conversation(attempt, following)

    def _attempt(
        self, messages: Sequence[Message], model: str | None, params: Mapping[str, Any]
    ) -> Attempt:
        self._require_key()
        wire, chosen = WIRES.get(self._spec.adapter), model or self._default_model
        if wire is None:
            text = f"{self.display_name} answers no conversations. Call its API with 'client'."
            raise InvalidFieldError(text, provider=self.name)
        if not chosen:
            text = f"{self.display_name} has no default model: name one."
            raise InvalidFieldError(text, provider=self.name)
        known = model_info(self.name, chosen)
        limit = known.max_output if known else None
        facts = Facts(self._spec.limit_name, self._spec.asks_usage, limit)
        try:
            path, body = wire.body(Chat(messages, chosen, params), facts)
            content = encode(body)
        except InvalidFieldError as error:
            error.provider = self.name
            raise
        call = self._open("POST", path, content, _JSON)
        start = StreamEvent("start", provider=self.name, model=chosen, source=self.source)
        reader = wire.reader()
        return Attempt(OurCall(self._outcomes, call, reader), reader, start)

    def stream_events(
        self, messages: Sequence[Message], model: str | None = None, **params: Any
    ) -> Iterator[StreamEvent]:
        """Return the events of an answer: ``start``, ``text``, ``reasoning``, ``tool_call``, ``usage``, ``finish``.

        See :meth:`converse` for the arguments. ``finish`` comes only after the provider's own end mark.

        :raises RejectedCredentialError: the provider rejected the key.
        :raises ProviderError: there is no answer, or no end of it, for another reason.
        """
        events = self.converse(messages, model, **params)
        return (event for event in events if event is not None)

    def stream_chat(
        self, messages: Sequence[Message], model: str | None = None, **params: Any
    ) -> Iterator[str]:
        """Return the texts of an answer, piece by piece; see :meth:`stream_events`."""
        events = self.stream_events(messages, model, **params)
        return (event.text for event in events if event.type == "text")

    async def astream_events(
        self, messages: Sequence[Message], model: str | None = None, **params: Any
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of an answer, in ``async`` code; see :meth:`stream_events`.

        A task that is cancelled closes the connection to the provider.
        """
        from ..http.aio import iterate

        events = self.converse(messages, model, **params)
        async with aclosing(iterate(events, getattr(events, "cut", tuple))) as steps:
            async for event in steps:
                if event is not None:
                    yield event

    async def astream_chat(
        self, messages: Sequence[Message], model: str | None = None, **params: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the texts of an answer, in ``async`` code; see :meth:`stream_chat`."""
        async with aclosing(self.astream_events(messages, model, **params)) as events:
            async for event in events:
                if event.type == "text":
                    yield event.text

    def forward(
        self, method: str, path: str, content: bytes, headers: Mapping[str, str]
    ) -> Passage:
        """Return a call of the provider's own API whose answer passes as it is. Nothing is sent yet.

        :param path: below the provider's base URL, with its query.
        :param headers: beside the provider's own and the key, which win.
        :raises MissingCredentialError: there is no key.
        """
        self._require_key()
        call = self._open(method, path, content, headers)
        reader = WIRES[self._spec.adapter].reader()
        return Passage(self._outcomes, call, path.partition("?")[0], reader)

    def _open(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> LiveCall:
        """Return a call below the provider's base URL, with the key in it. Nothing is sent yet."""
        endpoint = Endpoint(self.credential.base_url, self.credential.trust)
        url = full_url(self._spec, endpoint, path)
        ours = {**self._own_headers(), **self._outcomes.headers(method, url, content)}
        return self._outbound.open(
            endpoint,
            method,
            url,
            headers={**headers, **ours},
            content=content,
            owner=self._counted_as,
            timeout=self._options.get("timeout"),
        )

    def _own_headers(self) -> Mapping[str, str]:
        """Return the headers that the options ask for."""
        return self._options.get("default_headers") or {}

    def _require_key(self) -> None:
        if not self.is_configured:
            text = f"No API key for {self.display_name} is configured."
            raise MissingCredentialError(text, provider=self.name)

    def models(self) -> list[ModelInfo]:
        """Return the chat models that the provider offers, from the data that ships with the package.

        A provider that is not in the data is asked for its own list: ids of models of every kind, without facts.

        :raises EndpointNotAllowedError: keys may not be sent to this endpoint.
        :raises ProviderUnavailableError: the provider did not answer with a list.
        """
        spec, known = self._spec, list(models_of(self.name))
        if known or spec.check.models_path is None:
            return known
        endpoint = Endpoint(self.credential.base_url, self.credential.trust)
        fields = {name: self.credential.reveal(name) for name in self.credential.fields}
        url, headers = request_about(spec, endpoint, fields, spec.check.models_path)
        answer = self._outbound.fetch(
            endpoint, url, headers, seconds=LIST_SECONDS, owner=self._counted_as
        )
        if answer.status == 200 and isinstance(answer.data, dict | list):
            return [ModelInfo(model) for model in read_models(answer)]
        text = f"{self.display_name} did not list its models."
        raise ProviderUnavailableError(text, provider=self.name)

    def _client_options(self, http_client: Any) -> dict[str, Any]:
        """Return what the SDKs of OpenAI and Anthropic make their client of."""
        base_url = self.credential.base_url
        api_key = self.api_key or NO_KEY
        fixed = {"api_key": api_key, "base_url": base_url, "http_client": http_client}
        return {"max_retries": 1, **self._options, **fixed}

    def _make_client(self, http_client: Any, *, is_async: bool) -> Any:
        """Build the SDK's client on our HTTP client, the asynchronous one on the asynchronous.

        :raises ImportError: the SDK is not installed.
        """
        return http_client

    def __repr__(self) -> str:
        hint = self.credential.hint
        return f"<{type(self).__name__} {self.name} source={self.source} hint={hint!r}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a provider object cannot be pickled or copied: it holds a key")
