"""What all provider objects do."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import time
from typing import Any

import pytest

from flask_byok.catalog import ProviderSpec
from flask_byok.errors import (
    ConfigurationError,
    EndpointNotAllowedError,
    InvalidFieldError,
    MissingCredentialError,
    RejectedCredentialError,
)
from flask_byok.http import Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.providers import BaseProvider, make_provider
from flask_byok.testing import FakeProviders
from flask_byok.wires.events import StreamEvent
from tests.patience import soon

from .conftest import CATALOG, HELLO, SDKS, Make, call_client, credential_for

CANARY = "sk-proj-canary0123456789"


def test_an_object_tells_safe_facts(make: Make) -> None:
    """Name, source and hint are shown."""
    provider = make("openai", CANARY)
    assert (provider.name, provider.display_name) == ("openai", "OpenAI")
    assert (provider.source, provider.is_configured) == ("session", True)
    assert provider.to_dict()["hint"] == "…1234"


@pytest.mark.parametrize("spill", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_object_is_not_copied(make: Make, spill: Any) -> None:
    """Pickles and copies are refused."""
    with pytest.raises(TypeError):
        spill(make("openai", CANARY))


def test_the_key_can_be_read_and_set(make: Make, fake: FakeProviders) -> None:
    """`api_key` gives the string; setting it changes this object, and its next call."""
    old, new = fake.api_key("openai", owner="old"), fake.api_key("openai", owner="new")
    provider, other = make("openai", old), make("openai", old)
    assert provider.api_key == old
    client = provider.client
    provider.api_key = f" {new}\n"
    assert (provider.api_key, provider.source, other.api_key) == (new, "argument", old)
    assert provider.client is not client
    list(provider.stream_chat(HELLO))
    list(other.stream_chat(HELLO))
    assert [call.api_key for call in fake.calls] == [new, old]


REFUSED = {
    "openai": "base_url api_key http_client websocket_base_url data_residency provider workload_identity",
    "anthropic": "auth_token credentials middleware",
    "google": "http_options enterprise credentials debug_config tomorrows_new_one",
}


@pytest.mark.parametrize("provider", REFUSED)
def test_options_cannot_redirect_a_key(fake: FakeProviders, provider: str) -> None:
    """Options that could decide where the key goes raise an error."""
    credential = credential_for(fake, provider, CANARY)
    for name in REFUSED[provider].split():
        options = {name: "https://evil.example"}
        with pytest.raises(ConfigurationError, match=f"{name}.*BYOK_BASE_URLS") as caught:
            make_provider(CATALOG.get(provider), credential, Outbound(), **options)
        assert "evil" not in str(caught.value)


def test_options_reach_the_sdk(make: Make) -> None:
    """Other options are the SDK's own."""
    client = make("openai", CANARY, timeout=7.0, max_retries=5, organization="org-mine").client
    assert (client.timeout, client.max_retries, client.organization) == (7.0, 5, "org-mine")


@pytest.mark.parametrize("provider", SDKS)
def test_every_provider_takes_the_same_options(
    fake: FakeProviders, make: Make, provider: str
) -> None:
    """Code that lets a person choose the provider need not know which SDK it is."""
    options = {"timeout": 7.0, "max_retries": 1, "default_headers": {"X-Mine": "1"}}
    made = make(provider, fake.api_key(provider), **options)
    assert list(made.stream_chat(HELLO))
    fake.answer_next(provider, 503, {"error": {"message": "busy", "status": "UNAVAILABLE"}})
    call_client(provider, made.client)
    assert [call.headers["x-mine"] for call in fake.calls] == ["1", "1", "1"]


def test_without_a_key_there_is_no_client(fake: FakeProviders) -> None:
    """An empty credential is not configured, and the SDK never looks for a key by itself."""
    empty = Credential(
        provider="openai", source="argument", owner="", fields={}, base_url=fake.base_url("openai")
    )
    provider = make_provider(CATALOG.get("openai"), empty, Outbound())
    assert not provider.is_configured
    with pytest.raises(MissingCredentialError):
        provider.client  # noqa: B018


def test_a_model_must_be_known_or_named(fake: FakeProviders, make: Make) -> None:
    """A model is the call's, the object's or the provider's, and a provider without one wants one."""
    provider = make("custom", fake.api_key("custom"))
    with pytest.raises(InvalidFieldError, match="model"):
        list(provider.stream_chat(HELLO))
    list(provider.stream_chat(HELLO, "local-small"))
    made = make("openai", fake.api_key("openai"), model="gpt-of-mine")
    list(made.stream_chat(HELLO))
    list(made.stream_chat(HELLO, "another"))
    bodies: list[Any] = [call.body for call in fake.calls]
    assert [body["model"] for body in bodies] == ["local-small", "gpt-of-mine", "another"]


def test_a_personal_endpoint_is_checked_at_use(fake: FakeProviders) -> None:
    """An address that may not be called any more is refused before a client is made."""
    credential = credential_for(fake, "custom", fake.api_key("custom"), "personal")
    spec = CATALOG.get("custom")
    with pytest.raises(EndpointNotAllowedError):
        list(make_provider(spec, credential, Outbound()).stream_chat(HELLO, "m"))
    allowed = make_provider(spec, credential, Outbound(allow_private=True))
    assert list(allowed.stream_chat(HELLO, "m"))
    del allowed
    gc.collect()
    assert len(fake.calls) == 1


