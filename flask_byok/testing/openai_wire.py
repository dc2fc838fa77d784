"""OpenAI's chat completions format, as OpenAI and all compatible providers speak it."""

from __future__ import annotations

from collections.abc import Iterator

from .chat import last_message, plan
from .refusals import check_success, refused
from .script import Script, ToolCall, converse
from .wire import CREATED, Answer, Reply, Request, answer_event, event, json_answer

MODELS = {
    "openai": ("gpt-4o-mini", "gpt-4o", "gpt-4.1-mini"),
    "groq": ("llama-3.3-70b-versatile", "openai/gpt-oss-20b"),
    "xai": ("grok-4", "grok-3-mini"),
    "openrouter": ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4.5"),
    "custom": ("local-small", "local-large"),
    "demo": ("demo-small", "demo-large"),
}

#: These call reasoning `reasoning`; the others `reasoning_content`, as DeepSeek began it.
_REASONING = ("groq", "openrouter")

DONE = b"data: [DONE]\n\n"


def answer(request: Request) -> Reply:
    """Answer one request to a provider of this format."""
    route = (request.method, request.path)
    if route == ("GET", "/models"):
        return _list_models(request)
    if route == ("POST", "/chat/completions"):
        return _chat(request)
    return check_success(request) or _error(404, "Unknown request URL.", "unknown_url")


def _error(status: int, message: str, code: str | None = None) -> Answer:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return json_answer(status, {"error": error})


def _list_models(request: Request) -> Reply:
    usual = (request.spec.default_model or "fake-small", "fake-large")
    models = [
        {"id": model, "object": "model", "created": CREATED, "owned_by": request.provider}
        for model in MODELS.get(request.provider, usual)
    ]
    alone = request.spec.check.good == "[]"
    return json_answer(200, models if alone else {"object": "list", "data": models})


def _chat(request: Request) -> Reply:
    messages = request.body.get("messages")
    if not request.model or not messages:
        return _error(400, "You must provide a model and messages.")
    script = plan(request, request.model, last_message(messages, "content"))
    streamed = bool(request.body.get("stream"))
    return converse(request, script, _Answer(request, script), streamed=streamed)


class _Answer:
    """One answer as a chat completion."""

    def __init__(self, request: Request, script: Script) -> None:
        self._request = request
        self._script = script
        self._calls = 0
        self._reasoning = "reasoning" if request.provider in _REASONING else "reasoning_content"
        self._text = "refusal" if script.finish == "refusal" else "content"

    def opening(self) -> Iterator[bytes]:
        if self._request.provider == "openrouter":
            yield b": OPENROUTER PROCESSING\n\n"
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, kind: str, value: str | ToolCall) -> Iterator[bytes]:
        if isinstance(value, str):
            yield self._chunk({self._text if kind == "text" else self._reasoning: value})
            return
        id, name, arguments = value
        yield self._call({"name": name, "arguments": ""}, id=id, type="function")
        half = len(arguments) // 2
        for part in (arguments[:half], arguments[half:]):
            yield self._call({"arguments": part})
        self._calls += 1

    def closing(self) -> Iterator[bytes]:
        if finish := self._script.finish_word("openai"):
            yield self._chunk({}, finish)
        options = self._request.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            yield event({**self._head("chat.completion.chunk"), "choices": [], **self._usage()})
        if self._script.done:
            yield DONE

    def error(self, kind: str) -> Iterator[bytes]:
        yield answer_event(refused(self._request, kind))

    def whole(self) -> Answer:
        script = self._script
        message: dict[str, object] = {"role": "assistant", "content": None}
        if script.texts:
            message[self._text] = script.text
        if script.reasoning:
            message[self._reasoning] = "".join(script.reasoning)
        if script.calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in script.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": script.finish_word("openai")}
        head = self._head("chat.completion")
        return json_answer(200, {**head, "choices": [choice], **self._usage()})

    def _head(self, kind: str) -> dict[str, object]:
        head = {"id": "chatcmpl-fake", "object": kind, "created": CREATED}
        return {**head, "model": self._request.model}

    def _chunk(self, delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _call(self, function: dict[str, str], **head: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": self._calls, **head, "function": function}]})

    def _usage(self) -> dict[str, object]:
        given, made = self._script.tokens
        numbers = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        return {"usage": numbers}
