"""Where keys may be sent, and the HTTP clients that send them there."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from threading import RLock
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..catalog.spec import ProviderSpec
from ..catalog.verdicts import Answer
from ..errors import EndpointNotAllowedError, ProviderUnavailableError, RateLimitedError
from ..model.credential import EndpointTrust, Fields
from .addresses import check_personal_base_url, is_public, is_public_or_private

if TYPE_CHECKING:
    from .connections import AddressRule, Resolver
    from .live import LiveCall
    from .transport import Enter, KeylessClient, Limits, Observe

#: Longest answer to a check, in bytes. OpenRouter's list of models, the longest known, has about 1 MB.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
#: The same for a server that a person named: 4 MB of brackets become 300 MB of lists.
MAX_PERSONAL_ANSWER_BYTES = 256 * 1024

#: The headers that the answer to a check keeps.
KEPT_HEADERS = frozenset({"retry-after", "content-type", "x-amzn-errortype"})


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

    :raises EndpointNotAllowedError: see :func:`_below`.
    """
    if not path.startswith("https://"):
        return _below(endpoint, path)
    if endpoint.trust != "operator":
        return path
    # Whatever the fields are that the base path names.
    own = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(urlsplit(spec.base_url).path))
    root = re.sub(f"{own}$", "", endpoint.base_url.rstrip("/"))
    return root + urlsplit(path)._replace(scheme="", netloc="").geturl()


def request_about(
    spec: ProviderSpec,
    endpoint: Endpoint,
    fields: Mapping[str, str],
    path: str,
    method: str = "GET",
    body: bytes = b"",
) -> tuple[str, dict[str, str]]:
    """Return the URL and the headers of a request about a key itself: its check, or the list of its models.

    :param fields: the key's values.
    :param path: as :class:`~flask_byok.catalog.spec.CheckSpec` names it.
    """
    url = full_url(spec, endpoint, spec.url(path, fields))
    key = spec.auth.headers(fields, method, url, body)
    return url, {**spec.headers, **spec.check.headers, **key}


def _called_as(endpoint: Endpoint, url: str) -> Endpoint:
    """Return the endpoint that a URL is called as: the catalog may name other hosts."""
    return Endpoint(url, "catalog") if endpoint.trust == "catalog" else endpoint


def _below(endpoint: Endpoint, path: str) -> str:
    """Return the URL of a path below an endpoint.

    :raises EndpointNotAllowedError: it does not begin with one slash: it could change the host that the key goes to.
    """
    if not path.startswith("/") or path[1:2] in ("/", "\\"):
        raise EndpointNotAllowedError("A path below a base URL begins with one slash.")
    return endpoint.base_url.rstrip("/") + path


def _default_tls() -> ssl.SSLContext:
    from .proxies import tls_context

    return tls_context()


