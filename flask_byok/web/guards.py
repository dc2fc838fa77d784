"""Guard the calls: where they come from, what their bodies may be, and the security headers of every answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile, islice
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from flask import Flask, Request, Response, abort, current_app, request
from flask_wtf.csrf import CSRFError, CSRFProtect, generate_csrf, validate_csrf
from werkzeug.exceptions import BadRequest, MethodNotAllowed, NotFound
from werkzeug.urls import uri_to_iri
from werkzeug.wsgi import get_input_stream
from wtforms.validators import ValidationError

from ..errors import InvalidFieldError
from ..model.credential import Secret
from .caller import GATEWAY, REQUEST_ID, get_state
from .problems import http_problem_response
from .session_binding import kept

#: Largest request body that is read, in bytes; a service account file has about 2,500.
MAX_BODY = 64 * 1024
#: The same for what is passed on to a provider: OpenAI takes audio files of 25 MB.
MAX_PASSED_BODY = 25 * 1024 * 1024

# Each hidden piece costs time whenever anything is logged.
_MOST_HIDDEN = 20

#: A record's id.
RECORD_ID = re.compile("[0-9a-f]{32}")
# A word of a provider's API, the version in an asset's address, and what is too short for a key.
_WORD = re.compile(r"[a-z_-]{0,15}|v\d{1,2}(alpha|beta)?")
_VERSION = re.compile("v=[0-9a-f]{12}|[0-9a-f]{12}")
_SHORT = re.compile("https?:|[^/]{0,15}")

_TOKEN_HEADERS = ("X-CSRFToken", "X-CSRF-Token")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

#: On each of our answers.
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": a form would then send "Origin: null", which browsers without Sec-Fetch-Site are judged by.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: On each of our answers that has no policy of its own.
_POLICY = "default-src 'none'; frame-ancestors 'none'"

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


class ForeignOriginError(CSRFError):  # type: ignore[misc]  # Flask-WTF is untyped
    """Raised when a page of another origin called, which a fresh token does not help; says what may."""


def go_first(asked: Request) -> None:
    """Limit the body, and judge our calls ourselves: runs before the host's own ``CSRFProtect``.

    That checks the same token, and on HTTPS the referrer, which a host's page may keep back on purpose. What the
    referrer tells, that no page over http or of another site called, ``Sec-Fetch-Site`` and ``Origin`` tell too.
    """
    is_passed = asked.blueprint == GATEWAY
    hide_address(asked, hides_path=not is_passed)
    most = min(MAX_PASSED_BODY, asked.max_content_length or MAX_PASSED_BODY)
    # Not request.max_content_length, which Flask 3.0 does not let us set.
    limit = most if is_passed else MAX_BODY
    asked.environ["flask_byok.most"] = limit
    asked.stream = get_input_stream(asked.environ, max_content_length=limit)
    protect = current_app.extensions.get("csrf")
    if isinstance(protect, CSRFProtect):
        protect.exempt(current_app.blueprints[str(asked.blueprint)])


def refuse_cross_site() -> None:
    """Refuse a call from another site if it changes something or asks for a key.

    :raises CSRFError: the call came from another site, or lacks a good CSRF token.
    """
    is_safe = request.method in _SAFE_METHODS
    if is_safe and not asks_for_value():
        return
    refuse_foreign_origin()
    if not is_safe and _csrf_enabled():
        # Not trusting g.csrf_valid: an abandoned stream can leave another request's g behind (pallets/flask#6123).
        try:
            validate_csrf(_sent_token())
        except ValidationError as error:
            raise CSRFError(str(error)) from None


def refuse_foreign_origin(*, stated: bool = False) -> None:
    """Refuse a call of a page of another origin.

    :param stated: refuse a call that does not say its origin, too.
    :raises ForeignOriginError: it is such a call.
    """
    site = request.headers.get("Sec-Fetch-Site", "none")
    is_silent = stated and site == "none" and "Origin" not in request.headers
    if is_silent or not (_same_origin() or _trusted_origin()):
        raise ForeignOriginError(_advice())


def csrf_token() -> str | None:
    """Return a fresh CSRF token, or None if the host has switched CSRF protection off."""
    return str(generate_csrf()) if _csrf_enabled() else None


def refuse_unrouted(url_prefix: str, *, gateway: bool) -> Callable[[Request], Response | None]:
    """Return a function that answers unknown paths and methods below our roots as problem objects.

    Flask raises these errors before it knows the blueprint, and would answer a page.
    """

    places = ("/providers", "/keys", "/admin/keys", *(["/gateway"] if gateway else ()))
    roots = tuple(f"{url_prefix}{place}/" for place in places)

    def refuse(asked: Request) -> Response | None:
        if not re.sub("/+", "/", f"{asked.path}/").startswith(roots):
            return None
        hide_address(asked)
        if not isinstance(asked.routing_exception, NotFound | MethodNotAllowed):
            return None  # a redirect to the address without doubled slashes
        return secure(http_problem_response(asked.routing_exception))

    return refuse


def asks_for_value() -> bool:
    """Return True if a request asks for the key itself."""
    return request.args.get("include_value", "").lower() in ("1", "on", "true", "yes")


def _same_origin() -> bool:
    """Judge by ``Sec-Fetch-Site``, else by ``Origin``; a client that sends neither is no browser."""
    # "none" means a person, not a page; no page can send it beside its own origin.
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site != "none":
        return site == "same-origin"
    # If the request says http, a proxy may have ended the https: then the scheme tells nothing.
    schemes = ("https",) if request.is_secure else ("https", "http")
    own = [f"{scheme}://{request.host}".lower() for scheme in schemes]
    return request.headers.get("Origin", own[0]).lower() in own


def _trusted_origin() -> str | None:
    """Return the origin of the page that called if ``BYOK_TRUSTED_ORIGINS`` has it."""
    origin = request.headers.get("Origin", "").lower()
    return origin if origin in get_state().settings.trusted_origins else None


def _advice() -> str:
    scheme, _, host = request.headers.get("Origin", "").lower().partition("://")
    if host == request.host.lower() and scheme == "http" and request.is_secure:
        return (
            "The page came over http and the call over https. Open the page over https. If it was, the proxy in "
            "front of this site does not say so: set up Werkzeug's ProxyFix, and X-Forwarded-Proto in the proxy."
        )
    return (
        "The request came from a page of another origin. If that is a front end of this site, its operator can add it "
        "to BYOK_TRUSTED_ORIGINS; behind a proxy, this site's own pages need Werkzeug's ProxyFix."
    )


def _sent_token() -> str | None:
    names = current_app.config.get("WTF_CSRF_HEADERS", _TOKEN_HEADERS)
    sent = (request.headers.get(name) for name in names)
    field = current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    return next((token for token in sent if token), None) or request.form.get(field)


def _csrf_enabled() -> bool:
    return bool(current_app.config.get("WTF_CSRF_ENABLED", True))


# what requests contain


def read_body(model: type[_Model]) -> _Model:
    """Return the request's JSON body; the errors repeat nothing that was sent. Its length was limited before.

    :raises UnsupportedMediaType: the body is not ``application/json``.
    :raises BadRequest: it is not JSON.
    :raises InvalidFieldError: a field is unknown, missing, or has an invalid value.
    """
    if request.mimetype != "application/json":
        abort(415, "Send the body as application/json.")
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
    response.headers.update(HEADERS)
    if origin := _trusted_origin():
        _allow_reading(response, origin)
    response.headers.setdefault("Content-Security-Policy", _POLICY)
    if request_id := kept().get(REQUEST_ID):
        response.headers["X-BYOK-Request-ID"] = request_id
    return response


def _allow_reading(response: Response, origin: str) -> None:
    """Let a trusted front end read the answer and send what the calls need (Fetch Standard, CORS protocol)."""
    headers = response.headers
    headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Allow-Credentials"] = "true"
    exposed = "ETag, Retry-After, X-BYOK-Request-ID, X-BYOK-Source, X-Request-ID, Request-ID"
    headers["Access-Control-Expose-Headers"] = exposed
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        names = current_app.config.get("WTF_CSRF_HEADERS", _TOKEN_HEADERS)
        if request.blueprint == GATEWAY:  # what SDKs send; most of it is dropped
            names = request.access_control_request_headers or ()
        headers["Access-Control-Allow-Headers"] = ", ".join(["Content-Type", "If-Match", *names])
    response.vary.add("Origin")


def hide_address(
    asked: Request = request, app: Flask = current_app, *, hides_path: bool = True, called: str = ""
) -> None:
    """Redact in logs, until the request ends, what its address and its referrer hold beside our own words.

    People put keys there: in the query, as a segment of the path, or on the host's page that calls us.

    :param hides_path: off: hide nothing of the path.
    :param called: id of the provider that the path is of: words that follow it stay.
    """
    raw = str(asked.environ.get("RAW_URI") or asked.environ.get("REQUEST_URI") or "")
    root, words = asked.script_root, _own_words(app)
    query = asked.query_string.decode("latin-1")
    address, _, referred = asked.headers.get("Referer", "").partition("?")
    own = (asked.path, raw.partition("?")[0]) if hides_path else ()
    harmless = _WORD if called else RECORD_ID
    paths = [_from_odd(path.removeprefix(root), words | {called}, harmless) for path in own]
    # A page of the host's has words of its own; keys are longer.
    paths += [_from_odd(path, words, _SHORT) for path in (address, unquote(address))]
    values = [value or name for name, value in asked.args.items(multi=True)]
    # First what servers log as one piece, raw or partly decoded: only so many pieces are looked for.
    wholes = [*("/".join(path) for path in paths), *_as_logged(query), *_as_logged(referred)]
    texts = [*wholes, *(part for path in paths for part in path), *values]
    if asked.endpoint == "byok.static":  # the digest of a release; alone it is no key
        texts = [text for text in texts if not _VERSION.fullmatch(text)]
    keep_from_logs(texts, asked)


def keep_from_logs(texts: Iterable[str], asked: Request = request) -> None:
    """Redact these texts in logs of the address until the request ends: they may contain a key."""
    hidden = asked.environ.setdefault("flask_byok.hidden", [])
    hidden.extend(Secret(text) for text in islice(filter(None, texts), _MOST_HIDDEN))


def _own_words(app: Flask) -> set[str]:
    rules = app.url_map.iter_rules()
    ours = (rule.rule for rule in rules if rule.endpoint.startswith(("byok.", f"{GATEWAY}.")))
    return {"", "byok.js", "byok.css"}.union(*(rule.split("/") for rule in ours))


def _from_odd(path: str, words: set[str], harmless: re.Pattern[str] = RECORD_ID) -> list[str]:
    """Return a path's segments from the first one on that is neither a word of ours nor harmless."""
    parts = path.split("/")
    return list(dropwhile(lambda part: part in words or harmless.fullmatch(part), parts))


def _as_logged(query: str) -> Iterator[str]:
    """Yield a query as servers log it, raw or partly decoded."""
    yield query
    yield uri_to_iri(f"?{query}")[1:]
