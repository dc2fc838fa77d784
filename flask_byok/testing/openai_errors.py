"""How OpenAI and those who speak its format refuse a call.

Sources: each vendor's error reference, and the bodies people quote in public bug reports. A provider without a table of
its own answers with what is common to this format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .wire import Answer, Request, json_answer, with_retry_after

RETRY_AFTER_SECONDS = 1


class _Fact(NamedTuple):
    """One refusal. The texts may name ``{api_key}``, ``{shown}`` (a part of the key) and ``{model}``."""

    status: int
    code: str | None
    message: str
    type: str = "invalid_request_error"


def openai_error(
    status: int, message: str, kind: str, code: str | None = None, **headers: str
) -> Answer:
    """Build OpenAI's error object."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_answer(status, {"error": error}, **headers)


def refusal(request: Request, kind: str) -> Answer:
    """Build the provider's own error of this kind."""
    fact = _fact(request, kind)
    api_key = request.api_key or ""
    shown = f"{api_key[:2]}***{api_key[-2:]}"
    message = fact.message.format(api_key=api_key, shown=shown, model=request.model)
    answer = _BODIES.get(request.provider, _openai_body)(fact, message)
    seconds = request.retry_after
    if seconds is None and kind == "provider_rate_limited" and request.provider not in _SILENT:
        seconds = RETRY_AFTER_SECONDS
    return with_retry_after(answer, seconds)


def _fact(request: Request, kind: str) -> _Fact:
    if kind == "service_disabled":
        kind = "restricted"
    if kind == "key_rejected" and request.api_key is None:
        kind = "no_key"
    own = OWN.get(request.provider, {})
    if kind == "restricted" and request.method == "GET" and "restricted_listing" in own:
        kind = "restricted_listing"
    return own.get(kind) or _COMMON[kind]


