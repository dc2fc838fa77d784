"""Services without conversations, such as speech: a plain HTTP client with the key in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import InvalidFieldError
from .base import BaseProvider, Message


class HttpProvider(BaseProvider):
    """Any service over HTTP. ``client`` is an ``httpx2.Client`` on the service's base URL, which signs each request."""

    extra = ""
    allowed_options = frozenset({"timeout"})

    def _make_client(self, http_client: Any) -> Any:
        http_client.base_url = self.credential.base_url
        if (timeout := self._options.get("timeout")) is not None:
            http_client.timeout = timeout
        return http_client

    def _stream(self, client: Any, messages: Sequence[Message], model: str) -> Iterator[str]:
        text = f"{self.display_name} answers no conversations. Call its API with 'client'."
        raise InvalidFieldError(text, provider=self.name)
