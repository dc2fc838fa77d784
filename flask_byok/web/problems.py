"""Errors as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Response, current_app, has_app_context
from werkzeug.exceptions import HTTPException

from ..errors import ByokError, ConfigurationError, KeyRefusedError, RateLimitedError, StoreError

#: Where each problem type is described.
TYPE_PREFIX = "https://flask-byok.readthedocs.io/en/latest/problems.html#"

#: All that a visitor is told of a wrong setting; what is wrong is the operator's to know.
NOT_SET_UP = "This site's API keys are not set up correctly. The reason is in its log."

_logger = logging.getLogger("flask_byok.web")
_HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    500: "internal_server_error",
}


def problem(error: ByokError) -> dict[str, Any]:
    """Return the problem object of one of our errors.

    What only the operator is told goes to the log, and in debug mode and tests to the page as well.
    """
    detail = str(error)
    if isinstance(error, ConfigurationError):
        _logger.error("%s", detail)
        detail = detail if _for_developers() else NOT_SET_UP
    body = _body(error.status, error.code, error.title, detail)
    if error.provider is not None:
        body["provider"] = error.provider
    if isinstance(error, KeyRefusedError):
        body["validation"] = error.validation.to_dict()
    return body


def _for_developers() -> bool:
    return has_app_context() and (current_app.debug or current_app.testing)


def problem_response(error: ByokError) -> Response:
    """Return the HTTP answer for one of our errors."""
    response = _response(problem(error), error.status)
    if isinstance(error, StoreError | RateLimitedError):
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == HTTPStatus.UNAUTHORIZED:
        # RFC 9110, 15.5.2 asks for a challenge; the host's sign-in is a page, so none of the schemes fits.
        response.headers["WWW-Authenticate"] = "Session"
    return response


def http_problem_response(error: HTTPException) -> Response:
    """Return the answer for an error that Flask raised on one of our routes, as a problem object too."""
    status = error.code or 500
    title = HTTPStatus(status).phrase
    code = _HTTP_CODES.get(status, title.lower().replace(" ", "_"))
    body = _body(status, code, title, error.description or title)
    if status not in _HTTP_CODES:
        body["type"] = "about:blank"  # of the host's own making: RFC 9457, 4.2.1
    response = _response(body, status)
    if allow := dict(error.get_headers()).get("Allow"):
        response.headers["Allow"] = allow
    return response


def simple_problem_response(status: int, code: str, detail: str) -> Response:
    """Return the answer for a request that our guards turn away."""
    return _response(_body(status, code, HTTPStatus(status).phrase, detail), status)


def _body(status: int, code: str, title: str, detail: str) -> dict[str, Any]:
    return {
        "type": TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
    }


def _response(body: dict[str, Any], status: int) -> Response:
    response = Response(msgspec.json.encode(body), status, mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    return response
