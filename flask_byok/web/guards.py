"""Turn away requests that another site could have made, and put the security headers on every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from flask import Response, current_app, g, request
from flask_wtf.csrf import CSRFError, generate_csrf, validate_csrf
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.urls import uri_to_iri
from wtforms.validators import ValidationError

from ..errors import RevealDisabledError
from ..model.credential import Secret
from .caller import REQUEST_ID
from .problems import http_problem_response, simple_problem_response

#: Largest request body that is read, in bytes; a service account file has about 2,500.
MAX_BODY = 64 * 1024

# Each piece that is hidden costs something whenever anything is logged.
_MOST_HIDDEN = 20

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": Flask-WTF compares the referrer of HTTPS requests with the host.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def limit_body() -> None:
    """Read no more than ``MAX_BODY``; to be called before the host's own ``CSRFProtect`` opens the body."""
    if request.blueprint == "byok":
        request.max_content_length = MAX_BODY


def refuse_cross_site() -> Response | None:
    """Refuse a request that did not come from this site's own pages, if it changes something or asks for a key."""
    is_safe = request.method in _SAFE_METHODS
    if is_safe and not asks_for_value():
        return None
    if not _same_origin():
        return csrf_problem("The request came from another site.")
    return None if is_safe else _refuse_without_token()


def csrf_problem(detail: str) -> Response:
    """Return our answer to a missing, stale or wrong CSRF token."""
    return simple_problem_response(
        400, "csrf", f"{detail} Load the list of keys for a fresh token, then try again."
    )


def on_csrf_error(error: CSRFError) -> Response:
    """Answer what the host's own ``CSRFProtect`` raised for one of our routes as JSON."""
    return csrf_problem(str(error.description))


def csrf_token() -> str | None:
    """Return a fresh CSRF token, or None where the host has switched CSRF protection off."""
    if not _csrf_enabled():
        return None
    token: str = generate_csrf()
    return token


def refuse_unrouted(*roots: str) -> Callable[[], Response | None]:
    """Return a hook that answers unknown paths and methods at and below these paths as our other errors.

    Flask raises these before it knows the blueprint, and would answer a page.
    """

    def refuse() -> Response | None:
        error, path = request.routing_exception, f"{request.path}/"
        below = next((path[len(root) :] for root in roots if path.startswith(f"{root}/")), None)
        if not isinstance(error, NotFound | MethodNotAllowed) or below is None:
            return None
        if isinstance(error, NotFound):
            keep_from_logs(below.split("/"))
        return secure(http_problem_response(error))

    return refuse


def asks_for_value() -> bool:
    """Say whether a request wants to see the key itself."""
    return request.args.get("include_value", "").lower() in ("1", "on", "true", "yes")


def refuse_value() -> None:
    """Refuse that, where no key is ever shown.

    :raises RevealDisabledError: it was asked for.
    """
    if asks_for_value():
        raise RevealDisabledError


def secure(response: Response) -> Response:
    """Put the security headers on an answer of ours."""
    if request.endpoint == "byok.static":
        return response
    keep_from_logs(_query_as_logged())
    for name, value in _HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"
    )
    if request_id := request.environ.get(REQUEST_ID):
        response.headers["X-BYOK-Request-ID"] = request_id
    return response


def keep_from_logs(texts: Iterable[str]) -> None:
    """Redact these where the address is logged, until the request ends: somebody may have sent a key in it."""
    hidden = request.environ.setdefault("flask_byok.hidden", [])
    hidden.extend(Secret(text) for text in islice(filter(None, texts), _MOST_HIDDEN))


def _query_as_logged() -> Iterator[str]:
    """Yield the query as servers log it, as sent or partly decoded, and what views see of it."""
    query = request.query_string.decode("latin-1")
    yield query
    yield uri_to_iri(f"?{query}")[1:]
    yield from (value or name for name, value in request.args.items(multi=True))


def _same_origin() -> bool:
    """Judge by ``Sec-Fetch-Site``, else by ``Origin``; a client that sends neither is no browser."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or origin.lower() in _own_origins()


def _own_origins() -> tuple[str, ...]:
    host = request.host.lower()
    # Where the request says http, a proxy may have ended the https: then the scheme tells nothing.
    schemes = ("https",) if request.is_secure else ("https", "http")
    return tuple(f"{scheme}://{host}" for scheme in schemes)


def _refuse_without_token() -> Response | None:
    # Not trusting g.csrf_valid: an abandoned stream can leave another request's g behind (pallets/flask#6123).
    if not _csrf_enabled():
        return None
    try:
        validate_csrf(_sent_token())
    except ValidationError as error:
        return csrf_problem(str(error))
    g.csrf_valid = True
    return None


def _sent_token() -> str | None:
    names = current_app.config.get("WTF_CSRF_HEADERS", ["X-CSRFToken", "X-CSRF-Token"])
    sent = (request.headers.get(name) for name in names)
    field = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    return next((token for token in sent if token), None) or request.form.get(field)


def _csrf_enabled() -> bool:
    return bool(current_app.config.get("WTF_CSRF_ENABLED", True))
