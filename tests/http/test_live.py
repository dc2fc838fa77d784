"""Live calls: pieces as they come, control each second of silence, an end from any thread at any time."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_byok.errors import ProviderUnavailableError, RateLimitedError
from flask_byok.http import Endpoint, Outbound, transport
from flask_byok.http.connections import TimedStream
from flask_byok.http.live import LiveCall
from flask_byok.http.outbound import Slots
from flask_byok.http.transport import MAX_REFUSAL_BYTES, PERSONAL, Limits
from tests.patience import IN_TIME, soon

from .hostile_server import EVENTS, HostileServer, chunk, chunked, drip, endless, head, hostile
from .test_transport import Resolver

CHUNKED = chunked()
KEY = {"Authorization": "Bearer sk-secret"}


def call(url: str, trust: Any = "operator", **options: Any) -> LiveCall:
    """Return a live call with a key."""
    outbound = options.pop("outbound", None) or Outbound(allow_private=True)
    made: LiveCall = outbound.open(
        Endpoint(url, trust), "POST", f"{url}/chat", headers=KEY, content=b"{}", **options
    )
    return made


def read(live: LiveCall) -> bytes:
    """Read an answer to its end."""
    for _ in live.head():
        pass
    return b"".join(filter(None, live.body()))


END = b"0\r\n\r\n"
EVENT = b'data: {"x": 1}\n\n'
TINY = [bytes([65 + number % 26]) for number in range(25)]
BODIES = {
    "events": CHUNKED + b"".join(map(chunk, [EVENT] * 9)) + END,
    "tiny": CHUNKED + b"".join(map(chunk, TINY)) + END,
    "CRLF in data": CHUNKED
    + b"".join(map(chunk, [b"data: 1\r\n\r\n", b"\r\n5\r\nab", b"\r"] * 9))
    + END,
    "extensions": CHUNKED + b"".join(chunk(EVENT, b" ;a=\r;b") for _ in range(9)) + END,
    "trailer": CHUNKED + chunk(EVENT) + b"0\r\nX-A: b\r\n\r\n",
    "cut": CHUNKED + chunk(EVENT) + b"50\r\nhalf of a chunk",
    "early": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED + b"".join(map(chunk, TINY)),
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n"
    + b"a\r\n5\r\n67890\r\n\r\n" * 1
    + b"1234567",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "none": b"HTTP/1.1 204 No Content\r\n\r\n",
    "until closed": b"HTTP/1.0 200 OK\n\n" + EVENT * 9,
}


def payload(answer: bytes) -> bytes:
    """Return what of the body has come, read as simply as can be."""
    while answer.startswith(b"HTTP/1.1 103"):
        answer = answer.partition(b"\r\n\r\n")[2]
    top, _, body = answer.partition(b"\n\n" if answer.startswith(b"HTTP/1.0") else b"\r\n\r\n")
    if b"chunked" not in top:
        return body
    found = b""
    while b"\r\n" in body:
        size, _, body = body.partition(b"\r\n")
        if not (length := int(size.partition(b";")[0], 16)):
            break
        found, body = found + body[:length], body[length + 2 :]
    return found


class Segments(httpcore2.NetworkStream):
    """A connection on which bytes come when they are released, or when a reader insists."""

    def __init__(self, segments: list[bytes]) -> None:
        self.coming = segments
        self.ready: list[bytes] = []
        self.came = b""

    def release(self) -> None:
        """Let the next segment come."""
        self.ready.append(self.coming.pop(0))
        self.came += self.ready[-1]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next segment. Without a timeout it is waited for."""
        if not self.ready and timeout is None and self.coming:
            self.release()
        if not self.ready and timeout is not None:
            raise httpcore2.ReadTimeout
        return self.ready.pop(0) if self.ready else b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Take a request."""

    def close(self) -> None:
        """Do nothing."""


def comes_at_once(segments: list[bytes]) -> None:
    """Fail unless after each segment everything in it comes out, without waiting for the next one."""
    source = Segments(segments)
    stream = TimedStream(source)
    origin = httpcore2.Origin(b"http", b"x", 80)
    connection = httpcore2.HTTP11Connection(origin, stream)
    response = connection.handle_request(
        httpcore2.Request("POST", "http://x/", headers={"Host": "x"})
    )
    says = {name.lower(): value for name, value in response.headers}
    length = int(says[b"content-length"]) if b"content-length" in says else None
    stream.begin_body(length, in_chunks=b"transfer-encoding" in says)
    body: Any = response.stream
    pieces, found = iter(body), b""
    while True:
        while stream.wait(1.0):
            try:
                found += stream.data() or next(pieces, b"")
            except httpcore2.RemoteProtocolError:  # it ends in the midst
                return
            if not source.coming and found == payload(source.came):
                return
        assert found == payload(source.came)
        if not source.coming:
            return
        source.release()


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
def test_each_piece_comes_at_once_wherever_an_answer_is_cut(answer: bytes) -> None:
    """In one segment, in single bytes, and in two cut at every byte: what has come is read before anything more."""
    comes_at_once([answer])
    comes_at_once([answer[place : place + 1] for place in range(len(answer))])
    for place in range(1, len(answer)):
        comes_at_once([answer[:place], answer[place:]])


_DATA = st.lists(st.text("\r\n5aZ;0", min_size=1, max_size=8).map(str.encode), max_size=12)


@given(_DATA, st.lists(st.integers(1, 200), max_size=6))
def test_each_piece_comes_at_once_of_odd_chunks(chunks: list[bytes], cuts: list[int]) -> None:
    """Chunks whose data looks like the frame around chunks come out at once too."""
    answer = CHUNKED + b"".join(map(chunk, chunks)) + END
    places = sorted(
        {0, len(answer), *(len(CHUNKED) + cut for cut in cuts if len(CHUNKED) + cut < len(answer))}
    )
    comes_at_once([answer[a:b] for a, b in pairwise(places)])


@pytest.mark.parametrize("kind", ["events", "tiny", "CRLF in data", "length", "empty", "none"])
def test_an_answer_in_one_segment_is_read_without_a_pause(kind: str) -> None:
    """Also its end: the server sends no further bytes, and keeps the connection open for the next request."""
    answer = BODIES[kind]
    with hostile(lambda: iter([answer]), keep=True) as server:
        outbound = Outbound()
        for _ in range(5):
            live = call(server.origin, outbound=outbound)
            assert live.status == 0
            list(live.head())
            assert live.status == (204 if kind == "none" else 200)
            pieces = list(live.body())
            assert None not in pieces
            assert b"".join(filter(None, pieces)) == payload(answer).removesuffix(b"0\r\n\r\n")
        assert server.connections == 1


@pytest.mark.parametrize("kind", ["tiny", "trailer", "length", "empty", "none"])
def test_what_comes_after_an_answer_is_nobodys(kind: str) -> None:
    """Bytes that a server sends beyond an answer's end are not taken for the answer to somebody else's call."""
    others = BODIES["length"].replace(b"67890", b"other")
    answers = iter([BODIES[kind] + others])

    def script() -> Iterator[bytes]:
        yield next(answers, BODIES[kind])

    with hostile(script, keep=True) as server:
        outbound = Outbound()
        found = [read(call(server.origin, outbound=outbound)) for _ in range(3)]
        assert found == [payload(BODIES[kind]).removesuffix(END)] * 3
        assert server.connections == 2


def test_silence_gives_control_back(quick: None) -> None:
    """While the head, or the next piece, is waited for, None comes again and again; then the rest of the answer."""
    go_on = threading.Event()

    def script() -> Iterator[bytes]:
        go_on.wait()
        go_on.clear()
        yield head(200, EVENTS) + b"a"
        go_on.wait()
        yield b"b"

    with hostile(script) as server:
        live = call(server.origin)
        ticks = live.head()
        assert [next(ticks), next(ticks), live.status] == [None, None, 0]
        go_on.set()
        assert set(ticks) <= {None}
        assert live.headers["content-type"] == "text/event-stream"
        pieces = live.body()
        assert next(piece for piece in pieces if piece) == b"a"
        assert [next(pieces), next(pieces)] == [None, None]
        go_on.set()
        assert list(filter(None, pieces)) == [b"b"]


# What stands between the data of two chunks, cut in two, and an answer's end, cut in two.
HALVES = [
    (b"\r", b"\n2\r\n"),
    (b"\r\n", b"2\r\n"),
    (b"\r\n2", b"\r\n"),
    (b"\r\n2;x", b"=y\r\n"),
    (b"\r\n2\r", b"\n"),
    (b"\r\n2\r\n", b""),
]
ENDS = [(b"\r\n0", b"\r\n\r\n"), (b"\r\n0\r\n", b"\r\n"), (b"\r\n0\r\nX: y\r\n", b"\r\n")]
HALVES_AND_DATA = [(begun, rest + b"bc\r\n" + END, b"abc") for begun, rest in HALVES]


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize(
    ("begun", "rest", "body"), HALVES_AND_DATA + [(*end, b"a") for end in ENDS]
)
def test_silence_between_chunks(
    quick: None, begun: bytes, rest: bytes, body: bytes, with_data: bool
) -> None:
    """A provider that stops in the midst of what stands there does not hold the reader."""
    go_on = threading.Event()

    def script() -> Iterator[bytes]:
        yield CHUNKED + b"1\r\na" + (begun if with_data else b"")
        time.sleep(0.05)  # so that it is a segment of its own
        yield (b"" if with_data else begun)
        go_on.wait()
        yield rest

    with hostile(script, keep=True) as server:
        live = call(server.origin)
        list(live.head())
        pieces = live.body()
        assert next(piece for piece in pieces if piece) == b"a"
        assert [next(pieces) for _ in range(3)] == [None] * 3
        go_on.set()
        assert b"a" + b"".join(filter(None, pieces)) == body


@pytest.mark.parametrize(
    "line", [b"5;" + b"\t" * 60_000, b"5;" + b" " * 60_000 + b"\n", b"0\r\n" + b"a: b\r\n" * 9_000]
)
def test_a_long_line_between_chunks(line: bytes) -> None:
    """It is refused at once, and holds no other thread up."""
    script = [CHUNKED + chunk(EVENT) + line]
    with (
        hostile(lambda: iter(script), keep=True) as server,
        soon(),
        pytest.raises(ProviderUnavailableError, match="broke off"),
    ):
        read(call(server.origin))


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "flask-byok-call" in thread.name]


def _in_time(holds: Callable[[], object]) -> None:
    with soon():
        while not holds():
            time.sleep(0.01)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _close(live: Any) -> None:
    live.close()


def _close_elsewhere(live: Any) -> None:
    """Close it while this thread reads."""
    threading.Timer(0.1, live.close).start()
    assert list(filter(None, live.body() if live.status else live.head())) == []


def _forget(live: Any) -> None:
    """Drop it."""


def test_a_call_over_tls(
    quick: None, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Pieces in one record and in many come at once, and a thread that reads is woken when the call is closed."""
    script = [chunked() + b"".join(map(chunk, TINY)), *map(chunk, TINY)]
    with hostile(lambda: iter(script), keep=True, tls=server_tls) as server:
        outbound = Outbound(tls=client_tls, resolver=Resolver(["127.0.0.1"]))
        live = call(server.origin.replace("127.0.0.1", "provider.test"), outbound=outbound)
        list(live.head())
        pieces = live.body()
        found = b""
        while len(found) < 2 * len(TINY):
            found += next(pieces) or b""
        assert found == b"".join(TINY * 2)
        assert next(pieces) is None
        _close_elsewhere(live)
        assert server.left.wait(IN_TIME)


