"""Google's Gemini API format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from .chat import last_message, plan
from .refusals import check_success, refused
from .script import Script, ToolCall, converse
from .wire import Answer, Reply, Request, answer_event, event, json_answer

MODELS = {"gemini-2.5-flash": "Gemini 2.5 Flash", "gemini-2.5-pro": "Gemini 2.5 Pro"}

# Vertex has the same below a project and a location.
_GENERATE = re.compile(
    r"/v1(?:beta\d?)?(?:/[^:]+)?/models/[^/:]+:(generateContent|streamGenerateContent)"
)


def answer(request: Request) -> Reply:
    """Answer one request to a provider of this format."""
    if request.method == "GET" and request.path in ("/v1beta/models", "/v1/models"):
        return _list_models(request)
    generate = _GENERATE.fullmatch(request.path)
    if request.method == "POST" and generate:
        return _chat(request, streamed=generate[1] == "streamGenerateContent")
    missing = _error(404, "NOT_FOUND", "Requested entity was not found.")
    return check_success(request) or missing


def _error(status: int, name: str, message: str) -> Answer:
    return json_answer(status, {"error": {"code": status, "message": message, "status": name}})


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


def _chat(request: Request, *, streamed: bool) -> Reply:
    if streamed and request.query.get("alt") != "sse":
        text = "This server streams with alt=sse only."
        return _error(400, "INVALID_ARGUMENT", text)
    script = plan(request, request.model, last_message(request.body.get("contents"), "parts"))
    return converse(request, script, _Answer(request, script), streamed=streamed)


class _Answer:
    """One answer as generated content."""

    def __init__(self, request: Request, script: Script) -> None:
        self._request = request
        self._script = script

    def opening(self) -> Iterator[bytes]:
        return iter(())

    def piece(self, kind: str, value: str | ToolCall) -> Iterator[bytes]:
        yield event(self._content([_part(kind, value)]))

    def closing(self) -> Iterator[bytes]:
        if finish := self._script.finish_word("google"):
            yield event({**self._content([_part("text", "")], finish), **self._usage()})

    def error(self, kind: str) -> Iterator[bytes]:
        yield answer_event(refused(self._request, kind))

    def whole(self) -> Answer:
        parts = [_part(kind, value) for kind, value in self._script.pieces if kind != "text"]
        if self._script.texts:
            parts.append(_part("text", self._script.text))
        content = self._content(parts, self._script.finish_word("google"))
        return json_answer(200, {**content, **self._usage()})

    def _content(
        self, parts: list[dict[str, object]], finish_reason: str | None = None
    ) -> dict[str, object]:
        content = {"role": "model", "parts": parts}
        candidate: dict[str, object] = {"content": content, "index": 0}
        if finish_reason:
            candidate["finishReason"] = finish_reason
        facts = {"modelVersion": self._request.model, "responseId": "fake"}
        return {"candidates": [candidate], **facts}

    def _usage(self) -> dict[str, object]:
        given, made = self._script.tokens
        numbers = {"promptTokenCount": given, "candidatesTokenCount": made}
        return {"usageMetadata": {**numbers, "totalTokenCount": given + made}}


def _part(kind: str, value: str | ToolCall) -> dict[str, object]:
    if not isinstance(value, str):
        id, name, arguments = value
        return {"functionCall": {"id": id, "name": name, "args": json.loads(arguments)}}
    return {"text": value, "thought": True} if kind == "reasoning" else {"text": value}
