"""Services without conversations, such as speech: a plain HTTP client with the key in it."""

from __future__ import annotations

from typing import Any

from .base import BaseProvider


class HttpProvider(BaseProvider):
    """Any service over HTTP. ``client`` is an ``httpx2.Client`` on the service's base URL, which signs each request."""

    allowed_options = frozenset({"timeout"})

    def _make_client(self, http_client: Any, *, is_async: bool) -> Any:
        http_client.base_url = self.credential.base_url
        if (timeout := self._options.get("timeout")) is not None:
            http_client.timeout = timeout
        return http_client
