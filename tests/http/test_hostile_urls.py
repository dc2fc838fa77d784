"""G9 on every way out: thousands of addresses, names that change theirs, redirects, and what is public after all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import pytest

from flask_byok.errors import ByokError
from flask_byok.http import Endpoint, Outbound, check_personal_base_url
from flask_byok.web.caller import get_state
from tests.app import browser
from tests.web.gateway_host import GATEWAY, gateway_app

from .conftest import Dialled
from .doors import DOORS, ELSEWHERE, closed, make
from .hostile_server import head, hostile
from .hostile_urls import hostile_urls, resolve
from .test_transport import PUBLIC, Resolver

GOOD = "https://llm.example.com/v1"
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}

each_door = pytest.mark.parametrize("door", DOORS)


def some_and_all(step: int) -> pytest.MarkDecorator:
    """Try every one of so many, and all in the long version."""
    every = [step, pytest.param(1, marks=pytest.mark.stress)]
    return pytest.mark.parametrize("step", every, ids=["some", "all"])


@pytest.fixture
def dialled(dialled: Dialled, monkeypatch: pytest.MonkeyPatch) -> Dialled:
    """Record, and refuse, also what connects without `socket.create_connection`."""

    def connect(self: socket.socket, address: Any) -> None:
        dialled.connect(address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return dialled


@each_door
@some_and_all(50)
def test_no_hostile_url_reaches_an_internal_address(dialled: Dialled, door: str, step: int) -> None:
    """As the address that a person or the catalog names, none of thousands opens a connection to an internal one."""
    outbound, urls = Outbound(resolver=resolve), hostile_urls()
    assert len(urls) > 10_000
    for url in urls[::step]:
        for trust in ("personal", "catalog"):
            # An SDK has errors of its own, and httpx2 one for a percent sign in a name, which no row lets in.
            with suppress(Exception if "," in door else ByokError, UnicodeError):
                DOORS[door](outbound, url, trust)
    assert dialled.internal() == []


@pytest.mark.parametrize("client", ELSEWHERE)
@some_and_all(50)
def test_no_hostile_url_is_called_with_a_client_of_a_good_one(
    dialled: Dialled, client: str, step: int
) -> None:
    """Nor as another address that a host's code, or an SDK, hands to the client of a good one."""
    outbound = Outbound(resolver=resolve)
    for trust in ("personal", "catalog"):
        made = make(outbound, GOOD, trust, "openai")
        for url in hostile_urls()[::step]:
            with suppress(Exception):
                ELSEWHERE[client](made, url)
    assert dialled.internal() == []


@some_and_all(50)
def test_no_hostile_url_is_called_in_place_of_a_path(dialled: Dialled, step: int) -> None:
    """Nor where the path of a check below a good address would stand."""
    outbound = Outbound(resolver=resolve)
    for url in hostile_urls()[::step]:
        for trust in ("personal", "catalog"):
            endpoint: Any = Endpoint(GOOD, trust)
            with suppress(ByokError, UnicodeError):
                outbound.fetch(endpoint, url, {}, seconds=5.0)
            with suppress(ByokError, UnicodeError):
                list(outbound.open(endpoint, "GET", url, headers={}).head())
    assert dialled.internal() == []


@some_and_all(400)
def test_no_hostile_url_is_called_for_a_browser(
    dialled: Dialled, tmp_path: Path, step: int
) -> None:
    """Nor as what a request to the app names: the address of a key, a path of the gateway, a model."""
    app = gateway_app(tmp_path, BYOK_ALLOW_CUSTOM_PROVIDERS=True)
    get_state(app).service.outbound.resolver = _good_ones_are_public
    visitor = browser(app)
    api_key = "sk-proj-0123456789abcdefghij"
    for provider, more in (("openai", {}), ("custom", {"base_url": GOOD})):
        assert visitor.save(api_key, provider, validate="off", **more).status_code == 200
    answers: set[int] = set()
    for url in hostile_urls()[::step]:
        named = {"provider": "custom", "api_key": api_key, "base_url": url}
        answers |= {visitor.call(verb, **named).status_code for verb in ("validate", "set")}
        for model in (url, f"custom/{url}"):
            answers.add(
                visitor.post(
                    f"{GATEWAY}/v1/chat/completions", json={**CHAT, "model": model}
                ).status_code
            )
        for path in (url, f"openai/{url}", f"openai/models/{url}", f"custom/{url}/models"):
            # As a server hands it over (PEP 3333).
            bare = f"{GATEWAY}/{path}".encode().decode("latin1")
            answers.add(visitor.get("/", environ_overrides={"PATH_INFO": bare}).status_code)
    assert dialled.internal() == []
    assert dialled.addresses, "what the gateway passes on went to the provider's address"
    assert answers <= {200, 400, 403, 404, 405, 409, 413, 422, 502, 503}


