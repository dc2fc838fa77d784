"""Guard the calls: where they come from, what their bodies may be, and the security headers of every answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec
from flask import Response, current_app, request
from flask_wtf.csrf import CSRFError, generate_csrf, validate_csrf
from werkzeug.exceptions import BadRequest, MethodNotAllowed, NotFound, UnsupportedMediaType
from werkzeug.urls import uri_to_iri
from werkzeug.wsgi import get_input_stream
from wtforms.validators import ValidationError

from ..errors import InvalidFieldError
from ..model.credential import Secret
from .caller import REQUEST_ID
from .problems import http_problem_response

#: Largest request body that is read, in bytes; a service account file has about 2,500.
MAX_BODY = 64 * 1024

# Each hidden piece costs time whenever anything is logged.
_MOST_HIDDEN = 20

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": Flask-WTF compares the referrer of HTTPS requests with the host.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: What fields contain whose type does not say everything.
_FORMS = {
    "expires_at": "is a time with its zone, such as '2027-01-31T00:00:00Z', or null.",
    "cursor": "is the 'next' of the page before.",
    "limit": "is a whole number from 1 to 100.",
    "owner": "is 'system' or 'team:<id>'.",
    "slot": "has up to 40 letters, digits, '_' and '-'.",
}

# How msgspec names a fault. A field's name may be a pasted key: only a plain word is repeated.
_AT = re.compile(r"`\$\.(\w+)[^`]*`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field (?:`([a-z_]{1,30})`$)?")

_Model = TypeVar("_Model", bound=msgspec.Struct)

# where requests come from


def limit_body() -> None:
    """Read no more than ``MAX_BODY``. Runs before the host's own ``CSRFProtect`` opens the body."""
    if request.blueprint == "byok":
        # Not request.max_content_length, which Flask 3.0 does not let us set.
        request.stream = get_input_stream(request.environ, max_content_length=MAX_BODY)


def refuse_cross_site() -> None:
    """Refuse a call from another site if it changes something or asks for a key.

    :raises CSRFError: the call came from another site, or lacks a good CSRF token.
    """
    is_safe = request.method in _SAFE_METHODS
    if is_safe and not asks_for_value():
        return
    if not _same_origin():
        raise CSRFError("The request came from another site.")
    if not is_safe and _csrf_enabled():
        # Not trusting g.csrf_valid: an abandoned stream can leave another request's g behind (pallets/flask#6123).
        try:
            validate_csrf(_sent_token())
        except ValidationError as error:
            raise CSRFError(str(error)) from None


def csrf_token() -> str | None:
    """Return a fresh CSRF token, or None if the host has switched CSRF protection off."""
    return str(generate_csrf()) if _csrf_enabled() else None


def refuse_unrouted(*roots: str) -> Callable[[], Response | None]:
    """Return a hook that answers unknown paths and methods below these roots as problem objects.

    Flask raises these errors before it knows the blueprint, and would answer a page.
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
    """Return True if a request asks for the key itself."""
    return request.args.get("include_value", "").lower() in ("1", "on", "true", "yes")


def _same_origin() -> bool:
    """Judge by ``Sec-Fetch-Site``, else by ``Origin``; a client that sends neither is no browser."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    # If the request says http, a proxy may have ended the https: then the scheme tells nothing.
    schemes = ("https",) if request.is_secure else ("https", "http")
    own = [f"{scheme}://{request.host}".lower() for scheme in schemes]
    return request.headers.get("Origin", own[0]).lower() in own


def _sent_token() -> str | None:
    names = current_app.config.get("WTF_CSRF_HEADERS", ["X-CSRFToken", "X-CSRF-Token"])
    sent = (request.headers.get(name) for name in names)
    field = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    return next((token for token in sent if token), None) or request.form.get(field)


def _csrf_enabled() -> bool:
    return bool(current_app.config.get("WTF_CSRF_ENABLED", True))


# what requests contain


def read_body(model: type[_Model]) -> _Model:
    """Return the request's JSON body; the errors repeat nothing that was sent.

    :raises UnsupportedMediaType: the body is not ``application/json``.
    :raises BadRequest: it is not JSON.
    :raises InvalidFieldError: a field is unknown, missing, or has an invalid value.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    try:
        return msgspec.json.decode(request.get_data(cache=False), type=model, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(_explain(str(error), model.__struct_fields__)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not JSON.") from None


def expect_no_body() -> None:
    """Accept a call without a body and content type, or with an empty JSON object; no form."""
    if request.mimetype not in ("", "application/json") or request.get_data():
        read_body(_NoBody)


def read_query(model: type[_Model]) -> _Model:
    """Return the request's query; unknown parameters are ignored.

    :raises InvalidFieldError: a parameter has an invalid value.
    """
    try:
        return msgspec.convert(request.args.to_dict(), model, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(_explain(str(error), model.__struct_fields__)) from None


class _NoBody(msgspec.Struct, forbid_unknown_fields=True):
    pass


def _explain(error: str, names: Sequence[str]) -> str:
    """Say which field is wrong, in our own words: msgspec's may repeat what was sent."""
    if named := _AT.search(error):
        name = named[1]
        return f"The field {name!r} {_FORMS.get(name, 'has an invalid value.')}"
    if missing := _MISSING.fullmatch(error):
        return f"The field {missing[1]!r} is missing."
    known = ", ".join(map(repr, names)) or "none"
    if unknown := _UNKNOWN.match(error):
        which = repr(unknown[1]) if unknown[1] else "of that name"
        return f"There is no field {which} here. The fields are: {known}."
    return f"The body is a JSON object. Its fields are: {known}."


def _secret(kind: type, value: Any) -> Secret:
    """Turn text into a secret at once, so that no repr of a body shows it."""
    if kind is not Secret or not isinstance(value, str):
        raise TypeError("not a string")
    return Secret(value)


# what answers carry, and what logs see


def secure(response: Response) -> Response:
    """Put the security headers on one of our answers; browsers keep a file whose address names its content."""
    if request.endpoint == "byok.static":
        if "v" in request.args and response.status_code < 400:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
            response.headers["X-Content-Type-Options"] = "nosniff"
        return response
    keep_from_logs(_query_as_logged())
    response.headers.update(_HEADERS)
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"
    )
    if request_id := request.environ.get(REQUEST_ID):
        response.headers["X-BYOK-Request-ID"] = request_id
    return response


def keep_from_logs(texts: Iterable[str]) -> None:
    """Redact these texts in logs of the address until the request ends: they may contain a key."""
    hidden = request.environ.setdefault("flask_byok.hidden", [])
    hidden.extend(Secret(text) for text in islice(filter(None, texts), _MOST_HIDDEN))


def _query_as_logged() -> Iterator[str]:
    """Yield the query as servers log it, raw or partly decoded, and its values as views see them."""
    query = request.query_string.decode("latin-1")
    yield query
    yield uri_to_iri(f"?{query}")[1:]
    yield from (value or name for name, value in request.args.items(multi=True))
