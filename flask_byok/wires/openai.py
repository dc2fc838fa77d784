"""OpenAI's chat completions, also of the many servers that are nearly compatible.

Sources: https://platform.openai.com/docs/api-reference/chat-streaming and the types of its SDK; for further fields
and ends the documents of Groq, Mistral, DeepSeek, MiniMax, Z.ai, vLLM and Text Generation Inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .events import Reader, Said, first, to_text
from .messages import Chat, Facts, plain_id


def write(chat: Chat, facts: Facts) -> tuple[str, dict[str, Any]]:
    """Return path and body. Messages and parameters go out as they were given, but for signatures of Google's."""
    body: dict[str, Any] = {"model": chat.model, "stream": True}
    body["messages"] = [_write_message(message) for message in chat.messages]
    if facts.asks_usage:
        body["stream_options"] = {"include_usage": True}
    names = {"max_tokens": facts.limit_name}
    body |= {names.get(name, name): v for name, v in chat.given.items() if name != "extra"}
    return "/chat/completions", body


def _write_message(message: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(message)
    if calls := made.get("tool_calls"):
        made["tool_calls"] = [{**call, "id": plain_id(call["id"])} for call in calls]
    if id := made.get("tool_call_id"):
        made["tool_call_id"] = plain_id(id)
    return made


class OpenAIReader(Reader):
    """Reads ``chat.completion.chunk`` objects."""

    input_names, output_names = ("prompt_tokens",), ("completion_tokens",)
    _deltas = False
    _refused = False

    def read(self, data: dict[str, Any]) -> None:
        """Say the texts of one chunk."""
        if usage := data.get("usage") or data.get("x_groq"):
            self._note_usage(usage.get("usage", usage) if isinstance(usage, dict) else None)
        choice = first(data.get("choices"))
        if not choice:
            return
        delta = choice.get("delta")
        if delta:
            self._deltas = True
        elif not self._deltas:
            delta = choice.get("message")  # after deltas, it repeats the whole
        if isinstance(delta, dict):
            self._read_delta(delta)
        if reason := choice.get("finish_reason"):
            self._finish("refusal" if self._refused and reason == "stop" else reason)

    def done(self) -> None:
        """End the stream. Some servers send this mark and no finish reason."""
        self.over = self.ended = self.begun
        if self._refused and not self._reason:
            self._finish("refusal")

    def _note_usage(self, usage: Any) -> None:
        """Note the numbers; the Responses API, images and sounds have newer names for them."""
        if isinstance(usage, dict):
            sent, made = usage.get("input_tokens"), usage.get("output_tokens")
            super()._note_usage({"prompt_tokens": sent, "completion_tokens": made, **usage})

    def _say(self, kind: Said, content: Any) -> None:
        """Say a text, or the texts of a list of parts; Mistral's reasoning is a part with a list of its own."""
        if isinstance(content, list):
            for part in content:
                self._say(kind, part)
        elif isinstance(content, dict):
            self._say(kind, content.get("text"))
            self._say("reasoning", content.get("thinking"))
        else:
            super()._say(kind, content)

    def _read_delta(self, delta: dict[str, Any]) -> None:
        self._say("reasoning", delta.get("reasoning_content") or delta.get("reasoning"))
        self._say("text", delta.get("content"))
        if refusal := to_text(delta.get("refusal")):
            self._refused = True
            self._say("text", refusal)
        if calls := delta.get("tool_calls") or delta.get("function_call"):
            for call in calls if isinstance(calls, list) else [{"function": calls}]:
                if isinstance(call, dict) and isinstance(call.get("function"), dict):
                    self._read_call(call.get("index"), call.get("id"), call["function"])

    def _read_call(self, index: Any, id: Any, function: dict[str, Any]) -> None:
        """Add a piece to the call with its index, or without an index to the last one.

        A name with another id begins a call, whatever the index is: some servers number all of them 0. So does a name
        without id and index.
        """
        index, name = index if isinstance(index, int) else None, to_text(function.get("name"))
        call = self._open.get(index)
        if call is None or (name and (id != call.id if id else index is None)):
            call = self._open_call(index, id, name)
        self._open[None] = call
        call.name = call.name or name
        self._add_arguments(call, function.get("arguments"))