def _good_ones_are_public(host: str, port: int, **options: object) -> list[Any]:
    is_good = host in ("api.openai.com", "llm.example.com")
    return resolve(PUBLIC if is_good else host, port, **options)


def test_a_plain_client_reaches_hundreds(dialled: Dialled) -> None:
    """The same URLs lead a plain client to internal addresses, so the tests above can fail."""
    with httpx2.Client(trust_env=False) as client:
        for url in hostile_urls()[::10]:
            with suppress(Exception):
                client.get(url)
    assert len(dialled.internal()) > 200


@each_door
@pytest.mark.parametrize("trust", ["personal", "catalog"])
def test_a_name_that_changes_its_address_reaches_nothing_internal(
    dialled: Dialled, door: str, trust: str
) -> None:
    """DNS rebinding: public at one question and internal at the next never connects inside."""
    outbound = Outbound(resolver=Resolver([PUBLIC], ["127.0.0.1"], ["169.254.169.254"]))
    for _ in range(60):
        with suppress(Exception):
            DOORS[door](outbound, "https://rebind.example", trust)
    assert dialled.internal() == []
    assert set(dialled.addresses) == (set() if closed(door) else {PUBLIC})


@each_door
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(door: str, status: int) -> None:
    """On no way out anything is sent to where a redirect leads, whatever its code."""
    with hostile(lambda: iter([head(200)])) as other:
        to = head(status, f"Location: {other.origin}/v1", "Set-Cookie: a=b")
        with hostile(lambda: iter([to])) as server:
            for trust in ("operator", "personal"):
                with suppress(Exception):
                    DOORS[door](Outbound(allow_private=True), server.origin, trust)
            assert bool(server.connections) is not closed(door)
        assert other.connections == 0


def public_urls() -> Iterator[str]:
    """Yield 600 ways to write a base URL on the public internet."""
    names = ["llm.example.com", "LLM.Example.COM", "a.b.c.d.e.example.org", "xn--bcher-kva.example"]
    names += ["1.example.com", "my-llm-2.example.dev", "127-0-0-1.example.com", "x" * 63 + ".com"]
    names += ["localhost.example.com", "metadata.example.net", "example.com.", "10.example.io"]
    v4 = ["1.1.1.1", "8.8.8.8", "104.18.7.192", "172.15.0.1", "172.32.0.1", "192.167.1.1"]
    v4 += ["100.63.0.1", "100.128.0.1", "169.253.1.1", "11.0.0.1", "126.0.0.1", "223.255.255.1"]
    v6 = [
        "[2606:4700::6812:7c0]",
        "[2606:4700:0:0:0:0:6812:07C0]",
        "[2a00::1]",
        "[2001:4860::8888]",
    ]
    v6 += ["[2600::]", "[2a02:6b8::2:242]"]
    endings = ["", "/", "/v1", "/v1/", ":443", ":443/v1", "/openai/v1", "/api/v1beta/openai/"]
    endings += ["/v1/a:b@c", "/127.0.0.1/v1"]
    for host, ending, scheme in product([*names, *v4, *v6], endings, ["https", "HTTPS"]):
        yield f"{scheme}://{host}{ending}"


def test_public_forms_are_let_through() -> None:
    """None of 600 ways to write a public address is refused."""
    urls = list(public_urls())
    assert len(urls) == 600
    for url in urls:
        check_personal_base_url(url, allow_private=False)


@each_door
@some_and_all(30)
def test_public_forms_are_called(dialled: Dialled, door: str, step: int) -> None:
    """On every way out a connection to each of them is tried: to the address itself, or to that of its name."""
    outbound = Outbound(resolver=_as_it_is_written)
    for url in list(public_urls())[::step]:
        dialled.addresses.clear()
        with suppress(Exception):
            DOORS[door](outbound, check_personal_base_url(url, allow_private=False), "personal")
        assert bool(dialled.addresses) is not closed(door), url
        assert dialled.internal() == []


def _as_it_is_written(host: str, port: int, **options: Any) -> list[Any]:
    address = host if ":" in host or host.replace(".", "").isdigit() else PUBLIC
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return [(family, socket.SOCK_STREAM, 6, "", (address, port))]