@pytest.mark.parametrize("leave", [_close, _close_elsewhere, _forget])
@pytest.mark.parametrize("begun", [False, True])
def test_a_silent_call_is_closed_at_once(
    slots: Slots, quick: None, leave: Callable[[Any], None], begun: bool
) -> None:
    """Before the head or in the midst of the body: the provider sees the end; no slot, thread or socket is left."""
    gc.collect()
    first = CHUNKED + chunk(EVENT) if begun else b""
    with hostile(lambda: iter([first]), keep=True) as server:
        before = _descriptors()
        live: Any = call(server.origin, "personal", owner="ann")
        ticks: Any = live.head()
        assert next(ticks, None) is None
        pieces: Any = live.body()
        if begun:
            assert list(ticks) == []
            assert next(pieces) == EVENT
        _in_time(lambda: server.heads)
        assert slots._running == ["ann"]
        del ticks, pieces
        leave(live)
        del live
        gc.collect()
        assert server.left.wait(IN_TIME)
        _in_time(lambda: not slots._running and not _threads())
        _in_time(lambda: _descriptors() <= before)


def test_a_call_that_is_closed_while_it_connects_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """The connection that is made afterwards is closed before the request."""
    connect, go_on = socket.create_connection, threading.Event()

    def slowly(*args: Any, **options: Any) -> socket.socket:
        go_on.wait()
        return connect(*args, **options)

    with hostile(lambda: iter([head(200)]), keep=True) as server:
        monkeypatch.setattr(socket, "create_connection", slowly)
        live = call(server.origin)
        ticks = live.head()
        next(ticks)
        live.close()
        assert list(ticks) == []
        assert (live.status, list(live.body())) == (0, [])
        go_on.set()
        assert server.left.wait(IN_TIME)
        assert server.heads == []
        _in_time(lambda: not _threads())


