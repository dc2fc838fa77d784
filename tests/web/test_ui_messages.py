"""The AI SDK's messages, which ``useChat`` sends, in OpenAI's words."""

from __future__ import annotations

from typing import Any

import pytest

from flask_byok.errors import InvalidFieldError
from flask_byok.web.ui_messages import read_messages

IMAGE = "data:image/png;base64,iVBO"


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def ui(role: str, *parts: Any) -> dict[str, Any]:
    return {"id": "1", "role": role, "parts": list(parts)}


def tool(kind: str, id: str, state: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "toolCallId": id, "state": state, "input": {"city": "Köln"}, **more}


def call(id: str, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": '{"city": "Köln"}'}
    return {"id": id, "type": "function", "function": function}


def result(id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def test_messages_of_people() -> None:
    """Texts and images become parts; a sound in a data: URL too."""
    image = {"type": "file", "mediaType": "image/png", "url": IMAGE}
    sound = {"type": "file", "mediaType": "audio/mpeg", "url": "data:audio/mpeg;base64,SUQz"}
    data = {"type": "data-weather", "data": {}}
    (message,) = read_messages([ui("user", text("What is it?"), image, sound, data)])
    assert message == {
        "role": "user",
        "content": [
            text("What is it?"),
            {"type": "image_url", "image_url": {"url": IMAGE}},
            {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}},
        ],
    }


def test_an_answer_in_steps() -> None:
    """Each step of an answer is a message with its calls, followed by their results; what has no result is left out."""
    step = {"type": "step-start"}
    answer = ui(
        "assistant",
        step,
        {"type": "reasoning", "text": "Hm."},
        text("Let me see."),
        tool("tool-weather", "call_1", "output-available", output={"sun": True}),
        tool("dynamic-tool", "call_2", "output-error", toolName="clock", errorText="No clock."),
        tool("tool-weather", "call_3", "input-available"),
        step,
        text("It is "),
        text("sunny."),
    )
    assert read_messages([answer]) == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("call_1", "weather"), call("call_2", "clock")],
        },
        result("call_1", '{"sun": true}'),
        result("call_2", "No clock."),
        {"role": "assistant", "content": "It is \n\nsunny."},
    ]


def test_other_messages_stay() -> None:
    """Messages in OpenAI's words pass as they are, and so does what is no message, for the wire to refuse."""
    given: list[Any] = [{"role": "user", "content": "hello"}, {"role": "user"}, "hello"]
    assert read_messages(given) == given


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "mediaType": "application/pdf", "url": "data:application/pdf;base64,JVBE"},
        {"type": "file", "mediaType": "audio/mpeg", "url": "https://example.com/a.mp3"},
        {"type": "file"},
    ],
)
def test_a_file_without_a_form(part: Any) -> None:
    """A file that OpenAI's messages have no form for is refused with a sentence, not left out."""
    with pytest.raises(InvalidFieldError, match="image, or a sound"):
        read_messages([ui("user", part)])