@dataclass(eq=False)
class Outbound:
    """Makes the HTTP clients through which keys are sent; they hold neither keys nor cookies.

    Catalog and operator endpoints share one client and its pool of connections. A person's own endpoint has a client
    of its own. Nothing is opened before the first use, and each process has its own pool, so an Outbound may be made
    before a server forks.

    :param allow_private: let people's own endpoints be http and on private addresses.
    :param tls: the TLS context of all clients; by default the process's one, of the system's certificate authorities.
    :param resolver: resolves names as ``socket.getaddrinfo`` does.
    :param ports: those that people's own endpoints may have.
    :param proxy: see :class:`.proxies.Proxies`.
    """

    allow_private: bool = False
    tls: ssl.SSLContext = field(default_factory=_default_tls)
    resolver: Resolver = socket.getaddrinfo
    ports: Collection[int] = (443,)
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # Loaded here and not above: `import flask_byok` loads no HTTP client, and no request waits for one.
        from . import connections, proxies, transport

        self._connections, self._proxies, self._transport = connections, proxies, transport
        self._find_proxy = proxies.Proxies(self.proxy).find
        # By process id and proxy. A forked child keeps its parent's clients here, unused: collecting them would close
        # their sockets.
        self._shared: dict[tuple[int, str | None], KeylessClient] = {}

    def client_for(
        self, endpoint: Endpoint, observe: Observe | None = None, owner: str | None = None
    ) -> KeylessClient:
        """Return the client through which an endpoint is called.

        :param observe: called after each request of the returned client, which still shares the pool.
        :param owner: who calls. Calls of people's own servers are limited, for each owner and in all.
        :raises EndpointNotAllowedError: keys may not be sent to this endpoint.
        """
        transport = self._transport
        if endpoint.trust == "personal":
            base_url = check_personal_base_url(
                endpoint.base_url, allow_private=self.allow_private, ports=self.ports
            )
            rule = is_public_or_private if self.allow_private else is_public
            origin = transport.origin_of(base_url)
            enter, proxy = partial(personal_slots.take, owner), self._find_proxy(origin)
            if proxy is not None and transport.origin_of(proxy)[1:] == origin[1:]:
                text = "This base URL may not be called. It is that of this site's proxy."
                raise EndpointNotAllowedError(text)
            return self._make_client(rule, transport.PERSONAL, enter, proxy).twin(origin, observe)
        origin = transport.origin_of(endpoint.base_url)
        place = os.getpid(), self._find_proxy(origin)
        client = self._shared.get(place) or self._shared.setdefault(
            place, self._make_client(is_public, transport.SHARED, _without_slot, place[1])
        )
        if endpoint.trust == "operator":
            client.backend.chosen.add(origin[1:])
        elif not endpoint.base_url.startswith("https://"):
            raise EndpointNotAllowedError("A provider's base URL must begin with https://.")
        return client.twin(origin, observe)

    def open(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes = b"",
        owner: str | None = None,
        timeout: float | None = None,
    ) -> LiveCall:
        """Return a call whose answer is read as it comes. Nothing is sent before its head is asked for.

        The call is not observed: its reader judges the answer.

        :param url: see :meth:`fetch`.
        :param timeout: seconds that may pass between two pieces of the answer.
        :raises EndpointNotAllowedError: see :meth:`client_for`.
        """
        from .live import Exchange, LiveCall

        self._transport.origin_of(url)
        client = self.client_for(_called_as(endpoint, url), owner=owner)
        request = client.build_request(method, url, headers=headers, content=content)
        if timeout is not None:
            request.extensions["timeout"]["read"] = timeout
        return LiveCall(Exchange(client, request))

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

        :param url: a whole one, see :func:`full_url`.
        :raises EndpointNotAllowedError: see :meth:`client_for`.
        :raises RateLimitedError: too many calls of people's own servers are running.
        :raises ProviderUnavailableError: no answer came; the message says why.
        """
        transport = self._transport
        headers = {"Accept": "application/json", **headers}
        client = self.client_for(_called_as(endpoint, url), owner=owner)
        longest = MAX_PERSONAL_ANSWER_BYTES if endpoint.trust == "personal" else MAX_ANSWER_BYTES
        try:
            with self._connections.until(time.monotonic() + seconds):
                limit = {transport.LONGEST: longest}
                response = client.request(
                    method, url, headers=headers, content=content or None, extensions=limit
                )
                kept = {n: v for n, v in response.headers.items() if n in KEPT_HEADERS}
                return Answer(response.status_code, response.content, kept)
        except transport.AnswerRefused:
            return Answer(0, b"")  # it is too long, or compressed, and tells nothing about the key
        except Exception as error:
            fault = transport.network_fault(error)
            if fault is None:
                raise
        # Raised out here, so that the request with its headers does not hang on the error.
        raise ProviderUnavailableError(fault)

    def _make_client(
        self, rule: AddressRule, limits: Limits, enter: Enter, proxy: str | None
    ) -> KeylessClient:
        backend = self._connections.GuardedBackend(rule, self.resolver)
        by_address = limits is self._transport.PERSONAL
        pool = self._proxies.make_pool(backend, self.tls, proxy, by_address=by_address)
        return self._transport.KeylessClient(
            self._transport.GuardedTransport(backend, pool, limits, enter)
        )


@cache
def default_outbound() -> Outbound:
    """Return the process's Outbound for calls made without an app."""
    return Outbound()


#: When to try again if no slot was left, in seconds: most answers have ended by then.
RETRY_SECONDS = 10


@dataclass(eq=False)
class Slots:
    """Limits how many calls of one kind run at once.

    :param overall: in a process; the rest of its workers stay free for other requests.
    :param each: for one owner.
    :param which: names the calls, in the sentence for people.
    """

    overall: float
    each: int
    which: str

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
                text = f"Too many {self.which} are running. Try again in {RETRY_SECONDS} seconds."
                raise RateLimitedError(text, retry_after=RETRY_SECONDS)
            self._running.append(owner)
        return partial(self._give_back, owner)

    def _give_back(self, owner: str | None) -> None:
        with self._lock, suppress(ValueError):  # it may be a parent's
            self._running.remove(owner)


#: The process's slots for personal endpoints, which can be slow on purpose. WSGI servers do not tell how many threads
#: they have; a worker with 8 of them, as our examples give it, keeps half.
personal_slots = Slots(4, 2, "calls to people's own servers")
os.register_at_fork(after_in_child=personal_slots.forget)


def _without_slot() -> Callable[[], object]:
    return tuple  # which does nothing, as nothing is to be given back
