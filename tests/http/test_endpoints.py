"""The rules for base URLs, and the addresses that may be called."""

from __future__ import annotations

import ipaddress

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flask_byok.catalog import Catalog
from flask_byok.errors import EndpointNotAllowedError
from flask_byok.http import Endpoint, check_personal_base_url, endpoint_for
from flask_byok.http.addresses import is_public, is_public_or_private

from .hostile_urls import hostile_urls, internal_hosts

CATALOG = Catalog()


PASSING = {
    "https://llm.example.com/v1": "https://llm.example.com/v1",
    "https://LLM.Example.com:443/v1/": "https://llm.example.com/v1",
    " https://llm.example.com. ": "https://llm.example.com",
    "https://xn--bcher-kva.example/api/v1": "https://xn--bcher-kva.example/api/v1",
    "https://1.1.1.1/v1": "https://1.1.1.1/v1",
    "https://[2606:4700:0::1111]/v1": "https://[2606:4700::1111]/v1",
    "https://gw.example.com/v1/a:b@c/openai": "https://gw.example.com/v1/a:b@c/openai",
}
PASSING_WITH_LEAVE = {
    "http://127.0.0.1:11434/v1": "http://127.0.0.1:11434/v1",
    "http://localhost:11434": "http://localhost:11434",
    "http://ollama:80/v1": "http://ollama/v1",
    "https://10.0.0.5:8443/v1": "https://10.0.0.5:8443/v1",
    "http://[::1]:8080/v1": "http://[::1]:8080/v1",
}


def test_addresses_pass_in_one_normal_form() -> None:
    """Public https addresses pass; with BYOK_ALLOW_PRIVATE_ENDPOINTS so do http, other ports and private ones."""
    for urls, allow_private in ((PASSING, False), (PASSING_WITH_LEAVE, True)):
        for url, normal in urls.items():
            assert check_personal_base_url(url, allow_private=allow_private) == normal


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


_REFUSED_WITH_LEAVE = """
http://169.254.169.254/v1 http://[fd00:ec2::254]/v1 http://u@127.0.0.1/v1 ftp://127.0.0.1/v1
http://127.0.0.1:99999/v1 http://0x7f.1/v1
"""


def test_other_addresses_are_refused() -> None:
    """What is not plain, public and https is refused; with leave, metadata services, credentials and odd spellings."""
    for urls, allow_private in ((REFUSED, False), (_REFUSED_WITH_LEAVE.split(), True)):
        for url in urls:
            assert _accepted(url, allow_private) is None, url


def test_a_refusal_repeats_nothing_of_the_url() -> None:
    """The message holds no part of what was typed, which could be a key."""
    with pytest.raises(EndpointNotAllowedError) as caught:
        check_personal_base_url("https://sk-secret-key-1234/v1", allow_private=False)
    assert "sk-secret" not in str(caught.value)


def _accepted(url: str, allow_private: bool = False) -> str | None:
    try:
        return check_personal_base_url(url, allow_private=allow_private)
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
    """BYOK_BASE_URLS wins over the catalog, which wins over a person's own; a custom provider needs the person's."""
    mine, openai, custom = "https://mine.example/v1", CATALOG.get("openai"), CATALOG.get("custom")
    urls = {"openai": "http://gw.local/x", "custom": "http://llm.local/v1"}
    assert endpoint_for(openai, urls) == Endpoint("http://gw.local/x", "operator")
    assert endpoint_for(custom, urls, mine) == Endpoint("http://llm.local/v1", "operator")
    catalogs = Endpoint("https://api.groq.com/openai/v1", "catalog")
    assert endpoint_for(CATALOG.get("groq"), {}, mine) == catalogs
    assert endpoint_for(custom, {}, mine) == Endpoint(mine, "personal")
    with pytest.raises(EndpointNotAllowedError, match="base URL"):
        endpoint_for(custom, {})


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


PUBLIC = ["1.1.1.1", "8.8.8.8", "104.18.7.192", "162.159.140.245", "2606:4700::6812:7c0", "2a00::1"]

# One address out of each block of the IANA special-purpose registries, and clouds' own.
_SPECIAL = """
0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16
169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.192 192.0.2.1 192.31.196.1
192.52.193.1 192.88.99.1 192.168.0.1 192.175.48.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::8.8.8.8
64:ff9b::808:808 64:ff9b:1::1 100::1 100:0:0:1::1 2001::1 2001:1::1 2001:2::1 2001:4:112::1
2001:20::1 2001:30::1 2001:db8::1 2002:7f00:1::1 2620:4f:8000::1 3fff::1 5f00::1 fc00::1
fd00:ec2::254 fe80::1 fec0::1 ff02::1 ff0e::1
"""
SPECIAL = _SPECIAL.split()


def test_special_addresses_may_not_be_called() -> None:
    """No address of a special-purpose block passes, even if the registry calls it globally reachable."""
    assert [address for address in PUBLIC if not is_public(address)] == []
    assert [address for address in SPECIAL if is_public(address)] == []
    assert [a for a in SPECIAL if ipaddress.ip_address(a).is_global], "so that the table is needed"


def test_what_is_no_address_may_not_be_called() -> None:
    """A name, a zone id or a part of an address is refused."""
    for text in ("", "localhost", "2606:4700::1%eth0", "8.8.8.8/32", "8.8.8", "x"):
        assert not is_public(text)
        assert not is_public_or_private(text)


@given(st.ip_addresses())
def test_no_private_address_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """What Python calls private, multicast, reserved or link-local never passes as public."""
    inside = address.is_private or address.is_link_local
    harmful = inside or address.is_multicast or address.is_reserved
    assert not (harmful and is_public(str(address)))


METADATA = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"]
METADATA += ["fd20:ce::254", "192.0.0.192", "0.0.0.0", "255.255.255.255", "fe80::1"]


def test_private_networks_pass_where_the_operator_allows_them() -> None:
    """One's own machine and networks pass the wider rule only; clouds' metadata services pass none for people."""
    for address in ("127.0.0.1", "10.0.0.1", "192.168.1.5", "::1", "fd12::1"):
        assert is_public_or_private(address), address
        assert not is_public(address), address
    passing = filter(is_public_or_private, (*METADATA, "::ffff:127.0.0.1"))
    assert list(passing) == []
