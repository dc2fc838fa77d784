"""What goes out: messages and parameters in OpenAI's words, written for each wire."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from anthropic import types as anthropic_types
from anthropic.types.message_create_params import (
    MessageCreateParamsBase,
    MessageCreateParamsStreaming,
)
from google.genai import types as google_types
from pydantic import TypeAdapter

from flask_byok.errors import InvalidFieldError
from flask_byok.wires import WIRES
from flask_byok.wires.messages import Chat, Facts

from .streams import GOOGLE, StreamEvent

USER = {"role": "user", "content": "Hi"}
PNG = "data:image/png;base64,iVBORw0KGgo="
FACTS = Facts()
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-opus-5", "google": "gemini-3-flash"}


def image(url: str) -> dict[str, Any]:
    """Return a message with a picture."""
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


def asked(id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    """Return a tool call of an assistant's message."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": [{"type": "text", "text": "In German."}]},
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [asked("a", "weather", '{"city": "Bonn"}'), asked("b", "clock")],
    },
    {"role": "tool", "tool_call_id": "a", "content": "rain"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "And now?"},
]


def write(
    wire: str,
    messages: Any = (USER,),
    model: str | None = None,
    facts: Facts = FACTS,
    **params: Any,
) -> dict[str, Any]:
    """Return a body, seen by the vendor's own types."""
    body = WIRES[wire].body(Chat(messages, model or MODELS[wire], params), facts)[1]
    if wire == "anthropic":
        _check_anthropic(body)
    if wire == "google":
        _check_google(body)
    json.dumps(body)
    return body


def _check_anthropic(body: Mapping[str, Any]) -> None:
    blocks = {
        "text": anthropic_types.TextBlockParam,
        "image": anthropic_types.ImageBlockParam,
        "tool_use": anthropic_types.ToolUseBlockParam,
        "tool_result": anthropic_types.ToolResultBlockParam,
    }
    known = {
        "thinking": anthropic_types.ThinkingConfigParam,
        "output_config": anthropic_types.OutputConfigParam,
        "tool_choice": anthropic_types.ToolChoiceParam,
    }
    pairs = [(known[name], body[name]) for name in known if name in body]
    pairs += [(anthropic_types.ToolParam, tool) for tool in body.get("tools", ())]
    for message in body["messages"]:
        pairs += [(blocks[block["type"]], block) for block in message["content"]]
    for kind, value in pairs:
        assert TypeAdapter(kind).validate_python(value)
    # The SDK speaks version 2026-10-21 of the API, which has no sampling any more; 2023-06-01 has.
    sampling = {"temperature", "top_p"}
    kinds = (MessageCreateParamsBase, MessageCreateParamsStreaming)
    assert set(body) <= sampling.union(*(kind.__annotations__ for kind in kinds))


def _check_google(body: Mapping[str, Any]) -> None:
    known = {
        "contents": TypeAdapter(list[google_types.Content]),
        "systemInstruction": TypeAdapter(google_types.Content),
        "tools": TypeAdapter(list[google_types.Tool]),
        "toolConfig": TypeAdapter(google_types.ToolConfig),
        "generationConfig": TypeAdapter(google_types.GenerationConfig),
    }
    for name, value in body.items():
        known[name].validate_python(value)


@pytest.mark.parametrize(
    ("wire", "path"),
    [
        ("openai", "/chat/completions"),
        ("anthropic", "/v1/messages"),
        ("google", "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse"),
    ],
)
def test_paths(wire: str, path: str) -> None:
    """Each wire has its path, below what the SDK calls the base URL."""
    assert WIRES[wire].body(Chat([USER], MODELS[wire], {}), FACTS)[0] == path


def test_openai() -> None:
    """OpenAI's wire gets messages and parameters as they are, and asks for stream and usage."""
    params = {
        "temperature": 0.5,
        "top_p": 1,
        "stop": "END",
        "tools": [WEATHER],
        "tool_choice": NAMED,
        "response_format": AS_JSON,
        "reasoning_effort": "low",
    }
    more = [{**USER, "name": "ann", "cache_control": {"type": "ephemeral"}}, image(PNG), *TALK]
    assert write("openai", more, max_tokens=5, **params) == {
        "model": "gpt-4o-mini",
        "messages": more,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        **params,
    }