def test_closing_a_call_that_has_ended_disturbs_nobody() -> None:
    """The connection that a call used serves another one, which goes on."""
    answers = [BODIES["events"], CHUNKED + chunk(b"a")]
    go_on = threading.Event()

    def script() -> Iterator[bytes]:
        yield answers.pop(0)
        if not answers:
            go_on.wait()
            yield chunk(b"b") + END

    with hostile(script, keep=True) as server:
        outbound = Outbound()
        first, second = (call(server.origin, outbound=outbound) for _ in range(2))
        read(first)
        list(second.head())
        pieces = second.body()
        assert next(pieces) == b"a"
        first.close()
        go_on.set()
        assert list(filter(None, pieces)) == [b"b"]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "trust", "words"),
    [
        (lambda: endless(head(200, EVENTS), b"x" * 65_536), "personal", "longer than the limit"),
        (lambda: endless(head(200), b"data: x\n\n" * 5_000), "personal", "longer than the limit"),
        (lambda: drip(head(200, EVENTS), b": keep\n\n"), "personal", "too long to answer"),
        (lambda: drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"), "personal", "too long to answer"),
        (lambda: iter([head(200, "Content-Encoding: gzip"), b"x"]), "operator", "compressed"),
        (lambda: iter([BODIES["cut"]]), "operator", "broke off"),
        (lambda: iter([b"no http at all"]), "operator", "broke off"),
        (lambda: iter([b""]), "operator", "broke off"),
    ],
)
def test_an_answer_has_its_limits(
    monkeypatch: pytest.MonkeyPatch, slots: Slots, answer: Any, trust: str, words: str
) -> None:
    """One that is too long, too slow, compressed, cut or none at all becomes an error in our own words."""
    if "too long to" in words:
        monkeypatch.setattr(transport, "PERSONAL", Limits(seconds=0.4))
    with hostile(answer) as server:
        with soon(), pytest.raises(ProviderUnavailableError, match=words) as caught:
            read(call(server.origin, trust, owner="ann"))
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        assert server.sent < PERSONAL.longest + 8 * 1024 * 1024
    _in_time(lambda: not slots._running)


