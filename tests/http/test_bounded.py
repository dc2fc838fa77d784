"""Answers have an end, read by SDKs or by checks."""

from __future__ import annotations

import gzip
import time
from typing import Any

import httpx2
import pytest

from flask_byok.http import Endpoint, Outbound, transport
from flask_byok.http.transport import (
    MAX_REFUSAL_BYTES,
    PERSONAL,
    SHARED,
    AnswerRefused,
    Limits,
)
from tests.patience import IN_TIME

from .hostile_server import drip, endless, head, hostile

BLOCK = b"x" * 65_536
MIB = 1024 * 1024
#: What may lie in the sockets' buffers, beyond what was read.
BUFFERED = 8 * MIB
EVENTS = "Content-Type: text/event-stream"


def read(origin: str, trust: Any = "personal") -> bytes:
    """Read an answer as an SDK does, through the client that it is given."""
    client = Outbound(allow_private=True).client_for(Endpoint(origin, trust))
    with client.stream("POST", origin + "/chat", headers={"Accept-Encoding": "gzip"}) as response:
        return b"".join(response.iter_bytes())


@pytest.mark.parametrize(
    ("first", "block", "trust", "limit"),
    [
        (head(400), BLOCK, "personal", MAX_REFUSAL_BYTES),
        (head(302), BLOCK, "operator", MAX_REFUSAL_BYTES),
        (head(200, EVENTS), BLOCK, "personal", PERSONAL.event),
        (head(200, EVENTS), b"data: x\n" * 8_000, "personal", PERSONAL.event),
        (head(200, EVENTS), b": x\r\n" * 8_000, "personal", PERSONAL.event),
        (head(200, EVENTS), b"data: x\n\n" * 5_000, "personal", PERSONAL.longest),
        (head(200), BLOCK, "personal", PERSONAL.longest),
        (head(200, EVENTS), BLOCK, "operator", SHARED.event),
        (head(200, EVENTS), b"data: x\n" * 8_000, "operator", SHARED.event),
        (head(200), BLOCK, "operator", SHARED.longest),
    ],
)
def test_an_answer_without_end_is_given_up(
    first: bytes, block: bytes, trust: str, limit: int
) -> None:
    """Refusals, events, however many lines they have, and whole answers each have a longest size."""
    with hostile(lambda: endless(first, block)) as server:
        with pytest.raises(AnswerRefused):
            read(server.origin, trust)
        assert server.sent < limit + BUFFERED


def test_long_answers_with_an_end_are_read() -> None:
    """A stream of many lines, and an image in one line, are no attack."""
    body = b"data: x\n\n" * 200_000
    for ending in (b"\r\n", b"\r"):
        lines = body.replace(b"\n", ending)
        with hostile(lambda lines=lines: iter([head(200, EVENTS), lines])) as server:
            assert read(server.origin) == lines
    with hostile(lambda: iter([head(200, EVENTS), body])) as server:
        assert read(server.origin) == body
    image = b"data: " + b"x" * (4 * MIB) + b"\n\n"
    with hostile(lambda: iter([head(200, EVENTS), image])) as server:
        assert read(server.origin, "operator") == image
        with pytest.raises(AnswerRefused):
            read(server.origin, "personal")


@pytest.mark.parametrize("status", [200, 400])
def test_compressed_answers_are_refused(status: int) -> None:
    """None is asked for, so one that comes all the same is not unpacked: it could be a bomb."""
    body = gzip.compress(b"x" * MIB)
    with hostile(lambda: iter([head(status, "Content-Encoding: gzip"), body])) as server:
        with pytest.raises(AnswerRefused):
            read(server.origin)
        assert "accept-encoding: identity\r\n" in server.heads[0].lower()
        assert "gzip" not in server.heads[0]


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (head(200, EVENTS), b": keep\n\n"),
        (head(200, EVENTS, "Transfer-Encoding: chunked") + b"1;", b"a"),
        (head(400), b" "),
    ],
)
def test_a_drip_ends(monkeypatch: pytest.MonkeyPatch, first: bytes, piece: bytes) -> None:
    """Bytes that keep coming, in a head, a body or between its pieces, do not outlast the time for an answer."""
    monkeypatch.setattr(transport, "PERSONAL", Limits(seconds=0.5))
    with hostile(lambda: drip(first, piece)) as server:
        started = time.monotonic()
        with pytest.raises(httpx2.ReadTimeout):
            read(server.origin)
        assert 0.4 < time.monotonic() - started < IN_TIME


def test_a_check_reads_so_much() -> None:
    """Lists of models can be long; what a person's own server says about a key is not, nor is a refusal."""
    body, outbound = b" " * (300 * 1024), Outbound(allow_private=True)
    with hostile(lambda: iter([head(200), body])) as server:
        endpoint = Endpoint(server.origin, "operator")
        assert outbound.fetch(endpoint, server.origin, {}, seconds=5).body == body
        found = outbound.fetch(Endpoint(server.origin, "personal"), server.origin, {}, seconds=5)
        assert (found.status, found.body) == (0, b"")
    with hostile(lambda: endless(head(401))) as server:
        found = outbound.fetch(Endpoint(server.origin, "operator"), server.origin, {}, seconds=5)
        assert (found.status, found.body) == (0, b"")
