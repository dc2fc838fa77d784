"""Makes every HTTP client, and makes the plain requests of checks."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..errors import EndpointNotAllowedError, ProviderUnavailableError
from .addresses import AddressRule, is_any, is_public, is_public_or_private
from .endpoints import Endpoint, check_personal_base_url

if TYPE_CHECKING:
    import httpx2

    from .transport import KeylessClient, Observe, Origin, Resolver

#: Longest answer to a check, in bytes. OpenRouter's list of models, the longest known, has about 1
#: MB.
MAX_ANSWER_BYTES = 4 * 1024 * 1024
#: The same for a server that a person named: 4 MB of brackets become 300 MB of lists.
MAX_PERSONAL_ANSWER_BYTES = 256 * 1024


@dataclass(frozen=True, repr=False)
class Answer:
    """What a provider answered to a check; not ``complete`` where the body was too long."""

    status: int
    body: bytes
    complete: bool = True

    @cached_property
    def data(self) -> Any:
        """The body's JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Outbound:
    """Makes the HTTP clients through which keys are sent; they hold neither keys nor cookies.

    Catalog and operator endpoints share one client and its pool of connections. A person's own
    endpoint has a client of its own. Nothing is opened, and no HTTP library is loaded, before the
    first use. Each process has its own pool, so it may be built before a server forks.

    :param allow_private: let people's own endpoints be http and on private addresses.
    :param tls: the TLS context instead of the system's certificate authorities.
    :param resolver: resolves names as ``socket.getaddrinfo`` does.
    """

    def __init__(
        self,
        allow_private: bool = False,
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver = socket.getaddrinfo,
    ) -> None:
        self.allow_private = allow_private
        self._tls = tls
        self._resolver = resolver
        # By process id. A parent's client stays here in a forked child, unused: collecting it would
        # close its sockets.
        self._shared: dict[int, KeylessClient] = {}

    def client_for(self, endpoint: Endpoint, observe: Observe | None = None) -> httpx2.Client:
        """Return the client through which an endpoint is called.

        :param observe: called after each request that is made with what is returned. The pool is the
            shared one all the same.
        :raises EndpointNotAllowedError: a person's own endpoint is not one that keys may be sent
            to.
        """
        from .limits import MAX_LINE_BYTES, MAX_PERSONAL_LINE_BYTES
        from .transport import origin_of

        if endpoint.trust == "personal":
            base_url = check_personal_base_url(endpoint.base_url, allow_private=self.allow_private)
            rule = is_public_or_private if self.allow_private else is_public
            own = self._make_client({origin_of(base_url): rule}, MAX_PERSONAL_LINE_BYTES)
            return own.observed(observe)
        client = self._shared.get(os.getpid())
        if client is None:
            client = self._shared.setdefault(os.getpid(), self._make_client({}, MAX_LINE_BYTES))
        if endpoint.trust == "operator":
            client.rules[origin_of(endpoint.base_url)] = is_any
        elif endpoint.base_url.startswith("https://"):
            client.rules.setdefault(origin_of(endpoint.base_url), is_public)
        else:
            raise EndpointNotAllowedError("A provider's base URL must begin with https://.")
        return client.observed(observe)

    def async_client(self) -> httpx2.AsyncClient:
        """Return an async client that refuses every call, for SDKs that insist on having one."""
        from .transport import sync_only_client

        return sync_only_client()

    @property
    def tls(self) -> ssl.SSLContext:
        """The TLS context that all clients share."""
        from .transport import default_tls

        return self._tls or default_tls()

    def fetch(
        self,
        endpoint: Endpoint,
        method: Literal["GET", "POST"],
        path: str,
        headers: Mapping[str, str],
        *,
        seconds: float,
    ) -> Answer:
        """Make one plain request and read its answer whole, within a time and a size.

        :param path: relative to the endpoint's base URL, with its query.
        :raises EndpointNotAllowedError: see :meth:`client_for`.
        :raises ProviderUnavailableError: no answer came; the message says why.
        """
        from .limits import until

        url = endpoint.base_url.rstrip("/") + path
        headers = {"Accept": "application/json", **headers}
        client = self.client_for(endpoint)
        personal = endpoint.trust == "personal"
        longest = MAX_PERSONAL_ANSWER_BYTES if personal else MAX_ANSWER_BYTES
        try:
            with (
                until(time.monotonic() + seconds),
                client.stream(method, url, headers=headers) as response,
            ):
                return _read(response, longest)
        except Exception as error:
            fault = network_fault(error)
            if fault is None:
                raise
        # Raised out here, so that the request with its headers does not hang on the error.
        raise ProviderUnavailableError(fault)

    def _make_client(self, rules: dict[Origin, AddressRule], longest_line: int) -> KeylessClient:
        from .transport import GuardedTransport, KeylessClient

        return KeylessClient(GuardedTransport(rules, self.tls, self._resolver, longest_line))


def network_fault(error: BaseException) -> str | None:
    """Return our own words for an error of the network, or None for any other error."""
    from .transport import describe_fault

    return describe_fault(error)


@cache
def default_outbound() -> Outbound:
    """Return the process's Outbound for calls made without an app."""
    return Outbound()


def _read(response: httpx2.Response, longest: int) -> Answer:
    from .limits import AnswerRefused

    body = bytearray()
    try:
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > longest:
                return Answer(response.status_code, b"", complete=False)
    except AnswerRefused:
        return Answer(response.status_code, b"", complete=False)
    return Answer(response.status_code, bytes(body))
