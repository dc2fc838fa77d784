"""The gateway: providers' own APIs with the person's key put in, as the base URL of any SDK or front end.

A call spends the key's money, so only listed paths pass, and none that reads what others with the same key have stored.
What an answer is never comes to run here: a page, a script or a cookie of a provider's is none of this site's.
"""

from __future__ import annotations

import math
import os
import re
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlencode

import msgspec
from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest, HTTPException, NotFound
from werkzeug.http import parse_options_header

from ..catalog.endpoints import takes_names
from ..catalog.models import models_of
from ..catalog.spec import ProviderSpec
from ..errors import ByokError, InvalidFieldError, ProviderError, RejectedCredentialError
from ..http.outbound import Slots
from ..model.owner import PERSONAL_TIERS, Caller, Tier
from ..providers import BaseProvider
from ..providers.passage import Passage
from ..redaction import redact
from ..wires.messages import Params
from .caller import GATEWAY, SOURCE_HEADER, ByokState, current_caller, get_state, note_use
from .guards import ForeignOriginError, hide_address, refuse_foreign_origin, secure
from .problems import Problem, http_problem, problem
from .protocols import COMMENT, Link, begun, completion, frame, respond

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"

_ID = r"[A-Za-z0-9][\w.:@+-]*"
_OF_GOOGLE = "generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
# What passes, by wire and method. Sources: the API references that the modules of flask_byok.wires name.
_LISTED = {
    ("openai", "POST"): r"chat/completions|completions|responses|embeddings|moderations"
    r"|images/(generations|edits|variations)|audio/(speech|transcriptions|translations)",
    ("openai", "GET"): rf"models(/{_ID})*",
    ("anthropic", "POST"): r"v1/messages(/count_tokens)?",
    ("anthropic", "GET"): rf"v1/models(/{_ID})?",
    ("google", "POST"): rf"v1(beta)?/models/[A-Za-z0-9][\w.-]*:({_OF_GOOGLE})",
    ("google", "GET"): rf"v1(beta)?/models(/{_ID})?",
}
_NOT_PASSED = "The gateway does not pass this path and method on."
_BASE = "The base URL for {} ends with {}, and the path of a call follows, such as /{}."
_EXAMPLES = {
    "openai": "chat/completions",
    "anthropic": "v1/messages",
    "google": "v1beta/models/gemini-2.5-flash:generateContent",
}
#: Paths that take files.
_FORMS = re.compile(r"images/(edits|variations)|audio/(transcriptions|translations)")
#: Parts of a form, and bytes of a part's head, in which the part called "model" is looked for.
_MOST_PARTS = 100
_LONGEST_HEAD = 8 * 1024
_NO_MODEL = "The model is named with its provider here: 'openai/gpt-4o-mini'."

#: The headers that pass to the provider, and those that pass back.
_SENT = ("content-type", "accept", "anthropic-beta", "openai-beta")
_ANSWERED = (
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-request-id",
    "request-id",
    "openai-processing-ms",
)
#: Parameters of a query that hold keys.
_KEYS = ("key", "api_key", "apikey", "access_token", "oauth_token", "bearer_token")
#: The types of answers that no browser runs. A comma could begin another type.
_HARMLESS = re.compile(
    r"(application/([\w.-]+\+)?json|text/event-stream|text/plain|audio/[\w.+-]+|image/(?!svg)[\w.+-]+"
    r"|application/octet-stream|multipart/(mixed|form-data))"
    r"""(\s*;\s*[\w-]+=([\w./+:'()=?-]+|"[\w ./+:'()=?-]*"))*""",
    re.ASCII | re.IGNORECASE,
)
#: The status that no browser sees, as it has left.
_GONE = 499
_PIECES = ("text", "reasoning", "tool_call", "finish")
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")

# Our errors by status in the words of Anthropic and of google.rpc.Code; then those of other statuses.
_WORDS = {
    400: ("invalid_request_error", "INVALID_ARGUMENT"),
    401: ("authentication_error", "UNAUTHENTICATED"),
    403: ("permission_error", "PERMISSION_DENIED"),
    404: ("not_found_error", "NOT_FOUND"),
    413: ("request_too_large", "FAILED_PRECONDITION"),
    429: ("rate_limit_error", "RESOURCE_EXHAUSTED"),
    503: ("api_error", "UNAVAILABLE"),
}
_REFUSED, _FAULT = ("invalid_request_error", "FAILED_PRECONDITION"), ("api_error", "INTERNAL")
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"

