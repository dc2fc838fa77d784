"""Provider objects for views: the right key, for this call only; and their answers as streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, has_app_context

from .catalog.paste import refuse_admin_key
from .catalog.spec import Catalog
from .errors import KeyRefusedError
from .http.outbound import default_outbound
from .keys.typed import read_typed
from .model.credential import Credential, Secret
from .providers import BaseProvider, make_chat_model, make_provider
from .settings import Settings
from .web.caller import EXTENSION, ByokState, current_caller, get_state, note_use
from .web.protocols import Protocol, respond
from .web.ui_messages import read_messages

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


def get_provider_with_api_key(
    provider: str,
    api_key: str | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    **options: Any,
) -> BaseProvider:
    """Return a new provider object, on the caller's key or on an explicit one.

    Each call makes a new object; none is cached. An explicit ``api_key`` wins and needs no app. The object needs no
    request context, so a stream may use it.

    :param fields: in place of ``api_key``, for a provider whose credential has several fields.
    :param options: ``model``, ``timeout`` (seconds), ``max_retries``, ``default_headers``; for OpenAI's format also
        ``default_query``, ``organization``, ``project``; with an explicit key also ``base_url``.
    :raises MissingCredentialError: no tier has a key; for the other errors see ``BYOK.resolve``.
    """
    if api_key is None and fields is None:
        state = get_state()
        return note_use(state.service.provider(current_caller(state), provider, **options))
    given = {} if api_key is None else {"api_key": api_key}
    return _on_explicit_key(provider, {**given, **(fields or {})}, **options)


def get_chat_model_with_api_key(
    provider: str, model: str, api_key: str | None = None, **kwargs: Any
) -> BaseChatModel:
    """Return a new LangChain chat model, on the caller's key or on an explicit one.

    Needs ``pip install 'flask-byok[langchain]'``.

    :param kwargs: passed to the SDK's client (``timeout``, ``max_retries``, ``default_headers``; with an explicit key
        also ``base_url``), and the others to the LangChain class (``temperature``, …).
    """
    names = {*BaseProvider.allowed_options, "base_url"} & kwargs.keys()
    options = {name: kwargs.pop(name) for name in names}
    made = get_provider_with_api_key(provider, api_key, **options)
    return make_chat_model(made, model, **kwargs)


def _on_explicit_key(
    provider: str, fields: Mapping[str, str], base_url: str | None = None, **options: Any
) -> BaseProvider:
    state: ByokState | None = current_app.extensions.get(EXTENSION) if has_app_context() else None
    spec = (Catalog() if state is None else state.service.catalog).get(provider)
    outbound = default_outbound() if state is None else state.service.outbound
    settings = Settings(allow_custom_providers=True) if state is None else state.service.settings
    secrets = {name: Secret(value) for name, value in fields.items()}
    typed = read_typed(spec, secrets, base_url, settings)
    if admin := refuse_admin_key(spec, typed.fields):
        raise KeyRefusedError(admin, provider=spec.id)
    credential = Credential(
        provider=spec.id,
        source="argument",
        owner="argument",
        fields=typed.fields,
        base_url=typed.endpoint.base_url,
        trust=typed.endpoint.trust,
        hint=spec.hint(typed.fields),
    )
    return note_use(make_provider(spec, credential, outbound, **options))


def stream_response(
    provider: BaseProvider,
    messages: Iterable[Mapping[str, Any]],
    model: str | None = None,
    *,
    protocol: Protocol = "byok",
    **params: Any,
) -> Response:
    """Return a ``text/event-stream`` answer with the provider's reply.

    The key is resolved already, so a store that fails later does not break the stream, and it needs no request context.

    :param protocol: ``byok``, our own events: ``start``, ``delta``, ``reasoning``, ``tool_call``, ``usage``,
        ``finish``, then ``done``; or ``error`` with a problem object. ``openai``: chunks as OpenAI's SDKs read them.
        ``ui-message``: the AI SDK's, for ``useChat``. ``text``: the texts alone, as plain text.
    :param messages: in OpenAI's words, or as ``useChat`` sends them, with ``parts``.
    :param params: see :meth:`BaseProvider.converse`.
    :raises InvalidFieldError: a message or param cannot be sent, or there is no such protocol.
    """
    return respond(provider, provider.converse(read_messages(messages), model, **params), protocol)
