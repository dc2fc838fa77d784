"""A guarded transport: answers with an end, a client without cookies that calls one origin, faults in our words."""

from __future__ import annotations

import math
import ssl
import time
import weakref
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import InitVar, dataclass
from http.cookiejar import Cookie, CookieJar
from typing import Any, cast

import httpcore2
import httpx2

from ..errors import EndpointNotAllowedError, RateLimitedError
from .connections import GuardedBackend, Line, NameNotFound, TimedStream, sooner, until

#: (scheme, host, port) as httpx2 normalises them.
Origin = tuple[str, str, int]
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
#: Longest wait, in seconds, before a reader gets an empty piece, and so the chance to do something else.
TICK = 1.0

_BLANK_LINES = (b"\n\n", b"\r\r", b"\n\r\n")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how large the answers of a server may be.

    :param seconds: from a request to the end of its answer, however the bytes drip in.
    :param silence: seconds between two pieces, if the client gives no shorter time.
    :param longest: bytes of an answer; files and images are the longest.
    :param event: bytes of one event of a stream. SDKs keep it until it ends. An image is one event.
    """

    seconds: float = 600.0
    silence: float = math.inf
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


def _last_blank_line(text: bytes) -> int:
    return max(map(text.rfind, _BLANK_LINES))


@dataclass(eq=False)
class _BoundedStream(httpx2.SyncByteStream):
    """A body that raises if it is too long or too slow. During silence it yields an empty piece each ``TICK``.

    :param connection: where it comes from.
    :param line: lets go of the connection at the end.
    :param expected: bytes, if the head says so; at its end no more bytes come.
    :param let_go: called once, when the body has ended, was closed or is garbage.
    """

    stream: httpx2.SyncByteStream
    connection: TimedStream
    line: Line | None
    end: float
    silence: float
    expected: int | None
    longest: int
    longest_event: int
    let_go: InitVar[Callable[[], object]]

    def __post_init__(self, let_go: Callable[[], object]) -> None:
        self._let_go = weakref.finalize(self, let_go)
        self._let_go.atexit = False
        self._silent_since: float | None = None

    def __iter__(self) -> Iterator[bytes]:
        pieces, before = iter(self.stream), b""
        total = event = 0
        try:
            while True:
                if total != self.expected and not self._is_ready():
                    yield b""
                    continue
                # The deadline holds for this one step: the next may run in another context.
                with until(self.end):
                    piece = self.connection.data() or next(pieces, None)
                if piece is None:
                    return
                total += len(piece)
                # A blank line ends an event; it may lie across two pieces. Most events are pieces.
                before += piece
                blank = len(before) - 2 if before.endswith(b"\n\n") else _last_blank_line(before)
                event = event + len(piece) if blank < 0 else len(before) - blank
                if total > self.longest or event > self.longest_event:
                    raise AnswerRefused("the answer is too long")
                before = before[-3:]
                yield piece
        finally:
            self.close()

    def _is_ready(self) -> bool:
        """Wait a short time for the next piece.

        :raises httpx2.ReadTimeout: the silence, or the answer, has lasted too long.
        """
        now = time.monotonic()
        since, end = self._silent_since or now, sooner(self.end)
        left = min(end, since + self.silence) - now
        if now < end and self.connection.wait(min(TICK, max(left, 0.001))):
            self._silent_since = None
            return True
        if left <= 0:
            raise httpx2.ReadTimeout("the provider is silent, or its answer takes too long")
        self._silent_since = since
        return False

    def close(self) -> None:
        if self.line is not None:
            self.line.let_go()
        try:
            self.stream.close()
        finally:
            self._let_go()


class GuardedTransport(httpx2.HTTPTransport):
    """Sends requests on the connections of a guarded backend, and bounds their answers.

    :param enter: called before each request, to limit how many run at once: it returns what to call when the answer
        has ended, or raises ``RateLimitedError``.
    """

    def __init__(
        self,
        backend: GuardedBackend,
        pool: httpcore2.ConnectionPool,
        limits: Limits,
        enter: Enter,
    ) -> None:
        self.backend = backend
        self._limits = limits
        self._enter = enter
        # The parent's __init__ offers no way to bring a network backend. It only builds this pool.
        self._pool = pool

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; the answer has limits of size and time.

        :raises AnswerRefused: the answer is compressed. No request asks for that: a megabyte could become a gigabyte.
        """
        let_go = self._enter()
        try:
            return self._send(request, let_go)
        except BaseException:
            if (line := Line.current()) is not None:
                line.let_go()
            let_go()
            raise

    def _send(self, request: httpx2.Request, let_go: Callable[[], object]) -> httpx2.Response:
        limits, timeout = self._limits, request.extensions.get("timeout", {})
        silence = min(timeout.get("read") or math.inf, limits.silence)
        if silence < math.inf:
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
        is_read_so = limits is PERSONAL and request.extensions.get(STREAMED)
        connection = response.extensions["network_stream"]
        expected = _expected_bytes(request.method, response)
        # h11 takes no other coding than "chunked".
        in_chunks = expected is None and "transfer-encoding" in response.headers
        connection.begin_body(expected, in_chunks=in_chunks)
        response.stream = _BoundedStream(
            cast(httpx2.SyncByteStream, response.stream),
            connection,
            Line.current(),
            end,
            silence,
            expected,
            request.extensions.get(LONGEST) or general,
            limits.event if says_events or is_read_so else general,
            let_go,
        )
        return response


