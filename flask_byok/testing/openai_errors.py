"""How OpenAI and those who speak its format refuse a key.

Sources: each vendor's error reference, and the bodies people quote in public bug reports.
"""

from __future__ import annotations

from collections.abc import Callable

from .wire import Answer, Request, json_answer

RETRY_AFTER_SECONDS = "1"

_NARROW = ("restricted", "service_disabled")
_OFF = ("disabled", "blocked", "team_blocked")


def openai_error(
    status: int, message: str, kind: str, code: str | None = None, **headers: str
) -> Answer:
    """Build OpenAI's error object."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_answer(status, {"error": error}, **headers)


def refuse(request: Request) -> Answer | None:
    """Answer for the key's behaviour, or None if the key may go on."""
    kind = _group(request.behaviour)
    return refusal(request, kind) if kind else None


def refusal(request: Request, kind: str) -> Answer:
    """Build the provider's own error of this kind."""
    return _REFUSALS.get(request.provider, _openai)(request, kind)


def _group(behaviour: str) -> str | None:
    if behaviour in _NARROW:
        return "restricted"
    if behaviour in _OFF:
        return "disabled"
    return None if behaviour in ("good", "slow") else behaviour


def _openai(request: Request, kind: str) -> Answer:
    if kind == "restricted":
        return _missing_scope(request)
    if kind == "bad":
        return _incorrect_api_key(request)
    status, message, error_type, code = _OPENAI[kind]
    headers = {"Retry_After": RETRY_AFTER_SECONDS} if kind == "rate_limited" else {}
    return openai_error(status, message, error_type, code, **headers)


_OPENAI = {
    "broke": (
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    "rate_limited": (
        429,
        "Rate limit reached for requests. Please try again in 1s.",
        "requests",
        "rate_limit_exceeded",
    ),
    "disabled": (
        401,
        "The account associated with this API key has been deactivated.",
        "invalid_request_error",
        "account_deactivated",
    ),
    "overloaded": (503, "The engine is currently overloaded.", "server_error", None),
}


def _incorrect_api_key(request: Request) -> Answer:
    """Repeat the key in the message, as the real service does (there with a part masked)."""
    if request.api_key is None:
        return openai_error(401, "You didn't provide an API key.", "invalid_request_error")
    message = f"Incorrect API key provided: {request.api_key}. You can find it in your account."
    return openai_error(401, message, "invalid_request_error", "invalid_api_key")


def _missing_scope(request: Request) -> Answer:
    """Refuse a good key of narrow scope: 403 for the list of models, 401 for a chat.

    Both happen, and `code` is null in both: only the message tells it from a bad key.
    """
    listing = request.method == "GET"
    scope = "api.model.read" if listing else "model.request"
    message = f"You have insufficient permissions for this operation. Missing scopes: {scope}."
    return openai_error(403 if listing else 401, message, "invalid_request_error")


def _groq(request: Request, kind: str) -> Answer:
    status, message, code = {
        "bad": (401, "Invalid API Key", "invalid_api_key"),
        "restricted": (403, "Your key may not use this endpoint.", "permissions_error"),
        "broke": (400, "API access is blocked by your spend limit.", "blocked_api_access"),
        "rate_limited": (429, "Rate limit reached.", "rate_limit_exceeded"),
        "disabled": (400, "Organization has been restricted.", "organization_restricted"),
        "overloaded": (503, "Service unavailable.", "service_unavailable"),
    }[kind]
    return openai_error(status, message, "invalid_request_error", code)


def _xai(request: Request, kind: str) -> Answer:
    """Answer with xAI's own error object: a bad key is 400 and shown in part."""
    api_key = request.api_key
    if api_key is None:
        return json_answer(401, {"code": "Unauthorized", "error": "No API key was provided."})
    shown = f"{api_key[:2]}***{api_key[-2:]}"
    status, code, error = {
        "bad": (
            400,
            "Client specified an invalid argument",
            f"Incorrect API key provided: {shown}. You can obtain one from the console.",
        ),
        "restricted": (403, _XAI_FORBIDDEN, "The key's access list does not allow this."),
        "disabled": (403, _XAI_FORBIDDEN, "The API key is disabled."),
        "broke": (429, _XAI_EXHAUSTED, "Your team has used all available credits."),
        "rate_limited": (429, _XAI_EXHAUSTED, "Too many requests for this team and model."),
        "overloaded": (503, "The service is currently unavailable", "At capacity."),
    }[kind]
    return json_answer(status, {"code": code, "error": error})


_XAI_FORBIDDEN = "The caller does not have permission to execute the specified operation"
_XAI_EXHAUSTED = "Some resource has been exhausted"


def _openrouter(request: Request, kind: str) -> Answer:
    status, message = {
        "bad": (401, "User not found." if request.api_key else "No auth credentials found"),
        "restricted": (403, "The key's guardrails do not allow this request."),
        "broke": (402, "Insufficient credits. Add more credits to your account."),
        "rate_limited": (429, "Rate limit exceeded."),
        "disabled": (401, "API key disabled"),
        "overloaded": (503, "No available model provider."),
    }[kind]
    return json_answer(status, {"error": {"message": message, "code": status}})


_REFUSALS: dict[str, Callable[[Request, str], Answer]] = {
    "groq": _groq,
    "xai": _xai,
    "openrouter": _openrouter,
}
