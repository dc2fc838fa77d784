"""LangChain chat models on the same clients: LangChain by itself shares one between keys."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ..errors import ConfigurationError
from .base import BaseProvider
from .installed import require_sdk

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel

# Options that decide where the key goes: openai_api_key, anthropic_proxy, http_async_client, openai_api_base, …
_OURS = re.compile(r"(.*_)?(api_key|api_base|api_url|base_url|client|proxy)")


def make_chat_model(provider: BaseProvider, model: str, **kwargs: Any) -> BaseChatModel:
    """Return a new LangChain chat model on a provider object's client; its synchronous methods only.

    :param kwargs: passed to the chat model (``temperature``, …).
    :raises ConfigurationError: LangChain's package for the provider is not installed, is too old, or cannot be
        installed beside the provider's SDK.
    """
    if ours := [name for name in kwargs if _OURS.fullmatch(name)]:
        raise ConfigurationError(
            f"{', '.join(sorted(ours))}: not an option here, as it decides where keys go. "
            "Set the endpoint with BYOK_BASE_URLS."
        )
    make = {"openai": _make_openai, "anthropic": _make_anthropic}.get(provider.extra)
    if make is None:
        raise ConfigurationError(
            f"There is no LangChain chat model for {provider.display_name}: langchain-google-genai cannot be "
            "installed beside google-genai 3. Use get_provider_with_api_key.",
            provider=provider.name,
        )
    # Explicit, so that LangChain asks neither the environment nor LangSmith's gateway.
    client = provider.client
    fixed = {"api_key": client.api_key, "base_url": provider.credential.base_url}
    other = {"openai": "anthropic", "anthropic": "openai"}[provider.extra]
    require_sdk("langchain", provider.name, f"langchain-{other}")
    try:
        return make(client, {**kwargs, "model": model, **fixed})
    except ImportError:
        pass
    raise ConfigurationError(
        "LangChain cannot be used as it is installed: pip install 'flask-byok[langchain]'."
    )


def _make_openai(client: Any, fields: dict[str, Any]) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        **fields,
        root_client=client,
        client=client.chat.completions,
        root_async_client=_SyncOnly(),
        async_client=_SyncOnly(),
    )


def _make_anthropic(client: Any, fields: dict[str, Any]) -> BaseChatModel:
    return cast("BaseChatModel", _anthropic_class()(**fields, guarded_client=client))


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
