"""The only place that opens connections: a guarded transport, answers with an end, a client without cookies."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import InitVar, dataclass
from http.cookiejar import Cookie, CookieJar
from typing import Any, cast

import httpcore2
import httpx2

from ..errors import RateLimitedError

#: Returns True if an address may be connected to.
AddressRule = Callable[[str], bool]
#: (scheme, host, port) as httpx2 normalises them.
Origin = tuple[str, str, int]
#: Resolves names as ``socket.getaddrinfo`` does.
Resolver = Callable[..., list[Any]]
#: What was sent.
Request = httpx2.Request
#: Called after a request with it, the answer's status (0 if none came), and the body of a refusal.
Observe = Callable[[Request, int, bytes], None]

#: Takes a slot for a request, and returns what gives it back.
Enter = Callable[[], Callable[[], object]]

#: Seconds. Long answers stream; "read" limits the time between two of their pieces.
TIMEOUT = httpx2.Timeout(connect=5.0, read=300.0, write=30.0, pool=5.0)
#: Longest refusal, in bytes: SDKs read it whole, and more than once.
MAX_REFUSAL_BYTES = 256 * 1024
#: The extension of a request whose answer has a longest size of its own, in bytes.
LONGEST = "flask_byok_longest"
#: The extension of a request whose answer an SDK reads as events, whatever the answer calls itself.
STREAMED = "flask_byok_streamed"
#: The extension of an answer that we made ourselves: the error that it stands for.
REFUSED = "flask_byok_refused"
# How many of a name's addresses are tried, so that a long list does not use up a worker.
MAX_ADDRESSES = 4

_BLANK_LINES = (b"\n\n", b"\r\r", b"\n\r\n")

_deadline: ContextVar[float | None] = ContextVar("flask_byok_deadline", default=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how large the answers of a server may be.

    :param seconds: from a request to the end of its answer, however the bytes drip in.
    :param silence: seconds between two pieces; None: what the client says.
    :param longest: bytes of an answer; files and images are the longest.
    :param event: bytes of one event of a stream. SDKs keep it until it ends. An image is one event.
    """

    seconds: float = 600.0
    silence: float | None = None
    longest: int = 64 * 1024 * 1024
    event: int = 16 * 1024 * 1024


#: For the servers of the catalog and the operator.
SHARED = Limits()
#: For a server that a person named, which can be slow and endless on purpose while it holds a thread. A model that is
#: loaded says something within 30 seconds; 120 seconds are 2,400 tokens at 20 a second. A token's event has about 300
#: bytes, and an SDK's time for one event grows with the square of its size: a second for 256 KiB of short lines.
PERSONAL = Limits(seconds=120.0, silence=30.0, longest=4 * 1024 * 1024, event=256 * 1024)


class AnswerRefused(httpx2.RemoteProtocolError):
    """An answer is longer than its limit, or compressed."""


@contextmanager
def until(end: float) -> Iterator[None]:
    """End this block's work on the network at a time of ``time.monotonic``, if not before."""
    outer = _deadline.get()
    reset = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(reset)


def _shorten(timeout: float | None, error: type[Exception]) -> float | None:
    """Return the timeout or the rest of the deadline, the shorter one.

    :raises error: the deadline has passed.
    """
    end = _deadline.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise error("the deadline has passed")
    return left if timeout is None else min(timeout, left)


