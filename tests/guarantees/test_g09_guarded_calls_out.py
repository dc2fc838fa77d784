"""G9, end to end through the app: where keys go, and where they never go."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from flask_byok.keys.service import Service
from flask_byok.testing import FakeProviders
from flask_byok.web.caller import get_state
from tests.app import Browser, HostApp, browser, make_app

OPERATORS = "operators-key-0123456789"
#: A key for a server of one's own that has a public name.
NAMED = {"api_key": "key-0123456789", "base_url": "https://llm.example.com/v1"}
INTERNAL = [
    "https://127.0.0.1/v1",
    "https://localhost/v1",
    "https://[::1]/v1",
    "https://[::ffff:127.0.0.1]/v1",
    "https://10.0.0.1/v1",
    "https://172.16.0.1/v1",
    "https://192.168.1.1/v1",
    "https://169.254.169.254/latest/meta-data",
    "https://metadata.google.internal/v1",
    "https://100.64.0.1/v1",
    "https://0.0.0.0/v1",
    "https://0x7f000001/v1",
    "https://2130706433/v1",
    "https://127.1/v1",
    "https://user:pass@llm.example.com/v1",
    "https://llm.example.com:8443/v1",
    "https://llm.example.com/../v1",
    "http://llm.example.com/v1",
    "ftp://llm.example.com/v1",
    "file:///etc/passwd",
    "unix:///run/docker.sock",
    "//llm.example.com/v1",
    "127.0.0.1/v1",
    "localhost/v1?x=https://llm.example.com/v1",
    "https://127.0.0.1#@llm.example.com/v1/chat/completions",
    "https://127.0.0.1?llm.example.com/v1/models",
    "user:pass@llm.example.com/v1",
    "https://llm.example.com\\@127.0.0.1/v1",
]


@pytest.fixture
def custom(tmp_path: Path, fake: FakeProviders) -> HostApp:
    """Make a host where people may bring their own endpoints."""
    return make_app(tmp_path, fake, BYOK_ALLOW_CUSTOM_PROVIDERS=True)


@pytest.fixture
def client(custom: HostApp) -> Browser:
    """Return a browser there."""
    client = browser(custom)
    client.load()
    return client


def _resolve_to(app: HostApp, *addresses: str) -> list[str]:
    """Let every name mean these addresses, one after the other, and return a list of what is asked."""
    asked: list[str] = []
    answers = list(addresses)

    def resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(host)
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    service: Service = get_state(app).service
    # In place: whatever calls out shares this one.
    service.outbound.resolver = resolve
    return asked


@pytest.mark.parametrize("base_url", INTERNAL)
@pytest.mark.parametrize("verb", ["set", "validate"])
def test_internal_and_odd_addresses_are_refused(
    client: Browser, fake: FakeProviders, base_url: str, verb: str
) -> None:
    """A base URL that is not plainly a public https address gets no key and no connection."""
    for body in (
        {"api_key": "key-0123456789", "base_url": base_url},
        {"fields": {"api_key": "key-0123456789", "base_url": base_url}},
    ):
        answer = client.call(verb, provider="custom", **body)
        assert (answer.status_code, answer.get_json()["code"]) == (422, "endpoint_not_allowed")
        assert base_url not in answer.text
    assert fake.calls == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::1", "169.254.169.254", "fd00::1"])
def test_a_name_that_means_an_internal_address(
    custom: HostApp, client: Browser, fake: FakeProviders, address: str
) -> None:
    """A public name with an internal address is not called: not in a check, and not in a stream."""
    asked = _resolve_to(custom, address)
    found = client.call("set", provider="custom", **NAMED).get_json()
    assert found["validation"]["verdict"] == "unreachable"
    assert "llm.example.com" in asked
    assert "event: error" in client.get("/chat/custom?model=m").text
    assert fake.calls == []


def test_a_name_that_changes_its_address(
    custom: HostApp, client: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is resolved once for a connection, so a second answer cannot lead elsewhere."""
    asked = _resolve_to(custom, "93.184.216.34", "127.0.0.1")
    connected: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    client.call("validate", provider="custom", **NAMED)
    # Two tries, one look-up each: the first connects to what it was told, the second does not connect.
    assert asked == ["llm.example.com"] * 2
    assert connected == [("93.184.216.34", 443)]


def test_redirects_are_not_followed(tmp_path: Path, fake: FakeProviders) -> None:
    """A provider that redirects is not followed with the key, neither in a check nor in a stream."""
    app = make_app(tmp_path, fake, BYOK_BASE_URLS={"openai": fake.hostile_url("redirect")})
    client = browser(app)
    saved = client.save(fake.api_key("openai"))
    assert saved.get_json()["validation"]["valid"] is None
    assert "event: error" in client.get("/chat/openai").text
    assert {call.provider for call in fake.calls} == {"hostile"}