@pytest.mark.parametrize("first", [b"", CHUNKED + chunk(EVENT)])
def test_silence_has_its_limit(
    monkeypatch: pytest.MonkeyPatch, slots: Slots, first: bytes, quick: None
) -> None:
    """A person's own server may be silent for a short time only, and any server for the time that the caller gives."""
    monkeypatch.setattr(transport, "PERSONAL", Limits(silence=0.3))
    with hostile(lambda: iter([first]), keep=True) as server:
        for trust, timeout in (("personal", 60.0), ("operator", 0.3)):
            with soon(), pytest.raises(ProviderUnavailableError, match="too long to answer"):
                read(call(server.origin, trust, timeout=timeout))
    _in_time(lambda: not slots._running)


def test_a_slow_reader_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that the reader takes between two pieces does not count."""
    with hostile(lambda: iter([CHUNKED + chunk(b"a"), chunk(b"b") + END]), keep=True) as server:
        live = call(server.origin, timeout=0.2)
        list(live.head())
        pieces = live.body()
        found = next(pieces)
        time.sleep(0.3)
        assert b"".join([found or b"", *filter(None, pieces)]) == b"ab"


def test_slots_are_limited(slots: Slots) -> None:
    """The third call of an owner to people's own servers is refused, and sends nothing."""
    with hostile(lambda: iter([CHUNKED]), keep=True) as server:
        running = [call(server.origin, "personal", owner="ann") for _ in range(3)]
        for live in running[:2]:
            list(live.head())
        with pytest.raises(RateLimitedError) as caught:
            list(running[2].head())
        assert (caught.value.retry_after, len(server.heads)) == (10, 2)
        for live in running:
            live.close()
        assert not slots._running


