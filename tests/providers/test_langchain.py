"""LangChain chat models with people's keys."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField

from flask_byok.errors import ConfigurationError
from flask_byok.http import Outbound
from flask_byok.model.credential import Verdict
from flask_byok.providers import BaseProvider, make_chat_model, make_provider
from flask_byok.testing import FakeProviders, assert_no_key_bleed
from tests.poison import MARK, everything, set_poison

from .conftest import CATALOG, credential_for

LANGCHAIN = ["openai", "anthropic", "google"]


def chat_model(
    fake: FakeProviders, outbound: Outbound, provider: str, api_key: str, **kwargs: Any
) -> Any:
    """Make a chat model at the fake provider."""
    credential = credential_for(fake, provider, api_key)
    names = {*BaseProvider.allowed_options, "count", "report"} & kwargs.keys()
    options = {name: kwargs.pop(name) for name in names}
    made = make_provider(CATALOG.get(provider), credential, outbound, **options)
    return make_chat_model(made, "some-model", **kwargs)


def ask(model: Any) -> list[Any]:
    """Return what the model answers in each of LangChain's four ways."""

    async def later() -> list[Any]:
        streamed = [chunk.content async for chunk in model.astream("Hello")]
        return [(await model.ainvoke("Hello")).content, "".join(streamed)]

    streamed = [chunk.content for chunk in model.stream("Hello")]
    return [model.invoke("Hello").content, "".join(streamed), *asyncio.run(later())]


@pytest.mark.parametrize("provider", [*LANGCHAIN, "groq"])
def test_a_chat_model_answers(fake: FakeProviders, provider: str) -> None:
    """All its ways call the person's provider with the person's key, which no repr or dump shows."""
    api_key = fake.api_key(provider)
    model = chat_model(fake, Outbound(), provider, api_key, temperature=0.1, timeout=20)
    assert ask(model) == [fake.reply_text(provider, "Hello")] * 4
    assert {call.api_key for call in fake.calls} == {api_key}
    assert api_key not in repr(model) + str(model) + str(model.to_json())
    assert '"temperature":0.1' in str(fake.calls[0].content).replace(" ", "")


@pytest.mark.parametrize("provider", LANGCHAIN)
def test_people_share_no_client_with_a_key(fake: FakeProviders, provider: str) -> None:
    """Interleaved chat models on one pool: each call has its own key and no cookie."""
    fake.set_cookie = True
    outbound = Outbound()
    owners = {str(number): fake.api_key(provider, owner=number) for number in range(20)}

    def chat(owner: str) -> None:
        model = chat_model(fake, outbound, provider, owners[owner])
        model.invoke(f"owner:{owner} hello")
        asyncio.run(model.ainvoke(f"owner:{owner} hello"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chat, owners))
    assert_no_key_bleed(fake.calls, owners)


@pytest.mark.parametrize("provider", LANGCHAIN)
def test_calls_count_and_report(fake: FakeProviders, provider: str) -> None:
    """Each call of a chat model counts once, with its own outcome, and a rejected key is reported."""
    counted: list[str] = []
    reported: list[Any] = []
    told: Any = {"count": counted.append, "report": reported.append}
    ask(chat_model(fake, Outbound(), provider, fake.api_key(provider), **told))
    assert (counted, reported) == (["used"] * 4, [])
    model = chat_model(fake, Outbound(), provider, fake.api_key(provider, "bad"), **told)
    for call in (model.invoke, lambda text: asyncio.run(model.ainvoke(text))):
        with suppress(Exception):
            call("Hello")
    assert counted[4:] == ["rejected"] * 2
    assert [judged.verdict for judged in reported] == [Verdict.INVALID] * 2


REBUILD: dict[str, Callable[[Any], Any]] = {
    "as it was made": lambda model: model,
    "configured": lambda model: model.configurable_fields(
        temperature=ConfigurableField(id="t")
    ).with_config(configurable={"t": 0.5}),
    "bound": lambda model: model.bind(stop=["x"]),
    "copied": lambda model: model.model_copy(update={"temperature": 0.5}),
    "made anew": lambda model: type(model)(
        **{name: getattr(model, name) for name in type(model).model_fields}
    ),
}


@pytest.mark.parametrize("how", REBUILD)
@pytest.mark.parametrize("provider", LANGCHAIN)
def test_a_rebuilt_model_is_guarded_too(
    fake: FakeProviders, provider: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat model, and what LangChain makes of it, has no proxy and no operator's header, in async code too."""
    set_poison(monkeypatch)
    model = chat_model(fake, Outbound(), provider, fake.api_key(provider), max_retries=1)
    rebuilt = REBUILD[how](model)
    rebuilt.invoke("Hello")
    asyncio.run(rebuilt.ainvoke("Hello"))
    assert len(fake.calls) == 2
    for call in fake.calls:
        assert call.api_key == fake.api_key(provider)
        assert MARK not in everything(call)


@pytest.mark.parametrize("provider", ["anthropic", "google"])
def test_a_model_without_its_client_makes_no_call(fake: FakeProviders, provider: str) -> None:
    """Rebuilt without the guarded client a model fails, and makes none of its own."""
    api_key, base_url = fake.api_key(provider), fake.base_url(provider)
    model = chat_model(fake, Outbound(), provider, api_key)
    with pytest.raises(ConfigurationError, match="lost its client"):
        type(model)(model="m", api_key=api_key, base_url=base_url).invoke("Hello")
    assert fake.calls == []


@pytest.mark.parametrize(
    "name",
    [
        *("base_url", "openai_api_base", "http_client", "http_async_client", "client"),
        *("client_args", "client_options", "credentials", "google_api_key", "vertexai"),
    ],
)
def test_arguments_cannot_redirect_a_key(fake: FakeProviders, name: str) -> None:
    """No argument, under any of its names, decides where the key goes."""
    with pytest.raises(ConfigurationError, match="BYOK_BASE_URLS"):
        chat_model(fake, Outbound(), "google", fake.api_key("google"), **{name: "x"})


def test_google_is_asked_once(fake: FakeProviders) -> None:
    """Where LangChain would sleep and try six times, an answer that says "later" is raised, as from the SDK."""
    model = chat_model(fake, Outbound(), "google", fake.api_key("google", "rate_limited"))
    with pytest.raises(Exception, match="429"):
        model.invoke("Hello")
    assert len(fake.calls) == 1
    assert "temperature" not in str(fake.calls[0].content)


def test_what_is_missing_is_named(fake: FakeProviders, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which provider has no chat model, and how to install LangChain."""
    with pytest.raises(ConfigurationError, match="no LangChain chat model for Deepgram"):
        chat_model(fake, Outbound(), "deepgram", fake.api_key("deepgram"))
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-byok\[langchain\]'"):
        chat_model(fake, Outbound(), "openai", fake.api_key("openai"))
