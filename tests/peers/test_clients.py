"""The clients for Node.js: that they read what they should, before the product's own answers are given to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, request

from flask_byok import get_provider_with_api_key
from flask_byok.testing import FakeProviders
from tests.app import make_app
from tests.guarantees.wire import served

from .callers import error, final, run_client, run_client_often
from .servers import Aimock

pytestmark = pytest.mark.usefixtures("peers")

#: Script, the provider that it calls, and where its text is.
CLIENTS = [
    pytest.param("openai_chat", "openai", id="openai"),
    pytest.param("ai_openai", "openai", id="ai-sdk"),
    pytest.param("anthropic_messages", "anthropic", id="anthropic"),
    pytest.param("google_generate", "google", id="google"),
]
#: The newest release, and the oldest whose chat has this protocol.
AI_SDKS = ["ai", "ai-5"]

#: An event of AI SDK's protocol for chats.
Chunk = dict[str, Any]
#: Takes the name of an SDK and streams; returns what the chat shows in the end of each.
Chat = Callable[..., list[Any]]


def text_of(script: str, answer: Any) -> str:
    """Return the text that a client has read."""
    if script == "openai_chat":
        return str(answer["choices"][0]["message"]["content"])
    if script == "anthropic_messages":
        return "".join(part["text"] for part in answer["content"] if part["type"] == "text")
    return str(answer["text"])


def calls_of(script: str, answer: Any) -> list[tuple[str, Any]]:
    """Return the tools' names and arguments that a client has read."""
    if script == "openai_chat":
        calls = [call["function"] for call in answer["choices"][0]["message"]["tool_calls"]]
        return [(call["name"], json.loads(call["arguments"])) for call in calls]
    if script == "anthropic_messages":
        parts = [part for part in answer["content"] if part["type"] == "tool_use"]
        return [(part["name"], part["input"]) for part in parts]
    if script == "ai_openai":
        return [(call["toolName"], call["input"]) for call in answer["toolCalls"]]
    return [(call["name"], call["args"]) for call in answer["functionCalls"]]


def asking(script: str, message: str) -> dict[str, Any]:
    """Return the options that make a client say this."""
    if script == "google_generate":
        return {"contents": message, "api_version": "v1beta"}
    return {"messages": [{"role": "user", "content": message}]}


@pytest.mark.parametrize(("script", "provider"), CLIENTS)
def test_a_client_reads_a_fake_provider(fake: FakeProviders, script: str, provider: str) -> None:
    """The text is the fake's, and a bad key is refused."""
    keys = [fake.api_key(provider, behaviour) for behaviour in ("good", "bad")]
    calls = [{"api_key": api_key} for api_key in keys]
    good, bad = run_client_often(script, fake.base_url(provider), *calls)
    assert text_of(script, final(good)) == fake.reply_text(provider, "hello")
    assert error(bad)["status"] == (400 if provider == "google" else 401)


@pytest.mark.parametrize(("script", "provider"), CLIENTS)
def test_a_client_reads_tools_and_errors(aimock: Aimock, script: str, provider: str) -> None:
    """Texts, tool calls, refusals and streams that break off are each read as what they are."""
    call = {"name": "weather", "arguments": {"city": "Köln"}, "id": "call_1"}
    aimock.tell("tool", {"content": "Let me look.", "toolCalls": [call]})
    aimock.tell("much", {"error": {"message": "Too many."}, "status": 429})
    aimock.tell("cut", {"content": "Cut off."}, chunkSize=1, truncateAfterChunks=3, latency=10)
    key = {"api_key": aimock.API_KEYS[provider]}
    calls = [{**key, **asking(script, message)} for message in ("tool", "much", "cut")]
    whole, refused, cut = run_client_often(script, aimock.base_urls[provider], *calls)
    assert text_of(script, final(whole)) == "Let me look."
    assert calls_of(script, final(whole)) == [("weather", {"city": "Köln"})]
    assert error(refused)["status"] == 429
    assert error(cut)


def test_fetch_reads_our_events(tmp_path: Path, fake: FakeProviders) -> None:
    """A page without any library gets our events, and which tier's key served."""
    app = make_app(tmp_path, fake, csrf_protect=False)

    @app.post("/ask")
    def ask() -> Response:
        chosen = get_provider_with_api_key("openai", fake.api_key("openai"))
        return app.byok.stream_response(chosen, [{"role": "user", "content": "hello"}])

    app.csrf.exempt(ask)
    with served(app) as port:
        lines = run_client("fetch_stream", f"http://127.0.0.1:{port}/ask")
    assert lines[0]["status"] == 200
    assert lines[0]["headers"]["x-byok-source"] == "argument"
    assert final(lines).endswith("event: done\ndata: {}\n\n")