def test_what_a_row_says_of_openais_wire() -> None:
    """A provider's row names the limit, and whether usage can be asked for."""
    facts = Facts(limit_name="max_completion_tokens", asks_usage=False)
    body = write("openai", facts=facts, max_tokens=5, temperature=None)
    messages = {"model": "gpt-4o-mini", "messages": [USER], "stream": True}
    assert body == {**messages, "max_completion_tokens": 5}


def test_anthropic() -> None:
    """Anthropic's wire has the system's text apart, all results in one message, and its own words."""
    body = write(
        "anthropic", TALK, tools=[WEATHER, CLOCK], stop=["END"], temperature=0.5, top_p=0.9
    )
    assert body == {
        "model": "claude-opus-5",
        "max_tokens": 4096,
        "stream": True,
        "system": "Be brief.\n\nIn German.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Bonn"}},
                    {"type": "tool_use", "id": "b", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "a",
                        "content": [{"type": "text", "text": "rain"}],
                    },
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "content": [{"type": "text", "text": "noon"}],
                    },
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
            {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["END"],
        "tools": [
            {
                "name": "weather",
                "description": "Tell the weather.",
                "input_schema": WEATHER["function"]["parameters"],
            },
            {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
        ],
    }


@pytest.mark.parametrize(
    ("given", "limit"), [({}, 4096), ({"max_output": 64_000}, 64_000), ({"max_output": 10}, 10)]
)
def test_anthropic_demands_a_limit(given: dict[str, int], limit: int) -> None:
    """The limit is the caller's, else the model's, else 4,096."""
    assert write("anthropic", facts=Facts(**given))["max_tokens"] == limit
    assert write("anthropic", facts=Facts(**given), max_tokens=7)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("given", "anthropic", "google"),
    [
        ("auto", {"type": "auto"}, {"mode": "AUTO"}),
        ("none", {"type": "none"}, {"mode": "NONE"}),
        ("required", {"type": "any"}, {"mode": "ANY"}),
        (
            NAMED,
            {"type": "tool", "name": "clock"},
            {"mode": "ANY", "allowedFunctionNames": ["clock"]},
        ),
    ],
)
def test_tool_choice(given: Any, anthropic: dict[str, Any], google: dict[str, Any]) -> None:
    """Each choice of tools has its form in each wire."""
    assert write("openai", tools=[CLOCK], tool_choice=given)["tool_choice"] == given
    assert write("anthropic", tools=[CLOCK], tool_choice=given)["tool_choice"] == anthropic
    config = write("google", tools=[CLOCK], tool_choice=given)["toolConfig"]
    assert config == {"functionCallingConfig": google}


@pytest.mark.parametrize(
    ("effort", "anthropic", "google"),
    [
        ("none", None, "MINIMAL"),
        ("minimal", "low", "MINIMAL"),
        ("low", "low", "LOW"),
        ("medium", "medium", "MEDIUM"),
        ("high", "high", "HIGH"),
        ("xhigh", "xhigh", "XHIGH"),
        ("max", "max", "XHIGH"),
    ],
)
def test_effort(effort: str, anthropic: str | None, google: str) -> None:
    """Each effort has its word in each wire, and the thoughts are asked for as text."""
    body = write("anthropic", reasoning_effort=effort)
    thinking = {"type": "adaptive", "display": "summarized"} if anthropic else {"type": "disabled"}
    output = {"output_config": {"effort": anthropic}} if anthropic else {}
    assert body == {**write("anthropic"), "thinking": thinking, **output}
    config = write("google", reasoning_effort=effort)["generationConfig"]
    thoughts = {"thinkingLevel": google, "includeThoughts": effort != "none"}
    assert config == {"thinkingConfig": thoughts}