_COMMON = {
    "no_key": _Fact(401, None, "You didn't provide an API key."),
    # The real service masks a part of the key.
    "key_rejected": _Fact(
        401, "invalid_api_key", "Incorrect API key provided: {api_key}. Find it in your account."
    ),
    "disabled": _Fact(
        401,
        "account_deactivated",
        "The account associated with this API key has been deactivated.",
    ),
    "restricted": _Fact(403, "insufficient_permissions", "This key may not use this endpoint."),
    "not_permitted": _Fact(403, "insufficient_permissions", "This key may not do that."),
    "region_blocked": _Fact(
        403,
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
        "request_forbidden",
    ),
    "no_credit": _Fact(402, "insufficient_quota", "You have no credit left. Please add credit."),
    "billing_limit": _Fact(
        400, "billing_hard_limit_reached", "Billing hard limit has been reached"
    ),
    "provider_rate_limited": _Fact(
        429, "rate_limit_exceeded", "Rate limit reached. Please try again in 1s.", "requests"
    ),
    "provider_overloaded": _Fact(
        503, None, "The engine is currently overloaded, please try again later", "server_error"
    ),
    "provider_unavailable": _Fact(
        500, None, "The server had an error while processing your request.", "server_error"
    ),
    "context_too_long": _Fact(
        400,
        "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    ),
    "model_unknown": _Fact(
        404,
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "content_filtered": _Fact(
        400, "content_policy_violation", "Your request was rejected by our safety system."
    ),
    "request_refused": _Fact(
        400, "unsupported_parameter", "Unsupported parameter: 'top_k' is not supported."
    ),
}

_NO_PERMISSION = "You have insufficient permissions for this operation. Missing scopes: "
_OPENAI = {
    # Both statuses happen, and the code is null: only the message tells it from a bad key.
    "restricted": _Fact(401, None, f"{_NO_PERMISSION}model.request."),
    "restricted_listing": _Fact(403, None, f"{_NO_PERMISSION}api.model.read."),
    "not_permitted": _Fact(
        401, "ip_not_authorized", "Your IP address is not on the list of allowed addresses."
    ),
    "no_credit": _Fact(
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
    ),
}

#: What proxies of OpenAI pass on.
_PASSED_ON = ("restricted", "restricted_listing", "no_credit")

_GROQ = {
    "key_rejected": _Fact(401, "invalid_api_key", "Invalid API Key"),
    "restricted": _Fact(403, "permissions_error", "Your key may not use this endpoint."),
    "no_credit": _Fact(400, "blocked_api_access", "API access is blocked by your spend limit."),
    "billing_limit": _Fact(400, "blocked_api_access", "API access is blocked by your spend limit."),
    "disabled": _Fact(400, "organization_restricted", "Organization has been restricted."),
    "provider_overloaded": _Fact(503, "service_unavailable", "Service unavailable."),
    "request_refused": _Fact(422, None, "The request cannot be processed."),
}

# xAI's codes are the long names of gRPC's.
_ARGUMENT = "Client specified an invalid argument"
_FORBIDDEN = "The caller does not have permission to execute the specified operation"
_EXHAUSTED = "Some resource has been exhausted"
_XAI = {
    "no_key": _Fact(401, "Unauthorized", "No API key was provided."),
    "key_rejected": _Fact(
        400,
        _ARGUMENT,
        "Incorrect API key provided: {shown}. You can obtain one from the console.",
    ),
    "restricted": _Fact(403, _FORBIDDEN, "The key's access list does not allow this."),
    "disabled": _Fact(403, _FORBIDDEN, "The API key is disabled."),
    "no_credit": _Fact(429, _EXHAUSTED, "Your team has used all available credits."),
    "billing_limit": _Fact(
        403,
        _FORBIDDEN,
        "Your team has either used all available credits or reached its monthly spending limit.",
    ),
    "provider_rate_limited": _Fact(429, _EXHAUSTED, "Too many requests for this team and model."),
    "provider_overloaded": _Fact(503, "The service is currently unavailable", "At capacity."),
    "context_too_long": _Fact(
        400,
        _ARGUMENT,
        "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
    ),
    "model_unknown": _Fact(
        404, "Some requested entity was not found", "The model {model} does not exist."
    ),
    "request_refused": _Fact(422, "Unprocessable", "The request body cannot be deserialized."),
}

_OPENROUTER = {
    "no_key": _Fact(401, None, "No auth credentials found"),
    "key_rejected": _Fact(401, None, "User not found."),
    "restricted": _Fact(403, None, "The key's guardrails do not allow this request."),
    "disabled": _Fact(401, None, "API key disabled"),
    "no_credit": _Fact(402, None, "Insufficient credits. Add more credits to your account."),
    "billing_limit": _Fact(403, None, "Key limit exceeded (total limit)."),
    "provider_rate_limited": _Fact(429, None, "Rate limit exceeded."),
    "provider_overloaded": _Fact(503, None, "No available model provider."),
    "provider_unavailable": _Fact(502, None, "Provider returned error"),
    "model_unknown": _Fact(400, None, "{model} is not a valid model ID"),
    "content_filtered": _Fact(
        403, None, 'This model requires moderation. Your input was flagged for "harassment".'
    ),
    "context_too_long": _Fact(400, None, "This endpoint's maximum context length is 8192 tokens."),
}

_DEEPSEEK = {
    "key_rejected": _Fact(
        401,
        "invalid_request_error",
        "Authentication Fails, Your api key: {shown} is invalid",
        "authentication_error",
    ),
    "no_credit": _Fact(402, "invalid_request_error", "Insufficient Balance", "unknown_error"),
    "billing_limit": _Fact(402, "invalid_request_error", "Insufficient Balance", "unknown_error"),
    "request_refused": _Fact(
        422, "invalid_request_error", "Failed to deserialize the JSON body into the target type"
    ),
}

#: By provider, those of its own.
OWN = {
    "openai": _OPENAI,
    "custom": {name: _OPENAI[name] for name in _PASSED_ON},
    "demo": {name: _OPENAI[name] for name in _PASSED_ON},
    "groq": _GROQ,
    "xai": _XAI,
    "openrouter": _OPENROUTER,
    "deepseek": _DEEPSEEK,
}

#: These send no Retry-After of their own accord.
_SILENT = ("xai", "openrouter")


def _openai_body(fact: _Fact, message: str) -> Answer:
    return openai_error(fact.status, message, fact.type, fact.code)


def _xai_body(fact: _Fact, message: str) -> Answer:
    return json_answer(fact.status, {"code": fact.code, "error": message})


def _openrouter_body(fact: _Fact, message: str) -> Answer:
    return json_answer(fact.status, {"error": {"message": message, "code": fact.status}})


_BODIES: dict[str, Callable[[_Fact, str], Answer]] = {
    "xai": _xai_body,
    "openrouter": _openrouter_body,
}