def test_the_rest_of_a_refusal() -> None:
    """It is read whole up to a length; one that breaks off or is silent is what has come of it."""
    whole = head(400) + b"x" * 1000
    for answer, expected in (
        (whole, b"x" * 600),
        (head(400) + b"short", b"short"),
        (BODIES["cut"], None),
    ):
        with hostile(lambda answer=answer: iter([answer])) as server:
            live = call(server.origin)
            list(live.head())
            assert live.rest(600) == (expected or payload(answer))
    with hostile(lambda: endless(head(400))) as server:
        live = call(server.origin)
        list(live.head())
        assert len(live.rest(10 * MAX_REFUSAL_BYTES)) <= MAX_REFUSAL_BYTES


def test_the_rest_of_a_silent_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal whose end does not come holds nobody up."""
    monkeypatch.setattr("flask_byok.http.live.REST_SECONDS", 0.3)
    with hostile(lambda: iter([CHUNKED + chunk(b"so far")]), keep=True) as server:
        live = call(server.origin)
        list(live.head())
        with soon():
            assert live.rest(600) == b"so far"
        assert server.left.wait(IN_TIME)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer(status: int) -> None:
    """It comes back as it is, and nothing is sent to where it leads."""
    with hostile(lambda: iter([head(200)])) as other:
        to = head(status, f"Location: {other.origin}/chat")
        with hostile(lambda: iter([to])) as server:
            live = call(server.origin)
            assert read(live) == b""
            assert live.status == status
        assert other.connections == 0


def test_a_hundred_calls_at_once_leave_nothing_behind() -> None:
    """Their pieces stay apart, and afterwards there is no thread and no descriptor more."""

    def script() -> Iterator[bytes]:
        yield CHUNKED
        for number in range(10):
            yield chunk(b"%d\n" % number)
        yield END

    with hostile(script) as server:
        before, outbound = _descriptors(), Outbound()
        calls = [call(server.origin, outbound=outbound) for _ in range(100)]
        heads: list[Any] = [live.head() for live in calls]
        for ticks in heads:
            next(ticks, None)
        assert [read_on(ticks, live) for ticks, live in zip(heads, calls, strict=True)] == [
            b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"
        ] * 100
        del outbound
        _in_time(lambda: gc.collect() is not None and _descriptors() <= before and not _threads())


def read_on(ticks: Iterator[None], live: LiveCall) -> bytes:
    """Read an answer whose head is waited for already."""
    list(ticks)
    return b"".join(filter(None, live.body()))


def test_the_server_that_is_used_in_these_tests_sees_a_client_leave() -> None:
    """So that the tests above can fail."""
    with hostile(lambda: iter([CHUNKED]), keep=True) as server:
        live = call(server.origin)
        list(live.head())
        assert isinstance(server, HostileServer)
        assert not server.left.wait(0.2)
        live.close()
        assert server.left.wait(IN_TIME)
