"""All providers behind one address in OpenAI's format: the model says whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser
from tests.patience import soon

from .gateway_host import (
    API_KEY,
    GATEWAY,
    Upstream,
    code_of,
    gateway_app,
    upstream,
    with_keys,
)

V1 = f"{GATEWAY}/v1"
CHAT = f"{V1}/chat/completions"
MODELS = {
    "openai": "gpt-4o-mini",
    "groq": "openai/gpt-oss-20b",
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-2.5-flash",
}
CALL = ("call_1", "weather", {"city": "Köln"})


@pytest.fixture
def app(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Return a host with the gateway, in front of fake providers."""
    return gateway_app(tmp_path, fake)


@pytest.fixture
def ours(app: HostApp, fake: FakeProviders) -> Browser:
    """Return a visitor with a key for each provider."""
    return with_keys(app, **{provider: fake.api_key(provider) for provider in MODELS})


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[tuple[Upstream, Browser]]:
    """Return a provider whose bytes the test decides, and a visitor with keys for it under two names."""
    with upstream() as (provider, base_urls):
        app = gateway_app(tmp_path, BYOK_BASE_URLS=base_urls)
        yield (
            provider,
            with_keys(app, openai=API_KEY, groq="gsk_another-made-up-key", anthropic=API_KEY),
        )


def asking(provider: str, message: str = "hello", **fields: Any) -> dict[str, Any]:
    model = f"{provider}/{MODELS[provider]}"
    return {"model": model, "messages": [{"role": "user", "content": message}], **fields}


def chunks_of(text: str) -> list[dict[str, Any]]:
    """Read a stream as OpenAI's SDKs do, up to its end mark."""
    *events, end, rest = text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("provider", MODELS)
def test_a_chat_with_each_provider(ours: Browser, fake: FakeProviders, provider: str) -> None:
    """The provider gets its own name of the model; the answer is a completion, whole or in chunks."""
    answer = ours.post(CHAT, json=asking(provider, max_tokens=50))
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-BYOK-Source"] == "session"
    whole = answer.get_json()
    expected = fake.reply_text(provider, "hello")
    assert whole["object"] == "chat.completion"
    assert whole["model"] == MODELS[provider]
    assert whole["choices"][0]["message"]["content"] == expected
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["total_tokens"] > 1
    chunks = chunks_of(ours.post(CHAT, json=asking(provider, stream=True)).text)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == expected
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("provider", ["anthropic", "google"])
def test_tools_reasoning_and_limits_are_translated(
    ours: Browser, fake: FakeProviders, provider: str
) -> None:
    """What both formats have is written in the provider's; nulls, and what only OpenAI has, are left out."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    more: dict[str, Any] = {
        "max_completion_tokens": 70,
        "tools": [tool],
        "stop": None,
        "seed": 1,
        "n": 1,
        "user": "x",
    }
    fake.stream_next(provider, "Let me see.", reasoning=["Hm."], tool_calls=[CALL], usage=(9, 2))
    answer = ours.post(CHAT, json=asking(provider, **more)).get_json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert message["reasoning_content"] == "Hm."
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    [call] = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    sent = fake.calls_for(provider)[-1].content
    assert "70" in sent
    assert "seed" not in sent


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("provider", ["anthropic", "google"])
def test_an_error_before_the_answer_has_its_status(
    ours: Browser, fake: FakeProviders, provider: str, streamed: bool
) -> None:
    """A refusal of another format is ours in OpenAI's shape, with the time to wait."""
    fake.refuse_next(provider, "provider_rate_limited", 17)
    answer = ours.post(CHAT, json=asking(provider, stream=streamed))
    assert (answer.status_code, code_of(answer)) == (429, "provider_rate_limited")
    if provider == "anthropic":
        assert answer.headers["Retry-After"] == "17"
    assert answer.get_json()["error"]["provider"] == provider


def test_a_body_keeps_its_bytes_but_for_the_model(raw: tuple[Upstream, Browser]) -> None:
    """Numbers stay as they are written, and of a model that is given twice the one that was read goes out."""
    body = b'{"model":"groq/x","temperature":1.0e0,"big":12345678901234567890123,"model":"openai/gpt/4"}'
    answer = raw[1].post(CHAT, data=body, content_type="application/json")
    assert answer.status_code == 200
    _, path, headers, sent = raw[0].came[-1]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {API_KEY}"
    assert sent == b'{"model":"gpt/4","temperature":1.0e0,"big":12345678901234567890123}'


@pytest.mark.parametrize("path", ["audio/transcriptions", "audio/translations", "images/edits"])
def test_a_form_names_its_model(raw: tuple[Upstream, Browser], path: str) -> None:
    """Of a form only the model changes, wherever it stands; a file that has the same text stays."""
    boundary = b"--b0undary"
    decoy = boundary + b'x\r\nContent-Disposition: form-data; name="model"\r\n\r\nopenai/decoy'
    file = b'\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    name = b'\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    parts = [
        boundary,
        file,
        b"\0\xff" + decoy + b"\r\n",
        boundary,
        name,
        b"groq/whisper-1",
        b"\r\n",
        boundary,
        b"--\r\n",
    ]
    headers = {
        "Content-Type": "multipart/form-data; boundary=b0undary",
        "Sec-Fetch-Site": "same-origin",
    }
    answer = raw[1].post(f"{V1}/{path}", data=b"".join(parts), headers=headers)
    assert answer.status_code == 200, answer.text
    _, gone_to, sent_headers, sent = raw[0].came[-1]
    assert gone_to == f"/v1/{path}"
    assert sent_headers["authorization"] == "Bearer gsk_another-made-up-key"
    assert sent == b"".join(parts).replace(b"groq/whisper-1", b"whisper-1")