@pytest.mark.parametrize("wire", WIRES)
def test_answers_as_json(wire: str) -> None:
    """A schema goes out in each wire's form; text is what all of them write unasked."""
    body = write(wire, response_format=AS_JSON)
    forms = {
        "openai": ("response_format", AS_JSON),
        "anthropic": ("output_config", {"format": {"type": "json_schema", "schema": SCHEMA}}),
        "google": (
            "generationConfig",
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
    }
    name, value = forms[wire]
    assert body[name] == value
    text = write(wire, response_format={"type": "text"})
    assert text.get(name) in (None, {"type": "text"})


def test_any_json() -> None:
    """Google takes JSON of any form, Anthropic needs a schema and says so."""
    config = write("google", response_format={"type": "json_object"})["generationConfig"]
    assert config == {"responseMimeType": "application/json"}
    with pytest.raises(InvalidFieldError, match="needs a json_schema"):
        write("anthropic", response_format={"type": "json_object"})


def test_thinking_and_json_together() -> None:
    """Effort and format share an object of Anthropic's body."""
    body = write("anthropic", reasoning_effort="low", response_format=AS_JSON)
    assert set(body["output_config"]) == {"effort", "format"}


def test_google() -> None:
    """Google's wire has roles, parts and words of its own; results carry the name of their call."""
    params = {"max_tokens": 5, "stop": "END", "temperature": 0, "top_p": 0.9}
    body = write("google", TALK, tools=[WEATHER, CLOCK], **params)
    called = {"id": "a", "name": "weather", "args": {"city": "Bonn"}}
    assert body == {
        "systemInstruction": {"parts": [{"text": "Be brief.\n\nIn German."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {
                "role": "model",
                "parts": [
                    {
                        "functionCall": called,
                        "thoughtSignature": "skip_thought_signature_validator",
                    },
                    {"functionCall": {"id": "b", "name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {
                        "functionResponse": {
                            "id": "a",
                            "name": "weather",
                            "response": {"output": "rain"},
                        }
                    },
                    {
                        "functionResponse": {
                            "id": "b",
                            "name": "clock",
                            "response": {"output": "noon"},
                        }
                    },
                ],
            },
            {"role": "model", "parts": [{"text": "It rains."}]},
            {"role": "user", "parts": [{"text": "And now?"}]},
        ],
        "generationConfig": {
            "maxOutputTokens": 5,
            "stopSequences": ["END"],
            "temperature": 0,
            "topP": 0.9,
        },
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "weather",
                        "description": "Tell the weather.",
                        "parametersJsonSchema": WEATHER["function"]["parameters"],
                    },
                    {"name": "clock"},
                ]
            }
        ],
    }


