"""No way around the guarded transport, no end to wait for, and nothing of the operator's in a person's call."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import socket
import threading
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest

from flask_byok.errors import ConfigurationError, ProviderError
from flask_byok.http import Outbound, transport
from flask_byok.http.transport import Limits
from flask_byok.providers import make_provider
from flask_byok.providers.google import close_web_sockets
from flask_byok.providers.sdk import IsolatedClient
from flask_byok.testing import FakeProviders
from tests.http.hostile_server import Script, drip, endless, head, hostile
from tests.patience import soon
from tests.poison import MARK, everything, set_poison

from .conftest import CATALOG, HELLO, SDKS, Make, credential_for

JSON, EVENTS = "Content-Type: application/json", "Content-Type: text/event-stream"
SCRIPTS: dict[str, Script] = {
    "an error without end": lambda: endless(head(400, JSON)),
    "a line without end": lambda: endless(head(200, EVENTS) + b"data: "),
    "a bomb": lambda: iter(
        [head(400, JSON, "Content-Encoding: gzip") + gzip.compress(b"x" * 10_000_000)]
    ),
    "empty lines for ever": lambda: drip(head(200, EVENTS), b"\n"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("provider", SDKS)
def test_a_chat_ends(
    fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, provider: str, script: str
) -> None:
    """A server without end takes neither memory nor a worker: the call fails."""
    monkeypatch.setattr(transport, "SHARED", Limits(seconds=2.0))
    with hostile(SCRIPTS[script]) as server:
        credential = credential_for(fake, provider, "sk-0123456789abcdef")
        credential = dataclasses.replace(credential, base_url=server.origin)
        made = make_provider(CATALOG.get(provider), credential, Outbound(), max_retries=0)
        with soon(8), pytest.raises(ProviderError) as caught:
            list(made.stream_chat(HELLO, "some-model"))
        refused = script == "an error without end"
        code = "provider_unavailable" if script == "a bomb" else "stream_incomplete"
        assert caught.value.code == ("request_refused" if refused else code)
        assert server.sent < 32_000_000


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    set_poison(monkeypatch)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_copied_client_does_not_look_at_the_environment(
    fake: FakeProviders, make: Make, provider: str
) -> None:
    """What the operator set for the SDK is in no call of `client.with_options(…)`."""
    client = make(provider, fake.api_key(provider)).client
    client.with_options(timeout=5, default_headers={"X-Mine": "1"}).models.list()
    (call,) = fake.calls
    assert MARK not in everything(call)
    assert call.headers["x-mine"] == "1"


@pytest.mark.usefixtures("_poisoned")
def test_what_a_developer_passes_is_sent(fake: FakeProviders, make: Make) -> None:
    """Explicit options are not the environment's."""
    options = {"organization": "org-mine", "default_headers": {"X-Mine": "1"}}
    list(make("openai", fake.api_key("openai"), **options).stream_chat(HELLO))
    headers = fake.calls[-1].headers
    assert (headers["openai-organization"], headers["x-mine"]) == ("org-mine", "1")
    assert MARK not in everything(fake.calls[-1])


def test_an_sdk_that_cannot_be_guarded_is_refused() -> None:
    """If an SDK keeps its headers or the address of its WebSockets elsewhere one day, calls stop instead of leaking."""

    class Later(IsolatedClient, SimpleNamespace):
        silent = ()

    for guard in (lambda: Later(api_key="sk-12345678"), lambda: close_web_sockets({})):
        with pytest.raises(ConfigurationError, match="earlier release"):
            guard()


ENTRANCES: list[Callable[[Any], Any]] = [
    lambda client: client.realtime.connect(model="m"),
    lambda client: client.beta.realtime.connect(model="m"),
    lambda client: client.realtime.translations.connect(model="m"),
    lambda client: client.responses.connect(),
    lambda client: client.beta.responses.connect(),
    lambda client: client.live.sideband.connect(session_id="s"),
    lambda client: client.live.forks.connect(session_id="s"),
    lambda client: client.live.connect(),
]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put a proxy into the environment, and record every connection that this thread opens."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    opened: list[Any] = []
    connect, mine = socket.socket.connect, threading.get_ident()

    def record(self: socket.socket, address: Any) -> None:
        # Other tests' counts of uses may still look for their store.
        if threading.get_ident() == mine:
            opened.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", record)
    return opened


def test_openais_web_sockets_are_closed(fake: FakeProviders, make: Make, opened: list[Any]) -> None:
    """No entrance opens a connection, nor one of a copied client that names an address."""
    client = make("openai", fake.api_key("openai")).client
    copied = client.with_options(websocket_base_url="ws://evil.example", timeout=5)
    copied.websocket_base_url = "ws://evil.example"
    for each in (client, copied):
        there = [enter for enter in ENTRANCES if _has(enter, each)]
        # The lowest release has half of them.
        assert len(there) == len(ENTRANCES) or version("openai").startswith("3.0")
        for enter in there:
            with pytest.raises(ConfigurationError, match="not offered"):
                enter(each).enter()
    assert opened == []


def _has(enter: Callable[[Any], Any], client: Any) -> bool:
    try:
        enter(client)
    except AttributeError:
        return False
    except ConfigurationError:
        pass
    return True


@pytest.mark.filterwarnings("ignore:Realtime music", "ignore:Live Interactions")
def test_googles_live_sessions_are_closed(
    fake: FakeProviders, make: Make, opened: list[Any]
) -> None:
    """No kind of session opens a connection."""
    aio = make("google", fake.api_key("google")).client.aio
    live = aio.live

    async def talk(session: Any) -> None:
        async with session.connect(model="m"):
            pass

    for session in (live, live.music):
        with pytest.raises(ConfigurationError, match="not offered"):
            asyncio.run(talk(session))
    if hasattr(aio.interactions, "connect"):  # not yet in the lowest release
        with pytest.raises(ConfigurationError, match="not offered"):
            aio.interactions.connect("some-interaction")
    assert opened == []
