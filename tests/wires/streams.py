"""Streams of the three wires as providers send them, short enough to cut at every byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flask_byok.errors import StreamIncompleteError
from flask_byok.wires import WIRES
from flask_byok.wires.events import ErrorInStream, Reader, StreamEvent, read_events

Events = list[StreamEvent]


@dataclass(frozen=True)
class Stream:
    """A whole answer.

    :param frames: what each event's bytes are.
    :param mark: index of the frame with the first end mark.
    """

    name: str
    wire: str
    frames: list[bytes]
    mark: int
    events: Events = field(default_factory=list)

    @property
    def whole(self) -> bytes:
        return b"".join(self.frames)

    @property
    def marked(self) -> int:
        """How many bytes there are when the end mark is complete."""
        before = sum(map(len, self.frames[: self.mark]))
        return before + len(self.frames[self.mark].rstrip(b"\r\n"))


def text(*texts: str) -> Events:
    return [StreamEvent("text", piece) for piece in texts]


def call(id: str, name: str, arguments: str) -> StreamEvent:
    return StreamEvent("tool_call", id=id, name=name, arguments=arguments)


def usage(sent: int, made: int) -> StreamEvent:
    return StreamEvent("usage", input_tokens=sent, output_tokens=made)


def finish(reason: str) -> StreamEvent:
    return StreamEvent("finish", reason=reason)


def read(pieces: bytes | Iterable[bytes | None], wire: str = "openai") -> Events:
    """Return all events; the errors pass."""
    given = [pieces] if isinstance(pieces, bytes) else pieces
    return number(event for event in read_events(given, WIRES[wire].reader()) if event is not None)


def number(events: Iterable[StreamEvent]) -> Events:
    """Return the events with made up ids numbered, so that they can be compared."""
    made: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return made.setdefault(found[0], f"call_{len(made)}")

    return [msgspec.structs.replace(e, id=re.sub("call_[0-9a-f]{16}", name, e.id)) for e in events]


def read_until_error(
    pieces: bytes | Iterable[bytes | None], wire: str, reader: Reader | None = None
) -> tuple[Events, str]:
    """Return the events, and the name of the error after them or nothing. Other errors than the two pass."""
    given = [pieces] if isinstance(pieces, bytes) else pieces
    events: Events = []
    try:
        for event in read_events(given, reader or WIRES[wire].reader()):
            if event is not None:
                events.append(event)
    except (StreamIncompleteError, ErrorInStream) as error:
        return number(events), type(error).__name__
    return number(events), ""


def data(value: Any, name: str = "") -> bytes:
    """Return one event; half a character is written as an escape."""
    head = f"event: {name}\n" if name else ""
    written = json.dumps(value, ensure_ascii=False)
    return f"{head}data: {written}\n\n".encode(errors="backslashreplace")


DONE = b"data: [DONE]\n\n"


def chunk(delta: Any, finish_reason: Any = None, **more: Any) -> bytes:
    """Return a chunk of OpenAI's."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return data({"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more})


