"""Anthropic's messages format."""

from __future__ import annotations

from collections.abc import Iterator

from .chat import Turn, bad_end, last_message, take_turn
from .wire import Answer, EventStream, Reply, Request, answer_event, event, json_answer

MODELS = {"claude-sonnet-4-5": "Claude Sonnet 4.5", "claude-haiku-4-5": "Claude Haiku 4.5"}

#: Status, type and message, as in Anthropic's error reference; 529 is its own status.
_REFUSALS = {
    "bad": (401, "authentication_error", "invalid x-api-key"),
    "restricted": (403, "permission_error", "Your API key may not use this resource."),
    "broke": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please purchase credits.",
    ),
    "rate_limited": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "disabled": (400, "invalid_request_error", "This organization has been disabled."),
    "overloaded": (529, "overloaded_error", "Overloaded"),
}
_SAME = {"service_disabled": "restricted", "blocked": "disabled", "team_blocked": "disabled"}


def answer(request: Request) -> Reply:
    """Answer one request to api.anthropic.com."""
    refused = refuse(request) or _incomplete(request)
    if refused is not None:
        return refused
    route = (request.method, request.path)
    if route == ("GET", "/v1/models"):
        return _list_models()
    if route == ("POST", "/v1/messages"):
        return _chat(request)
    return error(404, "not_found_error", "Not found")


def error(status: int, kind: str, message: str, **headers: str) -> Answer:
    """Build Anthropic's error object."""
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return json_answer(status, {**body, "request_id": "req_fake"}, **headers)


def refuse(request: Request) -> Answer | None:
    """Answer for the key's behaviour, or None if the key may go on."""
    if request.api_key is None:
        return error(401, "authentication_error", "x-api-key header is required")
    kind = _SAME.get(request.behaviour, request.behaviour)
    return _refusal(kind) if kind in _REFUSALS else None


def _refusal(kind: str) -> Answer:
    status, error_type, message = _REFUSALS[kind]
    headers = {"Retry_After": "1"} if kind == "rate_limited" else {}
    return error(status, error_type, message, **headers)


def _incomplete(request: Request) -> Answer | None:
    """Refuse what the real service refuses too, so that a client's omission is seen."""
    if "anthropic-version" not in request.headers:
        return error(400, "invalid_request_error", "anthropic-version: header is required")
    if request.method == "POST" and "max_tokens" not in request.body:
        return error(400, "invalid_request_error", "max_tokens: Field required")
    return None


def _list_models() -> Reply:
    models = [
        {
            "type": "model",
            "id": model,
            "display_name": name,
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
        }
        for model, name in MODELS.items()
    ]
    page = {"first_id": models[0]["id"], "last_id": models[-1]["id"], "has_more": False}
    return json_answer(200, {"data": models, **page})


def _chat(request: Request) -> Reply:
    model = str(request.body.get("model", ""))
    message = last_message(request.body.get("messages"), "content")
    turn = take_turn(request.provider, model, message)
    if request.body.get("stream"):
        return EventStream(_stream(request, model, turn))
    content = [{"type": "text", "text": turn.text}]
    whole = _message(model, turn, content=content, stop_reason="end_turn", out=len(turn.words))
    return json_answer(200, whole)


def _stream(request: Request, model: str, turn: Turn) -> Iterator[bytes]:
    start = _message(model, turn, content=[], stop_reason=None, out=0)
    yield _event("message_start", message=start)
    block = {"type": "text", "text": ""}
    yield _event("content_block_start", index=0, content_block=block)
    yield _event("ping")
    for word in turn.words:
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    if turn.ending:
        yield answer_event(_refusal(bad_end(request, turn.ending)), "error")
        return
    yield _event("content_block_stop", index=0)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=delta, usage={"output_tokens": len(turn.words)})
    yield _event("message_stop")


def _message(
    model: str, turn: Turn, *, content: list[dict[str, str]], stop_reason: str | None, out: int
) -> dict[str, object]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": turn.tokens_in, "output_tokens": out},
    }


def _event(name: str, **data: object) -> bytes:
    return event({"type": name, **data}, name)
