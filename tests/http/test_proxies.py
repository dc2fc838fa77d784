"""Calls through the operator's proxy, with certificates of the operator's authority, at the operator's ports."""

from __future__ import annotations

import base64
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from flask_byok.errors import ConfigurationError, EndpointNotAllowedError, ProviderUnavailableError
from flask_byok.http import Endpoint, Outbound
from flask_byok.http.proxies import tls_context
from flask_byok.testing import FakeProviders
from tests.app import browser, make_app

from .proxy_server import proxy_to
from .test_transport import PUBLIC, Resolver

KEY = {"Authorization": "Bearer sk-secret"}
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the environment of the tests says."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def port(fake_tls: FakeProviders) -> int:
    """Return the port at which the fake providers speak TLS."""
    return int(fake_tls.origin.rpartition(":")[2])


def nobody(host: str, port: int, **options: Any) -> list[Any]:
    """Resolve nothing but the proxy's own name."""
    if host != "proxy.test":
        raise socket.gaierror(-2, "Name or service not known")
    return Resolver(["127.0.0.1"])(host, port)


def fetch(outbound: Outbound, url: str, trust: Any = "catalog") -> int:
    """Ask for the list of models; return the answer's status."""
    return outbound.fetch(Endpoint(url, trust), f"{url}/models", KEY, seconds=10).status


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_resolves_the_catalogs_names(
    fake_tls: FakeProviders,
    port: int,
    certificate: Path,
    server_tls: ssl.SSLContext,
    scheme: str,
) -> None:
    """It is asked for the name, sees no key, and is given its own password, which the provider does not see."""
    tls = tls_context(str(certificate))
    with proxy_to(port, tls=server_tls if scheme == "https" else None) as proxy:
        host = "provider.test" if scheme == "https" else "proxy.test"
        url = f"{scheme}://ann:p%40ss@{host}:{proxy.port}"
        resolver = Resolver(["127.0.0.1"]) if scheme == "https" else nobody
        outbound = Outbound(tls=tls, resolver=resolver, proxy=url)
        for _ in range(2):
            assert fetch(outbound, f"https://provider.test:{port}/openai/v1") == 401
        live = outbound.open(
            Endpoint(f"https://provider.test:{port}/openai/v1", "catalog"),
            "GET",
            f"https://provider.test:{port}/openai/v1/models",
            headers=KEY,
        )
        assert list(live.head()) == []
        assert (live.status, b"error" in live.rest(1000)) == (401, True)
        with pytest.raises(ProviderUnavailableError, match="certificate"):
            fetch(outbound, f"https://other.test:{port}/openai/v1")
        assert proxy.asked == [f"CONNECT provider.test:{port}", f"CONNECT other.test:{port}"]
        sent = "".join(proxy.heads)
        assert base64.b64encode(b"ann:p@ss").decode() in sent
        assert "sk-secret" not in sent
    assert [call.headers.get("proxy-authorization") for call in fake_tls.calls] == [None] * 3


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::6812:7c0"])
def test_a_proxy_is_given_the_address_of_a_persons_name(
    fake_tls: FakeProviders, port: int, certificate: Path, address: str
) -> None:
    """The name is resolved and judged here; the certificate and the request's host are still the name's."""
    with proxy_to(port) as proxy:
        resolver = Resolver([address])

        def resolve(host: str, *others: Any, **options: Any) -> list[Any]:
            known = Resolver(["127.0.0.1"]) if host == "proxy.test" else resolver
            return known(host, *others, **options)

        outbound = Outbound(
            tls=tls_context(str(certificate)),
            resolver=resolve,
            ports=(port,),
            proxy=f"http://proxy.test:{proxy.port}",
        )
        assert fetch(outbound, f"https://provider.test:{port}/custom/v1", "personal") == 401
        shown = f"[{address}]" if ":" in address else address
        assert proxy.asked == [f"CONNECT {shown}:{port}"]
        assert fake_tls.calls[0].headers["host"] == f"provider.test:{port}"
        resolver.answers = (["10.0.0.5"], ["127.0.0.1"], [PUBLIC, "169.254.169.254"], [])
        for _ in range(8):
            with pytest.raises(ProviderUnavailableError):
                fetch(outbound, f"https://provider.test:{port}/custom/v1", "personal")
        assert len(proxy.asked) == 1


def test_local_addresses_are_called_directly(fake: FakeProviders) -> None:
    """A proxy does not get what is on this machine or its network."""
    with proxy_to(1) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        outbound = Outbound(proxy=url, allow_private=True, resolver=Resolver(["127.0.0.1"]))
        assert fetch(outbound, fake.base_url("openai"), "operator") == 401
        named = fake.base_url("openai").replace("127.0.0.1", "gateway.internal")
        assert fetch(outbound, named, "operator") == 401
        assert fetch(outbound, fake.base_url("custom"), "personal") == 401
        assert proxy.asked == []


