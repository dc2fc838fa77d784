"""LangChain chat models on the same clients: LangChain by itself shares one between keys."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError
from .base import BaseProvider
from .installed import require_sdk

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel

# Options that decide where the key goes: openai_api_key, anthropic_proxy, http_async_client, openai_api_base, …
_OURS = re.compile(
    r"(.*_)?(api_key|api_base|api_url|base_url|client|proxy)|client_(args|options)|credentials|vertexai"
)


def make_chat_model(provider: BaseProvider, model: str, **kwargs: Any) -> BaseChatModel:
    """Return a new LangChain chat model on a provider object's clients.

    :param kwargs: passed to the chat model (``temperature``, …).
    :raises ConfigurationError: LangChain's package for the provider is not installed, or too old; or the provider
        answers no conversations.
    """
    if ours := [name for name in kwargs if _OURS.fullmatch(name)]:
        raise ConfigurationError(
            f"{', '.join(sorted(ours))}: not an option here, as it decides where keys go. "
            "Set the endpoint with BYOK_BASE_URLS."
        )
    if provider.extra not in _MAKERS:
        text = f"There is no LangChain chat model for {provider.display_name}."
        raise ConfigurationError(text, provider=provider.name)
    # Explicit, so that LangChain asks neither the environment nor LangSmith's gateway.
    package, make = _MAKERS[provider.extra]
    clients = provider.client, provider.async_client
    # The client of a server without a key has a word in its place.
    api_key = getattr(clients[0], "api_key", provider.api_key)
    fixed = {"api_key": api_key, "base_url": provider.credential.base_url}
    others = [other for other, _ in _MAKERS.values() if other != package]
    require_sdk("langchain", provider.name, *others)
    try:
        return make(*clients, {**kwargs, "model": model, **fixed})
    except ImportError:
        pass
    raise ConfigurationError(
        "LangChain cannot be used as it is installed: pip install 'flask-byok[langchain]'."
    )


def _make_openai(client: Any, async_client: Any, fields: dict[str, Any]) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        **fields,
        root_client=client,
        client=client.chat.completions,
        root_async_client=async_client,
        async_client=async_client.chat.completions,
    )


def _make_anthropic(client: Any, async_client: Any, fields: dict[str, Any]) -> BaseChatModel:
    clients = {"guarded_client": client, "guarded_async_client": async_client}
    return cast("BaseChatModel", _anthropic_class()(**fields, **clients))


@cache
def _anthropic_class() -> type[Any]:
    """Return LangChain's class, on our client. The first call loads LangChain."""
    from langchain_anthropic import ChatAnthropic
    from pydantic import Field

    class GuardedChatAnthropic(ChatAnthropic):
        """Takes its clients as fields, so that LangChain's copies of it have the same ones.

        LangChain's own class takes no clients and makes some that are not guarded.
        """

        guarded_client: Any = Field(default=None, exclude=True, repr=False)
        guarded_async_client: Any = Field(default=None, exclude=True, repr=False)

        @cached_property
        def _client(self) -> Any:
            return _kept(self.guarded_client)

        @cached_property
        def _async_client(self) -> Any:
            return _kept(self.guarded_async_client)

    return GuardedChatAnthropic


def _make_google(client: Any, async_client: Any, fields: dict[str, Any]) -> BaseChatModel:
    # LangChain would try six times, and sleep in between.
    fixed = {"client": client, "vertexai": False, "location": None}
    return cast("BaseChatModel", _google_class()(**{"max_retries": 1, **fields, **fixed}))


@cache
def _google_class() -> type[Any]:
    """Return LangChain's class, on the client that it is given. The first call loads LangChain."""
    from langchain_google_genai import ChatGoogleGenerativeAI
    from langchain_google_genai.chat_models import _ClientCleanup
    from pydantic import model_validator

    class GuardedChatGoogle(ChatGoogleGenerativeAI):
        """Keeps the client in its field, which LangChain's own class overwrites with one of its own."""

        @model_validator(mode="after")
        def validate_environment(self) -> Any:
            """Replace LangChain's step of this name, which makes its client from the environment."""
            self._client_cleanup = _ClientCleanup(_kept(self.client))
            if "temperature" not in self.model_fields_set:
                self.temperature = None  # Google's default, as newer models take no other
            return self

    return GuardedChatGoogle


def _kept(client: Any) -> Any:
    if client is None:
        text = "This chat model lost its client: make it with get_chat_model_with_api_key."
        raise ConfigurationError(text)
    return client


#: LangChain's package by the extra of the provider's SDK, and what makes a model of it.
_MAKERS = {
    "openai": ("langchain-openai", _make_openai),
    "anthropic": ("langchain-anthropic", _make_anthropic),
    "google": ("langchain-google-genai", _make_google),
}
