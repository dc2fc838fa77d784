"""Anthropic on its own SDK."""

from __future__ import annotations

from typing import Any

from .base import BaseProvider
from .sdk import isolated


class AnthropicProvider(BaseProvider):
    """Anthropic's messages format."""

    extra = sdk = "anthropic"
    paths = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

    def _make_client(self, http_client: Any, *, is_async: bool) -> Any:
        from anthropic import Anthropic, AsyncAnthropic

        # An explicit key keeps the SDK from tokens, profiles and federation.
        make = isolated(AsyncAnthropic if is_async else Anthropic, ("webhook_key",))
        return make(**self._client_options(http_client), open_telemetry=False)
