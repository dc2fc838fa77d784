"""Where a key may be sent: the rules for base URLs, before any name is resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from ..errors import EndpointNotAllowedError
from ..model.credential import EndpointTrust
from .addresses import AddressRule, is_public, is_public_or_private

MAX_URL_LENGTH = 500

# Names that mean this machine or its network (RFC 6761, RFC 6762, RFC 8375, ICANN's .internal), and
# what home and company networks use for themselves.
_LOCAL_NAMES = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
)

# Host names as RFC 1123 writes them: no underscore, no percent sign, no other script, nothing for
# IDNA to change.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What browsers and inet_aton read as a number, and so as an address: 127, 0x7f, 0177.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(/[A-Za-z0-9._~:@+=,-]+)*/?")
_NETLOC = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?")

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL, and who chose it: the catalog, the operator, or the person whose key it is."""

    base_url: str
    trust: EndpointTrust


class _Spec(Protocol):
    """What is asked of a ProviderSpec; the catalog lies beside this layer."""

    @property
    def id(self) -> str: ...

    @property
    def base_url(self) -> str: ...


def endpoint_for(
    spec: _Spec, base_urls: Mapping[str, str], personal: str | None = None
) -> Endpoint:
    """Choose the endpoint: the operator's, else the catalog's, else the person's own.

    An operator's address without any path takes over the catalog's path (``/v1``); one with a path,
    be it only ``/``, is used as it is.

    :raises EndpointNotAllowedError: there is none of the three.
    """
    if chosen := base_urls.get(spec.id):
        path = urlsplit(spec.base_url).path if not urlsplit(chosen).path else ""
        return Endpoint(chosen.rstrip("/") + path, "operator")
    if spec.base_url:
        return Endpoint(spec.base_url, "catalog")
    if personal:
        return Endpoint(personal, "personal")
    raise EndpointNotAllowedError(
        "Give the base URL of the server, such as https://…/v1.", provider=spec.id
    )


def check_personal_base_url(url: str, *, allow_private: bool) -> str:
    """Return a person's base URL in its one normal form.

    :param allow_private: the operator lets people call http and private addresses, at any port.
    :raises EndpointNotAllowedError: keys may not be sent there. The message says why and repeats
        nothing of it.
    """
    parts = _split(url.strip())
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise _refuse("It must begin with https://.")
    netloc = _NETLOC.fullmatch(parts.netloc)
    if netloc is None:
        raise _refuse("It must have a plain host name and no user name or password in it.")
    host = _check_host(netloc["host"].lower(), allow_private)
    port = _check_port(netloc["port"], parts.scheme, allow_private)
    if not _PATH.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
        raise _refuse("Its path must be plain, such as /v1.")
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _split(url: str) -> SplitResult:
    if not url or len(url) > MAX_URL_LENGTH:
        raise _refuse(f"It must have 1 to {MAX_URL_LENGTH} characters.")
    # urlsplit drops tabs and line breaks, and other parsers read a backslash as a slash.
    if not all("!" <= char <= "~" for char in url) or "\\" in url:
        raise _refuse("It must have plain ASCII characters only; write other scripts as xn--….")
    if "?" in url or "#" in url:
        raise _refuse("It must end with the path: leave out everything from the ? or #.")
    try:
        return urlsplit(url)
    except ValueError:
        raise _refuse("It is not a URL.") from None


def _check_host(host: str, allow_private: bool) -> str:
    passes = is_public_or_private if allow_private else is_public
    if host.startswith("["):
        return f"[{_check_ipv6(host[1:-1], passes)}]"
    host = host.removesuffix(".")
    labels = host.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _check_ipv4(host, passes)
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise _refuse("Its host name is malformed.")
    if not allow_private and (len(labels) == 1 or _is_local_name(host)):
        raise _refuse("Its host name is one of a local network.")
    return host


def _is_local_name(host: str) -> bool:
    return any(host == name or host.endswith("." + name) for name in _LOCAL_NAMES)


def _check_ipv6(text: str, passes: AddressRule) -> str:
    try:
        address = str(IPv6Address(text))
    except ValueError:
        raise _refuse("Its host is not an address.") from None
    return _passing(address, passes)


def _check_ipv4(text: str, passes: AddressRule) -> str:
    """Read four decimal numbers only: 0x7f.1 and 2130706433 mean 127.0.0.1 to other parsers."""
    try:
        address = str(IPv4Address(text))
    except ValueError:
        raise _refuse("Its host is not an address of four decimal numbers.") from None
    return _passing(address, passes)


def _passing(address: str, passes: AddressRule) -> str:
    if not passes(address):
        raise _refuse("Its address is not on the public internet.")
    return address


def _check_port(port: str | None, scheme: str, allow_private: bool) -> str:
    number = _DEFAULT_PORTS[scheme] if port is None else int(port)
    if number == _DEFAULT_PORTS[scheme]:
        return ""
    if not allow_private or not 0 < number < 65536:
        raise _refuse("Its port must be 443, which https:// has by itself.")
    return f":{number}"


def _refuse(why: str) -> EndpointNotAllowedError:
    return EndpointNotAllowedError(f"This base URL may not be called. {why}")
