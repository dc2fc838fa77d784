"""Which addresses may be called, by our own table: ``is_global`` of Python 3.11 lets 15 ranges pass that are special.

Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its updates) and,
for addresses that clouds answer on from inside a machine, the documentation of the clouds. No model
provider lives in any of them, so every block is listed, "globally reachable" or not.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

#: Returns True if an address may be connected to.
AddressRule = Callable[[str], bool]

_Network = IPv4Network | IPv6Network


def _networks(*blocks: str) -> tuple[_Network, ...]:
    return tuple(ip_network(block) for block in blocks)


_SPECIAL_V4 = _networks(
    "0.0.0.0/8",  # this network (RFC 791)
    "10.0.0.0/8",  # private use (RFC 1918)
    "100.64.0.0/10",  # shared address space (RFC 6598)
    "127.0.0.0/8",  # loopback (RFC 1122)
    "168.63.129.16/32",  # Azure's platform address, reachable from inside a machine only
    "169.254.0.0/16",  # link local (RFC 3927), with most clouds' metadata services
    "172.16.0.0/12",  # private use (RFC 1918)
    "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
    "192.0.2.0/24",  # documentation (RFC 5737)
    "192.31.196.0/24",  # AS112 (RFC 7535)
    "192.52.193.0/24",  # AMT (RFC 7450)
    "192.88.99.0/24",  # 6to4 relays, deprecated (RFC 7526)
    "192.168.0.0/16",  # private use (RFC 1918)
    "192.175.48.0/24",  # AS112 (RFC 7534)
    "198.18.0.0/15",  # benchmarking (RFC 2544)
    "198.51.100.0/24",  # documentation (RFC 5737)
    "203.0.113.0/24",  # documentation (RFC 5737)
    "224.0.0.0/4",  # multicast (RFC 5771)
    "240.0.0.0/4",  # reserved, and limited broadcast (RFC 1112, RFC 8190)
)

# All unicast space of today (RFC 4291; IANA IPv6 Global Unicast Address Assignments). Everything
# outside of it is rejected: mapped IPv4, NAT64, discard-only, unique local, link local, multicast.
_UNICAST_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = _networks(
    "2001::/23",  # IETF protocol assignments (RFC 2928), with Teredo and ORCHID
    "2001:db8::/32",  # documentation (RFC 3849)
    "2002::/16",  # 6to4, which holds an IPv4 address (RFC 3056)
    "2620:4f:8000::/48",  # AS112 (RFC 7534)
    "3fff::/20",  # documentation (RFC 9637)
)

# What an operator means by "private": this machine, or a network of their own.
_PRIVATE = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)

# Metadata services inside those ranges: they hand out the machine's own credentials.
_METADATA = _networks(
    "100.100.100.200/32",  # Alibaba Cloud
    "fd00:ec2::/32",  # AWS
    "fd20:ce::254/128",  # Google Cloud
)


def is_public(address: str) -> bool:
    """Return True if an address belongs to the public internet."""
    parsed = _parse(address)
    if isinstance(parsed, IPv4Address):
        return not _within(parsed, _SPECIAL_V4)
    if isinstance(parsed, IPv6Address):
        return parsed in _UNICAST_V6 and not _within(parsed, _SPECIAL_V6)
    return False


def is_public_or_private(address: str) -> bool:
    """Return True if an address is public or on a private network, and not a metadata service."""
    parsed = _parse(address)
    if parsed is None:
        return False
    return is_public(address) or (_within(parsed, _PRIVATE) and not _within(parsed, _METADATA))


def is_any(address: str) -> bool:
    """Pass every address: the operator chose it."""
    return True


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    """Read an address. One with a zone id means a link of this machine, so it counts as none."""
    try:
        return None if "%" in address else ip_address(address)
    except ValueError:
        return None


def _within(address: IPv4Address | IPv6Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)
