"""LangChain chat models on the same clients: LangChain by itself shares one between keys."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from ..catalog.spec import ProviderSpec
from ..errors import ConfigurationError
from ..http import Outbound
from ..model.credential import Credential
from .base import BaseProvider, make_provider
from .outcomes import Count, Report

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel

# Options that decide where the key goes: openai_api_key, anthropic_proxy, http_async_client, openai_api_base, …
_OURS = re.compile(r"(.*_)?(api_key|api_base|api_url|base_url|client|proxy)")


def make_chat_model(
    spec: ProviderSpec,
    credential: Credential,
    outbound: Outbound,
    model: str,
    *,
    report: Report | None = None,
    count: Count | None = None,
    **kwargs: Any,
) -> BaseChatModel:
    """Return a new LangChain chat model for this one credential; its synchronous methods only.

    :param report: called when the provider rejects the key.
    :param count: called with the outcome of each call.
    :param kwargs: passed to the chat model (``temperature``, …), or to the SDK's client
        (``timeout``, ``max_retries``, ``default_headers``).
    :raises ConfigurationError: LangChain's package for the provider is not installed, or cannot be installed beside
        the provider's SDK.
    """
    if ours := [name for name in kwargs if _OURS.fullmatch(name)]:
        raise ConfigurationError(
            f"{', '.join(sorted(ours))}: not an option here, as it decides where keys go. "
            "Set the endpoint with BYOK_BASE_URLS."
        )
    make = {"openai": _make_openai, "anthropic": _make_anthropic}.get(spec.adapter)
    if make is None:
        raise ConfigurationError(
            f"There is no LangChain chat model for {spec.name}: langchain-google-genai cannot be "
            "installed beside google-genai 3. Use get_provider_with_api_key.",
            provider=spec.id,
        )
    options = {name: kwargs.pop(name) for name in BaseProvider.allowed_options if name in kwargs}
    client = make_provider(spec, credential, outbound, report, count, **options).client
    try:
        return make(client, credential, model, kwargs)
    except ImportError:
        pass
    raise ConfigurationError("LangChain is not installed: pip install 'flask-byok[langchain]'.")


def _make_openai(
    client: Any, credential: Credential, model: str, kwargs: dict[str, Any]
) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    fields: dict[str, Any] = {
        "model": model,
        # Explicit, so that LangChain asks neither the environment nor LangSmith's gateway.
        "api_key": credential.api_key,
        "base_url": credential.base_url,
        "root_client": client,
        "client": client.chat.completions,
        "root_async_client": _SyncOnly(),
        "async_client": _SyncOnly(),
    }
    return ChatOpenAI(**kwargs, **fields)


def _make_anthropic(
    client: Any, credential: Credential, model: str, kwargs: dict[str, Any]
) -> BaseChatModel:
    fields: dict[str, Any] = {
        "model": model,
        "api_key": credential.api_key,
        "base_url": credential.base_url,
        "guarded_client": client,
    }
    chat: BaseChatModel = _anthropic_class()(**kwargs, **fields)
    return chat


@cache
def _anthropic_class() -> type[Any]:
    """Return LangChain's class, on our client. The first call loads LangChain."""
    from langchain_anthropic import ChatAnthropic
    from pydantic import Field

    class GuardedChatAnthropic(ChatAnthropic):
        """Takes its client as a field, so that LangChain's copies of it have the same one.

        LangChain's own class takes no client and makes one that is not guarded.
        """

        guarded_client: Any = Field(default=None, exclude=True, repr=False)

        @cached_property
        def _client(self) -> Any:
            if self.guarded_client is None:
                raise ConfigurationError(
                    "This chat model lost its client: make it with get_chat_model_with_api_key."
                )
            return self.guarded_client

        @cached_property
        def _async_client(self) -> Any:
            return _SyncOnly()

    return GuardedChatAnthropic


class _SyncOnly:
    """Takes the place of LangChain's async client, which could not be guarded."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigurationError(
            "Chat models with people's keys are synchronous: use invoke and stream."
        )