def test_thought_signatures_come_back() -> None:
    """A call that Gemini signed goes back with its signature and its own id, as Gemini 3 demands."""
    (signed,) = [event for event in _events_of("google-calls") if "thought" in event.id]
    calls = [asked(signed.id, signed.name, signed.arguments), asked("x", "clock")]
    answer = {"role": "tool", "tool_call_id": signed.id, "content": "rain"}
    body = write("google", [USER, {"role": "assistant", "tool_calls": calls}, answer])
    called = {"id": "call_0", "name": "weather", "args": {"city": "Bonn"}}
    assert body["contents"][1]["parts"] == [
        {"functionCall": called, "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "x", "name": "clock", "args": {}}},
    ]
    assert body["contents"][2]["parts"][0]["functionResponse"]["id"] == "call_0"


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_signatures_stay_with_google(wire: str) -> None:
    """A conversation that goes on with another provider takes no signature along: its ids would be too long."""
    calls = {"role": "assistant", "content": None, "tool_calls": [asked("a~thought~c2ln", "clock")]}
    answer = {"role": "tool", "tool_call_id": "a~thought~c2ln", "content": "noon"}
    plain = [USER, {**calls, "tool_calls": [asked("a", "clock")]}, {**answer, "tool_call_id": "a"}]
    assert write(wire, [USER, calls, answer]) == write(wire, plain)


def _events_of(name: str) -> list[StreamEvent]:
    return next(stream.events for stream in GOOGLE if stream.name == name)


def test_calls_of_another_model() -> None:
    """A history that another model made has no signature, and says so in Google's word."""
    parts = write("google", TALK)["contents"][1]["parts"]
    assert [p.get("thoughtSignature") for p in parts] == ["skip_thought_signature_validator", None]


def test_images() -> None:
    """Images go out as data or as an address, in each wire's form."""
    messages = [
        image(PNG),
        image("https://example.org/cat.webp?size=2"),
        image("https://example.org/1"),
    ]
    assert write("openai", messages)["messages"] == messages
    (message,) = write("anthropic", messages)["messages"]
    assert [block["source"] for block in message["content"] if block["type"] == "image"] == [
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
        {"type": "url", "url": "https://example.org/cat.webp?size=2"},
        {"type": "url", "url": "https://example.org/1"},
    ]
    (content,) = write("google", messages)["contents"]
    assert [part for part in content["parts"] if "text" not in part] == [
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
        {"fileData": {"fileUri": "https://example.org/cat.webp?size=2", "mimeType": "image/webp"}},
        {"fileData": {"fileUri": "https://example.org/1"}},
    ]


SOUND = {
    "role": "user",
    "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}],
}


def test_audio() -> None:
    """Sound goes to OpenAI and Google; Anthropic takes none, and the error says so."""
    assert write("openai", [SOUND])["messages"] == [SOUND]
    (content,) = write("google", [SOUND])["contents"]
    assert content["parts"] == [{"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}}]
    with pytest.raises(InvalidFieldError, match="takes no audio"):
        write("anthropic", [SOUND])


def test_an_image_as_a_result() -> None:
    """A tool's result may be an image for Anthropic; Google's takes text."""
    calls = {"role": "assistant", "tool_calls": [asked("a", "look")]}
    answer = {**image(PNG), "role": "tool", "tool_call_id": "a"}
    (result,) = write("anthropic", [USER, calls, answer])["messages"][2]["content"]
    assert [block["type"] for block in result["content"]] == ["text", "image"]
    with pytest.raises(InvalidFieldError, match="takes no images"):
        write("google", [USER, calls, answer])


@pytest.mark.parametrize("wire", ["anthropic", "google"])
def test_empty_texts_are_left_out(wire: str) -> None:
    """The two wires refuse empty texts, which front ends leave in a history."""
    empty = {"role": "assistant", "content": ""}
    assert write(wire, [USER, empty, USER]) == write(wire, [USER, USER])


@pytest.mark.parametrize("wire", WIRES)
def test_extra_goes_in_as_it_is(wire: str) -> None:
    """``extra`` replaces what is there; an object is added to it."""
    body = write(wire, max_tokens=5)
    extra = {"top_k": 3, "stream": False, "messages": ["x"], "generationConfig": {"topK": 3}}
    made = WIRES[wire].body(Chat([USER], MODELS[wire], {"max_tokens": 5, "extra": extra}), FACTS)[1]
    both = {"generationConfig": {**body.get("generationConfig", {}), "topK": 3}}
    assert made == {**body, **extra, **both}


def test_mappings_and_tuples() -> None:
    """Messages and parameters may be any mapping and sequence."""
    talk = tuple(MappingProxyType(message) for message in TALK)
    for wire in ("anthropic", "google"):
        body = WIRES[wire].body(
            Chat(talk, MODELS[wire], MappingProxyType({"stop": ("a",)})), FACTS
        )[1]
        assert body == write(wire, TALK, stop=["a"])


def _user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages is a list of messages, each"),
        ("sk-secret", "messages is a list"),
        (None, "messages is a list"),
        ([{"role": "sk-secret", "content": "sk-secret"}], r"messages\[0\].role is system, "),
        ([{"content": "sk-secret"}], r"messages\[0\] "),
        (["sk-secret"], r"messages\[0\] "),
        ([{"role": "user", "content": {"sk-secret": 1}}], r"messages\[0\].content is text"),
        (_user("sk-secret"), r"messages\[0\].content\[0\] "),
        (_user({"text": "sk-secret"}), r"messages\[0\].content\[0\] "),
        (_user({"type": "sk-secret"}), r"content\[0\].type is text, image_url or"),
        (_user({"type": "text", "text": ["sk-secret"]}), r"content\[0\].text "),
        (
            _user({"type": "image_url", "image_url": "https://sk-secret"}),
            r"content\[0\].image_url ",
        ),
        ([image("http://sk-secret")], r"content\[1\].image_url.url begins with https://"),
        ([image("data:text/html;base64,sk-secret")], r"image_url.url begins"),
        ([image("javascript:sk-secret")], r"image_url.url begins"),
        (
            _user({"type": "input_audio", "input_audio": {"data": "sk-secret", "format": "a/b"}}),
            r"input_audio.format ",
        ),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "sk-secret"}]}], r"tool_calls\[0\] "),
        (
            [USER, {"role": "assistant", "tool_calls": [asked("a", "", "sk-secret")]}],
            r"tool_calls\[0\].function.name ",
        ),
    ],
)
def test_wrong_messages(wire: str, messages: Any, place: str) -> None:
    """What is wrong in the messages is named by its place, and not repeated."""
    with pytest.raises(InvalidFieldError, match=place) as raised:
        write(wire, messages)
    assert "sk-secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("wire", "messages", "advice"),
    [
        (
            "google",
            [{"role": "tool", "tool_call_id": "sk-secret", "content": ""}],
            "tool_call_id is",
        ),
        *(
            (
                wire,
                [USER, {"role": "assistant", "tool_calls": [asked("a", "f", text)]}],
                "JSON object",
            )
            for wire in ("anthropic", "google")
            for text in ("sk-secret", "[1]", "[" * 10_000)
        ),
        *((wire, [{**image(PNG), "role": "system"}], "no images here") for wire in WIRES),
        *(
            (wire, messages, "beside the system's with this provider")
            for wire in ("anthropic", "google")
            for messages in (
                [{"role": "system", "content": "sk-secret"}],
                [{"role": "developer", "content": "A"}, {"role": "user", "content": ""}],
            )
        ),
    ],
)
def test_wrong_messages_of_one_wire(wire: str, messages: Any, advice: str) -> None:
    """What a wire cannot say is refused."""
    with pytest.raises(InvalidFieldError, match=advice) as raised:
        write(wire, messages)
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("params", "place"),
    [
        (
            {"max_completion_tokens": 5},
            "unknown: beside model there are max_tokens, temperature, .*extra",
        ),
        ({"max_tokens": 0}, "max_tokens is a number of tokens"),
        ({"max_tokens": True}, "max_tokens is"),
        ({"max_tokens": "sk-secret"}, "max_tokens is"),
        ({"temperature": "sk-secret"}, "temperature has"),
        ({"stop": ["sk-secret", 1]}, r"stop\[1\] has"),
        ({"tools": [{"type": "sk-secret"}]}, r"tools\[0\]"),
        (
            {"tools": [{"type": "function", "function": {"description": "sk-secret"}}]},
            r"tools\[0\].f",
        ),
        ({"tool_choice": "sk-secret"}, "tool_choice is auto, none, required"),
        ({"tool_choice": {"type": "sk-secret"}}, "tool_choice.type is .*function"),
        ({"tool_choice": 5}, "tool_choice is auto, none, required"),
        (
            {"response_format": {"type": "sk-secret"}},
            "response_format.type is .*json_object or json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema",
        ),
        ({"reasoning_effort": "sk-secret"}, "reasoning_effort is none, minimal"),
        ({"extra": ["sk-secret"]}, "extra has"),
    ],
)
def test_wrong_parameters(wire: str, params: dict[str, Any], place: str) -> None:
    """A wrong parameter is named, and its value is not repeated; an unknown one brings the list of all."""
    with pytest.raises(InvalidFieldError, match=place) as raised:
        write(wire, **params)
    assert "sk-secret" not in str(raised.value)


