"""Google's Gemini API on its own SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError
from ..model.credential import Secret
from .base import BaseProvider
from .sdk import refuse_web_socket

#: Seconds that may pass between two pieces of an answer; without a limit the SDK waits for ever.
TIMEOUT = 300.0


class GoogleProvider(BaseProvider):
    """Google's generateContent format."""

    extra, sdk = "google", "google.genai.client"

    def _make_client(self, http_client: Any, *, is_async: bool) -> Any:
        if is_async:
            return self.client.aio
        from google.genai import Client
        from google.genai.client import DebugConfig
        from google.genai.types import HttpOptions, HttpRetryOptions

        # Everything is named: the SDK looks into the environment for each omitted argument.
        client = Client(
            api_key=self.api_key,
            vertexai=False,
            debug_config=DebugConfig(client_mode=None, replays_directory=None, replay_id=None),
            http_options=HttpOptions(
                base_url=self.credential.base_url,
                api_version="v1beta",
                timeout=int((self._options.get("timeout") or TIMEOUT) * 1000),
                retry_options=HttpRetryOptions(attempts=1 + self._options.get("max_retries", 0)),
                headers=self._options.get("default_headers"),
                httpx_client=http_client,
                httpx_async_client=self.async_http_client,
                async_client_args={"ssl": self._outbound.tls},
            ),
        )
        close_web_sockets(client._api_client)
        # The redactor knows a key as long as its Secret lives; all parts of the client hold this one.
        client._api_client._secret = Secret(self.api_key)  # type: ignore[attr-defined]
        return client


class _NoOptions(Mapping[str, Any]):
    """Take the place of the options of WebSockets: reading them raises an error."""

    __getitem__ = __iter__ = __len__ = refuse_web_socket


def close_web_sockets(api_client: Any) -> None:
    """Make Google's live sessions and interactions fail before they connect.

    Live sessions ask for their address, interactions for the options of their connection.

    :raises ConfigurationError: this release of the SDK asks in another place.
    """
    asked = "_websocket_base_url", "_websocket_ssl_ctx"
    if not all(hasattr(api_client, name) for name in asked):
        raise ConfigurationError(
            "This release of google-genai does not let flask-byok close its WebSockets. Use an earlier release."
        )
    api_client._websocket_base_url = refuse_web_socket
    api_client._websocket_ssl_ctx = _NoOptions()
