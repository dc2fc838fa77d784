"""Streams in each protocol, byte by byte: texts, reasoning, tool calls, usage, every end and every error."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Response, request
from werkzeug.test import TestResponse

from flask_byok import get_provider_with_api_key
from flask_byok.testing import FakeProviders
from flask_byok.web import protocols
from tests.app import HostApp, make_app, problem_of

#: One for each wire.
WIRES = ["openai", "anthropic", "google"]
EVENTS = ["byok", "openai", "ui-message"]
ASKED = [{"role": "user", "content": "hello"}]

Ask = Callable[..., TestResponse]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProviders]:
    """Run fake providers for all tests here; each leaves nothing scripted."""
    with FakeProviders() as fake:
        yield fake


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, fake: FakeProviders) -> HostApp:
    """Make a host that streams in each protocol."""
    app = make_app(tmp_path_factory.mktemp("host"), fake)

    @app.csrf.exempt
    @app.post("/answer")
    def answer() -> Response:
        body = request.get_json()
        name = body.pop("provider")
        provider = get_provider_with_api_key(name, fake.api_key(name))
        return app.byok.stream_response(provider, **body)

    return app


@pytest.fixture
def ask(app: HostApp) -> Ask:
    """Return a function that asks for an answer in a protocol."""

    def ask(provider: str, protocol: str, **body: Any) -> TestResponse:
        asked = {"messages": ASKED, "model": "m", "provider": provider, "protocol": protocol}
        return app.test_client().post("/answer", json=asked | body, buffered=False)

    return ask


def data(*objects: Any) -> bytes:
    """Write events that have no name."""
    return b"".join(b"data: " + compact(value) + b"\n\n" for value in objects)


def named(*events: tuple[str, Any]) -> bytes:
    """Write events with their names."""
    return b"".join(f"event: {name}\n".encode() + data(value) for name, value in events)


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chunk(delta: Any, finish_reason: Any = None) -> dict[str, Any]:
    """Return a chunk of OpenAI's without its first facts."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


#: The first facts of each chunk, which are the same in all chunks of an answer.
FACTS = re.compile(
    rb'"id":"(chatcmpl-[0-9a-f]{32})","object":"chat.completion.chunk","created":(\d+),"model":"m",'
)


def read(answer: TestResponse) -> bytes:
    """Return the body; OpenAI's without the first facts of its chunks."""
    body: bytes = answer.data
    assert len(set(FACTS.findall(body))) <= 1
    return FACTS.sub(b"", body)


def objects(body: bytes) -> list[Any]:
    """Return the data of all events."""
    found = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    return [json.loads(value) for value in found if value != b"[DONE]"]


def first_of(provider: str) -> dict[str, str]:
    return {"provider": provider, "model": "m", "source": "argument"}


#: What an answer with everything is in each protocol.
def everything(protocol: str, provider: str) -> bytes:
    weather, clock = '{"city": "Köln"}', "{}"
    if protocol == "byok":
        return named(
            ("start", first_of(provider)),
            ("reasoning", {"text": "Hm."}),
            ("delta", {"text": "Grüße "}),
            ("delta", {"text": "🌍"}),
            ("tool_call", {"id": "call_1", "name": "weather", "arguments": weather}),
            ("tool_call", {"id": "call_2", "name": "clock", "arguments": clock}),
            ("usage", {"input_tokens": 11, "output_tokens": 7}),
            ("finish", {"reason": "tool_calls"}),
            ("done", {}),
        )
    if protocol == "openai":

        def call(number: int, name: str, arguments: str) -> Any:
            function = {"name": name, "arguments": arguments}
            id = f"call_{number + 1}"
            return {"index": number, "id": id, "type": "function", "function": function}

        used = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        chunks = [
            {
                "provider": provider,
                "source": "argument",
                **chunk({"role": "assistant", "content": ""}),
            },
            chunk({"reasoning_content": "Hm."}),
            chunk({"content": "Grüße "}),
            chunk({"content": "🌍"}),
            chunk({"tool_calls": [call(0, "weather", weather)]}),
            chunk({"tool_calls": [call(1, "clock", clock)]}),
            chunk({}, "tool_calls"),
            {"choices": [], "usage": used},
        ]
        return data(*chunks) + b"data: [DONE]\n\n"
    if protocol == "text":
        return "Grüße 🌍".encode()

    def part(id: str, name: str, input: Any) -> Any:
        kind = {"type": "tool-input-available", "toolCallId": id, "toolName": name}
        return {**kind, "dynamic": True, "input": input}

    usage = {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}
    finish = {"type": "finish", "messageMetadata": {"usage": usage}, "finishReason": "tool-calls"}
    chunks = [
        {"type": "start", "messageMetadata": first_of(provider)},
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "1"},
        {"type": "reasoning-delta", "id": "1", "delta": "Hm."},
        {"type": "reasoning-end", "id": "1"},
        {"type": "text-start", "id": "2"},
        {"type": "text-delta", "id": "2", "delta": "Grüße "},
        {"type": "text-delta", "id": "2", "delta": "🌍"},
        {"type": "text-end", "id": "2"},
        part("call_1", "weather", {"city": "Köln"}),
        part("call_2", "clock", {}),
        {"type": "finish-step"},
        finish,
    ]
    return data(*chunks) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("protocol", [*EVENTS, "text"])
