"""Google's Gemini API on its own SDK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from ..model.credential import Secret
from .base import BaseProvider, Message
from .messages import split_system
from .websockets import close_web_sockets

#: Seconds that may pass between two pieces of an answer; without it the SDK waits for ever.
TIMEOUT = 300.0


class GoogleProvider(BaseProvider):
    """Google's generateContent format."""

    extra = "google"

    def _make_client(self, http_client: Any) -> Any:
        from google.genai import Client
        from google.genai.client import DebugConfig
        from google.genai.types import HttpOptions, HttpRetryOptions

        # Everything is named, as the SDK looks into the environment for whatever is left out.
        client = Client(
            api_key=self.api_key,
            vertexai=False,
            debug_config=DebugConfig(client_mode=None, replays_directory=None, replay_id=None),
            http_options=HttpOptions(
                base_url=self._credential.base_url,
                api_version="v1beta",
                timeout=int((self._options.get("timeout") or TIMEOUT) * 1000),
                retry_options=HttpRetryOptions(attempts=1 + self._options.get("max_retries", 0)),
                headers=self._options.get("default_headers"),
                httpx_client=http_client,
                httpx_async_client=self._outbound.async_client(),
                async_client_args={"ssl": self._outbound.tls},
            ),
        )
        close_web_sockets(client._api_client)
        # The redactor knows a key as long as its Secret lives; all parts of the client hold this one.
        client._api_client._secret = Secret(self.api_key)  # type: ignore[attr-defined]
        return client

    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        system, turns = split_system(messages)
        roles = {"assistant": "model"}
        contents = [
            {"role": roles.get(turn.role, turn.role), "parts": [{"text": turn.text}]}
            for turn in turns
        ]
        config = {"system_instruction": system} if system else None
        generate = client.models.generate_content_stream
        with closing(generate(model=model, contents=contents, config=config)) as stream:
            for chunk in stream:
                if chunk.text:
                    yield chunk.text
