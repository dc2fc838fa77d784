"""Hostile endpoints, for tests of the guarded calls out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .wire import Answer, EventStream, RawStream, Reply

#: `redirect`    302 to another place, which records whether the key came along
#: `endless`     JSON that never ends
#: `huge`        an announced 64 MiB of JSON
#: `slow_headers` a header that never ends, a byte at a time
#: `slow_body`   an announced body, a byte at a time
KINDS = ("redirect", "endless", "huge", "slow_headers", "slow_body")

HUGE_BYTES = 64 * 1024 * 1024
BLOCK = b" " * 65_536
DRIP_SECONDS = 0.05


def answer(kind: str, rest: str, redirect_to: str, pause: Callable[[float], None]) -> Reply:
    """Answer at a hostile endpoint.

    :param rest: the path below the endpoint, kept by a redirect.
    :param pause: waits for so many seconds; raises when the server stops.
    """
    if kind == "redirect":
        return Answer(302, b"", headers={"Location": redirect_to + rest})
    if kind == "endless":
        return EventStream(_endless(), content_type="application/json")
    if kind == "huge":
        return RawStream(_huge())
    if kind == "slow_headers":
        return RawStream(_slow_headers(pause))
    if kind == "slow_body":
        return RawStream(_slow_body(pause))
    return Answer(404, b"{}")


def _endless() -> Iterator[bytes]:
    yield b'{"data": ['
    while True:
        yield BLOCK


def _head(length: int) -> bytes:
    lines = ("HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def _huge() -> Iterator[bytes]:
    yield _head(HUGE_BYTES)
    for _ in range(HUGE_BYTES // len(BLOCK)):
        yield BLOCK


def _slow_headers(pause: Callable[[float], None]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Slow: "
    while True:
        pause(DRIP_SECONDS)
        yield b"a"


def _slow_body(pause: Callable[[float], None]) -> Iterator[bytes]:
    yield _head(100_000)
    while True:
        pause(DRIP_SECONDS)
        yield b" "
