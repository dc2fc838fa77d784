"""Anthropic on its own SDK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any

from .base import BaseProvider, Message, isolate, split_system
from .outcomes import one_call

#: Longest answer, in tokens. The API demands a limit; every current model can do this one.
MAX_TOKENS = 4096


class AnthropicProvider(BaseProvider, adapter="anthropic"):
    """Anthropic's messages format."""

    extra = "anthropic"
    paths = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

    def _make_client(self, http_client: Any) -> Any:
        return _client_class()(
            api_key=self.api_key,
            base_url=self._credential.base_url,
            http_client=http_client,
            **{"max_retries": 1, "open_telemetry": False, **self._options},
        )

    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        system, turns = split_system(messages)
        request: dict[str, Any] = {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
        }
        if system:
            request["system"] = system
        with closing(client.messages.create(**request, stream=True)) as stream:
            for event in stream:
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    yield event.delta.text


@cache
def _client_class() -> type[Any]:
    """Return the SDK's client, deaf to the environment. The first call loads the SDK."""
    from anthropic import Anthropic

    class Client(Anthropic):
        """Takes its arguments and nothing from ANTHROPIC_*; so do the copies it makes of itself."""

        def __init__(self, **options: Any) -> None:
            # An explicit key keeps the SDK from tokens, profiles and federation.
            given = {name: value for name, value in options.items() if value is not None}
            super().__init__(**{"webhook_key": "", **given})
            self.webhook_key = given.get("webhook_key") or None
            isolate(self, self.api_key or "", given.get("default_headers"))

        def request(self, *args: Any, **options: Any) -> Any:
            """Make a call; with all its retries it counts once."""
            with one_call():
                return super().request(*args, **options)

    return Client
