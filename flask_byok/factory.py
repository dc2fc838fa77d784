"""Provider objects for views: the right key, for this call only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import current_app, has_app_context

from .catalog.spec import Catalog, ProviderSpec
from .errors import EndpointNotAllowedError
from .http.outbound import Outbound, check_personal_base_url, default_outbound, endpoint_for
from .model.credential import Credential, Secret, clean_api_key, make_hint
from .providers import BaseProvider, make_provider
from .web.caller import EXTENSION, ByokState, current_caller, get_state, note_use

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


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
        report = service.traffic.reporter(caller, credential)
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