SMUGGLED = [
    "",
    "a/b",
    "../x",
    "..",
    ".",
    "a?key=1",
    "a#b",
    "a%2Fb",
    "a:b",
    "a\\b",
    "a b",
    "a\n",
    "models/",
    "ä",
]
SMUGGLED += [
    "models/../x",
    "files/a",
    "models/models/a",
    "//x",
    "a\r\nX: 1",
    "a" * 200,
    "@x",
    "x@y",
]


@pytest.mark.parametrize("model", SMUGGLED)
def test_a_model_stays_in_its_segment(model: str) -> None:
    """A name with anything that ends or leaves its part of the path is refused, and not repeated."""
    with pytest.raises(InvalidFieldError, match="model is a name of ") as raised:
        WIRES["google"].body(Chat([USER], model, {}), FACTS)
    assert len(str(raised.value)) < 100


@pytest.mark.parametrize(
    ("model", "segment"),
    [
        ("gemini-2.5-flash", "models/gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "models/gemini-2.5-flash"),
        ("tunedModels/my_model-1", "tunedModels/my_model-1"),
    ],
)
def test_models_of_google(model: str, segment: str) -> None:
    """Google's names work with and without their folder."""
    path = WIRES["google"].body(Chat([USER], model, {}), FACTS)[0]
    assert re.fullmatch(rf"/v1beta/{segment}:streamGenerateContent\?alt=sse", path)


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize("model", ["", "a\nb", "a\x00", "x" * 257, None, 5])
def test_models_that_are_none(wire: str, model: Any) -> None:
    """The other wires have the name in the body, so any printable one may do."""
    with pytest.raises(InvalidFieldError, match="model is a name of"):
        WIRES[wire].body(Chat([USER], model, {}), FACTS)
    body = WIRES[wire].body(Chat([USER], "org/model name:free@1", {}), FACTS)[1]
    assert body["model"] == "org/model name:free@1"
