"""Provider objects for views: the right key, for this call only; and their answers as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Response, current_app, has_app_context

from .catalog.spec import Catalog, ProviderSpec
from .errors import ByokError, EndpointNotAllowedError, ProviderUnavailableError
from .http.outbound import Outbound, check_personal_base_url, default_outbound, endpoint_for
from .model.credential import Credential, Secret, clean_api_key, make_hint
from .providers import BaseProvider, make_provider
from .web.caller import (
    EXTENSION,
    SOURCE_HEADER,
    ByokState,
    current_caller,
    get_state,
    note_use,
)
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
        made = state.service.provider(current_caller(state), provider, **options)
        note_use(made.credential)
        return made
    spec, credential, outbound = _explicit(provider, api_key, options.pop("base_url", None))
    return make_provider(spec, credential, outbound, **options)


def get_chat_model_with_api_key(
    provider: str, model: str, api_key: str | None = None, **kwargs: Any
) -> BaseChatModel:
    """Return a new LangChain chat model, on the caller's key or on an explicit one.

    Needs ``pip install 'flask-byok[langchain]'``. ``kwargs`` go to the LangChain class.
    """
    from .providers.langchain import make_chat_model

    if api_key is None:
        state = get_state()
        caller = current_caller(state)
        service = state.service
        credential, count = service.take(caller, provider)
        note_use(credential)
        report = partial(service.checks.rejected, caller, credential)
        spec = service.catalog.get(provider)
        return make_chat_model(
            spec, credential, service.outbound, model, report=report, count=count, **kwargs
        )
    spec, credential, outbound = _explicit(provider, api_key, kwargs.pop("base_url", None))
    return make_chat_model(spec, credential, outbound, model, **kwargs)


def _explicit(
    provider: str, api_key: str, base_url: str | None
) -> tuple[ProviderSpec, Credential, Outbound]:
    state: ByokState | None = current_app.extensions.get(EXTENSION) if has_app_context() else None
    spec = (Catalog() if state is None else state.service.catalog).get(provider)
    outbound = default_outbound() if state is None else state.service.outbound
    if base_url and not spec.personal_base_url:
        raise EndpointNotAllowedError(f"{spec.name} has its own address.", provider=spec.id)
    own = base_url and check_personal_base_url(base_url, allow_private=outbound.allow_private)
    endpoint = endpoint_for(spec, {} if state is None else state.settings.base_urls, own or None)
    cleaned = clean_api_key(api_key)
    credential = Credential(
        provider=spec.id,
        source="argument",
        owner="argument",
        fields={"api_key": Secret(cleaned)},
        base_url=endpoint.base_url,
        trust=endpoint.trust,
        hint=make_hint(cleaned, spec.prefixes),
    )
    return spec, note_use(credential), outbound


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
