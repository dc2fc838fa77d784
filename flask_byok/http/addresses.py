"""Which addresses may be called: the rules for people's base URLs, and for what names resolve to."""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ..errors import EndpointNotAllowedError

# Names that mean this machine or its network (RFC 6761, RFC 6762, RFC 8375, ICANN's .internal), and those that home
# and company networks use for themselves.
_LOCAL_NAMES = re.compile(
    r"(.*\.)?(localhost|local|localdomain|internal|intranet|private|corp|home|lan|home\.arpa)"
)

# The one form of a person's base URL: no user name, query, fragment, or character that parsers disagree about.
_BASE_URL = re.compile(
    r"(?=.{1,500}\Z)(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(/[a-z0-9._~:@+=,-]+)*/?)",
    re.ASCII | re.IGNORECASE,
)
# Host names as RFC 1123 writes them: no underscore, no percent sign, no other script, nothing for IDNA to change.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What browsers and inet_aton read as a number, and so as an address: 127, 0x7f, 0177.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"https": 443, "http": 80}


def check_personal_base_url(
    url: str, *, allow_private: bool, ports: Collection[int] = (443,)
) -> str:
    """Return a person's base URL in its one normal form.

    :param allow_private: the operator lets people call http and private addresses, at any port.
    :param ports: those that the operator lets people call.
    :raises EndpointNotAllowedError: keys may not be sent there. The message says why and repeats nothing of the URL.
    """
    found = _BASE_URL.fullmatch(url.strip())
    if found is None or {".", ".."} & set(found["path"].split("/")):
        raise _not_allowed(
            "Write it like https://ai.example.org/v1: a plain host name and path, without a user name, password, ? or "
            "#, other scripts as xn--…, and up to 500 characters in all."
        )
    scheme, host = found["scheme"].lower(), _check_host(found["host"].lower(), allow_private)
    if scheme != "https" and not allow_private:
        raise _not_allowed("It must begin with https://.")
    port = int(found["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 65536 or not (allow_private or port in ports):
        raise _not_allowed(f"Its port must be {' or '.join(map(str, ports))}.")
    shown = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{host}{shown}{found['path'].rstrip('/')}"


def _check_host(host: str, allow_private: bool) -> str:
    if host.startswith("["):
        return f"[{_check_address(IPv6Address, host[1:-1], allow_private)}]"
    host = host.removesuffix(".")
    labels = host.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _check_address(IPv4Address, host, allow_private)
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _not_allowed("Its host name is malformed.")
    if not allow_private and (len(labels) == 1 or _LOCAL_NAMES.fullmatch(host)):
        raise _not_allowed("Its host name is one of a local network.")
    return host


def _check_address(kind: type[IPv4Address | IPv6Address], text: str, allow_private: bool) -> str:
    try:
        address = str(kind(text))
    except ValueError:
        # Nor 0x7f.1 or 2130706433, which mean 127.0.0.1 to other parsers.
        raise _not_allowed("Write an address as four decimal numbers, or as IPv6.") from None
    if not (is_public_or_private if allow_private else is_public)(address):
        raise _not_allowed("Its address is not on the public internet.")
    return address


def _not_allowed(why: str) -> EndpointNotAllowedError:
    return EndpointNotAllowedError(f"This base URL may not be called. {why}")


# Addresses that may not be called although Python's `is_global`, in one version or another, lets them pass. Sources:
# the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its updates) and, for addresses that clouds
# answer on from inside a machine, the documentation of the clouds. No model provider lives in any of these blocks.
def _networks(*blocks: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, blocks))


_SPECIAL = _networks(
    "168.63.129.16/32",  # Azure's platform address, reachable from inside a machine only
    "192.0.0.0/24",  # IETF protocol assignments (RFC 6890)
    "192.31.196.0/24",  # AS112 (RFC 7535)
    "192.52.193.0/24",  # AMT (RFC 7450)
    "192.88.99.0/24",  # 6to4 relays, deprecated (RFC 7526)
    "192.175.48.0/24",  # AS112 (RFC 7534)
    "224.0.0.0/4",  # multicast (RFC 5771)
    # Outside of 2000::/3, all unicast space of today (RFC 4291; IANA IPv6 Global Unicast Address Assignments), are
    # mapped IPv4, NAT64, discard-only, unique local, link local and multicast.
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",  # IETF protocol assignments (RFC 2928), with Teredo and ORCHID
    "2002::/16",  # 6to4, which holds an IPv4 address (RFC 3056)
    "2620:4f:8000::/48",  # AS112 (RFC 7534)
    "3fff::/20",  # documentation (RFC 9637)
)

# What an operator means by "private": this machine, or a network of their own.
_LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_PRIVATE = _networks("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")

# Metadata services inside those ranges: they hand out the machine's own credentials.
_METADATA = _networks(
    "100.100.100.200/32",  # Alibaba Cloud
    "fd00:ec2::/32",  # AWS
    "fd20:ce::254/128",  # Google Cloud
)


def is_public(address: str) -> bool:
    """Return True if an address belongs to the public internet."""
    # None: it is no address.
    return _within(address, _SPECIAL) is False and ip_address(address).is_global


def is_public_or_private(address: str) -> bool:
    """Return True if an address is public or on a private network, and not a metadata service."""
    private = _within(address, _LOOPBACK + _PRIVATE) and not _within(address, _METADATA)
    return private or is_public(address)


def _within(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool | None:
    """Return True if an address is in one of these networks; None if it is no address.

    One with a zone id means a link of this machine, so it counts as none.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return None if "%" in address else any(parsed in network for network in networks)


def is_local_host(host: str) -> bool:
    """Return True for a name or an address that by itself means this machine or its network."""
    host = host.strip("[]").removesuffix(".").lower()
    if _within(host, ()) is None:
        return "." not in host or "%" in host or bool(_LOCAL_NAMES.fullmatch(host))
    return not is_public(host)
