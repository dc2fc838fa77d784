"""The real SDKs against a server that never ends its answer."""

from __future__ import annotations

import dataclasses
import gzip
import time
from collections.abc import Iterator

import pytest

from flask_byok.errors import ProviderUnavailableError
from flask_byok.http import Outbound, transport
from flask_byok.providers import make_provider
from flask_byok.testing import FakeProviders
from tests.http.hostile_server import head, hostile
from tests.patience import soon

from .conftest import CATALOG, credential_for

HELLO = [{"role": "user", "content": "Hello"}]
JSON, EVENTS = "Content-Type: application/json", "Content-Type: text/event-stream"


def error_body() -> Iterator[bytes]:
    """Refuse, and go on about it."""
    yield head(400, JSON)
    while True:
        yield b"x" * 65_536


def line() -> Iterator[bytes]:
    """Send one event that does not end."""
    yield head(200, EVENTS) + b"data: "
    while True:
        yield b"x" * 65_536


def bomb() -> Iterator[bytes]:
    """Send little that unpacks to much."""
    yield head(400, JSON, "Content-Encoding: gzip") + gzip.compress(b"x" * 10_000_000)


def drip() -> Iterator[bytes]:
    """Send empty lines, for ever."""
    yield head(200, EVENTS)
    while True:
        time.sleep(0.05)
        yield b"\n"


@pytest.mark.parametrize("script", [error_body, line, bomb, drip])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
def test_a_chat_ends(
    fake: FakeProviders, monkeypatch: pytest.MonkeyPatch, provider: str, script: object
) -> None:
    """Neither memory nor a worker is lost to it: the call fails as one of a provider that is not there."""
    monkeypatch.setattr(transport, "MAX_SECONDS", 2.0)
    assert callable(script)
    with hostile(script) as server:
        credential = dataclasses.replace(
            credential_for(fake, provider, "sk-0123456789abcdef"), base_url=server.origin
        )
        spec = CATALOG.get(provider)
        made = make_provider(spec, credential, Outbound(), max_retries=0)
        with soon(8), pytest.raises(ProviderUnavailableError, match=r"longer|too long"):
            list(made.stream_chat(HELLO, "some-model"))
        assert server.sent < 32_000_000
