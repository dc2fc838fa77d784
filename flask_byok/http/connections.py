"""Connections: names resolved once, addresses judged, deadlines kept, and each one can be cut from another thread."""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpcore2

T = TypeVar("T")
#: Returns True if an address may be connected to.
AddressRule = Callable[[str], bool]
#: Resolves names as ``socket.getaddrinfo`` does.
Resolver = Callable[..., list[Any]]

# How many of a name's addresses are tried, so that a long list does not use up a worker.
MAX_ADDRESSES = 4

_READ_BYTES = 65_536
# h11 gives up heads of more than 100 KiB, so no more of one is gathered.
_MAX_HEAD_BYTES = 128 * 1024
_BLANK_LINE = re.compile(rb"\n\r?\n")
# What stands before a chunk's data, as strictly as h11 takes it (RFC 9112, 7.1).
_FIRST_LINE = re.compile(rb"([0-9A-Fa-f]{1,20})[ \t]*(?:;[^\n]*)?\r\n")
_NEXT_LINE = re.compile(rb"\r\n" + _FIRST_LINE.pattern)
_LONGEST_LINE = 1024
_LONGEST_TRAILER = 8 * 1024

_deadline: ContextVar[float | None] = ContextVar("flask_byok_deadline", default=None)
_line: ContextVar[Line | None] = ContextVar("flask_byok_line", default=None)


