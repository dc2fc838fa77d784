"""Google's Gemini API format."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .chat import Turn, bad_end, last_message, take_turn
from .wire import Answer, EventStream, Reply, Request, answer_event, event, json_answer

MODELS = {"gemini-2.5-flash": "Gemini 2.5 Flash", "gemini-2.5-pro": "Gemini 2.5 Pro"}
HOST = "generativelanguage.googleapis.com"

#: HTTP status, google.rpc status, reason of the ErrorInfo (or none), message.
_REFUSALS = {
    "bad": (
        400,
        "INVALID_ARGUMENT",
        "API_KEY_INVALID",
        "API key not valid. Please pass a valid API key.",
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
    "disabled": (403, "PERMISSION_DENIED", "CONSUMER_SUSPENDED", "Permission denied: suspended."),
    "broke": (429, "RESOURCE_EXHAUSTED", "", "Your prepayment credits are depleted."),
    "rate_limited": (429, "RESOURCE_EXHAUSTED", "", "Resource has been exhausted (check quota)."),
    "overloaded": (503, "UNAVAILABLE", "", "The model is overloaded. Please try again later."),
}
_SAME = {"blocked": "disabled", "team_blocked": "disabled"}

_GENERATE = re.compile(r"/v1(?:beta)?/models/([^/:]+):(generateContent|streamGenerateContent)")


def answer(request: Request) -> Reply:
    """Answer one request to generativelanguage.googleapis.com."""
    refused = refuse(request)
    if refused is not None:
        return refused
    if request.method == "GET" and request.path in ("/v1beta/models", "/v1/models"):
        return _list_models(request)
    generate = _GENERATE.fullmatch(request.path)
    if request.method == "POST" and generate:
        return _chat(request, generate[1], streamed=generate[2] == "streamGenerateContent")
    return error(404, "NOT_FOUND", "", "Requested entity was not found.")


def error(status: int, name: str, reason: str, message: str) -> Answer:
    """Build Google's error object, with the reason, if any, in an ErrorInfo."""
    body: dict[str, object] = {"code": status, "message": message, "status": name}
    if reason:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
        localized = {
            "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
            "locale": "en-US",
            "message": message,
        }
        metadata = {"service": HOST}
        body["details"] = [{**info, "domain": "googleapis.com", "metadata": metadata}, localized]
    return json_answer(status, {"error": body})


def refuse(request: Request) -> Answer | None:
    """Answer for the key's behaviour, or None if the key may go on."""
    if request.api_key is None:
        message = "Method doesn't allow unregistered callers."
        return error(403, "PERMISSION_DENIED", "", message)
    kind = _SAME.get(request.behaviour, request.behaviour)
    return _refusal(request, kind) if kind in _REFUSALS else None


def _refusal(request: Request, kind: str) -> Answer:
    status, name, reason, message = _REFUSALS[kind]
    if reason == "CONSUMER_SUSPENDED":  # the real text repeats the key
        message = f"Permission denied: Consumer 'api_key:{request.api_key}' has been suspended."
    return error(status, name, reason, message)


def _list_models(request: Request) -> Reply:
    """List the models; `pageSize` and `pageToken` (an index) page through them."""
    models = [
        {
            "name": f"models/{model}",
            "displayName": name,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }
        for model, name in MODELS.items()
    ]
    start = _number(request, "pageToken", 0)
    end = start + _number(request, "pageSize", 50)
    page: dict[str, object] = {"models": models[start:end]}
    if end < len(models):
        page["nextPageToken"] = str(end)
    return json_answer(200, page)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    return int(text) if text.isdecimal() else default


def _chat(request: Request, model: str, *, streamed: bool) -> Reply:
    message = last_message(request.body.get("contents"), "parts")
    turn = take_turn(request.provider, model, message)
    if streamed and request.query.get("alt") != "sse":
        text = "This server streams with alt=sse only."
        return error(400, "INVALID_ARGUMENT", "", text)
    if streamed:
        return EventStream(_stream(request, model, turn))
    return json_answer(200, {**_part(model, turn.text, "STOP"), "usageMetadata": _usage(turn)})


def _stream(request: Request, model: str, turn: Turn) -> Iterator[bytes]:
    for word in turn.words:
        yield event(_part(model, word))
    if turn.ending:
        yield answer_event(_refusal(request, bad_end(request, turn.ending)))
        return
    yield event({**_part(model, "", "STOP"), "usageMetadata": _usage(turn)})


def _part(model: str, text: str, finish_reason: str | None = None) -> dict[str, object]:
    candidate: dict[str, object] = {
        "content": {"role": "model", "parts": [{"text": text}]},
        "index": 0,
    }
    if finish_reason:
        candidate["finishReason"] = finish_reason
    return {"candidates": [candidate], "modelVersion": model, "responseId": "fake"}


def _usage(turn: Turn) -> dict[str, int]:
    out = len(turn.words)
    return {
        "promptTokenCount": turn.tokens_in,
        "candidatesTokenCount": out,
        "totalTokenCount": turn.tokens_in + out,
    }
