"""OpenAI's chat completions format: OpenAI, Groq, xAI, OpenRouter, custom and demo."""

from __future__ import annotations

from collections.abc import Iterator

from .chat import Turn, bad_end, last_message, take_turn
from .openai_errors import openai_error, refusal, refuse
from .wire import CREATED, EventStream, Reply, Request, answer_event, event, json_answer

MODELS = {
    "openai": ("gpt-4o-mini", "gpt-4o", "gpt-4.1-mini"),
    "groq": ("llama-3.3-70b-versatile", "openai/gpt-oss-20b"),
    "xai": ("grok-4", "grok-3-mini"),
    "openrouter": ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4.5"),
    "custom": ("local-small", "local-large"),
    "demo": ("demo-small", "demo-large"),
}

#: xAI answers 200 about these keys, and tells in the answer what is wrong with them.
_DESCRIBED_BY_XAI = ("good", "slow", "broke", "disabled", "blocked", "team_blocked")

DONE = b"data: [DONE]\n\n"


def answer(request: Request) -> Reply:
    """Answer one request to a provider of this format."""
    route = (request.method, request.path)
    if request.provider == "openrouter" and route == ("GET", "/models"):
        return _list_models(request)  # public: it answers 200 to anyone
    key_facts = request.provider == "xai" and route == ("GET", "/api-key")
    if key_facts and request.behaviour in _DESCRIBED_BY_XAI:
        return _xai_api_key(request)
    refused = refuse(request)
    if refused is not None:
        return refused
    if route == ("GET", "/models"):
        return _list_models(request)
    if request.provider == "openrouter" and route == ("GET", "/key"):
        return _openrouter_key()
    if route == ("POST", "/chat/completions"):
        return _chat(request)
    return openai_error(404, "Unknown request URL.", "invalid_request_error", "unknown_url")


def _list_models(request: Request) -> Reply:
    models = [
        {"id": model, "object": "model", "created": CREATED, "owned_by": request.provider}
        for model in MODELS[request.provider]
    ]
    return json_answer(200, {"object": "list", "data": models})


def _xai_api_key(request: Request) -> Reply:
    return json_answer(
        200,
        {
            "redacted_api_key": "xai-...0000",
            "name": "test key",
            "api_key_id": "00000000-0000-0000-0000-000000000000",
            "acls": ["api-key:model:*", "api-key:endpoint:*"],
            "api_key_blocked": request.behaviour == "blocked",
            "api_key_disabled": request.behaviour == "disabled",
            "team_blocked": request.behaviour == "team_blocked",
        },
    )


def _openrouter_key() -> Reply:
    facts = {"label": "test key", "limit": None, "limit_remaining": None, "usage": 0}
    return json_answer(200, {"data": {**facts, "is_free_tier": False}})


def _chat(request: Request) -> Reply:
    model = str(request.body.get("model", ""))
    messages = request.body.get("messages")
    if not model or not messages:
        message = "You must provide a model and messages."
        return openai_error(400, message, "invalid_request_error")
    turn = take_turn(request.provider, model, last_message(messages, "content"))
    if request.body.get("stream"):
        return EventStream(_stream(request, model, turn))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": turn.text},
        "finish_reason": "stop",
    }
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": CREATED}
    return json_answer(200, {**head, "model": model, "choices": [choice], "usage": _usage(turn)})


def _stream(request: Request, model: str, turn: Turn) -> Iterator[bytes]:
    if request.provider == "openrouter":
        yield b": OPENROUTER PROCESSING\n\n"
    yield _chunk(model, {"role": "assistant", "content": ""})
    for word in turn.words:
        yield _chunk(model, {"content": word})
    if turn.ending:
        yield answer_event(refusal(request, bad_end(request, turn.ending)))
        return
    yield _chunk(model, {}, finish_reason="stop")
    options = request.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield event({**_chunk_head(model), "choices": [], "usage": _usage(turn)})
    yield DONE


def _chunk_head(model: str) -> dict[str, object]:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": CREATED}
    return {**head, "model": model}


def _chunk(model: str, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({**_chunk_head(model), "choices": [choice]})


def _usage(turn: Turn) -> dict[str, int]:
    out = len(turn.words)
    return {
        "prompt_tokens": turn.tokens_in,
        "completion_tokens": out,
        "total_tokens": turn.tokens_in + out,
    }