@contextmanager
def _having(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give a variable this value in a block."""
    reset = variable.set(value)
    try:
        yield
    finally:
        variable.reset(reset)


def until(end: float) -> AbstractContextManager[None]:
    """End this block's work on the network at a time of ``time.monotonic``, if not before."""
    return _having(_deadline, sooner(end))


def sooner(end: float) -> float:
    """Return a time, or the end of the present block if that comes before it."""
    outer = _deadline.get()
    return end if outer is None else min(end, outer)


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


class Line:
    """The connection that one call uses at present. Any thread can cut it."""

    def __init__(self) -> None:
        # Reentrant: garbage collection, which cuts lines too, can run in the midst of a method.
        self._lock = threading.RLock()
        self._stream: TimedStream | None = None
        self.is_cut = False

    def in_use(self) -> AbstractContextManager[None]:
        """Take the connections that this block sends on."""
        return _having(_line, self)

    @staticmethod
    def current() -> Line | None:
        """Return the line of the innermost block that uses one."""
        return _line.get()

    def hold(self, stream: TimedStream) -> None:
        """Take a connection.

        :raises httpcore2.ReadError: the line was cut. (httpcore2 reads an answer after a WriteError.)
        """
        with self._lock:
            if self.is_cut:
                raise httpcore2.ReadError("the call was closed")
            self._stream = stream

    def let_go(self) -> None:
        """Leave the connection alone from now on: its next user may be another call."""
        with self._lock:
            self._stream = None

    def cut(self) -> None:
        """Shut the connection down, which wakes a thread that reads from it; none is used again."""
        with self._lock:
            self.is_cut = True
            if self._stream is not None:
                self._stream.shut_down()


@dataclass(eq=False)
class TimedStream(httpcore2.NetworkStream):
    """A connection that keeps to its present user's deadline, and tells whether reading would block.

    h11, inside of httpcore2, keeps pieces that it was given together with an earlier one, and reads on when it has only
    a part of what stands between two chunks. So it gets the head of an answer alone; the data of chunks is read here,
    and h11 gets their end alone. Nor does it get what a server sends beyond an answer: it would take that for the next
    answer, of somebody else's call. A connection on which this is left is not used again.
    """

    stream: httpcore2.NetworkStream
    _held: bytes = b""
    #: Where the part of ``_held`` begins that was not handed over.
    _at: int = 0
    _in_head: bool = True
    #: Chunks are to come, and what stands before the next one's data.
    _in_chunks: bool = False
    _line: re.Pattern[bytes] = _FIRST_LINE
    #: Bytes that are to come: of the present chunk's data, of the end of all chunks, or of a body without chunks.
    _left: int = 0
    _fault: Exception | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._fault is not None:
            raise self._fault
        if self._at >= len(self._held):
            limit = _shorten(timeout, httpcore2.ReadTimeout)
            self._held, self._at = self.stream.read(_READ_BYTES, limit), 0
        return self._take_head(timeout) if self._in_head else self._take()

    def begin_body(self, length: int | None, *, in_chunks: bool) -> None:
        """Say what the answer's head says of its body.

        :param length: its bytes; None: chunks, or all until the end of the connection.
        """
        self._in_chunks, self._line = in_chunks, _FIRST_LINE
        self._left = 0 if in_chunks else sys.maxsize if length is None else length

    def wait(self, seconds: float) -> bool:
        """Return True if there is something to read, or the end; False if nothing came within these seconds."""
        end = time.monotonic() + seconds
        while not self._has_come():
            left = max(end - time.monotonic(), 0.0001)
            try:
                more = self.stream.read(_READ_BYTES, _shorten(left, httpcore2.ReadTimeout))
            except httpcore2.ReadTimeout:
                return False
            except httpcore2.ReadError as fault:
                return self._break_off(fault)  # a socket tells it once
            if not more:
                return True
            self._held, self._at = self._held[self._at :] + more, 0
        return True

    def data(self) -> bytes:
        """Return the data of chunks that has come. If there is none after ``wait``, it is for h11 to read on."""
        found = []
        while self._has_come() and self._in_chunks:
            found.append(self._take())
        return b"".join(found)

    def _has_come(self) -> bool:
        """Return True if something can be read without a wait: a byte of a chunk's data, all of the chunks' end."""
        if self._in_chunks and not self._left:
            longest = self._at + _LONGEST_LINE
            # First its end: the pattern would look for one in all that is held, again and again.
            ends = self._held.find(b"\n", self._at + 2, longest) + 1
            if ends and (line := self._line.match(self._held, self._at, ends)):
                return self._begin_chunk(line)
            return (ends > 0 or len(self._held) >= longest) and self._break_off(_malformed())
        return self._fault is not None or self._at < len(self._held)

    def _begin_chunk(self, line: re.Match[bytes]) -> bool:
        if size := int(line[1], 16):
            self._line, self._left, self._at = _NEXT_LINE, size, line.end()
            return self._at < len(self._held)
        if end := _BLANK_LINE.search(self._held, line.end() - 1):
            self._in_chunks, self._at = False, line.start(1)
            self._left = end.end() - self._at
            return True
        return len(self._held) - self._at > _LONGEST_TRAILER and self._break_off(_malformed())

    def _break_off(self, fault: Exception) -> bool:
        self._fault, self._in_chunks = fault, False
        return True

    def _take(self) -> bytes:
        start, self._at = self._at, min(self._at + self._left, len(self._held))
        self._left -= self._at - start
        return self._held[start : self._at]

    def _take_head(self, timeout: float | None) -> bytes:
        searched = self._at
        while not (found := _BLANK_LINE.search(self._held, searched)):
            searched = max(self._at, len(self._held) - 2)
            more = self.stream.read(_READ_BYTES, _shorten(timeout, httpcore2.ReadTimeout))
            if not more or len(self._held) > _MAX_HEAD_BYTES:
                break
            self._held += more
        self._left = (found.end() if found else len(self._held)) - self._at
        head, self._left = self._take(), sys.maxsize
        # Another head follows one of status 1xx.
        self._in_head = found is None or head[9:10] == b"1"
        return head

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if (line := _line.get()) is not None:
            line.hold(self)
        self._in_head, self._in_chunks = True, False  # of the answer to what is written
        self.stream.write(buffer, _shorten(timeout, httpcore2.WriteTimeout))

    def shut_down(self) -> None:
        """End the connection for both sides, at once; whoever uses it closes it."""
        # An SSLSocket's own method would let a thread in the midst of reading go on without TLS.
        with suppress(OSError):
            socket.socket.shutdown(self.get_extra_info("socket"), socket.SHUT_RDWR)

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        limit = _shorten(timeout, httpcore2.ConnectTimeout)
        return TimedStream(self.stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        # An idle connection with something to read is not used again.
        if info == "is_readable" and self._at < len(self._held):
            return True
        return self.stream.get_extra_info(info)


def _malformed() -> httpcore2.RemoteProtocolError:
    return httpcore2.RemoteProtocolError("a chunk is malformed")


class NameNotFound(httpcore2.ConnectError):
    """A name has no address."""


@dataclass(eq=False)
class GuardedBackend(httpcore2.SyncBackend):
    """Resolves a name once, requires all its addresses to pass, and connects to one of those.

    :param rule: what an address must pass.
    :param chosen: hosts and ports that the operator chose, whatever their addresses; it may grow while it is in use.
    """

    rule: AddressRule
    resolver: Resolver
    chosen: set[tuple[str, int]] = field(default_factory=set)

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *others: Any, **options: Any
    ) -> httpcore2.NetworkStream:
        end = time.monotonic() + (_shorten(timeout, httpcore2.ConnectTimeout) or 5.0)
        addresses = self.addresses(host, port, end)
        fault: Exception | None = None
        tried = addresses[:MAX_ADDRESSES]
        for number, address in enumerate(tried):
            # An address that swallows packets must leave time for the next one.
            share = max(end - time.monotonic(), 0.001) / (len(tried) - number)
            try:
                return TimedStream(super().connect_tcp(address, port, share, *others, **options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                fault = error
        raise cast(Exception, fault)

    def addresses(self, host: str, port: int, end: float) -> list[str]:
        """Return a name's addresses, all of which may be called.

        :raises httpcore2.ConnectError: one may not, or there is none.
        """
        addresses = self._resolve(host, port, end)
        if not addresses:
            raise NameNotFound("the name has no address")
        if (host, port) not in self.chosen and not all(map(self.rule, addresses)):
            raise httpcore2.ConnectError("the name has an address that may not be called")
        return addresses

    def _resolve(self, host: str, port: int, end: float) -> list[str]:
        """Resolve in a thread: the system's resolver takes no time limit."""
        found: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                entries = self.resolver(host, port, type=socket.SOCK_STREAM)
                found.set_result(list(dict.fromkeys(str(entry[4][0]) for entry in entries)))
            except (OSError, UnicodeError):
                found.set_exception(NameNotFound("the name cannot be resolved"))

        threading.Thread(target=look_up, daemon=True, name="flask-byok-resolver").start()
        try:
            return found.result(max(end - time.monotonic(), 0.001))
        except TimeoutError:
            raise httpcore2.ConnectTimeout("the name was not resolved in time") from None