#: Calls at once in a process: one owner leaves half of a worker's 8 threads, as our examples give it, to the others.
slots = Slots(math.inf, 4, "of your calls")
os.register_at_fork(after_in_child=slots.forget)


def create_gateway(url_prefix: str) -> Blueprint:
    """Return the blueprint."""
    blueprint = Blueprint(GATEWAY, __name__, url_prefix=url_prefix or None)
    blueprint.after_request(secure)
    for kind in (ByokError, HTTPException):  # such as a body that is too large
        blueprint.register_error_handler(kind, _refuse)
    rule = "/gateway/<path:path>"
    blueprint.add_url_rule(rule, "call", _view, methods=_METHODS, merge_slashes=False)
    return blueprint


def _view(path: str) -> Response:
    """Pass a call of a provider's own API on, with the caller's key in it."""
    try:
        response = _answer(path)
    except (ByokError, HTTPException) as error:
        response = _refuse(error)
    response.headers["Content-Security-Policy"] = _POLICY
    return response


def _answer(path: str) -> Response:
    name, rest = _find(path)
    _refuse_cross_site(rest)
    state = get_state()
    caller = current_caller(state)
    with ExitStack() as stack:
        stack.callback(slots.take(caller.counted_as))
        response = _call(state, caller, name, rest)
        done = weakref.finalize(response, stack.pop_all().close)
    done.atexit = False
    response.call_on_close(done)
    return response


def _find(path: str) -> tuple[str, str]:
    """Return the provider that a path leads to, and the path below what its SDK calls its base URL.

    The provider is empty in ``/v1``, where the model tells it.

    :raises UnknownProviderError: there is no such provider.
    :raises NotFound: the path is not in the list of the provider's wire.
    """
    name, _, rest = path.partition("/")
    if name == "v1" and _is_listed("openai", rest):
        return "", rest
    if name != "v1":
        spec = get_state().service.catalog.get(name)
        if _is_listed(spec.adapter, rest):
            return spec.id, rest
        endpoint, _, rest = rest.partition("/")
        if spec.personal_base_url and _is_listed(spec.adapter, rest):
            return f"{spec.id}/{endpoint}", rest
        base, call = request.path.removesuffix(path) + spec.id, _EXAMPLES.get(spec.adapter, "")
        base += "/<name>" if takes_names(spec) else ""
        raise NotFound(f"{_NOT_PASSED} {_BASE.format(spec.name, base, call)}")
    raise NotFound(_NOT_PASSED)


def _is_listed(adapter: str, path: str) -> bool:
    listed = _LISTED.get((adapter, request.method), "(?!)")
    return ".." not in path and re.fullmatch(listed, path, re.ASCII) is not None


def _refuse_cross_site(path: str) -> None:
    """Refuse what another site's page can let a browser send with what the browser keeps of a person.

    :raises ForeignOriginError: it is such a call.
    """
    scheme = request.authorization.type if request.authorization else ""
    is_kept = scheme in ("basic", "digest", "negotiate") or bool(request.remote_user)
    if not is_kept and "Cookie" not in request.headers:
        return
    is_form = bool(_FORMS.fullmatch(path)) and request.mimetype == "multipart/form-data"
    if request.method == "POST" and not is_form and request.mimetype != "application/json":
        raise ForeignOriginError("Send the body as application/json.")
    refuse_foreign_origin(stated=is_form)


def _call(state: ByokState, caller: Caller, name: str, path: str) -> Response:
    is_get = request.method == "GET"
    if name:
        body = b"" if is_get else request.get_data(cache=False)
        return _pass(_provider(state, caller, name), path, body)
    if path == "models":
        return _json(_list_models(state, caller))
    if is_get:
        name, model = _split(state, path.removeprefix("models/"))
        path, body = f"models/{model}", b""
    else:
        name, model, body = _read_model(state)
    is_translated = state.service.catalog.get(name).adapter != "openai"
    if is_translated and path != "chat/completions":
        raise NotFound("Of this provider, only conversations are to be had in OpenAI's format.")
    provider = _provider(state, caller, name)
    return _translate(provider, model, body) if is_translated else _pass(provider, path, body)


