"""Where keys may be sent, and the HTTP clients that send them there."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import RLock
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..catalog.spec import ProviderSpec
from ..catalog.verdicts import Answer
from ..errors import EndpointNotAllowedError, ProviderUnavailableError, RateLimitedError
from ..model.credential import EndpointTrust, Fields

if TYPE_CHECKING:
    import httpx2

    from .transport import AddressRule, Enter, KeylessClient, Limits, Observe, Origin, Resolver

#: Longest answer to a check, in bytes. OpenRouter's list of models, the longest known, has about 1 MB.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
#: The same for a server that a person named: 4 MB of brackets become 300 MB of lists.
MAX_PERSONAL_ANSWER_BYTES = 256 * 1024

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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL, and who chose it: the catalog, the operator, or the person whose key it is."""

    base_url: str
    trust: EndpointTrust


def endpoint_for(
    spec: ProviderSpec,
    base_urls: Mapping[str, str],
    personal: str | None = None,
    fields: Fields = MappingProxyType({}),
) -> Endpoint:
    """Choose the endpoint: the operator's, else the catalog's, else the person's own.

    An operator's address without a path takes over the catalog's path (``/v1``); one with a path, be it only ``/``,
    keeps its own.

    :param fields: those of the credential, as the catalog's address may name some.
    :raises EndpointNotAllowedError: there is none of the three, or a field does not fit into the address.
    """
    plain = {f.name: fields[f.name].reveal() for f in spec.fields if f.name in fields}
    if chosen := base_urls.get(spec.id):
        path = urlsplit(spec.base_url).path if not urlsplit(chosen).path else ""
        return Endpoint(chosen.rstrip("/") + spec.url(path, plain), "operator")
    if spec.base_url:
        return Endpoint(spec.url(spec.base_url, plain), "catalog")
    if personal:
        return Endpoint(personal, "personal")
    raise EndpointNotAllowedError("Give the server's base URL: https://…/v1.", provider=spec.id)


def full_url(spec: ProviderSpec, endpoint: Endpoint, path: str) -> str:
    """Return the URL of a path below an endpoint, or of another host that the catalog names with a whole URL.

    At an operator's address the other host's path stands where the catalog's base path would.
    """
    if not path.startswith("https://"):
        return endpoint.base_url.rstrip("/") + path
    if endpoint.trust != "operator":
        return path
    root = endpoint.base_url.rstrip("/").removesuffix(urlsplit(spec.base_url).path)
    return root + urlsplit(path)._replace(scheme="", netloc="").geturl()