@pytest.mark.parametrize("provider", WIRES)
def test_a_whole_answer(ask: Ask, fake: FakeProviders, provider: str, protocol: str) -> None:
    """Reasoning, texts, tool calls, usage and the end are the protocol's very bytes, whatever the provider's wire."""
    calls = [("call_1", "weather", {"city": "Köln"}), ("call_2", "clock", "{}")]
    said = {"reasoning": ["Hm."], "tool_calls": calls, "usage": (11, 7)}
    fake.stream_next(provider, "Grüße ", "🌍", **said)
    answer = ask(provider, protocol)
    assert answer.mimetype == ("text/plain" if protocol == "text" else "text/event-stream")
    version = answer.headers.get("x-vercel-ai-ui-message-stream")
    assert version == ("v1" if protocol == "ui-message" else None)
    assert answer.headers["X-BYOK-Source"] == "argument"
    assert read(answer) == everything(protocol, provider)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_arguments_that_are_not_json(ask: Ask, fake: FakeProviders, provider: str) -> None:
    """Arguments go out as the model wrote them; where the protocol has objects only, as a faulty call."""
    broken = ("call_1", "f", '{"a": ')
    found = []
    for protocol in EVENTS:
        fake.stream_next(provider, tool_calls=[broken])
        found.append(objects(read(ask(provider, protocol))))
    own, openai, ui = found
    assert own[1]["arguments"] == '{"a": '
    called = openai[1]["choices"][0]["delta"]["tool_calls"][0]["function"]
    assert called == {"name": "f", "arguments": '{"a": '}
    assert (ui[2]["type"], ui[2]["input"], "delta" in ui[2]) == (
        "tool-input-error",
        '{"a": ',
        False,
    )
    assert ui[2]["errorText"]