def _provider(state: ByokState, caller: Caller, name: str) -> BaseProvider:
    return note_use(state.service.provider(caller, name, visitors_share=False))


def _json(data: Mapping[str, Any]) -> Response:
    return Response(msgspec.json.encode(data), mimetype="application/json")


# OpenAI's format for all providers


def _list_models(state: ByokState, caller: Caller) -> dict[str, Any]:
    """Return the known models of the providers that the caller can use now."""
    statuses = state.service.get(caller, need_session=False)["providers"]
    tiers = tuple(Tier) if caller.authenticated else PERSONAL_TIERS
    usable = [s["provider"] for s in statuses if s["state"] == "active" and s["source"] in tiers]
    models = [
        {"id": f"{name}/{model.id}", "object": "model", "created": 0, "owned_by": name}
        for name in usable
        for model in models_of(name)
    ]
    return {"object": "list", "data": models}


def _split(state: ByokState, text: str) -> tuple[str, str]:
    """Return the provider and its model in a text such as ``openai/gpt-4o-mini``.

    :raises InvalidFieldError: it is no such text.
    :raises UnknownProviderError: there is no such provider.
    """
    name, _, model = text.partition("/")
    if not name or not model:
        raise InvalidFieldError(_NO_MODEL)
    catalog = state.service.catalog
    endpoint, _, rest = model.partition("/")
    if catalog.get(name).personal_base_url and rest and f"{name}/{endpoint}" in catalog:
        return f"{name}/{endpoint}", rest
    return name, model


def _read_model(state: ByokState) -> tuple[str, str, bytes]:
    """Return the provider and the model that a body names, and the body with the provider's own name of the model.

    :raises BadRequest: it is neither a JSON object nor a form.
    """
    body = request.get_data(cache=False)
    if request.mimetype == "multipart/form-data":
        start, end = _find_model(body, request.mimetype_params.get("boundary", "").encode())
        name, model = _split(state, body[start:end].decode(errors="replace"))
        return name, model, body[:start] + model.encode() + body[end:]
    fields: dict[str, msgspec.Raw] = _decode(body, dict[str, msgspec.Raw])
    name, model = _split(state, _decode(fields.get("model", msgspec.Raw(b'""')), str))
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return name, model, msgspec.json.encode(fields)


def _find_model(form: bytes, boundary: bytes) -> tuple[int, int]:
    """Return where the value of a form's part "model" begins and ends.

    :raises InvalidFieldError: there is none.
    """
    mark, place = b"--" + boundary + b"\r\n", 0
    for _ in range(_MOST_PARTS):
        if (place := form.find(mark, place)) < 0:
            break
        place += len(mark)
        start = form.find(b"\r\n\r\n", place, place + _LONGEST_HEAD)
        for line in form[place : max(start, place)].split(b"\r\n"):
            header, _, value = line.decode("latin-1").partition(":")
            is_name = header.strip().lower() == "content-disposition"
            if is_name and parse_options_header(value)[1].get("name") == "model":
                return start + 4, form.find(b"\r\n", start + 4)
    raise InvalidFieldError(_NO_MODEL)