@pytest.mark.parametrize(
    "form",
    [
        b"--b\r\ncontent-disposition: form-data" + b'; name="model";' * 20_000 + b"\r\nq",
        b"--b\r\n" * 100_000,
        b"--b\r\ncontent-disposition: form-data" + b'; name="mode' * 600 + b"\r\n\r\n",
    ],
)
def test_a_hostile_form_costs_nothing(ours: Browser, form: bytes) -> None:
    """Whoever sends it is refused at once, and no other caller waits."""
    kind = "multipart/form-data; boundary=b"
    headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"}
    with soon():
        assert ours.post(f"{V1}/images/edits", data=form, headers=headers).status_code == 422


def test_models_are_listed_with_their_providers(
    ours: Browser, fake: FakeProviders, raw: tuple[Upstream, Browser]
) -> None:
    """The list has the known models of the providers that the caller has a key for; each can be asked for."""
    ids = [model["id"] for model in ours.get(f"{V1}/models").get_json()["data"]]
    assert {id.partition("/")[0] for id in ids} == MODELS.keys()
    assert "anthropic/claude-haiku-4-5" in ids
    assert raw[1].get(f"{V1}/models/groq/openai/gpt-oss-20b").status_code == 200
    assert raw[0].came[-1][1] == "/v1/models/openai/gpt-oss-20b"


def test_what_is_no_call(ours: Browser, fake: FakeProviders) -> None:
    """A model without its provider, other bodies, and what another format does not have are refused."""
    fake.clear_calls()
    cases: list[tuple[str, Any, int, str]] = [
        ("chat/completions", {"model": "gpt-4o-mini"}, 422, "invalid_field"),
        ("chat/completions", {"model": "/gpt-4o-mini"}, 422, "invalid_field"),
        ("chat/completions", {"model": "openai/"}, 422, "invalid_field"),
        ("chat/completions", {}, 422, "invalid_field"),
        ("chat/completions", {"model": 7}, 400, "bad_request"),
        ("chat/completions", [1], 400, "bad_request"),
        ("chat/completions", {"model": "nobody/x"}, 404, "unknown_provider"),
        ("chat/completions", {"model": "xai/x"}, 409, "key_missing"),
        ("chat/completions", {"model": "google/x"}, 422, "invalid_field"),
        ("chat/completions", {"model": "google/x", "messages": ["x"]}, 422, "invalid_field"),
        ("chat/completions", {"model": "../v1/x"}, 404, "unknown_provider"),
        ("embeddings", {"model": "google/x"}, 404, "not_found"),
        ("responses", {"model": "anthropic/x"}, 404, "not_found"),
    ]
    for path, body, status, code in cases:
        answer = ours.post(f"{V1}/{path}", json=body)
        assert (answer.status_code, code_of(answer)) == (status, code), body
    for data in (b"{", b"\xff", b"[" * 100_000):
        answer = ours.post(CHAT, data=data, content_type="application/json")
        assert (answer.status_code, code_of(answer)) == (400, "bad_request")
    form = {
        "data": {"file": (BytesIO(b"x"), "a.wav")},
        "headers": {"Sec-Fetch-Site": "same-origin"},
    }
    answer = ours.post(f"{V1}/audio/transcriptions", **form)
    assert (answer.status_code, code_of(answer)) == (422, "invalid_field")
    assert fake.calls == []


def test_visitors_are_listed_nothing_that_they_cannot_use(app: HostApp) -> None:
    """Without any key the list is empty."""
    assert browser(app).get(f"{V1}/models").get_json() == {"object": "list", "data": []}


def test_named_endpoints_have_addresses_and_models(tmp_path: Path, fake: FakeProviders) -> None:
    """A server of a person's own is called by its name, in its own path and in a model's."""
    app = gateway_app(
        tmp_path, fake, BYOK_ALLOW_CUSTOM_PROVIDERS=True, BYOK_ALLOW_PRIVATE_ENDPOINTS=True
    )
    visitor = browser(app)
    for name, behaviour in (("My vLLM", "good"), ("", "slow")):
        api_key, named = fake.api_key("custom", behaviour), {"name": name} if name else {}
        base_url = fake.base_url("custom")
        answer = visitor.save(api_key, "custom", base_url=base_url, validate="off", **named)
        assert answer.status_code == 200, answer.text
    body = {"model": "org/small", "messages": [{"role": "user", "content": "hello"}]}
    calls = [
        (f"{GATEWAY}/custom/my-vllm/chat/completions", "org/small", "good"),
        (f"{GATEWAY}/custom/chat/completions", "org/small", "slow"),
        (CHAT, "custom/my-vllm/org/small", "good"),
        (CHAT, "custom/small", "slow"),
    ]
    for path, model, behaviour in calls:
        answer = visitor.post(path, json={**body, "model": model})
        assert (
            fake.reply_text("custom", "hello")
            == answer.get_json()["choices"][0]["message"]["content"]
        )
        assert fake.calls[-1].api_key == fake.api_key("custom", behaviour)
    assert [call.body["model"] for call in fake.calls[-4:]] == ["org/small"] * 3 + ["small"]  # type: ignore[index]
    answer = visitor.post(f"{GATEWAY}/custom/another/chat/completions", json=body)
    assert (answer.status_code, code_of(answer)) == (409, "key_missing")
