"""Answers as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Response

from flask_byok import get_provider_with_api_key
from flask_byok.providers.openai import OpenAIProvider
from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp


def events(text: str) -> list[tuple[str, Any]]:
    """Read a whole stream of events as a browser does."""
    found = []
    for block in text.split("\n\n"):
        if block:
            name, _, data = block.partition("\n")
            assert name.startswith("event: ")
            assert data.startswith("data: ")
            assert "\n" not in data
            found.append((name[7:], json.loads(data[6:])))
    return found


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "groq", "xai", "openrouter"])
def test_a_whole_answer(visitor: Browser, fake: FakeProviders, provider: str) -> None:
    """The pieces make the provider's text, and the stream ends with done."""
    visitor.save(fake.api_key(provider), provider)
    answer = visitor.get(f"/chat/{provider}?message=good+morning")
    assert answer.mimetype == "text/event-stream"
    assert answer.headers["X-BYOK-Source"] == "session"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Accel-Buffering"] == "no"
    found = events(answer.text)
    start, *deltas, usage, finish, done = found
    assert start[0] == "start"
    assert (start[1]["provider"], start[1]["source"]) == (provider, "session")
    assert start[1]["model"]
    assert usage[0] == "usage"
    assert min(usage[1]["input_tokens"], usage[1]["output_tokens"]) > 0
    assert finish == ("finish", {"reason": "stop"})
    assert done == ("done", {})
    assert {name for name, _ in deltas} == {"delta"}
    text = "".join(data["text"] for _, data in deltas)
    assert text == fake.reply_text(provider, "good morning")


@pytest.mark.parametrize(
    ("model", "code", "status"),
    [
        ("fail-midstream", "stream_incomplete", 502),
        ("revoked-midstream", "key_rejected", 409),
    ],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
def test_an_answer_that_breaks(
    visitor: Browser, fake: FakeProviders, provider: str, model: str, code: str, status: int
) -> None:
    """After a break the stream sends one error event with a problem object, and no done."""
    visitor.save(fake.api_key(provider), provider)
    found = events(visitor.get(f"/chat/{provider}?model={model}").text)
    assert [name for name, _ in found[:2]] == ["start", "delta"]
    name, problem = found[-1]
    assert name == "error"
    assert (problem["code"], problem["status"], problem["provider"]) == (code, status, provider)
    assert problem["type"].endswith(f"#{code}")
    assert [name for name, _ in found].count("error") == 1


def test_a_refusal_in_real_use_is_remembered(visitor: Browser, fake: FakeProviders) -> None:
    """A key that its provider refuses in a stream shows as rejected, and is not tried again."""
    api_key = fake.api_key("openai")
    visitor.save(api_key)
    fake.revoke("openai", api_key)
    assert events(visitor.get("/chat/openai").text)[-1][1]["code"] == "key_rejected"
    assert visitor.status()["state"] == "rejected"
    fake.clear_calls()
    answer = visitor.get("/chat/openai")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "key_rejected")
    assert fake.calls == []


def test_a_missing_key_is_an_answer_not_a_stream(visitor: Browser) -> None:
    """An error before the stream begins is answered with its own status."""
    answer = visitor.get("/chat/openai")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "key_missing")
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_fault_of_a_program_tells_nothing(
    app: HostApp,
    visitor: Browser,
    fake: FakeProviders,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text of an error that breaks a stream is neither sent nor logged, only its type."""

    def broken(self: OpenAIProvider, *args: Any) -> Iterator[None]:
        raise RuntimeError(f"the key was {self.api_key}")
        yield

    monkeypatch.setattr(OpenAIProvider, "converse", broken)
    api_key = fake.api_key("openai")
    visitor.save(api_key)
    answer = visitor.get("/chat/openai")
    assert events(answer.text)[-1][1]["code"] == "provider_unavailable"
    assert "RuntimeError" in caplog.text
    assert "the key was" not in answer.text + caplog.text


def test_a_reader_who_leaves_ends_the_call(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """When the reader goes away the provider's stream is closed."""
    fake.chunk_delay = 0.01
    visitor.save(fake.api_key("openai"))
    answer = visitor.get("/chat/openai", buffered=False)
    pieces = iter(answer.response)
    next(pieces)
    answer.close()
    with pytest.raises(StopIteration):
        next(pieces)


def test_no_context_is_needed_once_made(app: HostApp, fake: FakeProviders) -> None:
    """An answer made in one context can be read when that context is gone."""
    with app.app_context():
        provider = get_provider_with_api_key("openai", fake.api_key("openai"))
        response: Response = app.byok.stream_response(provider, [{"role": "user", "content": "hi"}])
    assert response.headers["X-BYOK-Source"] == "argument"
    assert events(response.get_data(as_text=True))[-1] == ("done", {})
