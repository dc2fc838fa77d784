"""Anthropic's messages.

Sources: https://platform.claude.com/docs/en/api/messages, in …/docs/en/build-with-claude the pages streaming, thinking,
effort and structured-outputs, and the types of its SDK. Written for version 2023-06-01 of the API, which both older and
newer models have.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ..errors import InvalidFieldError
from .events import Reader
from .messages import Chat, Facts, Function, Image, Message, Part, Text, Tool, plain_id, refuse

#: Longest answer in tokens if nothing says more. The API demands a limit; every current model can do this one.
MAX_TOKENS = 4096


def write(chat: Chat, facts: Facts) -> tuple[str, dict[str, Any]]:
    """Return path and body.

    :raises InvalidFieldError: something has no form in this API.
    """
    params = chat.params
    body: dict[str, Any] = {"model": chat.model, "stream": True}
    body["max_tokens"] = params.max_tokens or facts.max_output or MAX_TOKENS
    if chat.system:
        body["system"] = chat.system
    # All results of one turn's tools belong into one message.
    runs = groupby(chat.turns, lambda turn: "assistant" if turn.role == "assistant" else "user")
    body["messages"] = [
        {"role": role, "content": [block for turn in run for block in _write_turn(turn)]}
        for role, run in runs
    ]
    # The newest models refuse both, as OpenAI's do; the provider's answer says so.
    body |= {n: chat.given[n] for n in ("temperature", "top_p") if n in chat.given}
    if params.stops:
        body["stop_sequences"] = params.stops
    if params.functions:
        body["tools"] = [_write_function(function) for function in params.functions]
    if isinstance(params.tool_choice, Tool):
        body["tool_choice"] = {"type": "tool", "name": params.tool_choice.function.name}
    elif params.tool_choice:
        body["tool_choice"] = {"type": params.tool_choice.replace("required", "any")}
    output: dict[str, Any] = {}
    if params.reasoning_effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif effort := params.reasoning_effort:
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
        output["effort"] = effort.replace("minimal", "low")
    if (schema := params.schema) is not None:
        if not schema:
            raise InvalidFieldError("response_format needs a json_schema with this provider.")
        output["format"] = {"type": "json_schema", "schema": schema}
    if output:
        body["output_config"] = output
    return "/v1/messages", body


def _write_turn(turn: Message) -> list[dict[str, Any]]:
    blocks = [_write_part(part) for part in turn.parts]
    if turn.role == "tool":
        return [
            {"type": "tool_result", "tool_use_id": plain_id(turn.tool_call_id), "content": blocks}
        ]
    for call in turn.tool_calls or ():
        called = {"id": plain_id(call.id), "name": call.function.name}
        blocks.append({"type": "tool_use", **called, "input": call.read_arguments()})
    return blocks


def _write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if not isinstance(part, Image):
        raise refuse(part)
    if part.inline:
        source = dict(zip(("media_type", "data"), part.inline, strict=True))
        return {"type": "image", "source": {"type": "base64", **source}}
    return {"type": "image", "source": {"type": "url", "url": part.image_url.url}}


def _write_function(function: Function) -> dict[str, Any]:
    schema = function.parameters or {"type": "object", "properties": {}}
    more = {"description": function.description, "strict": function.strict}
    kept = {name: value for name, value in more.items() if value is not None}
    return {"name": function.name, "input_schema": schema, **kept}


class AnthropicReader(Reader):
    """Reads the events of a streamed message."""

    # Three parts of the whole input. Later events have totals.
    input_names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    output_names = ("output_tokens",)

    def read(self, data: dict[str, Any]) -> None:
        """Say the texts of one event."""
        kind, delta, index = data.get("type"), data.get("delta"), data.get("index")
        index = index if isinstance(index, int) else None
        if isinstance(block := data.get("content_block"), dict):
            self._open.pop(index, None)
            if block.get("type") == "tool_use":
                begun = self._open_call(index, block.get("id"), block.get("name"))
                self._add_arguments(begun, block.get("input") or "")
            self._say_texts(block)
        elif isinstance(message := data.get("message"), dict):
            self._note_usage(message.get("usage"))
        elif kind == "message_stop":
            self.ended = self.over = True
        elif kind == "message_delta":
            self._note_usage(data.get("usage"))
            self._finish(delta.get("stop_reason") if isinstance(delta, dict) else None)
        elif isinstance(delta, dict):
            self._say_texts(delta)
            if (call := self._open.get(index)) and (piece := delta.get("partial_json")):
                self._add_arguments(call, piece)

    def _say_texts(self, block: dict[str, Any]) -> None:
        self._say("text", block.get("text"))
        self._say("reasoning", block.get("thinking"))
