"""``GET /api/providers/health``, answered before Flask opens a session or runs a host's hook."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Flask, Response

from ..keys.health import Health, HealthFacts
from .caller import get_state
from .guards import HEADERS
from .openapi import Route


def health() -> HealthFacts:
    """Return if keys can be found here, and the state of each store; no key and no session is needed."""
    return get_state().service.health.look()


HEALTH = Route("GET", "/providers/health", "health", "operations", health, may_fail=True)


def health_view() -> Response:
    """Answer 200, or 503 if keys cannot be found here."""
    return _response(get_state().service.health)


def answer_health(app: Flask, url_prefix: str) -> None:
    """Let the app answer before everything that a request may wait for, or be refused by."""
    inner, path = app.wsgi_app, f"{url_prefix}{HEALTH.path}"

    def wsgi_app(environ: Any, start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == path and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return _response(get_state(app).service.health)(environ, start_response)
        return inner(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # as Flask documents for middleware


def _response(health: Health) -> Response:
    facts = health.look()
    down = facts["status"] == "down"
    status = HTTPStatus.SERVICE_UNAVAILABLE if down else HTTPStatus.OK
    return Response(msgspec.json.encode(facts), status, HEADERS, mimetype="application/json")
