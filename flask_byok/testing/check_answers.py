"""How providers answer the check of a key, where that is not a list of models; and the format of `http` rows.

What is not written here or in the tables of a wire follows from the provider's row: a refusal is what one of its rules
describes, a success has the value that the row names.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from ..catalog import Rule
from ..model.credential import Verdict
from .bad_keys import BAD_KEYS
from .openai_errors import OWN
from .served import PLACEHOLDER
from .service_accounts import account_in, certificates
from .wire import Answer, Reply, Request, json_answer, with_retry_after

#: An answer as its status and body: JSON, or a text.
_Described = tuple[int, object]


def _xai(**states: bool) -> _Described:
    """Describe a key as xAI does, which answers 200 about keys of every state."""
    return 200, {
        "redacted_api_key": "xai-...0000",
        "name": "test key",
        "api_key_id": "00000000-0000-0000-0000-000000000000",
        "acls": ["api-key:model:*", "api-key:endpoint:*"],
        **{"api_key_blocked": False, "api_key_disabled": False, "team_blocked": False, **states},
    }


_OPENROUTER_KEY = {"label": "test key", "limit": None, "limit_remaining": None, "usage": 0}

#: The documented answers to checks by provider and behaviour of the key. What is missing here the provider's format
#: answers: a refusal as for every call, and for a good key the documented success that the catalog names.
CHECK_ANSWERS: dict[str, dict[str, _Described]] = {
    "openrouter": {"good": (200, {"data": {**_OPENROUTER_KEY, "is_free_tier": False}})},
    "xai": {
        "good": _xai(),
        "broke": _xai(),
        "blocked": _xai(api_key_blocked=True),
        "disabled": _xai(api_key_disabled=True),
        "team_blocked": _xai(team_blocked=True),
    },
}


def documented(request: Request) -> Answer | None:
    """Return the provider's own answer to a bad key, or to this check, if it has one of its own."""
    if account_in(request.path):
        return certificates(request.kind)
    described = None
    if _is_check(request):
        outcome = "good" if request.outcome == "slow" else request.outcome
        described = CHECK_ANSWERS.get(request.provider, {}).get(outcome)
    if described is None and request.kind == "key_rejected":
        described = BAD_KEYS.get(request.provider)
    if described is None and request.kind and request.provider not in _WITH_TABLES:
        described = _by_rule(request)
    if described is None:
        return None
    status, body = described
    if isinstance(body, str):
        kind = "text/xml" if body.startswith("<") else "text/plain"
        return Answer(status, body.encode(), f"{kind}; charset=utf-8")
    return with_retry_after(json_answer(status, body), request.retry_after)


#: Their refusals are written down, with the bodies that they really have.
_WITH_TABLES = {*OWN, "anthropic", "google"}
#: What a rule says of a key that meets this kind of refusal.
_VERDICTS = {
    "key_rejected": Verdict.INVALID,
    "disabled": Verdict.DISABLED,
    "restricted": Verdict.VALID_RESTRICTED,
    "service_disabled": Verdict.VALID_RESTRICTED,
    "no_credit": Verdict.VALID_NO_CREDIT,
    "provider_rate_limited": Verdict.VALID_RATE_LIMITED,
}


def _by_rule(request: Request) -> _Described | None:
    """Describe the answer that fits the row's first rule about this kind of refusal, but not by its status alone."""
    checked, kind = _is_check(request), request.kind
    for rule in request.spec.check.rules:
        meant = rule.kind == kind or rule.verdict == _VERDICTS.get(kind)
        placed = rule.place in ("both", "check" if checked else "call")
        told = (rule.contains or rule.path) and (checked or rule.status != (200,))
        if meant and placed and told:
            return rule.status[0], _body(rule, request.spec.check.good)
    return None


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


def check_success(request: Request) -> Answer | None:
    """Return the documented success that the provider's row names, if this is its check."""
    if not _is_check(request):
        return None
    check = request.spec.check
    if check.answer == "text":
        return Answer(200, check.good.encode(), "text/plain; charset=utf-8")
    return json_answer(200, _nested(check.good, True))


def _is_check(request: Request) -> bool:
    """Return True if the path ends as the check's does, which may be at another host of the provider."""
    check = request.spec.check
    ending = "[^/]+".join(map(re.escape, PLACEHOLDER.split(urlsplit(check.path).path)[::2]))
    return request.method == check.method and re.search(f"{ending}$", request.path) is not None


_STATUSES = {
    "key_rejected": 401,
    "no_credit": 402,
    "billing_limit": 402,
    "model_unknown": 404,
    "context_too_long": 413,
    "content_filtered": 422,
    "request_refused": 422,
    "provider_rate_limited": 429,
    "provider_unavailable": 500,
    "provider_overloaded": 503,
}


def answer(request: Request) -> Reply:
    """Answer one request to a provider without a wire format of ours: JSON, and 200 to a good key."""
    if request.kind:
        status = _STATUSES.get(request.kind, 403)
        refused = json_answer(status, {"error": {"message": "Refused.", "type": request.kind}})
        return with_retry_after(refused, request.retry_after)
    return check_success(request) or json_answer(200, {"ok": True})
