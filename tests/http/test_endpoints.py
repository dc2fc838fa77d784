"""The rules for base URLs."""

from __future__ import annotations

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flask_byok.catalog import Catalog
from flask_byok.errors import EndpointNotAllowedError
from flask_byok.http import Endpoint, check_personal_base_url, endpoint_for
from flask_byok.http.addresses import is_public

from .hostile_urls import hostile_urls, internal_hosts

CATALOG = Catalog()


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://llm.example.com/v1", "https://llm.example.com/v1"),
        ("https://LLM.Example.com:443/v1/", "https://llm.example.com/v1"),
        (" https://llm.example.com. ", "https://llm.example.com"),
        ("https://xn--bcher-kva.example/api/v1", "https://xn--bcher-kva.example/api/v1"),
        ("https://1.1.1.1/v1", "https://1.1.1.1/v1"),
        ("https://[2606:4700:0::1111]/v1", "https://[2606:4700::1111]/v1"),
        ("https://gw.example.com/v1/a:b@c/openai", "https://gw.example.com/v1/a:b@c/openai"),
    ],
)
def test_public_https_addresses_pass_in_one_normal_form(url: str, normal: str) -> None:
    """A public https address is allowed and written in one way."""
    assert check_personal_base_url(url, allow_private=False) == normal


_REFUSED = """
http://llm.example.com/v1 https://user@llm.example.com/v1 https://:secret@llm.example.com/v1
https://llm.example.com:8443/v1 https://llm.example.com:0/v1 https://llm.example.com/v1?key=1
https://llm.example.com/v1? https://llm.example.com/v1#x https://llm.example.com/v1/../admin
https://llm.example.com//v1 https://llm.example.com/v1%2e https://bücher.example/v1
https://llm_1.example.com/v1 https://-llm.example.com/v1 https://llm..example.com/v1
https://localhost/v1 https://ollama/v1 https://llm.internal/v1 https://127.0.0.1/v1
https://2130706433/v1 https://0x7f000001/v1 https://017700000001/v1 https://127.1/v1
https://example.0x7f/v1 https://[::1]/v1 https://[::ffff:1.1.1.1]/v1 https://[64:ff9b::101:101]/v1
https://[2002:101:101::1]/v1 https://[fe80::1%eth0]/v1 https://[fe80::1%25eth0]/v1
https://[1.1.1.1]/v1 https://[::1/v1 https:// llm.example.com/v1
"""
REFUSED = [
    *_REFUSED.split(),
    "https://llm.example.com\\@evil.example/v1",
    "",
    "https://" + "a" * 600 + ".example.com/v1",
    "https://" + ".".join(["a" * 63] * 5) + "/v1",
    "https://llm.exa\nmple.com/v1",
    "https://llm.exa\u200bmple.com/v1",
]


def test_other_addresses_are_refused() -> None:
    """An address that is not plain, public and https is not allowed."""
    for url in REFUSED:
        with pytest.raises(EndpointNotAllowedError):
            pytest.fail(f"{url!r} is {check_personal_base_url(url, allow_private=False)}")


def test_a_refusal_repeats_nothing_of_the_url() -> None:
    """The message holds no part of what was typed, which could be a key."""
    with pytest.raises(EndpointNotAllowedError) as caught:
        check_personal_base_url("https://sk-secret-key-1234/v1", allow_private=False)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
        ("http://localhost:11434", "http://localhost:11434"),
        ("http://ollama:80/v1", "http://ollama/v1"),
        ("https://10.0.0.5:8443/v1", "https://10.0.0.5:8443/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
    ],
)
def test_private_endpoints_pass_where_the_operator_allows_them(url: str, normal: str) -> None:
    """With BYOK_ALLOW_PRIVATE_ENDPOINTS http, other ports and private addresses pass."""
    assert check_personal_base_url(url, allow_private=True) == normal


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/v1",
        "http://[fd00:ec2::254]/v1",
        "http://u@127.0.0.1/v1",
        "ftp://127.0.0.1/v1",
        "http://127.0.0.1:99999/v1",
        "http://0x7f.1/v1",
    ],
)
def test_private_endpoints_are_still_plain(url: str) -> None:
    """Metadata services, credentials and odd spellings are refused even then."""
    with pytest.raises(EndpointNotAllowedError):
        check_personal_base_url(url, allow_private=True)


def _accepted(url: str) -> str | None:
    try:
        return check_personal_base_url(url, allow_private=False)
    except EndpointNotAllowedError:
        return None


def test_no_spelling_of_an_internal_address_passes() -> None:
    """Of more than ten thousand hostile URLs only some names pass, to be resolved and judged then."""
    urls = hostile_urls()
    assert len(urls) > 10_000
    accepted = [normal for url in urls if (normal := _accepted(url))]
    assert accepted
    for normal in accepted:
        host = httpx2.URL(normal).host
        assert not host.replace(".", "").isdigit()
        assert host.endswith((".nip.io", ".example.com", ".svc", "xn--.example"))


_ODD = st.text("./:@\\#?%[]0x1279afe-ü\n\t 。", max_size=12)
_HOSTS = st.one_of(st.sampled_from(sorted(set(internal_hosts()))), _ODD, st.ip_addresses().map(str))


@given(
    st.builds("{}{}{}{}".format, st.sampled_from(["https://", "http://", ""]), _ODD, _HOSTS, _ODD)
)
@example("https://1.1.1.1")
def test_what_passes_means_the_same_to_the_http_client(url: str) -> None:
    """The HTTP client reads the same host, and no credentials, in every URL that passes."""
    normal = _accepted(url)
    if normal is None:
        return
    parsed = httpx2.URL(normal)
    assert parsed.scheme == "https"
    assert parsed.port is None
    assert not parsed.userinfo
    assert str(parsed).rstrip("/") == normal
    if parsed.host.replace(".", "").isdigit() or ":" in parsed.host:
        assert is_public(parsed.host)


def test_the_operators_endpoint_comes_first() -> None:
    """BYOK_BASE_URLS wins over the catalog and over a person's own."""
    urls = {"openai": "http://gw.local/x", "custom": "http://llm.local/v1"}
    assert endpoint_for(CATALOG.get("openai"), urls) == Endpoint("http://gw.local/x", "operator")
    custom = endpoint_for(CATALOG.get("custom"), urls, "https://mine.example/v1")
    assert custom == Endpoint("http://llm.local/v1", "operator")


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/gw", "http://127.0.0.1:8000/gw"),
        ("http://127.0.0.1:8000/gw/", "http://127.0.0.1:8000/gw"),
    ],
)
def test_a_bare_address_takes_over_the_catalogs_path(given_url: str, used: str) -> None:
    """An operator's address without a path gets `/v1`; one with a path is used as it is."""
    assert endpoint_for(CATALOG.get("openai"), {"openai": given_url}).base_url == used


def test_the_catalogs_endpoint_comes_before_a_persons_own() -> None:
    """A person cannot redirect a provider of the catalog."""
    chosen = endpoint_for(CATALOG.get("groq"), {}, "https://mine.example/v1")
    assert chosen == Endpoint("https://api.groq.com/openai/v1", "catalog")


def test_a_custom_provider_uses_the_persons_own() -> None:
    """A provider without an address in the catalog needs the person's, and uses it."""
    custom = CATALOG.get("custom")
    chosen = endpoint_for(custom, {}, "https://mine.example/v1")
    assert chosen == Endpoint("https://mine.example/v1", "personal")
    with pytest.raises(EndpointNotAllowedError, match="base URL"):
        endpoint_for(custom, {})
