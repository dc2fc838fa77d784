"""Provider objects for views: the right key, for this call only."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_byok import (
    ConfigurationError,
    EndpointNotAllowedError,
    InvalidFieldError,
    KeyRefusedError,
    MalformedApiKeyError,
    get_chat_model_with_api_key,
    get_provider_with_api_key,
)
from flask_byok.redaction import REDACTED, redact
from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp

MESSAGES = [{"role": "user", "content": "hello"}]


def test_an_explicit_key_needs_no_app() -> None:
    """With a key of its own, a provider object can be made anywhere; without one it needs an app."""
    provider = get_provider_with_api_key("openai", "sk-explicit-0123456789")
    assert provider.api_key == "sk-explicit-0123456789"
    assert (provider.name, provider.display_name) == ("openai", "OpenAI")
    assert (provider.source, provider.is_configured) == ("argument", True)
    assert str(provider.client.base_url) == "https://api.openai.com/v1/"
    with pytest.raises(ConfigurationError, match="before the stream starts"):
        get_provider_with_api_key("openai")


def test_a_key_set_on_an_object_is_not_stored(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """What is set on a provider object serves no other request."""
    stored, passing = fake.api_key("openai", owner=1), fake.api_key("openai", owner=2)

    @app.get("/swap")
    def swap() -> str:
        provider = get_provider_with_api_key("openai")
        provider.set_api_key(passing)
        return "".join(provider.stream_chat(MESSAGES))

    visitor.save(stored, validate="off")
    visitor.get("/swap")
    visitor.get("/chat/openai").get_data()
    assert [call.api_key for call in fake.calls] == [passing, stored]


@pytest.mark.parametrize("api_key", ["", "short", "two words here", "käse-käse-käse"])
def test_what_cannot_be_a_key(app: HostApp, monkeypatch: pytest.MonkeyPatch, api_key: str) -> None:
    """An explicit key that is none is refused: the operator's does not take its place."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operator-0123456789")
    with app.app_context():
        with pytest.raises(MalformedApiKeyError):
            get_provider_with_api_key("openai", api_key)
        provider = get_provider_with_api_key("openai", "sk-explicit-0123456789")
        with pytest.raises(MalformedApiKeyError):
            provider.set_api_key(api_key)
        assert provider.api_key == "sk-explicit-0123456789"


def test_a_key_set_on_an_object_is_cleaned_as_a_typed_one() -> None:
    """What is pasted with a key stays out of it, and what is no ordinary key of the provider's is refused."""
    api_key = "sk-proj-CANARY4711_abc-DEF0123456789xyz"
    provider = get_provider_with_api_key("openai", api_key[::-1])
    for pasted in (
        f'export OPENAI_API_KEY="{api_key}"',
        f'{{"api_key": "{api_key}"}}',
        f"{api_key},",
    ):
        provider.api_key = pasted
        assert provider.api_key == api_key
    for other in ("your_api_key_here", "sess-CANARY0123456789", f"{api_key}\n{api_key}0"):
        with pytest.raises(MalformedApiKeyError) as caught:
            provider.set_api_key(other)
        assert "CANARY" not in str(caught.value)
    with pytest.raises(KeyRefusedError, match="admin key"):
        provider.set_api_key("sk-admin-CANARY-0123456789")
    assert provider.api_key == api_key


