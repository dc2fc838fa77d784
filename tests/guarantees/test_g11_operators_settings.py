"""G11: what the operator set for own calls never reaches a call made with a person's key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from flask import Response

from flask_byok import BaseProvider, get_chat_model_with_api_key, get_provider_with_api_key
from flask_byok.catalog import Catalog
from flask_byok.errors import ProviderUnavailableError
from flask_byok.providers import make_chat_model
from flask_byok.testing import FakeProviders, RecordedCall
from flask_byok.testing.api_keys import name_in
from tests.app import Browser, HostApp, browser
from tests.poison import MARK, POISON, PROXIES, everything, set_home, set_poison
from tests.web.gateway_host import GATEWAY, gateway_app

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_poison(monkeypatch)
    set_home(monkeypatch, tmp_path / "home")


def _assert_clean(calls: list[RecordedCall], api_key: str) -> None:
    assert calls
    for call in calls:
        assert call.api_key == api_key
        assert MARK not in everything(call)
        names = {
            name for name in call.headers if name.startswith(("openai-", "x-goog-user-project"))
        }
        assert names == set()


def _ask(made: BaseProvider, client: Any, model: str) -> Any:
    """Call with a client of the SDK's, which returns an answer or something to wait for."""
    if made.extra == "google":
        return client.models.generate_content(model=model, contents="hello")
    if made.extra == "anthropic":
        return client.messages.create(model=model, max_tokens=9, messages=HELLO)
    return client.chat.completions.create(model=model, messages=HELLO)


async def _wait(answer: Awaitable[object]) -> object:
    return await answer


async def _read(made: BaseProvider, model: str) -> str:
    return "".join([text async for text in made.astream_chat(HELLO, model)])


#: Calls a provider, and of those that hold conversations a model of it.
Way = Callable[[BaseProvider, str], object]
PLAIN: list[Way] = [
    lambda made, model: made.models(),
    lambda made, model: made.http_client.get(f"{made.credential.base_url}/anything"),
    lambda made, model: asyncio.run(
        _wait(made.async_http_client.get(f"{made.credential.base_url}/anything"))
    ),
]
CHATS: list[Way] = [
    lambda made, model: list(made.stream_chat(HELLO, model)),
    lambda made, model: asyncio.run(_read(made, model)),
    lambda made, model: _ask(made, made.client, model),
    lambda made, model: asyncio.run(_wait(_ask(made, made.async_client, model))),
    lambda made, model: make_chat_model(made, model).invoke("hello"),
    lambda made, model: asyncio.run(_wait(make_chat_model(made, model).ainvoke("hello"))),
]
#: The path of a conversation below the gateway's path of the provider, by adapter.
PASSED = {
    "openai": "chat/completions",
    "anthropic": "v1/messages",
    "google": "v1beta/models/gemini-2.5-flash:generateContent",
}


# Every fourth of them in the suite, with one of each wire.
EVERY = [
    spec.id
    if number % 4 == 0 or spec.id in ("openai", "anthropic", "google")
    else pytest.param(spec.id, marks=pytest.mark.stress)
    for number, spec in enumerate(Catalog.shipped)
]


@pytest.mark.parametrize("provider", EVERY)
def test_every_way_of_every_provider(tmp_path: Path, fake: FakeProviders, provider: str) -> None:
    """Checks, streams, the gateway, clients and LangChain send a person's key, and nothing of the operator's."""
    spec, fields = Catalog().get(provider), fake.fields(provider)
    settings = {"BYOK_ALLOW_CUSTOM_PROVIDERS": True, "BYOK_ALLOW_PRIVATE_ENDPOINTS": True}
    app = gateway_app(tmp_path, fake, BYOK_PROVIDERS=[provider], **settings)
    visitor = browser(app)
    visitor.load()
    saved = visitor.call("set", provider=provider, fields=fields).get_json()
    assert saved["validation"]["verdict"] in ("valid", "unchecked")
    visitor.call("validate", provider=provider)
    model, holds_chats = spec.default_model or "some-model", spec.adapter != "http"
    if holds_chats:
        assert "event: done" in visitor.get(f"/chat/{provider}?model={model}").text
        for path in (f"{provider}/{PASSED[spec.adapter]}", "v1/chat/completions"):
            body = {"model": f"{provider}/{model}", "max_tokens": 9, "messages": HELLO}
            visitor.post(f"{GATEWAY}/{path}", json=body).get_data()
    with app.app_context(), app.byok.acting_for("ann"):
        app.byok.set(provider, fields=fields, validate="off")
        for way in (*PLAIN, *(CHATS if holds_chats else ())):
            with suppress(ProviderUnavailableError):  # it may have no list of models
                way(get_provider_with_api_key(provider), model)
    assert len(fake.calls) >= (12 if holds_chats else 4)
    _assert_clean(fake.calls, name_in(fields[spec.main_field.name]))


MODELS = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-2.5-flash",
}


@pytest.mark.parametrize("provider", MODELS)
def test_async_views_and_langchain(
    app: HostApp, visitor: Browser, fake: FakeProviders, provider: str
) -> None:
    """So do our streams, the SDK's client and a LangChain model in an asynchronous view, all at once, and in others."""

    @app.get("/ask")
    async def ask() -> str:
        model = MODELS[provider]
        made = get_provider_with_api_key(provider)
        chat = get_chat_model_with_api_key(provider, model)
        calls = [_wait(_ask(made, made.async_client, model)) for _ in range(2)]
        said, *_ = await asyncio.gather(_read(made, model), *calls, chat.ainvoke("hello"))
        return str(said)

    @app.get("/stream")
    async def stream() -> Response:
        made = get_provider_with_api_key(provider)
        return app.byok.stream_response(made, HELLO)

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
