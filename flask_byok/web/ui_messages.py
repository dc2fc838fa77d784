"""The AI SDK's messages, which ``useChat`` sends, in OpenAI's words.

Source: https://ai-sdk.dev/docs/reference/ai-sdk-core/ui-message and ``convertToModelMessages`` of the package ``ai``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from ..errors import InvalidFieldError

Message = Mapping[str, Any]


def read_messages(messages: Iterable[Any]) -> list[Message]:
    """Return messages in OpenAI's words; those with ``parts`` are the AI SDK's, the others stay as they are.

    Of the parts texts, images, sounds and finished tool calls count; reasoning, sources and data are left out.

    :raises InvalidFieldError: a part has no form in OpenAI's messages.
    """
    read: list[Message] = []
    for message in messages:
        parts = message.get("parts") if isinstance(message, Mapping) else None
        if not isinstance(parts, list) or "content" in message:
            read.append(message)
        elif message.get("role") == "assistant":
            read += _read_answer(parts)
        else:
            content = [_read_part(part) for part in parts if _kind(part) in ("text", "file")]
            read.append({"role": message.get("role"), "content": content})
    return read


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _is_call(part: Any) -> bool:
    return _kind(part) == "dynamic-tool" or _kind(part).startswith("tool-")


def _read_answer(parts: list[Any]) -> Iterator[Message]:
    """Yield an answer's steps: texts with the calls that follow them, and the calls' results."""
    texts, read = "", [part for part in parts if _kind(part) == "text" or _is_call(part)]
    for are_calls, run in groupby(read, _is_call):
        if not are_calls:
            texts = "\n\n".join(part["text"] for part in run if isinstance(part.get("text"), str))
        elif calls := [part for part in run if _result(part) is not None]:
            made = list(map(_read_call, calls))
            yield {"role": "assistant", "content": texts, "tool_calls": made}
            for call in calls:
                id, result = call.get("toolCallId"), _result(call)
                yield {"role": "tool", "tool_call_id": id, "content": result}
            texts = ""
    if texts:
        yield {"role": "assistant", "content": texts}


def _read_call(part: Mapping[str, Any]) -> dict[str, Any]:
    name = part.get("toolName") or _kind(part).removeprefix("tool-")
    function = {"name": name, "arguments": _dump(part.get("input") or {})}
    return {"id": part.get("toolCallId"), "type": "function", "function": function}


def _result(part: Mapping[str, Any]) -> str | None:
    """Return a call's result as text; None as long as it has none."""
    match part.get("state"):
        case "output-available":
            output = part.get("output")
            return output if isinstance(output, str) else _dump(output)
        case "output-error":
            return str(part.get("errorText"))
    return None


def _read_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if _kind(part) == "text":
        return {"type": "text", "text": part.get("text")}
    kind, url = str(part.get("mediaType")), str(part.get("url"))
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    head, _, data = url.partition(";base64,")
    if kind.startswith("audio/") and data:
        form = {"mpeg": "mp3", "x-wav": "wav"}.get(found := head.rpartition("/")[2], found)
        return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
    text = "A file in a message is an image, or a sound in a data: URL. Its mediaType says which."
    raise InvalidFieldError(text)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