def test_a_host_can_bring_its_own_class(make: Make) -> None:
    """A spec's `provider_class` is made instead of the adapter."""

    class Echo(BaseProvider):
        def converse(self, messages: Any, model: str | None = None, **params: Any) -> Any:
            yield StreamEvent("text", text=f"{messages[0]['content']} {model}")

    url = "https://echo.example"
    spec = ProviderSpec(
        id="echo", name="Echo", base_url=url, default_model="m", provider_class=Echo
    )
    fields = {"api_key": Secret(CANARY)}
    credential = Credential(
        provider="echo", source="argument", owner="", fields=fields, base_url=url
    )
    provider = make_provider(spec, credential, Outbound())
    assert list(provider.stream_chat(HELLO, "m")) == ["Hello m"]


@pytest.mark.parametrize("provider", SDKS)
def test_a_missing_sdk_is_named(make: Make, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """Without the SDK the error says how to install it."""
    for name in ("openai", "anthropic", "google.genai"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'flask-byok\[{provider}\]'"):
        make(provider, CANARY).client  # noqa: B018


def test_an_abandoned_stream_gives_its_connection_back(make: Make, fake: FakeProviders) -> None:
    """A reader who goes away leaves no connection in use in the shared pool."""
    fake.chunk_delay = 0.01
    for name in SDKS:
        stream = make(name, fake.api_key(name)).stream_chat(HELLO)
        next(stream)
        stream.close()
    pool = make("openai", CANARY).client._client._transport._pool
    deadline = time.monotonic() + 2
    while busy := [c for c in pool.connections if not (c.is_idle() or c.is_closed())]:
        assert time.monotonic() < deadline, busy


def test_a_persons_address_gets_no_other_key(fake: FakeProviders) -> None:
    """An object whose address a person gave takes no other key, least of all the operator's."""
    credential = credential_for(fake, "custom", fake.api_key("custom"), trust="personal")
    made = make_provider(CATALOG.get("custom"), credential, Outbound(allow_private=True))
    with pytest.raises(EndpointNotAllowedError):
        made.set_api_key("sk-operator-operator")
    assert made.api_key == fake.api_key("custom")


def test_other_messages_are_refused(make: Make) -> None:
    """What cannot be translated is not sent in part, and is refused before a stream begins."""
    made = make("anthropic", CANARY)
    contents: tuple[Any, ...] = (1, [{"type": "image_url"}], ["A"])
    wrong = [{"content": "A"}, {"role": "narrator", "content": "A"}]
    for message in wrong + [{"role": "user", "content": content} for content in contents]:
        with pytest.raises(InvalidFieldError):
            made.stream_chat([message])


def test_what_a_host_sets_on_a_client_goes_out_in_no_other_call(
    make: Make, fake: FakeProviders
) -> None:
    """Each client has headers of its own, also the plain ones, which share their pool."""
    first, second = (fake.api_key("elevenlabs", owner=name) for name in ("ada", "ben"))
    mine = make("elevenlabs", first)
    mine.client.headers.update({"X-Customer": "ada", "xi-api-key": first})
    make("elevenlabs", second).client.get("/v1/user")
    list(make("openai", fake.api_key("openai")).stream_chat(HELLO))
    assert [call.headers.get("x-customer") for call in fake.calls] == [None, None]
    assert fake.calls_for("elevenlabs")[-1].api_key == second


@pytest.mark.parametrize("seconds", ["90", "Fri, 31 Dec 2100 23:59:59 GMT"])
@pytest.mark.parametrize("provider", SDKS)
def test_no_sdk_sleeps_for_a_provider(
    make: Make, fake: FakeProviders, provider: str, seconds: str
) -> None:
    """A refusal that asks for patience is not tried again by an SDK, which would sleep in the worker."""
    fake.answer_next(provider, 429, {"error": {"message": "slow down"}}, retry_after=seconds)
    with soon(), pytest.raises(Exception, match=r"429|slow down"):
        call_client(provider, make(provider, fake.api_key(provider)).client)
    assert len(fake.calls) == 1


def test_another_key_is_followed_by_no_other(make: Make, fake: FakeProviders) -> None:
    """A conversation on a key that the host gave does not go on with another one."""
    other = make("openai", fake.api_key("openai", owner="other"))
    made = make("openai", fake.api_key("openai"), successor=lambda error: other)
    made.set_api_key(fake.api_key("openai", "bad"))
    with pytest.raises(RejectedCredentialError):
        list(made.stream_chat(HELLO))


def test_what_is_no_json_is_not_sent(make: Make, fake: FakeProviders) -> None:
    """Objects of the host's, and values that are nested too deep, are refused before anything is sent."""
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    for value in (object(), deep):
        with pytest.raises(InvalidFieldError):
            make("openai", CANARY).stream_chat(HELLO, extra={"odd": value})
    assert fake.calls == []