@pytest.mark.parametrize("provider", WIRES)
@pytest.mark.parametrize(
    ("reason", "openai", "ui"),
    [
        ("stop", "stop", "stop"),
        ("length", "length", "length"),
        ("content_filter", "content_filter", "content-filter"),
        ("refusal", "content_filter", "content-filter"),
        ("other", "other", "other"),
    ],
)
def test_every_end(
    ask: Ask, fake: FakeProviders, provider: str, reason: str, openai: str, ui: str
) -> None:
    """Each way in which an answer ends has the protocol's own word."""
    if (provider, reason) in {("anthropic", "content_filter"), ("google", "refusal")}:
        return  # this wire has no word for it
    ends = {"byok": "finish", "openai": "finish_reason", "ui-message": "finishReason"}
    told = {}
    for protocol in ends:
        fake.stream_next(provider, "Half", finish=reason)
        told[protocol] = objects(read(ask(provider, protocol)))
    assert told["byok"][-2] == {"reason": reason}
    reasons = [found["choices"][0]["finish_reason"] for found in told["openai"] if found["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + [openai]
    assert told["ui-message"][-1]["finishReason"] == ui


#: What goes wrong, as the fake is told, with the code of the error and the texts before it.
FAULTS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "error within": ({"error": "no_credit"}, "no_credit", ["Once", " upon"]),
    "cut": ({"cut_after": 1}, "stream_incomplete", ["Once"]),
    "no end": ({"finish": None, "done": False}, "stream_incomplete", ["Once", " upon"]),
    "empty": ({"instead": "empty"}, "stream_incomplete", []),
    "html": ({"instead": "html"}, "stream_incomplete", []),
}


def texts(protocol: str, body: bytes) -> list[str]:
    """Return the pieces of text in a stream."""
    found = objects(body)
    if protocol == "openai":
        choices = [value["choices"][0] for value in found if value.get("choices")]
        return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
    if protocol == "ui-message":
        return [value["delta"] for value in found if value["type"] == "text-delta"]
    return [value["text"] for value in found if value.keys() == {"text"}]


def told_problem(protocol: str, body: bytes) -> Any:
    """Return the problem object of the error that ends a stream, and check how the protocol tells it."""
    assert b"[DONE]" not in body
    assert b"event: done" not in body
    *_, before, last = objects(body)
    if protocol == "byok":
        assert body.rpartition(b"event: ")[2].startswith(b"error\n")
        return last
    if protocol == "openai":
        told = last["error"]
        assert (told["message"], told["type"], told["param"]) == (
            told["detail"],
            told["code"],
            None,
        )
        return told
    assert (before["type"], before["transient"]) == ("data-byok-error", True)
    assert last == {"type": "error", "errorText": before["data"]["detail"]}
    return before["data"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("protocol", EVENTS)
@pytest.mark.parametrize("provider", WIRES)
def test_every_fault(
    ask: Ask, fake: FakeProviders, provider: str, protocol: str, fault: str
) -> None:
    """An answer without its end ends with an error that programs can read, after the texts that came before it."""
    script, code, before = FAULTS[fault]
    fake.stream_next(provider, "Once", " upon", **script)
    answer = ask(provider, protocol)
    body = read(answer)
    assert answer.status_code == 200
    assert texts(protocol, body) == before
    told = told_problem(protocol, body)
    assert (told["code"], told["provider"]) == (code, provider)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("provider", WIRES)
def test_a_fault_of_plain_text(ask: Ask, fake: FakeProviders, provider: str, fault: str) -> None:
    """In plain text the connection breaks off; before the first text the error has its own status instead."""
    script, code, before = FAULTS[fault]
    fake.stream_next(provider, "Once", " upon", **script)
    answer = ask(provider, "text")
    if not before:
        assert problem_of(answer) == (502, code)
        return
    read: list[bytes] = []
    with pytest.raises(ConnectionResetError, match=code):
        read.extend(answer.response)  # type: ignore[arg-type]  # bytes, as it is not buffered
    assert b"".join(read).decode() == "".join(before)


#: Refusals, with the code and status of their errors, and whether the settings help.
REFUSALS = [
    ("key_rejected", "key_rejected", 409, True),
    ("disabled", "key_rejected", 409, True),
    ("no_credit", "no_credit", 402, True),
    ("restricted", "not_permitted", 403, True),
    ("provider_rate_limited", "provider_rate_limited", 429, False),
    ("provider_overloaded", "provider_overloaded", 503, False),
    ("context_too_long", "context_too_long", 413, False),
    ("model_unknown", "model_unknown", 404, False),
]


@pytest.mark.parametrize(("kind", "code", "status", "is_mended_there"), REFUSALS)
@pytest.mark.parametrize("protocol", EVENTS)
def test_every_refusal(
    ask: Ask,
    fake: FakeProviders,
    protocol: str,
    kind: str,
    code: str,
    status: int,
    is_mended_there: bool,
) -> None:
    """A refusal is an error after the start, with the seconds to wait, and the way to the key where that helps."""
    fake.refuse_next("openai", kind, retry_after=90)
    told = told_problem(protocol, read(ask("openai", protocol)))
    assert (told["code"], told["status"]) == (code, status)
    assert told.get("retry_after") == (None if code == "key_rejected" else 90)
    assert told.get("settings_url") == ("/api/providers/settings" if is_mended_there else None)


@pytest.mark.parametrize(("kind", "code", "status", "is_mended_there"), REFUSALS)
def test_every_refusal_of_plain_text(
    ask: Ask, fake: FakeProviders, kind: str, code: str, status: int, is_mended_there: bool
) -> None:
    """A refusal before the first text is answered with its own status and a problem object."""
    fake.refuse_next("openai", kind, retry_after=90)
    answer = ask("openai", "text")
    assert problem_of(answer) == (status, code)
    waits = None if code == "key_rejected" else "90"
    assert answer.headers.get("Retry-After") == waits


def test_reasoning_and_tools_are_not_plain_text(ask: Ask, fake: FakeProviders) -> None:
    """Plain text is the text alone; an answer without one is empty."""
    fake.stream_next("openai", reasoning=["Hm."], tool_calls=[("call_1", "f", {})])
    answer = ask("openai", "text")
    assert (answer.status_code, answer.data) == (200, b"")


@pytest.mark.parametrize("protocol", [*EVENTS, "text"])
@pytest.mark.parametrize("provider", WIRES)
def test_halves_of_a_character(ask: Ask, fake: FakeProviders, provider: str, protocol: str) -> None:
    """A character whose halves come in two pieces is whole in every protocol."""
    halves = {
        "openai": [chunk({"content": "Hi \ud83d"}), chunk({"content": "\ude42"}, "stop")],
        "anthropic": [
            *(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": t},
                }
                for t in ("Hi \ud83d", "\ude42")
            ),
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ],
        "google": [
            {"candidates": [{"content": {"parts": [{"text": "Hi \ud83d"}]}}]},
            {"candidates": [{"content": {"parts": [{"text": "\ude42"}]}, "finishReason": "STOP"}]},
        ],
    }
    frames = [f"data: {json.dumps(value)}\n\n".encode() for value in halves[provider]]
    fake.stream_next(provider, instead=frames)
    body = read(ask(provider, protocol))
    found = [body.decode()] if protocol == "text" else texts(protocol, body)
    assert "".join(found) == "Hi 🙂"


def test_half_a_character_in_a_message(ask: Ask, fake: FakeProviders) -> None:
    """A message that a front end cut within a character is sent, with U+FFFD for the half."""
    answer = ask("openai", "byok", messages=[{"role": "user", "content": "cut \ud83d"}])
    assert b"event: done" in answer.data
    body: Any = fake.calls_for("openai")[-1].body
    assert body["messages"][0]["content"] == "cut �"


def test_an_unknown_protocol(ask: Ask, fake: FakeProviders) -> None:
    """A protocol that does not exist is an error that names those that do, before anything is sent."""
    fake.clear_calls()
    answer = ask("openai", "sse")
    assert problem_of(answer) == (422, "invalid_field")
    assert "'ui-message'" in answer.get_json()["detail"]
    assert fake.calls == []


class Silent:
    """A conversation that says nothing, and notes that it was closed."""

    def __init__(self, *events: Any) -> None:
        self._events = iter(events)
        self.is_closed = False

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> Any:
        if self.is_closed:
            raise StopIteration
        return next(self._events, None)

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("protocol", EVENTS)
def test_silence(app: HostApp, fake: FakeProviders, monkeypatch: Any, protocol: Any) -> None:
    """In a silence a comment is sent, also if the provider keeps saying what the protocol does not tell."""
    monkeypatch.setattr(protocols, "_BLIND_HEARTBEAT", 0.0)
    with app.test_request_context():
        provider = get_provider_with_api_key("openai", fake.api_key("openai"))
        events = Silent(None, None)
        answer = protocols.respond(provider, events, protocol)  # type: ignore[arg-type]
        body = iter(answer.response)
        assert [next(body), next(body)] == [b":\n\n"] * 2
        answer.close()
    assert events.is_closed


@pytest.mark.parametrize("megabytes", [16, pytest.param(1024, marks=pytest.mark.stress)])
def test_an_endless_answer(app: HostApp, fake: FakeProviders, megabytes: int) -> None:
    """An answer that does not end takes no memory: it ends with an error at its longest, and nothing of it is kept."""
    said = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n' % (b"x" * 65_000)
    frames = (said for _ in range(megabytes * 16))
    fake.stream_next("openai", instead=frames)  # type: ignore[arg-type]  # it is read once
    with app.test_request_context():
        provider = get_provider_with_api_key("openai", fake.api_key("openai"))
        answer = app.byok.stream_response(provider, ASKED, "m")
    tracemalloc.start()
    size, last = 0, b""
    for piece in answer.response:
        size, last = size + len(piece), bytes(piece)  # type: ignore[arg-type]  # bytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > min(megabytes, 60) * 1_000_000
    assert b'"code":"stream_incomplete"' in last
    assert peak < 4 * 1024 * 1024
