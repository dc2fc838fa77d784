"""Anthropic on its own SDK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any

from .base import BaseProvider, IsolatedClient, Message, split_system

#: Longest answer, in tokens. The API demands a limit; every current model can do this one.
MAX_TOKENS = 4096


class AnthropicProvider(BaseProvider):
    """Anthropic's messages format."""

    extra = sdk = "anthropic"
    paths = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

    def _make_client(self, http_client: Any) -> Any:
        return _client_class()(**self._client_options(http_client), open_telemetry=False)

    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        system, turns = split_system(messages)
        options = {"system": system} if system else {}
        stream = client.messages.create(
            model=model, max_tokens=MAX_TOKENS, messages=turns, stream=True, **options
        )
        with closing(stream):
            for event in stream:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    yield event.delta.text


@cache
def _client_class() -> type[Any]:
    """Return the SDK's client, deaf to the environment. The first call loads the SDK."""
    from anthropic import Anthropic

    class Client(IsolatedClient, Anthropic):
        """Takes nothing from ANTHROPIC_*. An explicit key keeps the SDK from tokens, profiles and federation."""

        silent = ("webhook_key",)

    return Client
