"""Provider objects for views: the right key, for this call only; and their answers as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Response, current_app, has_app_context

from .catalog.spec import Catalog
from .errors import ByokError, ProviderUnavailableError
from .http.outbound import default_outbound
from .keys.typed import read_typed
from .model.credential import Credential, Secret
from .providers import BaseProvider, make_chat_model, make_provider
from .settings import Settings
from .web.caller import EXTENSION, SOURCE_HEADER, ByokState, current_caller, get_state, note_use
from .web.problems import problem

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_logger = logging.getLogger("flask_byok.web")


def get_provider_with_api_key(
    provider: str, api_key: str | None = None, **options: Any
) -> BaseProvider:
    """Return a new provider object, on the caller's key or on an explicit one.

    Each call makes a new object; none is cached. An explicit ``api_key`` wins and needs no app. The object needs no
    request context, so a stream may use it.

    :param options: ``model``, ``timeout`` (seconds), ``max_retries``, ``default_headers``; for OpenAI's format also
        ``default_query``, ``organization``, ``project``; with an explicit key also ``base_url``.
    :raises MissingCredentialError: no tier has a key; for the other errors see ``BYOK.resolve``.
    """
    if api_key is None:
        state = get_state()
        return note_use(state.service.provider(current_caller(state), provider, **options))
    return _on_explicit_key(provider, api_key, **options)


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
    provider: str, api_key: str, base_url: str | None = None, **options: Any
) -> BaseProvider:
    state: ByokState | None = current_app.extensions.get(EXTENSION) if has_app_context() else None
    spec = (Catalog() if state is None else state.service.catalog).get(provider)
    outbound = default_outbound() if state is None else state.service.outbound
    settings = Settings(allow_custom_providers=True) if state is None else state.service.settings
    typed = read_typed(spec, {"api_key": Secret(api_key)}, base_url, settings)
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
    provider: BaseProvider, messages: Iterable[Mapping[str, Any]], model: str | None = None
) -> Response:
    """Return a ``text/event-stream`` answer with the provider's reply.

    Events: ``delta`` ``{"text": "…"}`` for each piece, then ``done`` ``{}``; or ``error`` with a problem object. The
    key is resolved already, so a store that fails later does not break the stream, and it needs no request context.
    """
    response = Response(_events(provider, list(messages), model), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Accel-Buffering"] = "no"  # nginx: pass each event on at once
    response.headers[SOURCE_HEADER] = str(provider.source)
    return response


def _events(
    provider: BaseProvider, messages: list[Mapping[str, Any]], model: str | None
) -> Iterator[bytes]:
    try:
        for text in provider.stream_chat(messages, model):
            yield _event(b"delta", {"text": text})
    except ByokError as error:
        yield _event(b"error", problem(error))
    except Exception as error:
        # The error's text may contain the key: it is neither sent nor logged.
        _logger.error("A stream of %s broke: %s", provider.name, type(error).__name__)
        yield _event(b"error", problem(ProviderUnavailableError(provider=provider.name)))
    else:
        yield _event(b"done", {})


def _event(name: bytes, data: Mapping[str, Any]) -> bytes:
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