def test_an_operators_plain_http_goes_through_the_proxy(fake: FakeProviders) -> None:
    """A gateway with http, at a name that is not local, is asked for in the form for proxies."""
    port = int(fake.origin.rpartition(":")[2])
    with proxy_to(port) as proxy:
        outbound = Outbound(
            proxy=f"http://127.0.0.1:{proxy.port}", resolver=Resolver(["127.0.0.1"])
        )
        url = f"http://gateway.example:{port}/openai/v1"
        assert fetch(outbound, url, "operator") == 401
        assert proxy.asked == [f"GET {url}/models"]


def test_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, port: int, certificate: Path
) -> None:
    """It counts if the operator says so, for the hosts that the environment says; otherwise it is ignored."""
    url, tls = f"https://provider.test:{port}/openai/v1", tls_context(str(certificate))
    resolver = Resolver(["127.0.0.1"])
    with proxy_to(port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        for setting, without, asked in (
            (None, "", 0),
            ("environment", "", 1),
            ("environment", "other.example,.test", 1),
            ("environment", "*", 1),
            (None, "", 1),
        ):
            monkeypatch.setenv("NO_PROXY", without)
            outbound = Outbound(tls=tls, resolver=resolver, proxy=setting)
            assert fetch(outbound, url, "operator") == 401
            assert len(proxy.asked) == asked
    monkeypatch.setenv("HTTPS_PROXY", "socks5://sk-secret@127.0.0.1:1080")
    with pytest.raises(
        ConfigurationError, match="HTTPS_PROXY is not the URL of an HTTP proxy"
    ) as no:
        Outbound(proxy="environment")
    assert "sk-secret" not in str(no.value)


def test_a_proxy_that_does_not_connect(port: int) -> None:
    """Its refusal is told as one of the proxy, without its text; a proxy that is down as a refused connection."""
    url = f"https://provider.test:{port}/openai/v1"
    with proxy_to(port, refuses=True) as proxy:
        outbound = Outbound(proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ProviderUnavailableError, match="proxy of this site did not connect"):
            fetch(outbound, url)
    with pytest.raises(ProviderUnavailableError, match="refused the connection"):
        fetch(Outbound(proxy=f"http://127.0.0.1:{proxy.port}"), url)


def test_certificate_authorities(
    monkeypatch: pytest.MonkeyPatch, port: int, certificate: Path
) -> None:
    """The system's count, and those of the operator's file; the environment's where the operator says so."""
    url = f"https://provider.test:{port}/openai/v1"

    def asked(ca_file: str | None) -> int:
        tls_context.cache_clear()
        outbound = Outbound(tls=tls_context(ca_file), resolver=Resolver(["127.0.0.1"]))
        return fetch(outbound, url, "operator")

    assert asked(str(certificate)) == 401
    assert tls_context(str(certificate)).cert_store_stats()["x509_ca"] > 1
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asked("environment") == 401
    with pytest.raises(
        ProviderUnavailableError, match="certificate of the provider's server is not"
    ):
        asked(None)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_holds_no_certificate(tmp_path: Path, content: str | None) -> None:
    """The app does not start, and is told which setting it is."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"BYOK_CA_FILE: .*ca.pem cannot be read"):
        tls_context(str(path))


def test_the_ports_of_peoples_endpoints() -> None:
    """443 alone by default, otherwise the operator's alone."""
    for ports, good, bad in (((443,), "", ":8443"), ((8443, 9443), ":9443", "")):
        outbound = Outbound(ports=ports)
        outbound.client_for(Endpoint(f"https://llm.example.com{good}/v1", "personal"))
        with pytest.raises(EndpointNotAllowedError, match=f"port must be {ports[0]}"):
            outbound.client_for(Endpoint(f"https://llm.example.com{bad}/v1", "personal"))


def test_an_apps_settings(
    fake_tls: FakeProviders, port: int, certificate: Path, tmp_path: Path
) -> None:
    """With the three settings an app checks keys through a proxy, at a server with a private certificate."""
    with proxy_to(port) as proxy:
        host = make_app(
            tmp_path,
            fake_tls,
            BYOK_BASE_URLS={"openai": f"https://provider.test:{port}/openai/v1"},
            BYOK_PROXY=f"http://127.0.0.1:{proxy.port}",
            BYOK_CA_FILE=str(certificate),
            BYOK_ENDPOINT_PORTS="443,8443",
            BYOK_ALLOW_CUSTOM_PROVIDERS=True,
        )
        visitor = browser(host)
        visitor.load()
        found = visitor.call("validate", provider="openai", api_key=fake_tls.api_key("openai"))
        assert found.get_json()["verdict"] == "valid"
        assert set(proxy.asked) == {f"CONNECT provider.test:{port}"}
        options = {"provider": "custom", "api_key": "sk-a-key-of-their-own", "validate": "off"}
        for bad, status in (("8443", 200), ("8444", 422)):
            url = f"https://llm.example.com:{bad}/v1"
            assert visitor.call("set", **options, base_url=url).status_code == status


def test_a_person_may_not_name_the_proxy() -> None:
    """The operator's proxy, which may have any address, is no server of a person's own."""
    outbound = Outbound(proxy="https://proxy.example", resolver=Resolver(["10.0.0.9"]))
    with pytest.raises(EndpointNotAllowedError, match="proxy"):
        outbound.client_for(Endpoint("https://proxy.example/v1", "personal"))
