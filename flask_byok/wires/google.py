"""Google's Gemini API.

Sources: https://ai.google.dev/api/generate-content, in https://ai.google.dev/gemini-api/docs the pages thinking,
thought-signatures and file-input-methods, and the types of its SDK.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from ..errors import InvalidFieldError
from .events import Reader, first, new_id, to_text
from .messages import (
    SIGNED,
    Call,
    Chat,
    Facts,
    Function,
    Image,
    Message,
    Part,
    Text,
    Tool,
    plain_id,
)

#: The model is part of the path, so it has nothing that ends or leaves its segment.
_MODEL = re.compile(r"(?:(models|tunedModels)/)?([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
#: OpenAI's words for an effort that Google has another word for.
_LEVELS = {"none": "MINIMAL", "max": "XHIGH"}
#: What Google documents for a call that another model made.
_UNSIGNED = "skip_thought_signature_validator"


def write(chat: Chat, facts: Facts) -> tuple[str, dict[str, Any]]:
    """Return path and body.

    :raises InvalidFieldError: something has no form in this API.
    """
    if not (named := _MODEL.fullmatch(chat.model)):
        raise InvalidFieldError("model is a name of letters, digits, dots and hyphens here.")
    params = chat.params
    body: dict[str, Any] = {"contents": list(_write_contents(chat.turns))}
    if chat.system:
        body["systemInstruction"] = {"parts": [{"text": chat.system}]}
    if config := _write_config(chat):
        body["generationConfig"] = config
    if params.functions:
        declared = [_write_function(function) for function in params.functions]
        body["tools"] = [{"functionDeclarations": declared}]
    if choice := params.tool_choice:
        mode = "ANY" if choice == "required" or isinstance(choice, Tool) else choice.upper()
        names = {"allowedFunctionNames": [choice.function.name]} if isinstance(choice, Tool) else {}
        body["toolConfig"] = {"functionCallingConfig": {"mode": mode, **names}}
    path = f"/v1beta/{named[1] or 'models'}/{named[2]}:streamGenerateContent?alt=sse"
    return path, body


def _write_config(chat: Chat) -> dict[str, Any]:
    names = {"max_tokens": "maxOutputTokens", "temperature": "temperature", "top_p": "topP"}
    config = {names[name]: chat.given[name] for name in names if name in chat.given}
    if chat.params.stops:
        config["stopSequences"] = chat.params.stops
    if (schema := chat.params.schema) is not None:
        config["responseMimeType"] = "application/json"
        if schema:
            config["responseJsonSchema"] = schema
    if effort := chat.params.reasoning_effort:
        level = _LEVELS.get(effort, effort.upper())
        config["thinkingConfig"] = {"thinkingLevel": level, "includeThoughts": effort != "none"}
    return config


def _write_contents(turns: Iterable[Message]) -> Iterator[dict[str, Any]]:
    """Yield the conversation. All results of one turn's calls belong into one content."""
    names: dict[str, str] = {}
    for role, run in groupby(turns, lambda turn: turn.role):
        parts: list[dict[str, Any]] = []
        for turn in run:
            if role == "tool":
                parts.append(_write_result(turn, names))
                continue
            parts += map(_write_part, turn.parts)
            calls = [_write_call(call) for call in turn.tool_calls or ()]
            if calls:
                calls[0].setdefault("thoughtSignature", _UNSIGNED)
            names |= {call.id: call.function.name for call in turn.tool_calls or ()}
            parts += calls
        yield {"role": "model" if role == "assistant" else "user", "parts": parts}


def _write_result(turn: Message, names: dict[str, str]) -> dict[str, Any]:
    if not (name := names.get(turn.tool_call_id)):
        raise InvalidFieldError("tool_call_id is the id of a call in a message before.")
    id, output = plain_id(turn.tool_call_id), {"output": turn.text}
    return {"functionResponse": {"id": id, "name": name, "response": output}}


def _write_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    if not isinstance(part, Image):
        kind, data = f"audio/{part.input_audio.format}", part.input_audio.data
    elif part.inline:
        kind, data = part.inline
    else:
        guessed = mimetypes.guess_type(part.image_url.url.partition("?")[0])[0]
        known = {"mimeType": guessed} if guessed else {}
        return {"fileData": {"fileUri": part.image_url.url, **known}}
    return {"inlineData": {"mimeType": kind, "data": data}}


def _write_call(call: Call) -> dict[str, Any]:
    id, _, signature = call.id.partition(SIGNED)
    made = {"id": id, "name": call.function.name, "args": call.read_arguments()}
    return {"functionCall": made, **({"thoughtSignature": signature} if signature else {})}


def _write_function(function: Function) -> dict[str, Any]:
    more = {"description": function.description, "parametersJsonSchema": function.parameters}
    return {"name": function.name, **{name: value for name, value in more.items() if value}}


class GoogleReader(Reader):
    """Reads ``GenerateContentResponse`` objects."""

    # Thoughts are paid for as output, results of tools that ran at Google as input.
    input_names = ("promptTokenCount", "toolUsePromptTokenCount")
    output_names = ("candidatesTokenCount", "thoughtsTokenCount")

    def read(self, data: dict[str, Any]) -> None:
        """Say the texts of one object."""
        self._note_usage(data.get("usageMetadata"))
        feedback, candidate = data.get("promptFeedback"), first(data.get("candidates"))
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self._finish("content_filter")
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                self._read_part(part)
        self._finish(candidate.get("finishReason"))

    def _read_part(self, part: dict[str, Any]) -> None:
        self._say("reasoning" if part.get("thought") is True else "text", part.get("text"))
        if isinstance(function := part.get("functionCall"), dict):
            id = to_text(function.get("id")) or new_id()
            if signature := to_text(part.get("thoughtSignature")):
                id += SIGNED + signature
            call = self._open_call(None, id, function.get("name"))
            self._add_arguments(call, function.get("args"))
