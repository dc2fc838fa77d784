"""Stream a provider's answer as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from flask import Response

from ..errors import ByokError, ProviderUnavailableError
from ..providers import BaseProvider
from .caller import SOURCE_HEADER
from .problems import problem

_encode = msgspec.json.encode
_logger = logging.getLogger("flask_byok.web")


def stream_response(
    provider: BaseProvider, messages: Iterable[Mapping[str, Any]], model: str | None = None
) -> Response:
    """Return a ``text/event-stream`` answer with the provider's reply.

    Events: ``delta`` ``{"text": "…"}`` for each piece, then ``done`` ``{}``; or ``error`` with a problem object. The
    key is resolved already, so a store that fails later does not break the stream, and it needs no request context.
    """
    response = Response(_events(provider, list(messages), model), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Accel-Buffering"] = "no"  # nginx: pass each event on at once
    response.headers[SOURCE_HEADER] = str(provider.source)
    return response


def _events(
    provider: BaseProvider, messages: list[Mapping[str, Any]], model: str | None
) -> Iterator[bytes]:
    try:
        for text in provider.stream_chat(messages, model):
            yield _event(b"delta", {"text": text})
    except ByokError as error:
        yield _event(b"error", problem(error))
    except Exception as error:
        # The error's text may contain the key: it is neither sent nor logged.
        _logger.error("A stream of %s broke: %s", provider.name, type(error).__name__)
        yield _event(b"error", problem(ProviderUnavailableError(provider=provider.name)))
    else:
        yield _event(b"done", {})


def _event(name: bytes, data: Mapping[str, Any]) -> bytes:
    return b"event: " + name + b"\ndata: " + _encode(data) + b"\n\n"