def piece(index: int, arguments: str, id: str | None = None, name: str | None = None) -> bytes:
    """Return a chunk with a piece of a tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    entry = {"index": index, "function": function} | ({"id": id, "type": "function"} if id else {})
    return chunk({"tool_calls": [entry]})


def _openai(name: str, frames: list[bytes], mark: int, *events: StreamEvent) -> Stream:
    begin = chunk({"role": "assistant", "content": ""})
    return Stream(f"openai-{name}", "openai", [begin, *frames], mark + 1, list(events))


USED = data({"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})

OPENAI = [
    _openai(
        "stop",
        [chunk({"content": "Grüße "}), chunk({"content": "🌍"}), chunk({}, "stop"), USED, DONE],
        2,
        *text("Grüße ", "🌍"),
        usage(9, 3),
        finish("stop"),
    ),
    *(
        _openai(
            given,
            [chunk({"content": "Half"}), chunk({}, given), DONE],
            1,
            *text("Half"),
            finish(reason),
        )
        for given, reason in [
            ("length", "length"),
            ("content_filter", "content_filter"),
            ("eos_token", "stop"),
            ("something_new", "other"),
        ]
    ),
    _openai(
        "tool_calls",
        [
            chunk({"content": "Let me see."}),
            piece(0, "", "call_a", "weather"),
            piece(0, '{"city":'),
            piece(1, "", "call_b", "clock"),
            piece(0, '"Bonn"}'),
            piece(1, "{}"),
            chunk({}, "tool_calls"),
            DONE,
        ],
        6,
        *text("Let me see."),
        call("call_a", "weather", '{"city":"Bonn"}'),
        call("call_b", "clock", "{}"),
        finish("tool_calls"),
    ),
    _openai(
        "refusal",
        [chunk({"refusal": "I can"}), chunk({"refusal": "not."}), chunk({}, "stop"), DONE],
        2,
        *text("I can", "not."),
        finish("refusal"),
    ),
    _openai(
        "reasoning",
        [chunk({"reasoning_content": "Hm."}), chunk({"content": "4"}), chunk({}, "stop"), DONE],
        2,
        StreamEvent("reasoning", "Hm."),
        *text("4"),
        finish("stop"),
    ),
    _openai("done-only", [chunk({"content": "Hi"}), DONE], 1, *text("Hi"), finish("other")),
]


def _anthropic(name: str, frames: list[bytes], mark: int, *events: StreamEvent) -> Stream:
    counts = {"input_tokens": 4, "cache_read_input_tokens": 100, "output_tokens": 1}
    begin = data(
        {"type": "message_start", "message": {"content": [], "usage": counts}}, "message_start"
    )
    return Stream(f"anthropic-{name}", "anthropic", [begin, *frames], mark + 1, list(events))


def block(index: int, **content: Any) -> bytes:
    named = {"type": "content_block_start", "index": index, "content_block": content}
    return data(named, "content_block_start")


def delta(index: int, **change: Any) -> bytes:
    named = {"type": "content_block_delta", "index": index, "delta": change}
    return data(named, "content_block_delta")


def message_end(reason: str | None, **counts: int) -> bytes:
    change = {"stop_reason": reason, "stop_sequence": None}
    return data({"type": "message_delta", "delta": change, "usage": counts}, "message_delta")


PING = data({"type": "ping"}, "ping")
STOP = data({"type": "message_stop"}, "message_stop")

ANTHROPIC = [
    *(
        _anthropic(
            given,
            [
                block(0, type="text", text=""),
                delta(0, text="Hé"),
                PING,
                message_end(given, output_tokens=7),
                STOP,
            ],
            3,
            *text("Hé"),
            usage(104, 7),
            finish(reason),
        )
        for given, reason in [
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("refusal", "refusal"),
            ("pause_turn", "other"),
        ]
    ),
    _anthropic(
        "tool_use",
        [
            block(0, type="thinking", thinking="", signature=""),
            delta(0, type="thinking_delta", thinking="Hm."),
            delta(0, type="signature_delta", signature="c2ln"),
            block(1, type="tool_use", id="toolu_1", name="weather", input={}),
            delta(1, type="input_json_delta", partial_json='{"city": "B'),
            delta(1, type="input_json_delta", partial_json='onn"}'),
            block(2, type="tool_use", id="toolu_2", name="clock", input={}),
            message_end("tool_use", output_tokens=7),
            STOP,
        ],
        7,
        StreamEvent("reasoning", "Hm."),
        call("toolu_1", "weather", '{"city": "Bonn"}'),
        call("toolu_2", "clock", "{}"),
        usage(104, 7),
        finish("tool_calls"),
    ),
]


def part(*parts: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    """Return an object of Google's, with its line ends."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    return data({"candidates": [candidate], **more}).replace(b"\n", b"\r\n")


COUNTS = {"promptTokenCount": 8, "candidatesTokenCount": 2, "thoughtsTokenCount": 30}


def _google(name: str, frames: list[bytes], *events: StreamEvent) -> Stream:
    return Stream(f"google-{name}", "google", frames, len(frames) - 1, list(events))


GOOGLE = [
    *(
        _google(
            given,
            [part({"text": "Hé"}), part({"text": "llo"}, reason=given, usageMetadata=COUNTS)],
            *text("Hé", "llo"),
            usage(8, 32),
            finish(reason),
        )
        for given, reason in [
            ("STOP", "stop"),
            ("MAX_TOKENS", "length"),
            *(
                (given, "content_filter")
                for given in (
                    "SAFETY",
                    "RECITATION",
                    "PROHIBITED_CONTENT",
                    "SPII",
                    "BLOCKLIST",
                    "IMAGE_SAFETY",
                )
            ),
            ("CONTINUATION", "length"),
            ("NO_IMAGE", "other"),
            ("OTHER", "other"),
        ]
    ),
    _google(
        "calls",
        [
            part({"text": "Hm.", "thought": True}),
            part(
                {
                    "functionCall": {"name": "weather", "args": {"city": "Bonn"}},
                    "thoughtSignature": "c2ln",
                }
            ),
            part({"functionCall": {"id": "x", "name": "clock", "args": {}}}, reason="STOP"),
        ],
        StreamEvent("reasoning", "Hm."),
        call("call_0~thought~c2ln", "weather", '{"city": "Bonn"}'),
        call("x", "clock", "{}"),
        finish("tool_calls"),
    ),
    _google(
        "blocked",
        [
            data(
                {
                    "promptFeedback": {"blockReason": "SAFETY"},
                    "usageMetadata": {"promptTokenCount": 8},
                }
            )
        ],
        usage(8, 0),
        finish("content_filter"),
    ),
]

STREAMS = [*OPENAI, *ANTHROPIC, *GOOGLE]
