"""G11: what the operator set for own calls never reaches a call made with a person's key."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from flask import Response

from flask_byok import BaseProvider, get_chat_model_with_api_key, get_provider_with_api_key
from flask_byok.testing import FakeProviders, RecordedCall
from tests.app import Browser, HostApp
from tests.poison import MARK, POISON, PROXIES, everything, set_poison

PROVIDERS = ("openai", "anthropic", "google", "groq", "xai", "openrouter")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    set_poison(monkeypatch)


def _assert_clean(calls: list[RecordedCall], api_key: str) -> None:
    assert calls
    for call in calls:
        assert call.api_key == api_key
        assert MARK not in everything(call)
        names = {
            name for name in call.headers if name.startswith(("openai-", "x-goog-user-project"))
        }
        assert names == set()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_checks_and_streams(visitor: Browser, fake: FakeProviders, provider: str) -> None:
    """A check and a stream with a person's key carry that key and nothing of the operator's."""
    api_key = fake.api_key(provider)
    assert visitor.save(api_key, provider).status_code == 200
    assert visitor.call("validate", provider=provider).get_json()["valid"] is True
    assert "event: done" in visitor.get(f"/chat/{provider}").text
    assert len(fake.calls) >= 3
    _assert_clean(fake.calls, api_key)


MODELS = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-2.5-flash",
}


async def call(provider: BaseProvider) -> Any:
    """Call with the SDK's asynchronous client."""
    client, model = provider.async_client, MODELS[provider.name]
    messages: Any = [{"role": "user", "content": "hello"}]
    if provider.name == "google":
        return await client.models.generate_content(model=model, contents="hello")
    if provider.name == "anthropic":
        return await client.messages.create(model=model, max_tokens=9, messages=messages)
    return await client.chat.completions.create(model=model, messages=messages)


@pytest.mark.parametrize("provider", MODELS)
def test_async_views_and_langchain(
    app: HostApp, visitor: Browser, fake: FakeProviders, provider: str
) -> None:
    """So do our streams, the SDK's client and a LangChain model in an asynchronous view, all at once, and in others."""

    @app.get("/ask")
    async def ask() -> str:
        made = get_provider_with_api_key(provider)
        model = get_chat_model_with_api_key(provider, MODELS[provider])
        messages = [{"role": "user", "content": "hello"}]

        async def read() -> list[str]:
            return [piece async for piece in made.astream_chat(messages)]

        answer = await asyncio.gather(read(), call(made), call(made), model.ainvoke("hello"))
        return "".join(answer[0])

    @app.get("/stream")
    async def stream() -> Response:
        made = get_provider_with_api_key(provider)
        return app.byok.stream_response(made, [{"role": "user", "content": "hello"}])

    @app.get("/wait")
    def wait() -> str:
        return str(get_chat_model_with_api_key(provider, MODELS[provider]).invoke("hello").content)

    api_key = fake.api_key(provider)
    visitor.save(api_key, provider, validate="off")
    assert (
        visitor.get("/ask").text == visitor.get("/wait").text == fake.reply_text(provider, "hello")
    )
    assert "event: done" in visitor.get("/stream").text
    assert len(fake.calls) == 6
    _assert_clean(fake.calls, api_key)


def test_what_is_searched_for_would_be_found(
    fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK by itself does send what the operator set: the search above can fail."""
    fake.add_key("openai", POISON["OPENAI_API_KEY"])
    for name in (*PROXIES, "OPENAI_CUSTOM_HEADERS", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name)  # with these it would not reach the fake provider
    with openai.OpenAI(base_url=fake.base_url("openai"), max_retries=0) as client:
        client.models.list()
    (call,) = fake.calls
    assert MARK in everything(call)
    with pytest.raises(AssertionError):
        _assert_clean([call], fake.api_key("openai"))
