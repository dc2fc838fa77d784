"""OpenAI, and every provider that speaks its format, on OpenAI's SDK."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlencode

from .base import BaseProvider
from .sdk import AsyncCalls, SyncCalls, refuse_web_socket

if TYPE_CHECKING:
    from ..http.live import LiveCall


class OpenAIProvider(BaseProvider):
    """A provider that speaks OpenAI's chat completions format."""

    extra = sdk = "openai"
    paths = frozenset({"/chat/completions", "/completions", "/embeddings", "/responses"})
    allowed_options = BaseProvider.allowed_options | {"default_query", "organization", "project"}

    def _open(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> LiveCall:
        query = urlencode(self._options.get("default_query") or {})
        return super()._open(method, f"{path}?{query}" if query else path, content, headers)

    def _own_headers(self) -> Mapping[str, str]:
        options = {name: self._options.get(name) for name in ("organization", "project")}
        named = {f"OpenAI-{name.title()}": value for name, value in options.items() if value}
        return {**named, **super()._own_headers()}

    def _make_client(self, http_client: Any) -> Any:
        return _client_class(False)(**self._client_options(http_client))

    def _make_async_client(self, http_client: Any) -> Any:
        return _client_class(True)(**self._client_options(http_client))


@cache
def _client_class(asynchronous: bool) -> type[Any]:
    """Return the SDK's client, deaf to the environment. The first call loads the SDK."""
    from openai import AsyncOpenAI, OpenAI

    calls, base = (AsyncCalls, AsyncOpenAI) if asynchronous else (SyncCalls, OpenAI)

    class Client(calls, base):  # type: ignore[misc, valid-type]
        """Takes nothing from OPENAI_*, and opens no WebSockets."""

        silent = ("organization", "project", "admin_api_key", "webhook_secret")

        def copy(self, **options: Any) -> Any:
            """Copy as the SDK does, which would otherwise read the address of the WebSockets."""
            return super().copy(**{**options, "websocket_base_url": "none"})

        with_options = copy

        @property
        def websocket_base_url(self) -> NoReturn:
            """Raise an error: every connection asks for this first."""
            refuse_web_socket()

        @websocket_base_url.setter
        def websocket_base_url(self, url: Any) -> None:
            """Do nothing."""

    return Client
