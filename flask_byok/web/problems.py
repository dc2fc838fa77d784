"""Errors as RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Annotated, NotRequired, TypedDict

import msgspec
from flask import Response, current_app, has_app_context, has_request_context, request
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from ..errors import ByokError, ConfigurationError, KeyRefusedError
from ..model.credential import ValidationFacts

#: Where each problem type is described.
TYPE_PREFIX = "https://flask-byok.readthedocs.io/en/latest/problems.html#"

#: The detail that visitors see for a wrong setting; the operator finds the reason in the log.
NOT_SET_UP = "This site's API keys are not set up correctly. The reason is in its log."

_logger = logging.getLogger("flask_byok.web")
#: The statuses of Flask's errors that the documentation describes.
_DOCUMENTED = (400, 404, 405, 413, 415, 500)


class Problem(TypedDict):
    """RFC 9457 problem details."""

    type: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uri"})]
    title: str
    status: int
    detail: str
    code: str
    provider: NotRequired[str]
    validation: NotRequired[ValidationFacts]
    retry_after: NotRequired[Annotated[int, msgspec.Meta(ge=0, description="In seconds.")]]
    settings_url: NotRequired[Annotated[str, msgspec.Meta(description="Where the key is mended.")]]


def problem(error: ByokError) -> Problem:
    """Return the problem object of one of our errors.

    The text of a configuration error goes to the log; the page shows it in debug mode and in tests only.
    """
    detail = str(error)
    if isinstance(error, ConfigurationError):
        _logger.error("%s", detail)
        if not (has_app_context() and (current_app.debug or current_app.testing)):
            detail = NOT_SET_UP
    body = _body(error.status, error.code, error.title, detail)
    if error.provider is not None:
        body["provider"] = error.provider
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    if isinstance(error, KeyRefusedError):
        body["validation"] = error.validation.to_dict()
    return body


def problem_response(error: ByokError) -> Response:
    """Return the HTTP answer for one of our errors."""
    response = _response(problem(error))
    response.retry_after = error.retry_after
    if error.status == HTTPStatus.UNAUTHORIZED:
        # RFC 9110, 15.5.2 asks for a challenge; the host's sign-in is a page, so none of the schemes fits.
        response.headers["WWW-Authenticate"] = "Session"
    return response


def http_problem(error: HTTPException) -> Problem:
    """Return the problem object of an error that Flask raised on one of our routes."""
    status = error.code or 500
    title = HTTPStatus(status).phrase
    code, detail = title.lower().replace(" ", "_"), error.description or title
    most = request.environ.get("flask_byok.most") if has_request_context() else None
    if status == 413 and most:
        detail = f"The body is too long: {most:,} bytes are the limit."
    if isinstance(error, CSRFError):
        code, detail = "csrf", _csrf_detail(error, detail)
    body = _body(status, "too_large" if status == 413 else code, title, detail)
    if status not in _DOCUMENTED:
        body["type"] = "about:blank"  # the host raised it: RFC 9457, 4.2.1
    return body


def http_problem_response(error: HTTPException) -> Response:
    """Return the HTTP answer for an error that Flask raised on one of our routes."""
    response = _response(http_problem(error))
    if allow := dict(error.get_headers()).get("Allow"):
        response.headers["Allow"] = allow
    return response


def _csrf_detail(error: CSRFError, detail: str) -> str:
    if type(error) is not CSRFError:  # our own, which says what to do
        return detail
    cookie = current_app.session_interface.get_cookie_name(current_app)
    if cookie not in request.cookies:
        return (
            "The browser did not send the session cookie, as in a frame of another site, or with cookies blocked. "
            "Open this page in a tab of its own. A program loads the list of keys first and keeps its cookies."
        )
    return f"{detail} Load the list of keys for a fresh token, then try again."


def _body(status: int, code: str, title: str, detail: str) -> Problem:
    kind = TYPE_PREFIX + code
    return {"type": kind, "title": title, "status": status, "detail": detail, "code": code}


def _response(body: Problem) -> Response:
    content = msgspec.json.encode(body)
    response = Response(content, body["status"], mimetype="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    return response