# The chat of the AI SDK


GREETING: list[Chunk] = [
    {"type": "start", "messageMetadata": {"source": "session"}},
    {"type": "reasoning-start", "id": "r"},
    {"type": "reasoning-delta", "id": "r", "delta": "Hm."},
    {"type": "reasoning-end", "id": "r"},
    {"type": "text-start", "id": "t"},
    {"type": "text-delta", "id": "t", "delta": "Hel"},
    {"type": "text-delta", "id": "t", "delta": "lo"},
]
END: list[Chunk] = [
    {"type": "text-end", "id": "t"},
    {"type": "tool-input-available", "toolCallId": "1", "toolName": "f", "input": {"a": 1}},
    {"type": "finish", "finishReason": "stop", "messageMetadata": {"usage": {"output_tokens": 2}}},
]


@pytest.fixture
def chat(peers: None) -> Iterator[Chat]:
    """Return a function that lets a chat read UI message streams, a heartbeat before each chunk."""
    app = Flask("chat")

    @app.post("/")
    def answer() -> Response:
        chunks, end = request.json["stream"], request.json["end"]
        events = [f": heartbeat\n\ndata: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return Response("".join([*events, end]), mimetype="text/event-stream")

    with served(app) as port:

        def chat(sdk: str, *streams: list[Chunk], end: str = "data: [DONE]\n\n") -> list[Any]:
            calls = [{"sdk": sdk, "body": {"stream": stream, "end": end}} for stream in streams]
            read = run_client_often("ui_message", f"http://127.0.0.1:{port}/", *calls)
            return [final(lines) for lines in read]

        yield chat


def parts_of(answer: Any, kind: str) -> list[Any]:
    return [part for part in answer["message"]["parts"] if part["type"] == kind]


@pytest.mark.parametrize("sdk", AI_SDKS)
def test_the_chat_reads_a_ui_message_stream(chat: Chat, sdk: str) -> None:
    """`useChat` puts reasoning, text, tool calls, metadata and the finish reason together."""
    [answer] = chat(sdk, [*GREETING, *END])
    assert answer["status"] == "ready"
    assert answer["finish"]["finishReason"] == "stop"
    assert [part["text"] for part in parts_of(answer, "text")] == ["Hello"]
    assert [part["text"] for part in parts_of(answer, "reasoning")] == ["Hm."]
    assert [part["input"] for part in parts_of(answer, "tool-f")] == [{"a": 1}]
    metadata = {"source": "session", "usage": {"output_tokens": 2}}
    assert answer["message"]["metadata"] == metadata


@pytest.mark.parametrize("sdk", AI_SDKS)
def test_the_chat_shows_an_error_in_a_stream(chat: Chat, sdk: str) -> None:
    """An error is shown with its text, and what was said before stays."""
    [answer] = chat(sdk, [*GREETING, {"type": "error", "errorText": "No credit."}])
    assert (answer["status"], answer["error"]["message"]) == ("error", "No credit.")
    assert [part["text"] for part in parts_of(answer, "text")] == ["Hello"]


@pytest.mark.parametrize("sdk", AI_SDKS)
def test_the_chat_does_not_notice_a_missing_end(chat: Chat, sdk: str) -> None:
    """A stream that just ends looks complete: a server must say that it is not."""
    [answer] = chat(sdk, GREETING, end="")
    assert answer["status"] == "ready"
    assert not answer["finish"]["isError"]


@pytest.mark.parametrize("sdk", AI_SDKS)
def test_the_chat_refuses_what_is_not_in_the_protocol(chat: Chat, sdk: str) -> None:
    """One chunk that the SDK does not know ends the whole chat with an error."""
    strangers: list[Chunk] = [
        {"type": "usage", "input_tokens": 1},
        {"type": "start", "messageId": None},
        {"type": "finish", "finishReason": "refusal"},
        {"type": "text-delta", "id": "not started", "delta": "x"},
    ]
    answers = chat(sdk, *([*GREETING, stranger, *END] for stranger in strangers))
    assert [answer["status"] for answer in answers] == ["error"] * len(strangers)