def _decode(data: bytes | msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not JSON as OpenAI's format wants it.") from None


def _translate(provider: BaseProvider, model: str, body: bytes) -> Response:
    """Answer a chat completion of a provider with another format. What that format does not have is left out."""
    given: dict[str, Any] = _decode(body, dict[str, Any])
    params = {name: given[name] for name in Params.__struct_fields__ if name in given}
    if (most := given.get("max_completion_tokens")) is not None:
        params["max_tokens"] = most
    events, link = provider.converse(given.get("messages", ()), model, **params), Link()
    if given.get("stream"):
        # An error before the first piece of the answer has a status of its own.
        return respond(provider, begun(events, link, _PIECES), "openai")
    return _json(completion(begun(events, link, ("finish",))))


# The provider's own answer


def _pass(provider: BaseProvider, path: str, body: bytes) -> Response:
    """Send the call, and pass its answer on."""
    sent = {n: v for n in _SENT if (v := request.headers.get(n)) and v.isascii()}
    asked = request.args.items(multi=True)
    query = [(name, v) for name, v in asked if name.lower().strip("$_-") not in _KEYS]
    url = f"/{path}?{urlencode(query)}" if query else f"/{path}"
    passage = provider.forward(request.method, url, body, sent)
    link = Link()
    for _ in passage.head():
        if link.is_gone():
            passage.close()
    if 200 <= passage.status < 300:
        response = _good(passage, link)
    elif passage.status:
        response = _bad(passage, provider)
    else:
        return Response(status=_GONE)
    for name in _ANSWERED:
        if value := passage.headers.get(name):
            response.headers[name] = redact(value)
    response.headers[SOURCE_HEADER] = provider.source
    _set_type(response, passage)
    return response


def _good(passage: Passage, link: Link) -> Response:
    response = Response(_pieces(passage, _adapter(), link), passage.status)
    response.call_on_close(passage.close)
    if passage.is_stream:
        response.headers["X-Accel-Buffering"] = "no"  # nginx: pass each event on at once
    elif length := passage.headers.get("content-length"):
        response.headers["Content-Length"] = length  # by which a body that breaks off is noticed
    return response


def _bad(passage: Passage, provider: BaseProvider) -> Response:
    """Return what the provider refuses the call with.

    :raises ByokError: it is a redirect, or is about a shared key, of which an answer may show a part.
    """
    body, error = passage.refusal()
    is_shared = provider.source not in PERSONAL_TIERS
    if passage.status < 400 or (is_shared and isinstance(error, RejectedCredentialError)):
        raise error
    return Response(body, passage.status)


def _set_type(response: Response, passage: Passage) -> None:
    kind = passage.headers.get("content-type", "")
    is_harmless = _HARMLESS.fullmatch(kind)
    response.headers["Content-Type"] = kind if is_harmless else "application/octet-stream"
    if not is_harmless:
        response.headers["Content-Disposition"] = "attachment"


def _pieces(passage: Passage, adapter: str, link: Link) -> Iterator[bytes]:
    """Yield the answer as it comes; between the events of a stream, comments in long silences.

    :raises ConnectionAbortedError: the answer broke off. A stream of events tells that instead.
    """
    latest, end = time.monotonic(), b"\n\n"
    try:
        for piece in passage:
            if piece is not None:
                end = (end + piece)[-4:]
            elif link.is_gone():
                return
            elif passage.is_stream and end.endswith(_BLANK_LINES) and link.needs_beat(latest):
                piece = COMMENT
            if piece is not None:
                latest = time.monotonic()
                yield piece
    except ProviderError as error:
        if not passage.is_stream:
            raise ConnectionAbortedError(error.code) from None
        name = "error" if adapter == "anthropic" else ""
        yield b"\n\n" + frame(_in_words_of(adapter, problem(error)), name)


# Our own errors


def _refuse(error: ByokError | HTTPException) -> Response:
    """Answer one of our errors in the shape in which the caller's SDK expects errors."""
    told = problem(error) if isinstance(error, ByokError) else http_problem(error)
    if told["status"] == 404:  # people also put keys where they do not belong
        spec = _called()
        hide_address(called=spec.id if spec else "")
    response = _json(_in_words_of(_adapter(), told))
    response.status_code = told["status"]
    response.retry_after = told.get("retry_after")
    if response.status_code < 500 and response.status_code != 429:
        response.headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's SDKs retry 409
    return response


def _adapter() -> str:
    """Return the wire that the caller speaks: that of the provider in the path, or OpenAI's."""
    spec = _called()
    return spec.adapter if spec else "openai"


def _called() -> ProviderSpec | None:
    name = str((request.view_args or {}).get("path")).partition("/")[0]
    catalog = get_state().service.catalog
    return catalog.get(name) if name in catalog else None


def _in_words_of(adapter: str, told: Problem) -> dict[str, Any]:
    """Return a problem as an error of a wire, with our code in it."""
    status, message = told["status"], told["detail"]
    facts = {name: told[name] for name in ("code", "provider", "retry_after") if name in told}
    kind, name = _WORDS.get(status, _REFUSED if status < 500 else _FAULT)
    if adapter == "anthropic":
        return {"type": "error", "error": {**facts, "type": kind, "message": message}}
    if adapter == "google":
        info = {"@type": _ERROR_INFO, "reason": told["code"], "domain": "flask-byok"}
        return {"error": {"code": status, "message": message, "status": name, "details": [info]}}
    return {"error": {**facts, "message": message, "type": told["code"], "param": None}}
