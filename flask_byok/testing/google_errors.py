"""How Google's Gemini API refuses a call.

Sources: its troubleshooting guide, google.api.ErrorReason, and the bodies people quote in public bug reports. A blocked
prompt is answered 200, so there is no refusal for it.
"""

from __future__ import annotations

from .wire import Answer, Request, json_answer

HOST = "generativelanguage.googleapis.com"

_TYPE = "type.googleapis.com/google.rpc."

#: HTTP status, google.rpc status, reason of the ErrorInfo (or none), message.
_REFUSALS = {
    "no_key": (403, "PERMISSION_DENIED", "", "Method doesn't allow unregistered callers."),
    "key_rejected": (
        400,
        "INVALID_ARGUMENT",
        "API_KEY_INVALID",
        "API key not valid. Please pass a valid API key.",
    ),
    # The real text repeats the key.
    "disabled": (
        403,
        "PERMISSION_DENIED",
        "CONSUMER_SUSPENDED",
        "Permission denied: Consumer 'api_key:{api_key}' has been suspended.",
    ),
    "restricted": (
        403,
        "PERMISSION_DENIED",
        "API_KEY_SERVICE_BLOCKED",
        f"Requests to this API {HOST} are blocked.",
    ),
    "service_disabled": (
        403,
        "PERMISSION_DENIED",
        "SERVICE_DISABLED",
        "Generative Language API has not been used in this project before or it is disabled.",
    ),
    "not_permitted": (
        403,
        "PERMISSION_DENIED",
        "API_KEY_IP_ADDRESS_BLOCKED",
        "The provided API key has an IP address restriction.",
    ),
    "region_blocked": (
        400,
        "FAILED_PRECONDITION",
        "",
        "User location is not supported for the API use.",
    ),
    "no_credit": (429, "RESOURCE_EXHAUSTED", "", "Your prepayment credits are depleted."),
    "billing_limit": (
        403,
        "PERMISSION_DENIED",
        "BILLING_DISABLED",
        "This API method requires billing to be enabled.",
    ),
    "provider_rate_limited": (
        429,
        "RESOURCE_EXHAUSTED",
        "",
        "Resource has been exhausted (check quota).",
    ),
    "provider_overloaded": (
        503,
        "UNAVAILABLE",
        "",
        "The model is overloaded. Please try again later.",
    ),
    "provider_unavailable": (500, "INTERNAL", "", "An internal error has occurred."),
    "context_too_long": (
        400,
        "INVALID_ARGUMENT",
        "",
        "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "model_unknown": (
        404,
        "NOT_FOUND",
        "",
        "models/{model} is not found for API version v1beta, or is not supported for generateContent.",
    ),
    "request_refused": (
        400,
        "INVALID_ARGUMENT",
        "",
        "Invalid JSON payload received. Unknown name 'top': Cannot find field.",
    ),
}


def error(
    status: int, name: str, reason: str, message: str, retry_after: float | None = None
) -> Answer:
    """Build Google's error object, with the reason, if any, in an ErrorInfo.

    Google sends no Retry-After: the seconds stand in a RetryInfo.
    """
    body: dict[str, object] = {"code": status, "message": message, "status": name}
    details: list[dict[str, object]] = []
    if reason:
        info = {"@type": f"{_TYPE}ErrorInfo", "reason": reason, "domain": "googleapis.com"}
        details.append({**info, "metadata": {"service": HOST}})
        localized = {"@type": f"{_TYPE}LocalizedMessage", "locale": "en-US"}
        details.append({**localized, "message": message})
    if retry_after is not None:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{retry_after}s"})
    if details:
        body["details"] = details
    return json_answer(status, {"error": body})


def refusal(request: Request, kind: str) -> Answer:
    """Build the error of this kind."""
    if kind == "key_rejected" and request.api_key is None:
        kind = "no_key"
    status, name, reason, message = _REFUSALS[kind]
    shown = message.format(api_key=request.api_key, model=request.model)
    return error(status, name, reason, shown, request.retry_after)
