"""The SDKs' WebSockets are closed: they would go past the guarded transport."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_byok.errors import ConfigurationError
from flask_byok.providers.google import close_web_sockets
from flask_byok.testing import FakeProviders

from .conftest import Make

ENTRANCES: dict[str, Callable[[Any], Any]] = {
    "realtime": lambda client: client.realtime.connect(model="m"),
    "realtime, beta": lambda client: client.beta.realtime.connect(model="m"),
    "translations": lambda client: client.realtime.translations.connect(model="m"),
    "responses": lambda client: client.responses.connect(),
    "responses, beta": lambda client: client.beta.responses.connect(),
    "sideband": lambda client: client.live.sideband.connect(session_id="s"),
    "forks": lambda client: client.live.forks.connect(session_id="s"),
    "live": lambda client: client.live.connect(),
}


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
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


@pytest.mark.parametrize("name", ENTRANCES)
@pytest.mark.parametrize("copied", [False, True])
def test_openais_web_sockets_are_closed(
    fake: FakeProviders, make: Make, proxy: list[Any], name: str, copied: bool
) -> None:
    """No entrance opens a connection, nor one of a copied client that names an address."""
    client = make("openai", fake.api_key("openai")).client
    if copied:
        client = client.with_options(websocket_base_url="ws://evil.example", timeout=5)
        client.websocket_base_url = "ws://evil.example"
    with pytest.raises(ConfigurationError, match="not offered"):
        ENTRANCES[name](client).enter()
    assert proxy == []


def test_copies_go_on_working(fake: FakeProviders, make: Make) -> None:
    """A copy of the client calls as before."""
    client = make("openai", fake.api_key("openai")).client
    assert list(client.copy().copy(max_retries=0).models.list())


@pytest.mark.filterwarnings("ignore:Realtime music")
@pytest.mark.parametrize("name", ["live", "music"])
def test_googles_live_sessions_are_closed(
    fake: FakeProviders, make: Make, proxy: list[Any], name: str
) -> None:
    """Neither kind of session opens a connection."""
    live = make("google", fake.api_key("google")).client.aio.live
    session = live.music if name == "music" else live

    async def talk() -> None:
        async with session.connect(model="m"):
            pass

    with pytest.raises(ConfigurationError, match="not offered"):
        asyncio.run(talk())
    assert proxy == []


def test_an_sdk_that_cannot_be_closed_is_refused() -> None:
    """Should Google's SDK look elsewhere for the address one day, no client is made."""
    with pytest.raises(ConfigurationError, match="earlier release"):
        close_web_sockets(object())
