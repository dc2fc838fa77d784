"""Addresses that may be called."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from flask_byok.http.addresses import is_any, is_public, is_public_or_private

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
    harmful = (
        address.is_private or address.is_multicast or address.is_reserved or address.is_link_local
    )
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
    assert is_any("127.0.0.1"), "the operator may choose any address"
