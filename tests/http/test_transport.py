"""The guarded transport: what is resolved, what is connected to, what is let through."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any

import httpx2
import pytest

from flask_byok.catalog import Catalog
from flask_byok.errors import EndpointNotAllowedError, ProviderUnavailableError
from flask_byok.http import Endpoint, Outbound
from flask_byok.model.credential import Credential, Secret
from flask_byok.providers.outcomes import Outcomes
from flask_byok.testing import FakeProviders
from tests.patience import soon

from .conftest import Dialled

PUBLIC = "93.184.215.14"


class Resolver:
    """Answers with the given addresses, one answer a question, over and over."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = answers
        self.asked = 0

    def __call__(self, host: str, port: int, **options: Any) -> list[Any]:
        addresses = self.answers[self.asked % len(self.answers)]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]


def fetch(outbound: Outbound, url: str, trust: Any = "personal", seconds: float = 5.0) -> Any:
    """Ask for the list of models, with a key."""
    headers = {"Authorization": "Bearer sk-secret"}
    return outbound.fetch(Endpoint(url, trust), f"{url}/models", headers, seconds=seconds)


INSIDE = "127.0.0.1"
NAMES = [
    ("catalog", False, [INSIDE]),
    ("personal", False, [INSIDE]),
    ("personal", False, [PUBLIC, "10.0.0.1"]),
    ("personal", True, ["169.254.169.254"]),
]


@pytest.mark.parametrize(("trust", "private", "addresses"), NAMES)
def test_all_addresses_of_a_name_must_be_allowed(
    dialled: Dialled, trust: str, private: bool, addresses: list[str]
) -> None:
    """The catalog's and people's names are public, all of a name's addresses; no leave is given for metadata."""
    outbound = Outbound(allow_private=private, resolver=Resolver(addresses))
    with pytest.raises(ProviderUnavailableError):
        fetch(outbound, "https://api.openai.com/v1", trust)
    assert dialled.addresses == []


def test_a_name_is_resolved_once_for_a_connection(dialled: Dialled) -> None:
    """The address that was judged is the address that is dialled; nothing is asked again."""
    resolver = Resolver([PUBLIC, "93.184.215.15"])
    with pytest.raises(ProviderUnavailableError):
        fetch(Outbound(resolver=resolver), "https://two.example")
    assert resolver.asked == 1
    assert dialled.addresses == [PUBLIC, "93.184.215.15"]
    many = [f"93.184.215.{number}" for number in range(1, 100)]
    with pytest.raises(ProviderUnavailableError):
        fetch(Outbound(resolver=Resolver(many)), "https://many.example")
    assert len(dialled.addresses) == 2 + 4, "a long list keeps no worker busy"


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two addresses the second is reached although the first swallows every packet."""
    connect = socket.create_connection

    def swallow(address: Any, timeout: float, **options: Any) -> socket.socket:
        if address[0] == PUBLIC:
            time.sleep(timeout)
            raise TimeoutError
        return connect(address, timeout, **options)

    monkeypatch.setattr(socket, "create_connection", swallow)
    outbound = Outbound(resolver=Resolver([PUBLIC, "127.0.0.1"]))
    url = fake.base_url("openai").replace("127.0.0.1", "two.example")
    assert fetch(outbound, url, "operator", seconds=1.0).status == 401


def test_a_private_endpoint_of_a_person_needs_the_operators_leave(fake: FakeProviders) -> None:
    """Loopback is refused by default, and called with allow_private."""
    with pytest.raises(EndpointNotAllowedError):
        fetch(Outbound(), fake.base_url("custom"))
    assert fetch(Outbound(allow_private=True), fake.base_url("custom")).status == 401
    assert len(fake.calls) == 1


def test_the_catalog_is_called_by_https_only() -> None:
    """A catalog address of http is refused before anything is sent."""
    with pytest.raises(EndpointNotAllowedError):
        fetch(Outbound(), "http://api.openai.com/v1", "catalog")


def test_a_client_calls_no_origin_but_its_own(fake: FakeProviders) -> None:
    """A key cannot follow a URL that an answer, or a mistake, puts in: the transport refuses."""
    outbound = Outbound()
    client = outbound.client_for(Endpoint("https://api.openai.com/v1", "catalog"))
    for url in (fake.base_url("openai"), "https://evil.example/", "https://api.openai.com:444/"):
        with pytest.raises(httpx2.UnsupportedProtocol):
            client.get(url, headers={"Authorization": "Bearer sk-secret"})
    assert fake.calls == []


def test_redirects_are_not_followed(fake: FakeProviders) -> None:
    """A redirect comes back as it is, also where a caller asks to follow it, and the key goes nowhere else."""
    client = Outbound().client_for(Endpoint(fake.origin, "operator"))
    url = fake.hostile_url("redirect") + "/models"
    assert client.get(url, follow_redirects=True).status_code == 302
    assert {call.provider for call in fake.calls} == {"hostile"}


def test_a_name_that_is_not_found() -> None:
    """A name server that does not answer costs no more than the time given, and an error is in our own words."""
    waiting = threading.Event()

    def slow(*args: Any, **options: Any) -> list[Any]:
        waiting.wait(10)
        return []

    def failing(*args: Any, **options: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    with soon(), pytest.raises(ProviderUnavailableError, match="too long"):
        fetch(Outbound(resolver=slow), "https://slow.example", seconds=0.3)
    waiting.set()
    with pytest.raises(ProviderUnavailableError, match="not found"):
        fetch(Outbound(resolver=failing), "https://nowhere.example")


def test_dripping_bytes_do_not_outlast_the_deadline(fake: FakeProviders) -> None:
    """A call whose bytes drip fails when its time is over, with no context, so no header hangs on the error."""
    for kind in ("slow_headers", "slow_body"):
        with soon(), pytest.raises(ProviderUnavailableError, match="too long") as caught:
            fetch(Outbound(), fake.hostile_url(kind), "operator", seconds=0.2)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


def test_certificates_are_checked_by_name(
    fake_tls: FakeProviders, client_tls: ssl.SSLContext
) -> None:
    """The connection goes to the resolved address, the certificate must be the name's."""
    outbound = Outbound(tls=client_tls, resolver=Resolver(["127.0.0.1"]))
    port = fake_tls.origin.rpartition(":")[2]
    good = fetch(outbound, f"https://provider.test:{port}/openai/v1", "operator")
    assert good.status == 401
    with pytest.raises(ProviderUnavailableError):
        fetch(outbound, f"https://other.test:{port}/openai/v1", "operator")
    with pytest.raises(ProviderUnavailableError):
        fetch(Outbound(), f"{fake_tls.origin}/openai/v1", "operator")
    assert len(fake_tls.calls) == 1


