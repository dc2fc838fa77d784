"""How Anthropic refuses a call. Sources: its error reference, and the bodies people quote in public bug reports."""

from __future__ import annotations

from .wire import Answer, Request, json_answer, with_retry_after

RETRY_AFTER_SECONDS = 1

_INVALID = "invalid_request_error"

#: Status, type and message; 529 is Anthropic's own status.
_REFUSALS = {
    "no_key": (401, "authentication_error", "x-api-key header is required"),
    "key_rejected": (401, "authentication_error", "invalid x-api-key"),
    "disabled": (400, _INVALID, "This organization has been disabled."),
    "restricted": (403, "permission_error", "Your API key may not use this resource."),
    "not_permitted": (403, "permission_error", "Your IP address is not on the allowlist."),
    "region_blocked": (403, "forbidden", "Request not allowed"),
    "no_credit": (402, "billing_error", "There is no credit left."),
    "billing_limit": (402, "billing_error", "There is an issue with your payment information."),
    "provider_rate_limited": (
        429,
        "rate_limit_error",
        "This request would exceed your rate limit.",
    ),
    "provider_overloaded": (529, "overloaded_error", "Overloaded"),
    "provider_unavailable": (500, "api_error", "Internal server error"),
    "context_too_long": (400, _INVALID, "prompt is too long: 210000 tokens > 200000 maximum"),
    "model_unknown": (404, "not_found_error", "model: {model}"),
    "content_filtered": (400, _INVALID, "Output blocked by content filtering policy"),
    "request_refused": (400, _INVALID, "tools.0.name: Field required"),
}

#: Anthropic's own service alone.
_OWN = {
    "no_credit": (
        400,
        _INVALID,
        "Your credit balance is too low to access the Anthropic API. Please purchase credits.",
    ),
}


def error(status: int, kind: str, message: str, **headers: str) -> Answer:
    """Build Anthropic's error object."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return json_answer(status, {**body, "request_id": "req_fake"}, **headers)


def refusal(request: Request, kind: str) -> Answer:
    """Build the error of this kind."""
    if kind == "service_disabled":
        kind = "restricted"
    if kind == "key_rejected" and request.api_key is None:
        kind = "no_key"
    own = _OWN if request.provider == "anthropic" else {}
    status, error_type, message = own.get(kind) or _REFUSALS[kind]
    answer = error(status, error_type, message.format(model=request.model))
    seconds = request.retry_after
    if seconds is None and kind == "provider_rate_limited":
        seconds = RETRY_AFTER_SECONDS
    return with_retry_after(answer, seconds)