@pytest.mark.parametrize("option", ["base_url", "http_client", "http_options"])
def test_no_option_moves_a_stored_key(
    app: HostApp, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """No option changes where a resolved key goes."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-operator-0123456789")
    options: dict[str, Any] = {option: "https://elsewhere.example/v1"}
    with (
        app.app_context(),
        app.byok.as_operator(),
        pytest.raises(ConfigurationError, match=option),
    ):
        get_provider_with_api_key("openai", **options)


def test_a_base_url_of_ones_own() -> None:
    """An explicit key may go to an explicit public address, of a provider that takes one; nowhere else."""
    provider = get_provider_with_api_key(
        "custom", "key-0123456789", base_url="https://llm.example.com/v1/"
    )
    assert str(provider.client.base_url) == "https://llm.example.com/v1/"
    for address in ("https://127.0.0.1/v1", "http://llm.example.com/v1", "https://localhost/v1"):
        with pytest.raises(EndpointNotAllowedError):
            get_provider_with_api_key("custom", "key-0123456789", base_url=address)
    with pytest.raises(InvalidFieldError, match="Base URL is missing"):
        get_provider_with_api_key("custom", "key-0123456789")
    with pytest.raises(EndpointNotAllowedError):
        get_provider_with_api_key("openai", "key-0123456789", base_url="https://llm.example.com/v1")


def test_chat_models(app: HostApp, visitor: Browser, fake: FakeProviders) -> None:
    """A LangChain model is made on the caller's key or an explicit one, and calls with it."""
    explicit = fake.api_key("openai", owner="explicit")

    @app.get("/ask")
    def ask() -> str:
        return str(get_chat_model_with_api_key("openai", "gpt-4o-mini").invoke("hello").content)

    visitor.save(fake.api_key("openai"), validate="off")
    assert visitor.get("/ask").text == fake.reply_text("openai", "hello")
    with app.app_context():
        model = get_chat_model_with_api_key("openai", "gpt-4o-mini", explicit)
        assert explicit not in repr(model)
        model.invoke("hello")
    assert [call.api_key for call in fake.calls] == [fake.api_key("openai"), explicit]


def test_a_refusal_in_a_chat_model_marks_the_key(
    app: HostApp, visitor: Browser, fake: FakeProviders
) -> None:
    """What its provider refuses in a chat model is shown as refused from then on."""
    api_key = fake.api_key("openai", owner="refused")
    visitor.save(api_key)
    fake.add_key("openai", api_key, "bad")

    def view() -> str:
        with pytest.raises(Exception, match="401"):
            get_chat_model_with_api_key("openai", "gpt-4o-mini").invoke("hello")
        return "refused"

    app.view_functions["plain"] = view
    assert visitor.get("/plain").text == "refused"
    assert visitor.status()["state"] == "rejected"


@pytest.fixture
def fresh_heap() -> Iterator[None]:
    """Let collections look at what this test makes only, not at all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("fresh_heap")
@pytest.mark.parametrize(
    "use",
    [
        lambda: get_provider_with_api_key("openai").client,
        lambda: get_provider_with_api_key("anthropic").client.messages,
        lambda: get_provider_with_api_key("google").client.models,
        lambda: get_chat_model_with_api_key("openai", "m"),
        lambda: get_chat_model_with_api_key("anthropic", "m"),
    ],
)
def test_a_key_is_redacted_while_its_client_lives(
    app: HostApp, monkeypatch: pytest.MonkeyPatch, use: Callable[[], Any]
) -> None:
    """The SDK's client, a part of it or the chat model is all that is kept, and the key is still known."""
    key = "sk-operator-0123456789"
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, key)
    with app.app_context(), app.byok.as_operator():
        kept = use()
        gc.collect()
        assert redact(f"bad key {key}") == f"bad key {REDACTED}"
    del kept
    gc.collect()
    assert redact(key) == key


@pytest.mark.usefixtures("fresh_heap")
@pytest.mark.parametrize("explicit", [None, "sk-operator-0123456789"])
def test_a_key_is_redacted_for_the_length_of_the_request(
    app: HostApp, monkeypatch: pytest.MonkeyPatch, explicit: str | None
) -> None:
    """What a view makes of a provider object, even the plain string alone, is known until the request ends."""
    key = "sk-operator-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with app.test_request_context(), app.byok.as_operator():
        plain = get_provider_with_api_key("openai", explicit).api_key
        gc.collect()
        assert redact(plain) == REDACTED
        get_chat_model_with_api_key("openai", "m", explicit)
        gc.collect()
        assert redact(plain) == REDACTED
    gc.collect()
    assert redact(plain) == plain


def test_a_copied_clients_key_is_redacted() -> None:
    """A copy of the SDK's client, on a key of its own, keeps that one known."""
    other = "sk-other-0123456789"
    copied = get_provider_with_api_key("openai", "sk-explicit-0123456789").client.copy(
        api_key=other
    )
    gc.collect()
    assert redact(copied.api_key) == REDACTED


def test_an_explicit_credential_of_several_fields() -> None:
    """Fields are cleaned as typed ones are, and lead to their own address; a host elsewhere is refused."""
    fields = {
        "api_key": "0123456789abcdef0123456789abcdef",
        "resource": "https://mine.openai.azure.com/",
    }
    provider = get_provider_with_api_key("azure", fields=fields)
    assert provider.credential.base_url == "https://mine.openai.azure.com/openai/v1"
    assert get_provider_with_api_key(
        "azure", fields["api_key"], fields={"resource": "mine"}
    ).is_configured
    with pytest.raises(InvalidFieldError):
        get_provider_with_api_key("azure", fields={**fields, "resource": "evil.example/"})
