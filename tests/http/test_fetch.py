"""Plain requests: methods, checks at another host, kept headers, and the origin that a client may call."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from flask_byok.catalog import ProviderSpec
from flask_byok.catalog.verdicts import Answer
from flask_byok.errors import EndpointNotAllowedError, ProviderUnavailableError
from flask_byok.http import Endpoint, Outbound, endpoint_for, full_url
from flask_byok.testing import FakeProviders

from .conftest import Dialled
from .hostile_server import head, hostile
from .test_transport import PUBLIC, Resolver

KEY = {"Authorization": "Bearer sk-secret"}
SPEC = ProviderSpec(id="speech", name="Speech", base_url="https://api.speech.example/v2")
ELSEWHERE = "https://login.speech.example/v1/whoami?full=1"


def fetch(outbound: Outbound, endpoint: Endpoint, path: str = "/models", **options: Any) -> Answer:
    """Make a request with a key."""
    url = endpoint.base_url.rstrip("/") + path if path.startswith("/") else path
    return outbound.fetch(endpoint, url, KEY, seconds=5, **options)


def test_a_post_with_a_body() -> None:
    """The method and the body are sent; the answer keeps the two headers that a verdict may need."""
    first = head(429, "Retry-After: 90", "Content-Type: application/json", "X-Other: sk-secret")
    with hostile(lambda: iter([first, b"{}"]), keep=False) as server:
        endpoint = Endpoint(server.origin + "/v2", "operator")
        answer = fetch(Outbound(), endpoint, "/check", method="POST", content=b"a=b")
    assert (answer.status, answer.data) == (429, {})
    assert answer.headers == {"retry-after": "90", "content-type": "application/json"}
    assert server.heads[0].startswith("POST /v2/check HTTP/1.1\r\n")
    assert "Content-Length: 3" in server.heads[0]


@pytest.mark.parametrize(
    ("chosen", "path"),
    [
        ("", "/v1/whoami?full=1"),
        ("/", "/v1/whoami?full=1"),
        ("/v2", "/v1/whoami?full=1"),
        ("/tenant", "/tenant/v1/whoami?full=1"),
        ("/tenant/v2/", "/tenant/v1/whoami?full=1"),
    ],
)
def test_the_operators_address_stands_for_the_providers_other_hosts(chosen: str, path: str) -> None:
    """A check at another host goes there too, below the operator's own path."""
    with hostile(lambda: iter([head(200), b"{}"])) as server:
        endpoint = endpoint_for(SPEC, {"speech": server.origin + chosen})
        url = full_url(SPEC, endpoint, ELSEWHERE)
        assert fetch(Outbound(), endpoint, url).status == 200
        assert {line.partition(" HTTP")[0] for line in server.heads} == {f"GET {path}"}


def test_a_whole_url_of_the_catalog(dialled: Dialled) -> None:
    """It is called as it is, if its host is public; a person's key never leaves the person's own server."""
    catalog = endpoint_for(SPEC, {})
    resolver = Resolver([PUBLIC], ["127.0.0.1"])
    with pytest.raises(ProviderUnavailableError, match="refused the connection"):
        fetch(Outbound(resolver=resolver), catalog, ELSEWHERE)
    with pytest.raises(ProviderUnavailableError, match="may not be called"):
        fetch(Outbound(resolver=resolver), catalog, ELSEWHERE)
    assert dialled.addresses == [PUBLIC]
    with pytest.raises(ProviderUnavailableError, match="may not be called"):
        fetch(Outbound(), Endpoint("https://llm.example.com/v1", "personal"), ELSEWHERE)


@pytest.mark.parametrize(
    "path", ["@evil.example/v1", ".evil.example/", ":444/v1", "//evil.example/"]
)
def test_a_path_cannot_change_the_origin(dialled: Dialled, path: str) -> None:
    """What would make another host or port of the URL is refused before a name is resolved."""
    resolver = Resolver([PUBLIC])
    for trust in ("catalog", "personal"):
        endpoint: Any = Endpoint("https://llm.example.com", trust)
        with suppress(ProviderUnavailableError, EndpointNotAllowedError):
            fetch(Outbound(resolver=resolver), endpoint, path)
        if not path.startswith("//"):
            assert resolver.asked == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """A redirect is an answer, whatever its code, and nothing is sent to where it leads."""
    with hostile(lambda: iter([head(200)])) as other:
        to = head(status, f"Location: {other.origin}/v1")
        with hostile(lambda: iter([to])) as server:
            for method in ("GET", "POST"):
                endpoint = Endpoint(server.origin, "operator")
                assert fetch(Outbound(), endpoint, method=method, content=b"x").status == status
        assert other.connections == 0


def test_a_client_calls_the_origin_that_it_was_made_for(fake: FakeProviders) -> None:
    """Not the others of the same pool: an SDK's upload to another of the app's providers is refused too."""
    outbound = Outbound()
    groq = outbound.client_for(Endpoint("https://api.groq.com/openai/v1", "catalog"))
    openai = outbound.client_for(Endpoint(fake.base_url("openai"), "operator"))
    for url in (
        fake.base_url("openai") + "/models",
        "https://api.groq.com:444/",
        "http://api.groq.com:443/",
    ):
        with pytest.raises(httpx2.UnsupportedProtocol):
            groq.get(url, headers=KEY)
    assert openai.get(fake.base_url("openai") + "/models").status_code == 401
    assert len(fake.calls) == 1


def test_hosts_of_peoples_resources_leave_nothing_behind(dialled: Dialled) -> None:
    """A thousand hosts out of one template take no memory that stays, and are public or not called."""
    outbound = Outbound(resolver=Resolver([PUBLIC], ["10.0.0.5"]))
    pool = None
    for number in range(1000):
        endpoint = Endpoint(f"https://res-{number}.openai.azure.com/openai/v1", "catalog")
        client = outbound.client_for(endpoint)
        pool = client.backend
        if number % 100 < 2:
            with pytest.raises(httpx2.ConnectError):
                client.get(endpoint.base_url)
    assert pool is not None
    assert pool.chosen == set()
    assert len(client._transport._pool.connections) == 0  # type: ignore[attr-defined]
    assert set(dialled.addresses) == {PUBLIC}


@pytest.fixture
def closed_port() -> int:
    """Return a port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_why_a_server_cannot_be_reached(fake_tls: FakeProviders, closed_port: int) -> None:
    """A name, a port and a certificate are told apart, in our own words."""

    def unknown(*args: Any, **options: Any) -> list[Any]:
        raise socket.gaierror(-2, "sk-secret")

    port = fake_tls.origin.rpartition(":")[2]
    for outbound, url, words in (
        (
            Outbound(resolver=unknown),
            "https://no.example",
            "name of the provider's server was not found",
        ),
        (Outbound(resolver=Resolver([])), "https://no.example", "was not found"),
        (Outbound(), f"http://127.0.0.1:{closed_port}", "refused the connection"),
        (Outbound(), f"https://127.0.0.1:{port}", "certificate"),
        (Outbound(), f"https://127.0.0.1:{closed_port}", "refused the connection"),
    ):
        with pytest.raises(ProviderUnavailableError, match=words) as caught:
            fetch(outbound, Endpoint(url, "operator"))
        assert "sk-secret" not in str(caught.value)
    with (
        hostile(lambda: iter([b"no TLS at all"])) as server,
        pytest.raises(ProviderUnavailableError, match="No secure connection"),
    ):
        fetch(Outbound(), Endpoint(server.origin.replace("http", "https"), "operator"))