@dataclass(eq=False)
class _TimedStream(httpcore2.NetworkStream):
    """A connection that keeps to the deadline of its present user."""

    stream: httpcore2.NetworkStream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _shorten(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _shorten(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit = _shorten(timeout, httpcore2.ConnectTimeout)
        return _TimedStream(self.stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


@dataclass(eq=False)
class GuardedBackend(httpcore2.SyncBackend):
    """Resolves a name once, requires all its addresses to pass, and connects to one of those.

    :param rules: for the origins that may be called; they may grow while it is in use.
    """

    rules: dict[Origin, AddressRule]
    resolver: Resolver

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *others: Any, **options: Any
    ) -> httpcore2.NetworkStream:
        end = time.monotonic() + (_shorten(timeout, httpcore2.ConnectTimeout) or 5.0)
        addresses = self._resolve(host, port, end)
        if not all(self._passes(host, port, address) for address in addresses):
            raise httpcore2.ConnectError("the name has an address that may not be called")
        fault: Exception = httpcore2.ConnectError("the name has no address")
        tried = addresses[:MAX_ADDRESSES]
        for number, address in enumerate(tried):
            # An address that swallows packets must leave time for the next one.
            share = max(end - time.monotonic(), 0.001) / (len(tried) - number)
            try:
                stream = super().connect_tcp(address, port, share, *others, **options)
                return _TimedStream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                fault = error
        raise fault

    def _passes(self, host: str, port: int, address: str) -> bool:
        origins = (("https", host, port), ("http", host, port))
        rules = [self.rules[origin] for origin in origins if origin in self.rules]
        return bool(rules) and all(rule(address) for rule in rules)

    def _resolve(self, host: str, port: int, end: float) -> list[str]:
        """Resolve in a thread: the system's resolver takes no time limit."""
        found: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                entries = self.resolver(host, port, type=socket.SOCK_STREAM)
                found.set_result(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
            except (OSError, UnicodeError):
                found.set_exception(httpcore2.ConnectError("the name cannot be resolved"))

        threading.Thread(target=look_up, daemon=True, name="flask-byok-resolver").start()
        try:
            return found.result(max(end - time.monotonic(), 0.001))
        except TimeoutError:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from None


@dataclass(eq=False)
class _BoundedStream(httpx2.SyncByteStream):
    """A body that raises if it is too long.

    :param let_go: called once, when the body has ended, was closed or is garbage.
    """

    stream: httpx2.SyncByteStream
    end: float
    longest: int
    longest_event: int
    let_go: InitVar[Callable[[], object]]

    def __post_init__(self, let_go: Callable[[], object]) -> None:
        self._let_go = weakref.finalize(self, let_go)
        self._let_go.atexit = False

    def __iter__(self) -> Iterator[bytes]:
        pieces, before = iter(self.stream), b""
        total = event = 0
        try:
            while (piece := self._next(pieces)) is not None:
                total += len(piece)
                # A blank line ends an event; it may lie across two pieces.
                before += piece
                blank = max(map(before.rfind, _BLANK_LINES))
                event = event + len(piece) if blank < 0 else len(before) - blank
                if total > self.longest or event > self.longest_event:
                    raise AnswerRefused("the answer is too long")
                before = before[-3:]
                yield piece
        finally:
            self.close()

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        # The deadline holds for this one step: the next may run in another context.
        with until(self.end):
            return next(pieces, None)

    def close(self) -> None:
        try:
            self.stream.close()
        finally:
            self._let_go()


class GuardedTransport(httpx2.HTTPTransport):
    """Calls the origins in the backend's rules and no other.

    :param enter: called before each request, to limit how many run at once: it returns what to call when the answer
        has ended, or raises ``RateLimitedError``.
    """

    def __init__(
        self, backend: GuardedBackend, tls: ssl.SSLContext, limits: Limits, enter: Enter
    ) -> None:
        self.rules = backend.rules
        self._limits = limits
        self._enter = enter
        # The parent's __init__ offers no way to bring a network backend. It only builds this pool.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls,
            max_connections=1000,
            max_keepalive_connections=100,
            keepalive_expiry=30.0,
            network_backend=backend,
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request if its origin is known; the answer has limits of size and time.

        :raises httpx2.UnsupportedProtocol: the origin is not known.
        :raises AnswerRefused: the answer is compressed. No request asks for that: a megabyte could become a gigabyte.
        """
        if origin_of(request.url) not in self.rules:
            raise httpx2.UnsupportedProtocol("flask-byok: keys may not be sent to this address")
        let_go = self._enter()
        try:
            return self._send(request, let_go)
        except BaseException:
            let_go()
            raise

    def _send(self, request: httpx2.Request, let_go: Callable[[], object]) -> httpx2.Response:
        limits, timeout = self._limits, request.extensions.get("timeout", {})
        if limits.silence is not None:
            silence = min(timeout.get("read") or limits.silence, limits.silence)
            request.extensions["timeout"] = {**timeout, "read": silence}
        request.headers["Accept-Encoding"] = "identity"
        end = time.monotonic() + limits.seconds
        with until(end):
            response = super().handle_request(request)
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            response.close()
            raise AnswerRefused("the answer is compressed")
        general = limits.longest if response.status_code < 300 else MAX_REFUSAL_BYTES
        says_events = response.headers.get("content-type", "").startswith("text/event-stream")
        is_read_so = limits is PERSONAL and STREAMED in request.extensions
        event = limits.event if says_events or is_read_so else general
        stream = cast(httpx2.SyncByteStream, response.stream)
        longest = request.extensions.get(LONGEST) or general
        response.stream = _BoundedStream(stream, end, longest, event, let_go)
        return response


class _EmptyJar(CookieJar):
    """A jar that stays empty."""

    def set_cookie(self, cookie: Cookie) -> None:
        """Drop the cookie."""


class KeylessClient(httpx2.Client):
    """A client that holds no key and no cookie, follows no redirect and knows no environment.

    Garbage collection closes it: an SDK's ``with`` must not close the pool of other people's calls.
    """

    def __init__(self, transport: GuardedTransport) -> None:
        super().__init__(transport=transport, cookies=_EmptyJar(), timeout=TIMEOUT, trust_env=False)
        self.rules = transport.rules
        self._observe: Observe | None = None
        # The pool is closed when this one goes.
        self._pools_owner: KeylessClient | None = None
        weakref.finalize(self, transport.close)

    def observed(self, observe: Observe | None) -> KeylessClient:
        """Return a client on the same pool that calls ``observe`` after each request; None: this client."""
        if observe is None:
            return self
        twin = copy(self)  # 2 microseconds; making another one takes 20
        twin._observe = observe
        twin._pools_owner = self
        return twin

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and follow no redirect, even if a caller asks for it."""
        options["follow_redirects"] = False
        if self._observe is None:
            return super().send(request, **options)
        if options.get("stream"):
            request.extensions[STREAMED] = True
        try:
            response = super().send(request, **options)
            body = response.read() if response.status_code >= 300 else b""
        except RateLimitedError as refused:
            return _refusal(request, refused)
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

    def __exit__(self, *raised: Any) -> None:
        """Do nothing, see the class."""


def _refusal(request: httpx2.Request, refused: RateLimitedError) -> httpx2.Response:
    """Return an answer that says so to an SDK, which would wait and ask again if an error were raised."""
    return httpx2.Response(
        refused.status,
        headers={"Retry-After": str(refused.retry_after), "x-should-retry": "false"},
        json={"error": {"message": str(refused), "type": refused.code, "code": refused.code}},
        extensions={REFUSED: refused},
        request=request,
    )


def origin_of(url: httpx2.URL | str) -> Origin:
    """Return a URL's scheme, host and port."""
    parsed = httpx2.URL(url)
    default = 80 if parsed.scheme == "http" else 443
    return parsed.scheme, parsed.raw_host.decode(), parsed.port or default


def path_below(url: httpx2.URL, base_url: str) -> str | None:
    """Return the path below a base URL, such as ``/models``; None if the address is elsewhere."""
    base = httpx2.URL(base_url).path.rstrip("/")
    rest = url.path.removeprefix(base)
    is_below = url.path.startswith(base) and rest[:1] in ("", "/")
    return rest if is_below and origin_of(url) == origin_of(base_url) else None


def _was_sent(error: BaseException) -> bool:
    """Return True if a request that ended so may have gone out."""
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return False
    return isinstance(error, httpx2.RequestError) or not isinstance(error, Exception)


def network_fault(error: BaseException, depth: int = 0) -> str | None:
    """Return our own words for an error of the network, which SDKs wrap; None for any other error."""
    if isinstance(error, httpx2.TimeoutException):
        return "The provider took too long to answer. Try again in a moment."
    if isinstance(error, AnswerRefused):
        return "The provider's answer is longer than the limit, or compressed."
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return "The connection to the provider broke off. Try again."
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError):
        return "The provider's server cannot be reached, or its address may not be called."
    # An error may be its own cause.
    cause = error.__cause__ if depth < 20 else None
    return None if cause is None else network_fault(cause, depth + 1)
