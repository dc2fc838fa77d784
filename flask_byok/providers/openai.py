"""OpenAI, and every provider that speaks its format, on OpenAI's SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlencode

from .base import BaseProvider
from .sdk import isolated, refuse_web_socket

if TYPE_CHECKING:
    from ..http.live import LiveCall

#: What the SDK would take from OPENAI_*.
_SILENT = "organization", "project", "admin_api_key", "webhook_secret"


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

    def _make_client(self, http_client: Any, *, is_async: bool) -> Any:
        from openai import AsyncOpenAI, OpenAI

        make = isolated(AsyncOpenAI if is_async else OpenAI, _SILENT, _NoWebSockets)
        return make(**self._client_options(http_client))


class _NoWebSockets:
    """Mixed into the SDK's client: it opens no WebSockets."""

    def copy(self, **options: Any) -> Any:
        """Copy as the SDK does, which would otherwise read the address of the WebSockets."""
        return super().copy(**{**options, "websocket_base_url": "none"})  # type: ignore[misc]  # the SDK's

    with_options = copy

    @property
    def websocket_base_url(self) -> NoReturn:
        """Raise an error: every connection asks for this first."""
        refuse_web_socket()

    @websocket_base_url.setter
    def websocket_base_url(self, url: Any) -> None:
        """Do nothing."""