def _expected_bytes(method: str, response: httpx2.Response) -> int | None:
    """Return the length of a body if its head tells it (RFC 9112, 6.3)."""
    if method == "HEAD" or response.status_code in (204, 304):
        return 0
    length = response.headers.get("content-length")
    return int(length) if length and "transfer-encoding" not in response.headers else None


class EmptyJar(CookieJar):
    """A jar that stays empty."""

    def set_cookie(self, cookie: Cookie) -> None:
        """Drop the cookie."""


class KeylessClient(httpx2.Client):
    """A client that holds no key and no cookie, follows no redirect and knows no environment.

    It calls nothing itself: its :meth:`twin` of an origin calls that origin. Garbage collection closes it: an SDK's
    ``with`` must not close the pool of other people's calls.
    """

    def __init__(self, transport: GuardedTransport) -> None:
        super().__init__(transport=transport, cookies=EmptyJar(), timeout=TIMEOUT, trust_env=False)
        self.backend = transport.backend
        self._origin: Origin | None = None
        self._observe: Observe | None = None
        # The pool is closed when this one goes.
        self._pools_owner: KeylessClient | None = None
        weakref.finalize(self, transport.close)

    def twin(self, origin: Origin, observe: Observe | None = None) -> KeylessClient:
        """Return a client on the same pool that calls this origin only.

        :param observe: called after each request.
        """
        twin = copy(self)  # 2 microseconds; making another one takes 20
        # What a host puts into its client's headers must go out in nobody else's call.
        twin._headers = httpx2.Headers(self._headers)
        twin._origin = origin
        twin._observe = observe
        twin._pools_owner = self
        return twin

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and follow no redirect, even if a caller asks for it.

        :raises httpx2.UnsupportedProtocol: the request goes elsewhere.
        """
        if origin_of(request.url) != self._origin:
            raise httpx2.UnsupportedProtocol("flask-byok: keys may not be sent to this address")
        options["follow_redirects"] = False
        if self._observe is None:
            return super().send(request, **options)
        request.extensions.setdefault(STREAMED, bool(options.get("stream")))
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
        if _wants_patience(response):
            response.headers["x-should-retry"] = "false"  # an SDK would sleep in the worker
        return response

    def close(self) -> None:
        """Do nothing, see the class."""

    def __enter__(self) -> KeylessClient:
        return self

    def __exit__(self, *raised: Any) -> None:
        """Do nothing, see the class."""


def _wants_patience(response: httpx2.Response) -> bool:
    """Return True if a refusal asks for more than a second of waiting."""
    named = response.headers.get("retry-after")
    if response.status_code < 400 or named is None or "retry-after-ms" in response.headers:
        return False
    return not (named.isascii() and named.isdigit() and int(named[:4]) <= 1)


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
    """Return a URL's scheme, host and port.

    :raises EndpointNotAllowedError: it is malformed.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise EndpointNotAllowedError("The address is malformed.") from None
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


_UNREACHABLE = "The provider's server cannot be reached, or its address may not be called."
# Why no connection was made, by the error below httpx2's.
_NO_CONNECTION: tuple[tuple[type[BaseException], str], ...] = (
    (NameNotFound, "The name of the provider's server was not found. Check the address."),
    (
        ConnectionRefusedError,
        "The provider's server refused the connection. Check the address and the port.",
    ),
    (ssl.SSLCertVerificationError, "The certificate of the provider's server is not trusted here."),
    (ssl.SSLError, "No secure connection (TLS) to the provider's server could be made."),
)


def network_fault(error: BaseException, depth: int = 0) -> str | None:
    """Return our own words for an error of the network, which SDKs wrap; None for any other error."""
    if isinstance(error, httpx2.TimeoutException):
        return "The provider took too long to answer. Try again in a moment."
    if isinstance(error, AnswerRefused):
        return "The provider's answer is longer than the limit, or compressed."
    if isinstance(error, httpx2.ProxyError):
        return "The proxy of this site did not connect to the provider's server."
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return "The connection to the provider broke off. Try again."
    if isinstance(error, httpx2.ConnectError):
        return _why_not_connected(error)
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError):
        return _UNREACHABLE
    # An error may be its own cause.
    cause = error.__cause__ if depth < 20 else None
    return None if cause is None else network_fault(cause, depth + 1)


def _why_not_connected(error: BaseException) -> str:
    below: BaseException | None = error
    for _ in range(20):
        for kind, sentence in _NO_CONNECTION:
            if isinstance(below, kind):
                return sentence
        # httpcore2 raises its errors again `from None`, which leaves the context.
        below = below and (below.__cause__ or below.__context__)
    return _UNREACHABLE
