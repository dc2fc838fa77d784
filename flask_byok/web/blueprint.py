"""The blueprint ``byok``: the calls, the settings pages and their assets, behind the guards."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

from flask import Blueprint, Flask, url_for
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from ..errors import ByokError
from . import forms, keys_api, records_api
from .caller import get_state
from .guards import HEADERS, hide_address, refuse_cross_site, secure
from .keys_api import make_view
from .openapi import Route, describe
from .problems import http_problem_response, problem_response
from .ui import UI

_OPENAPI = "/providers/openapi.json"


class Document(dict[str, Any]):
    """OpenAPI 3.1."""


def create_blueprint(url_prefix: str) -> Blueprint:
    """Return the blueprint with all routes, hooks and error handlers."""
    prefix = url_prefix or None
    blueprint = Blueprint("byok", "flask_byok", "static", "/providers/static", url_prefix=prefix)
    blueprint.before_request(refuse_cross_site)
    blueprint.after_request(secure)
    blueprint.register_error_handler(ByokError, forms.shown_on_page(problem_response))
    for kind in (HTTPException, CSRFError):  # a host may have a handler of its own for the second
        blueprint.register_error_handler(kind, forms.shown_on_page(http_problem_response))
    for route in ROUTES:
        blueprint.add_url_rule(route.path, route.name, make_view(route), methods=[route.method])
    blueprint.add_url_rule("/providers/settings", "settings_page", UI().document)
    actions = f"/providers/settings/<any({', '.join(forms.ACTIONS)}):action>"
    blueprint.add_url_rule(actions, "settings_action", forms.settings_action, methods=["POST"])
    return blueprint


def answer_health(app: Flask, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer before everything that a request may wait for, or be refused by."""
    hide_address(app.request_class(environ), app)
    response = keys_api.respond(keys_api.HEALTH, keys_api.health(app))
    response.headers.update(HEADERS)
    return response(environ, start_response)


def openapi() -> Document:
    """Return this description."""
    url = url_for("byok.openapi").removesuffix(_OPENAPI) or "/"
    return _document(url, get_state().settings.gateway)


@cache
def _document(url: str, gateway: bool) -> Document:
    release = version("flask-byok")
    return Document(describe(ROUTES, url=url, version=release, gateway=gateway))


ROUTES = (*keys_api.ROUTES, *records_api.ROUTES, Route("GET", _OPENAPI, "openapi", "keys", openapi))
