"""Anthropic on its own SDK."""

from __future__ import annotations

from functools import cache
from typing import Any

from .base import BaseProvider
from .sdk import AsyncCalls, SyncCalls


class AnthropicProvider(BaseProvider):
    """Anthropic's messages format."""

    extra = sdk = "anthropic"
    paths = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

    def _make_client(self, http_client: Any) -> Any:
        return _client_class(False)(**self._client_options(http_client), open_telemetry=False)

    def _make_async_client(self, http_client: Any) -> Any:
        return _client_class(True)(**self._client_options(http_client), open_telemetry=False)


@cache
def _client_class(asynchronous: bool) -> type[Any]:
    """Return the SDK's client, deaf to the environment. The first call loads the SDK."""
    from anthropic import Anthropic, AsyncAnthropic

    calls, base = (AsyncCalls, AsyncAnthropic) if asynchronous else (SyncCalls, Anthropic)

    class Client(calls, base):  # type: ignore[misc, valid-type]
        """Takes nothing from ANTHROPIC_*. An explicit key keeps the SDK from tokens, profiles and federation."""

        silent = ("webhook_key",)

    return Client