@pytest.mark.parametrize("kind", ["endless", "huge"])
def test_answers_are_limited_in_size(tmp_path: Path, fake: FakeProviders, kind: str) -> None:
    """An answer without end ends the check, not the app."""
    app = make_app(tmp_path, fake, BYOK_BASE_URLS={"openai": fake.hostile_url(kind)})
    found = browser(app).save(fake.api_key("openai")).get_json()["validation"]
    assert found["valid"] in (None, True)


def test_the_operators_key_goes_to_the_operators_address_only(
    custom: HostApp, client: Browser, fake: FakeProviders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no key of their own, nobody can send the operator's key to an address of their choice."""
    monkeypatch.setenv("OPENAI_API_KEY", OPERATORS)
    fake.add_key("openai", OPERATORS)
    asked = _resolve_to(custom, "127.0.0.1")
    evil = {"base_url": "https://evil.example.com/v1"}
    for verb in ("validate", "set"):
        client.call(verb, provider="openai", **evil)
    client.call("set", provider="openai", fields=evil)
    client.get("/chat/openai").get_data()
    assert client.get("/chat/custom?model=m").status_code == 409
    assert "evil.example.com" not in asked
    # A server of one's own may want no key: it is asked, with none, under the rules for addresses.
    for verb in ("validate", "set"):
        client.call(verb, provider="custom", **evil)
    client.get("/chat/custom?model=m").get_data()
    assert {(call.provider, call.api_key) for call in fake.calls} == {("openai", OPERATORS)}


def test_a_provider_with_an_address_takes_no_other(client: Browser, fake: FakeProviders) -> None:
    """A base URL for a provider that has its own is refused, not ignored."""
    for verb in ("set", "validate"):
        answer = client.call(verb, provider="openai", **NAMED)
        assert (answer.status_code, answer.get_json()["code"]) == (422, "endpoint_not_allowed")
    assert fake.calls == []


def _private(tmp_path: Path, fake: FakeProviders) -> Browser:
    allowed = {"BYOK_ALLOW_CUSTOM_PROVIDERS": True, "BYOK_ALLOW_PRIVATE_ENDPOINTS": True}
    return browser(make_app(tmp_path, fake, **allowed))


def test_an_own_endpoint_gets_the_persons_own_key(tmp_path: Path, fake: FakeProviders) -> None:
    """Where the operator allows it, a person's key goes to the person's own server."""
    client = _private(tmp_path, fake)
    api_key = fake.api_key("custom")
    saved = client.save(api_key, "custom", base_url=fake.base_url("custom"))
    assert saved.get_json()["validation"]["verdict"] == "valid"
    assert "event: done" in client.get("/chat/custom?model=local-small").text
    assert {(call.provider, call.api_key) for call in fake.calls} == {("custom", api_key)}


def test_another_base_url_needs_the_key_again(tmp_path: Path, fake: FakeProviders) -> None:
    """A stored key stays with the address it was saved with; nobody can move it by naming another."""
    client = _private(tmp_path, fake)
    client.save(fake.api_key("custom"), "custom", base_url=fake.base_url("custom"))
    fake.clear_calls()
    elsewhere = fake.base_url("demo")
    for body in ({"base_url": elsewhere}, {"fields": {"base_url": elsewhere}}):
        assert client.call("set", provider="custom", **body).status_code == 422
    client.call("validate", provider="custom", base_url=elsewhere)
    client.get("/chat/custom?model=local-small").get_data()
    sent = {(call.provider, call.api_key) for call in fake.calls}
    assert sent == {("custom", fake.api_key("custom")), ("demo", None)}


def test_what_was_allowed_can_be_forbidden_later(tmp_path: Path, fake: FakeProviders) -> None:
    """A key that was saved for a private endpoint is not sent there once the operator forbids it."""
    client = _private(tmp_path, fake)
    client.save(fake.api_key("custom"), "custom", base_url=fake.base_url("custom"))
    cookie = client.get_cookie("session")
    assert cookie is not None
    strict = browser(make_app(tmp_path, fake, BYOK_ALLOW_CUSTOM_PROVIDERS=True))
    strict.set_cookie("session", cookie.value)
    fake.clear_calls()
    assert "endpoint_not_allowed" in strict.get("/chat/custom?model=local-small").text
    assert fake.calls == []
