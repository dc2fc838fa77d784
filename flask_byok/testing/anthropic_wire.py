"""Anthropic's messages format."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .chat import last_message, plan
from .refusals import check_success, refused
from .script import Script, ToolCall, converse, is_object
from .wire import Answer, Reply, Request, answer_event, event, json_answer

MODELS = {"claude-sonnet-4-5": "Claude Sonnet 4.5", "claude-haiku-4-5": "Claude Haiku 4.5"}


def answer(request: Request) -> Reply:
    """Answer one request to a provider of this format."""
    incomplete = _incomplete(request)
    if incomplete is not None:
        return incomplete
    route = (request.method, request.path)
    if route == ("GET", "/v1/models"):
        return _list_models(request)
    if route == ("POST", "/v1/messages"):
        return _chat(request)
    return check_success(request) or _error(404, "not_found_error", "Not found")


def _incomplete(request: Request) -> Answer | None:
    """Refuse what the real service refuses too, so that a client's omission is seen."""
    if "anthropic-version" not in request.headers:
        return _error(400, "invalid_request_error", "anthropic-version: header is required")
    if request.method == "POST" and "max_tokens" not in request.body:
        return _error(400, "invalid_request_error", "max_tokens: Field required")
    return None


def _error(status: int, kind: str, message: str) -> Answer:
    return json_answer(status, {"type": "error", "error": {"type": kind, "message": message}})


def _list_models(request: Request) -> Reply:
    usual = {request.spec.default_model or "fake-small": "Fake small", "fake-large": "Fake large"}
    models = [
        {
            "type": "model",
            "id": model,
            "display_name": name,
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
        }
        for model, name in (MODELS if request.provider == "anthropic" else usual).items()
    ]
    page = {"first_id": models[0]["id"], "last_id": models[-1]["id"], "has_more": False}
    return json_answer(200, {"data": models, **page})


def _chat(request: Request) -> Reply:
    script = plan(request, request.model, last_message(request.body.get("messages"), "content"))
    streamed = bool(request.body.get("stream"))
    return converse(request, script, _Answer(request, script), streamed=streamed)


class _Answer:
    """One answer as a message; in a stream as blocks of thinking, of text and of tool calls."""

    def __init__(self, request: Request, script: Script) -> None:
        self._request = request
        self._script = script
        #: The open block's kind, and its number.
        self._open = ""
        self._index = -1

    def opening(self) -> Iterator[bytes]:
        yield _event("message_start", message=self._message([], None, 0))
        yield _event("ping")

    def piece(self, kind: str, value: str | ToolCall) -> Iterator[bytes]:
        if not isinstance(value, str):
            yield from self._tool_call(value)
        elif kind == "text":
            yield from self._begin("text", text="")
            yield self._delta("text_delta", text=value)
        else:
            yield from self._begin("thinking", thinking="", signature="")
            yield self._delta("thinking_delta", thinking=value)

    def closing(self) -> Iterator[bytes]:
        yield from self._end()
        if finish := self._script.finish_word("anthropic"):
            delta = {"stop_reason": finish, "stop_sequence": None}
            usage = {"output_tokens": self._script.tokens[1]}
            yield _event("message_delta", delta=delta, usage=usage)
        if self._script.done:
            yield _event("message_stop")

    def error(self, kind: str) -> Iterator[bytes]:
        yield answer_event(refused(self._request, kind), "error")

    def whole(self) -> Answer:
        script, content = self._script, list[dict[str, object]]()
        if script.reasoning:
            thinking = "".join(script.reasoning)
            content.append({"type": "thinking", "thinking": thinking, "signature": "fake"})
        if script.texts:
            content.append({"type": "text", "text": script.text})
        for id, name, arguments in script.calls:
            given = json.loads(arguments) if is_object(arguments) else {}
            content.append({"type": "tool_use", "id": id, "name": name, "input": given})
        finish = script.finish_word("anthropic")
        return json_answer(200, self._message(content, finish, script.tokens[1]))

    def _tool_call(self, call: ToolCall) -> Iterator[bytes]:
        id, name, arguments = call
        yield from self._end()
        yield from self._begin("tool_use", id=id, name=name, input={})
        half = len(arguments) // 2
        for part in (arguments[:half], arguments[half:]):
            yield self._delta("input_json_delta", partial_json=part)
        yield from self._end()

    def _begin(self, kind: str, **block: object) -> Iterator[bytes]:
        """Open a block, unless one of its kind is open."""
        if self._open != kind:
            yield from self._end()
            self._open, self._index = kind, self._index + 1
            start = {"type": kind, **block}
            yield _event("content_block_start", index=self._index, content_block=start)

    def _end(self) -> Iterator[bytes]:
        """Close the open block, if there is one."""
        if self._open == "thinking":
            yield self._delta("signature_delta", signature="fake")
        if self._open:
            yield _event("content_block_stop", index=self._index)
        self._open = ""

    def _delta(self, kind: str, **delta: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **delta})

    def _message(
        self, content: list[dict[str, object]], stop_reason: str | None, out: int
    ) -> dict[str, object]:
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": self._request.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {"input_tokens": self._script.tokens[0], "output_tokens": out},
        }


def _event(name: str, **data: object) -> bytes:
    return event({"type": name, **data}, name)
