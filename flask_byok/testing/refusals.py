"""What fake providers answer to checks, and to calls that they refuse: what the real ones are documented to answer.

``answers/`` has the documented answers by provider: the place (``check`` or ``call``), status, headers, body, verdict,
the code of a call's error, the document that says so, and a note. An error inside a stream has the status 0. Of the
answers that mean the same the first is given, unless one is named for it in ``fake``. What is not there follows from
the provider's row: a refusal is what one of its rules describes, a success has the value that the row names.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from ..catalog import Rule
from ..catalog.rules import WIRES
from ..model.credential import Verdict
from .served import DEMO, PLACEHOLDER
from .wire import Answer, Reply, Request, json_answer

#: The key in bodies that repeat the caller's, as some providers do.
API_KEY = "made-up-key-0123456789abcdef"
RETRY_AFTER_SECONDS = 1

#: What is asked for by a more exact name than most providers have answers for.
_WIDER = {"no_key": "key_rejected", "billing_limit": "no_credit", "service_disabled": "restricted"}
#: The verdict that tells a refusal from others of its kind.
_VERDICTS = {
    "key_rejected": Verdict.INVALID,
    "disabled": Verdict.DISABLED,
    "restricted": Verdict.VALID_RESTRICTED,
    "no_credit": Verdict.VALID_NO_CREDIT,
    "provider_rate_limited": Verdict.VALID_RATE_LIMITED,
}
_STATUSES = {
    "key_rejected": 401,
    "disabled": 401,
    "no_credit": 402,
    "model_unknown": 404,
    "context_too_long": 413,
    "content_filtered": 422,
    "request_refused": 422,
    "provider_rate_limited": 429,
    "provider_unavailable": 500,
    "provider_overloaded": 503,
}
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


@cache
def documented(provider: str) -> list[dict[str, Any]]:
    """Return the documented answers of a provider, of the demo's those of OpenAI; none if there is no file of them."""
    name = "openai" if provider == DEMO.id else provider
    file = files(__package__).joinpath("answers", f"{name}.json")
    return json.loads(file.read_text("utf-8")) if file.is_file() else []


def refused(request: Request, kind: str) -> Answer:
    """Build the provider's own refusal of this kind."""
    if kind == "key_rejected" and request.api_key is None:
        kind = "no_key"
    found = _found(request, kind)
    if found is not None:
        status, headers, body = found["status"], found.get("headers", {}), found["body"]
    else:
        headers, (status, body) = {}, _by_rule(request, _WIDER.get(kind, kind))
    text = json.dumps(body).replace(API_KEY, json.dumps(request.api_key or "")[1:-1])
    answer = Answer(status, text.encode(), headers=dict(headers))
    seconds = request.retry_after
    if seconds is None and "retry-after" in headers:
        seconds = RETRY_AFTER_SECONDS  # clients wait for it
    return answer if seconds is None else _with_retry_after(request, answer, seconds)


def _found(request: Request, kind: str) -> dict[str, Any] | None:
    """Return the documented answer of this kind, at this place or else to a call."""
    places = ("check", "call") if _is_check(request) else ("call",)
    rows = [
        row
        for place in places
        for row in documented(request.provider)
        if row["place"] == place and "body" in row and (place == "check" or row["status"] >= 400)
    ]
    for name in dict.fromkeys((request.outcome, kind, _WIDER.get(kind, kind))):
        named = (row for row in rows if row.get("fake") == name)
        meant = (row for row in rows if "fake" not in row and _means(row, name))
        if (found := next(chain(named, meant), None)) is not None:
            return found
    return None


def _means(row: dict[str, Any], kind: str) -> bool:
    if kind in _VERDICTS:
        return bool(row["verdict"] == _VERDICTS[kind])
    return bool(row["kind"] == kind)


def _by_rule(request: Request, kind: str) -> tuple[int, object]:
    """Return what fits the first rule about this kind of refusal that goes by more than a status; or a status alone."""
    checked, spec = _is_check(request), request.spec
    for rule in (*spec.check.rules, *WIRES[spec.adapter]):
        meant = rule.kind == kind or rule.verdict == _VERDICTS.get(kind)
        placed = rule.place in ("both", "check" if checked else "call")
        told = (rule.contains or rule.path) and (checked or rule.status != (200,))
        if meant and placed and told:
            return rule.status[0], _body(rule, spec.check.good)
    status = _STATUSES.get(kind, 403)
    return status, {"error": {"message": "Refused.", "type": kind, "code": status}}


def _body(rule: Rule, good: str) -> object:
    if not rule.path:
        return {"error": {"message": rule.contains}}
    success = _nested(good, True) if rule.status == (200,) else {}
    return success | _nested(rule.path, rule.equals)


def _nested(path: str, value: object) -> Any:
    """Return JSON that has this value at a path, or at the first of several; ``[]`` is a list."""
    if path == "[]":
        return [{"id": "some-model"}]
    *outer, last = (path.partition("|")[0] or "ok").split(".")
    body: dict[str, object] = {last: value}
    for name in reversed(outer):
        body = {name: body}
    return body


def _with_retry_after(request: Request, answer: Answer, seconds: float) -> Answer:
    """Let an answer ask to wait: in a header, or in a RetryInfo as Google does."""
    if request.spec.adapter != "google":
        answer.headers["Retry-After"] = str(seconds)
        answer.headers.pop("retry-after", None)
        return answer
    body = json.loads(answer.content)
    others = [each for each in body["error"].get("details", ()) if each["@type"] != _RETRY_INFO]
    wait = {"@type": _RETRY_INFO, "retryDelay": f"{seconds}s"}
    body["error"]["details"] = [*others, wait]
    return json_answer(answer.status, body)


def check_success(request: Request) -> Answer | None:
    """Return the documented success of the provider's check, if this is one; else the value that its row names."""
    if not _is_check(request):
        return None
    check = request.spec.check
    if check.answer == "text":
        return Answer(200, check.good.encode(), "text/plain; charset=utf-8")
    rows = (row for row in documented(request.provider) if row["place"] == "check")
    good = (row["body"] for row in rows if row["verdict"] == Verdict.VALID and "body" in row)
    return json_answer(200, next(good, None) or _nested(check.good, True))


def _is_check(request: Request) -> bool:
    """Return True if the path ends as the check's does, which may be at another host of the provider."""
    check = request.spec.check
    ending = "[^/]+".join(map(re.escape, PLACEHOLDER.split(urlsplit(check.path).path)[::2]))
    return request.method == check.method and re.search(f"{ending}$", request.path) is not None


def answer(request: Request) -> Reply:
    """Answer one request with a good key to a provider without a wire format of ours: JSON, and 200."""
    return check_success(request) or json_answer(200, {"ok": True})
