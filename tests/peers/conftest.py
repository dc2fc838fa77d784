"""Peers as fixtures. Each is started by the first test that asks for it, and serves until the run ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_byok.testing import FakeProviders
from tests.app import Browser, HostApp, browser, make_app

from . import servers


@pytest.fixture(scope="session")
def peers() -> None:
    """Ask for what `scripts/peers` installs; in CI it is not optional."""
    if missing := servers.missing():
        pytest.skip(missing)


@pytest.fixture(scope="session")
def aimock_server(peers: None) -> Iterator[servers.Aimock]:
    """Run one aimock for each process."""
    with servers.Aimock() as server:
        yield server


@pytest.fixture
def aimock(aimock_server: servers.Aimock) -> Iterator[servers.Aimock]:
    """Return an aimock that knows no answer yet."""
    yield aimock_server
    aimock_server.reset()


@pytest.fixture(scope="session")
def litellm_server(peers: None) -> Iterator[servers.LiteLLM]:
    """Run one proxy for each process: it takes seconds to start, so its tests are in one file."""
    with FakeProviders() as upstream, servers.LiteLLM(upstream) as server:
        yield server


@pytest.fixture
def litellm(litellm_server: servers.LiteLLM) -> servers.LiteLLM:
    """Return the proxy; what its providers were asked before is forgotten."""
    litellm_server.upstream.clear_calls()
    return litellm_server


@pytest.fixture(scope="session")
def moto(peers: None) -> Iterator[servers.Moto]:
    """Run one moto for each process."""
    with servers.Moto() as server:
        yield server


@pytest.fixture
def aimock_app(tmp_path: Path, aimock: servers.Aimock) -> HostApp:
    """Return a host whose providers are aimock."""
    return make_app(tmp_path, BYOK_BASE_URLS=aimock.base_urls)


@pytest.fixture
def aimock_visitor(aimock_app: HostApp) -> Browser:
    """Return a browser on that host."""
    return browser(aimock_app)
