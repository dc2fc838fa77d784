"""``GET /api/providers/health``, answered before Flask opens a session or runs a host's hook."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from flask import Flask, Response

from ..keys.health import Health, HealthFacts
from .caller import get_state
from .guards import HEADERS, hide_address
from .openapi import Route

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def health() -> HealthFacts:
    """Return if keys can be found here, and the state of each store; no key and no session is needed."""
    return get_state().service.health.look()


HEALTH = Route("GET", "/providers/health", "health", "operations", health, may_fail=True)


def health_view() -> Response:
    """Answer 200, or 503 if keys cannot be found here."""
    return _response(get_state().service.health)


def without_session(app: Flask, url_prefix: str) -> dict[str, WSGIApplication]:
    """Return what answers by path before everything that a request may wait for, or be refused by."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        hide_address(app.request_class(environ), app)
        return _response(get_state(app).service.health)(environ, start_response)

    return {f"{url_prefix}{HEALTH.path}": answer}


def _response(health: Health) -> Response:
    facts = health.look()
    down = facts["status"] == "down"
    status = HTTPStatus.SERVICE_UNAVAILABLE if down else HTTPStatus.OK
    return Response(msgspec.json.encode(facts), status, HEADERS, mimetype="application/json")