@pytest.mark.parametrize(
    ("url", "header", "does"),
    [
        ("https://gw.example/tenant1", "sk-A", True),
        ("https://gw.example/tenant1/v1/models?limit=1", "Bearer sk-A", True),
        ("https://gw.example/tenant10/v1/models", "Bearer sk-A", False),
        ("https://gw.example/tenant", "Bearer sk-A", False),
        ("https://gw.example/tenant1/../tenant2/v1", "Bearer sk-A", False),
        ("https://other.example/tenant1/v1", "Bearer sk-A", False),
        ("http://gw.example/tenant1/v1", "Bearer sk-A", False),
        ("https://gw.example/tenant1/v1", "Bearer sk-A-longer", False),
        ("https://gw.example/tenant1/v1", "Bearer my-sk-A", False),
        ("https://gw.example/tenant1/v1", "Bearer sk-A sk-B", False),
        ("https://gw.example/tenant1/v1", "Bearer", False),
    ],
)
def test_which_refusals_say_something_of_a_key(url: str, header: str, does: bool) -> None:
    """The very key went to its address, or below it: no other key, and no neighbour of the address."""
    request = httpx2.Request("GET", url, headers={"Authorization": header})
    for base_url in ("https://gw.example/tenant1", "https://gw.example/tenant1/"):
        assert rejects_key(request, base_url) is does
    request = httpx2.Request("GET", "https://gw.example/v1/models", headers={"x-api-key": "sk-A"})
    for base_url in ("https://gw.example", "https://gw.example/"):
        assert rejects_key(request, base_url)


def rejects_key(request: httpx2.Request, base_url: str) -> bool:
    """Return True if this request's refusal counts as one of the key ``sk-A`` at this address."""
    told: list[object] = []
    credential = Credential("openai", "argument", "argument", {"api_key": Secret("sk-A")}, base_url)
    outcomes = Outcomes(Catalog().get("openai"), credential, report=told.append)
    outcomes.observe(request, 401, b'{"error": {"code": "invalid_api_key"}}')
    return bool(told)