@cache
def _default_tls() -> ssl.SSLContext:
    """Return the process's one TLS context: reading the certificate authorities takes 15 ms."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


@dataclass(eq=False)
class Outbound:
    """Makes the HTTP clients through which keys are sent; they hold neither keys nor cookies.

    Catalog and operator endpoints share one client and its pool of connections. A person's own endpoint has a client
    of its own. Nothing is opened before the first use, and each process has its own pool, so an Outbound may be made
    before a server forks.

    :param allow_private: let people's own endpoints be http and on private addresses.
    :param tls: the TLS context of all clients; by default the process's one, of the system's certificate authorities.
    :param resolver: resolves names as ``socket.getaddrinfo`` does.
    """

    allow_private: bool = False
    tls: ssl.SSLContext = field(default_factory=_default_tls)
    resolver: Resolver = socket.getaddrinfo

    def __post_init__(self) -> None:
        # Loaded here and not above: `import flask_byok` loads no HTTP client, and no request waits for one.
        from . import transport

        self._transport = transport
        # By process id. A forked child keeps its parent's client here, unused: collecting it would close its sockets.
        self._shared: dict[int, KeylessClient] = {}

    def client_for(
        self, endpoint: Endpoint, observe: Observe | None = None, owner: str | None = None
    ) -> httpx2.Client:
        """Return the client through which an endpoint is called.

        :param observe: called after each request of the returned client, which still shares the pool.
        :param owner: who calls. Calls of people's own servers are limited, for each owner and in all.
        :raises EndpointNotAllowedError: keys may not be sent to this endpoint.
        """
        transport = self._transport
        if endpoint.trust == "personal":
            base_url = check_personal_base_url(endpoint.base_url, allow_private=self.allow_private)
            rule = is_public_or_private if self.allow_private else is_public
            rules: dict[Origin, AddressRule] = {transport.origin_of(base_url): rule}
            enter = partial(personal_slots.take, owner)
            return self._make_client(rules, transport.PERSONAL, enter).observed(observe)
        client = self._shared.get(os.getpid())
        if client is None:
            made = self._make_client({}, transport.SHARED, _without_slot)
            client = self._shared.setdefault(os.getpid(), made)
        if endpoint.trust == "operator":
            client.rules[transport.origin_of(endpoint.base_url)] = is_any
        elif endpoint.base_url.startswith("https://"):
            client.rules.setdefault(transport.origin_of(endpoint.base_url), is_public)
        else:
            raise EndpointNotAllowedError("A provider's base URL must begin with https://.")
        return client.observed(observe)

    def fetch(
        self,
        endpoint: Endpoint,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        content: bytes = b"",
        seconds: float,
        owner: str | None = None,
    ) -> Answer:
        """Make one plain request and read its answer whole, within a time and a size.

        :param url: a path below the endpoint's base URL, or a whole one, see :func:`full_url`.
        :raises EndpointNotAllowedError: see :meth:`client_for`.
        :raises RateLimitedError: too many calls of people's own servers are running.
        :raises ProviderUnavailableError: no answer came; the message says why.
        """
        transport = self._transport
        headers = {"Accept": "application/json", **headers}
        if url.startswith("/"):
            url = endpoint.base_url.rstrip("/") + url
        elif endpoint.trust == "catalog":
            endpoint = Endpoint(url, "catalog")
        client = self.client_for(endpoint, owner=owner)
        longest = MAX_PERSONAL_ANSWER_BYTES if endpoint.trust == "personal" else MAX_ANSWER_BYTES
        try:
            with transport.until(time.monotonic() + seconds):
                limit = {transport.LONGEST: longest}
                response = client.request(
                    method, url, headers=headers, content=content or None, extensions=limit
                )
                return Answer(response.status_code, response.content, dict(response.headers))
        except transport.AnswerRefused:
            return Answer(0, b"")  # it is too long, or compressed, and tells nothing about the key
        except Exception as error:
            fault = transport.network_fault(error)
            if fault is None:
                raise
        # Raised out here, so that the request with its headers does not hang on the error.
        raise ProviderUnavailableError(fault)

    def _make_client(
        self, rules: dict[Origin, AddressRule], limits: Limits, enter: Enter
    ) -> KeylessClient:
        backend = self._transport.GuardedBackend(rules, self.resolver)
        guarded = self._transport.GuardedTransport(backend, self.tls, limits, enter)
        return self._transport.KeylessClient(guarded)


@cache
def sync_only_client() -> httpx2.AsyncClient:
    """Return an async client that rejects every call, for SDKs that insist on having one."""
    import httpx2

    class NoTransport(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            text = "flask-byok: calls with people's keys are synchronous"
            raise httpx2.UnsupportedProtocol(text)

    return httpx2.AsyncClient(transport=NoTransport(), trust_env=False)


@cache
def default_outbound() -> Outbound:
    """Return the process's Outbound for calls made without an app."""
    return Outbound()


#: When to try again if no slot was left, in seconds: most answers have ended by then.
RETRY_SECONDS = 10
_TOO_MANY = (
    f"Too many calls to people's own servers are running. Try again in {RETRY_SECONDS} seconds."
)


@dataclass(eq=False)
class Slots:
    """Limits how many calls to people's own servers run at once: such a server can be slow on purpose.

    :param overall: in a process; the rest of its workers stay free for other requests.
    :param each: for one owner.
    """

    overall: int
    each: int

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start with all slots free, as in a forked process, in which none of its parent's calls run."""
        # Reentrant: garbage collection, which gives slots back, can run in the midst of `take`.
        self._lock = RLock()
        self._running: list[str | None] = []

    def take(self, owner: str | None) -> Callable[[], object]:
        """Take a slot and return what gives it back; without an owner only the whole is limited.

        :raises RateLimitedError: none is left.
        """
        with self._lock:
            full = len(self._running) >= self.overall
            if full or (owner is not None and self._running.count(owner) >= self.each):
                raise RateLimitedError(_TOO_MANY, retry_after=RETRY_SECONDS)
            self._running.append(owner)
        return partial(self._give_back, owner)

    def _give_back(self, owner: str | None) -> None:
        with self._lock, suppress(ValueError):  # it may be a parent's
            self._running.remove(owner)


#: The process's slots for personal endpoints. WSGI servers do not tell how many threads they have; a worker with 8 of
#: them, as our examples give it, keeps half.
personal_slots = Slots(4, 2)
os.register_at_fork(after_in_child=personal_slots.forget)


def _without_slot() -> Callable[[], object]:
    return tuple  # which does nothing, as nothing is to be given back


def check_personal_base_url(url: str, *, allow_private: bool) -> str:
    """Return a person's base URL in its one normal form.

    :param allow_private: the operator lets people call http and private addresses, at any port.
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
    if port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}{found['path'].rstrip('/')}"
    if not allow_private or not 0 < port < 65536:
        raise _not_allowed("Its port must be 443, which https:// has by itself.")
    return f"{scheme}://{host}:{port}{found['path'].rstrip('/')}"


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


def is_any(address: str) -> bool:
    """Pass every address: the operator chose it."""
    return True


def _within(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool | None:
    """Return True if an address is in one of these networks; None if it is no address.

    One with a zone id means a link of this machine, so it counts as none.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return None if "%" in address else any(parsed in network for network in networks)
