"""The only place that opens connections: a guarded transport, a client without cookies."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cache
from http.cookiejar import Cookie, CookieJar
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import httpcore2
import httpx2

from .addresses import AddressRule
from .limits import MAX_SECONDS, AnswerRefused, bounded, shorten, until

#: (scheme, host, port) as httpx2 normalises them.
Origin = tuple[str, str, int]
#: Resolves names as ``socket.getaddrinfo`` does.
Resolver = Callable[..., list[Any]]
#: What was sent.
Request = httpx2.Request
#: Called after a request with it, the answer's status, 0 where none came, and the body of a refusal.
Observe = Callable[[Request, int, bytes], None]

#: Seconds. Long answers stream; what may pass between two of their pieces is what "read" limits.
TIMEOUT = httpx2.Timeout(connect=5.0, read=300.0, write=30.0, pool=5.0)
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30.0)
# How many of a name's addresses are tried, so that a long list does not use up a worker.
MAX_ADDRESSES = 4


class _TimedStream(httpcore2.NetworkStream):
    """A connection that keeps to the deadline of whoever uses it at the moment."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, shorten(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, shorten(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit = shorten(timeout, httpcore2.ConnectTimeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedBackend(httpcore2.NetworkBackend):
    """Resolves a name once, requires all its addresses to pass, and connects to one of those."""

    def __init__(self, rules: Mapping[Origin, AddressRule], resolver: Resolver) -> None:
        self._rules = rules
        self._resolver = resolver
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        end = time.monotonic() + (shorten(timeout, httpcore2.ConnectTimeout) or 5.0)
        addresses = self._resolve(host, port, end)
        if not all(self._passes(host, port, address) for address in addresses):
            raise httpcore2.ConnectError("the name has an address that may not be called")
        tried = addresses[:MAX_ADDRESSES]
        for after, address in zip(range(len(tried) - 1, -1, -1), tried, strict=True):
            # An address that swallows packets must leave time for the next one.
            share = max(end - time.monotonic(), 0.001) / (after + 1)
            try:
                stream = self._plain.connect_tcp(
                    address, port, share, local_address, socket_options
                )
                return _TimedStream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not after:
                    raise
        raise httpcore2.ConnectError("the name has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        raise httpcore2.ConnectError("unix sockets may not be called")

    def _passes(self, host: str, port: int, address: str) -> bool:
        origins = (("https", host, port), ("http", host, port))
        rules = [self._rules[origin] for origin in origins if origin in self._rules]
        return bool(rules) and all(rule(address) for rule in rules)

    def _resolve(self, host: str, port: int, end: float) -> list[str]:
        """Resolve in a thread of its own: the system's resolver takes no time limit."""
        answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

        def look_up() -> None:
            try:
                found = self._resolver(host, port, type=socket.SOCK_STREAM)
                answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
            except (OSError, UnicodeError) as error:
                answers.put(OSError(type(error).__name__))

        threading.Thread(target=look_up, daemon=True, name="flask-byok-resolver").start()
        try:
            answer = answers.get(timeout=max(end - time.monotonic(), 0.001))
        except Exception:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from None
        if isinstance(answer, OSError):
            raise httpcore2.ConnectError("the name cannot be resolved")
        return answer


class GuardedTransport(httpx2.HTTPTransport):
    """Calls the origins it was told of and no other; ``rules`` may grow while it is in use.

    :param longest_line: in bytes, in a stream of events; see ``bounded``.
    """

    def __init__(
        self,
        rules: dict[Origin, AddressRule],
        tls: ssl.SSLContext,
        resolver: Resolver,
        longest_line: int,
    ) -> None:
        self.rules = rules
        self._longest_line = longest_line
        # The parent's __init__ offers no way to bring a network backend. It only builds this pool.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=LIMITS.max_connections,
            max_keepalive_connections=LIMITS.max_keepalive_connections,
            keepalive_expiry=LIMITS.keepalive_expiry,
            network_backend=_GuardedBackend(rules, resolver),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request if its origin is known; the answer has limits of size and time.

        :raises httpx2.UnsupportedProtocol: it is not known.
        :raises AnswerRefused: the answer is not one that is read.
        """
        if origin_of(request.url) not in self.rules:
            raise httpx2.UnsupportedProtocol("flask-byok: keys may not be sent to this address")
        request.headers["Accept-Encoding"] = "identity"
        end = time.monotonic() + MAX_SECONDS
        with until(end):
            response = super().handle_request(request)
        return bounded(response, end=end, longest_line=self._longest_line)


class _NoCookies(CookieJar):
    """A jar that stays empty, whoever puts something in."""

    def set_cookie(self, cookie: Cookie) -> None:
        """Drop the cookie."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Drop the cookies."""


class KeylessClient(httpx2.Client):
    """A client that holds no key and no cookie, follows no redirect and knows no environment.

    Closing is left to garbage collection: an SDK's ``with`` must not close what other people's
    calls use.
    """

    def __init__(self, transport: GuardedTransport) -> None:
        super().__init__(
            transport=transport,
            cookies=_NoCookies(),
            timeout=TIMEOUT,
            follow_redirects=False,
            trust_env=False,
        )
        self.rules = transport.rules
        self._observe: Observe | None = None
        # The pool is closed when this one goes.
        self._pools_owner: KeylessClient | None = None
        weakref.finalize(self, transport.close)

    def observed(self, observe: Observe | None) -> KeylessClient:
        """Return a client on the same pool that tells of each request; this one without a function."""
        if observe is None:
            return self
        twin = copy(self)  # two microseconds; making another one takes twenty
        twin._observe = observe
        twin._pools_owner = self
        return twin

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; redirects are not followed, whatever a caller asks for."""
        options["follow_redirects"] = False
        if self._observe is None:
            return super().send(request, **options)
        try:
            response = super().send(request, **options)
            body = response.read() if response.status_code >= 300 else b""
        except BaseException as error:
            if _was_sent(error):
                self._observe(request, 0, b"")
            raise
        self._observe(request, response.status_code, body)
        return response

    def close(self) -> None:
        """Do nothing, see the class."""

    def __enter__(self) -> KeylessClient:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Do nothing, see the class."""


class _NoTransport(httpx2.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.UnsupportedProtocol("flask-byok: calls with people's keys are synchronous")


@cache
def sync_only_client() -> httpx2.AsyncClient:
    """Return an async client that refuses every call, for SDKs that insist on having one."""
    return httpx2.AsyncClient(transport=_NoTransport(), trust_env=False)


@cache
def default_tls() -> ssl.SSLContext:
    """Return the process's one TLS context: reading the certificate authorities takes 15 ms."""
    return httpx2.create_ssl_context(trust_env=False)


def origin_of(url: httpx2.URL | str) -> Origin:
    """Return a URL's scheme, host and port."""
    parsed = httpx2.URL(url)
    return (
        parsed.scheme,
        parsed.raw_host.decode(),
        parsed.port or (80 if parsed.scheme == "http" else 443),
    )


def carries(request: httpx2.Request, secret: str, base_url: str) -> bool:
    """Say whether a request took a secret to this address or one below it: all of a header, but for a scheme."""
    values = request.headers.values()
    carried = any(secret in (value, value.partition(" ")[2]) for value in values)
    return carried and path_below(request.url, base_url) is not None


def path_below(url: httpx2.URL, base_url: str) -> str | None:
    """Return the rest of an address's path, ``/models``; None where it is not this one or below it."""
    base = httpx2.URL(base_url).path.rstrip("/")
    rest = url.path.removeprefix(base)
    is_below = url.path.startswith(base) and rest[:1] in ("", "/")
    return rest if is_below and origin_of(url) == origin_of(base_url) else None


def _was_sent(error: BaseException) -> bool:
    """Say whether a request may have gone out that ended so."""
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return False
    return isinstance(error, httpx2.RequestError) or not isinstance(error, Exception)


def describe_fault(error: BaseException) -> str | None:
    """Return our own words for an error of the network, or None for any other error."""
    if isinstance(error, httpx2.TimeoutException):
        return "The provider took too long to answer. Try again in a moment."
    if isinstance(error, AnswerRefused):
        return "The provider's answer is longer than what is read of one, or compressed."
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return "The connection to the provider broke off. Try again."
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError):
        return (
            "The provider's server cannot be reached, or its address is not one that may be called."
        )
    return None
