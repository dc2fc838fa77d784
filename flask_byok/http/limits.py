"""Answers with an end: a limit on what is read of one, and on how long that takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import httpx2

#: Longest answer, in bytes; files and images are the longest.
MAX_BYTES = 64 * 1024 * 1024
#: Longest refusal, in bytes: SDKs read it whole, and more than once.
MAX_REFUSAL_BYTES = 256 * 1024
#: Longest line of a stream of events, in bytes, as SDKs keep it until it ends. An image is one line.
MAX_LINE_BYTES = 16 * 1024 * 1024
#: The same for a server that a person named.
MAX_PERSONAL_LINE_BYTES = 1024 * 1024
#: Seconds from a request to the end of its answer, however the bytes drip in.
MAX_SECONDS = 600.0

_deadline: ContextVar[float | None] = ContextVar("flask_byok_deadline", default=None)


class AnswerRefused(httpx2.RemoteProtocolError):
    """An answer is longer than what is read of one, or compressed."""


@contextmanager
def until(end: float) -> Iterator[None]:
    """End what this block does on the network at a time of ``time.monotonic``, if not before."""
    outer = _deadline.get()
    reset = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(reset)


def shorten(timeout: float | None, error: type[Exception]) -> float | None:
    """Return a timeout, or what is left of the deadline if that is less.

    :raises error: nothing is left.
    """
    end = _deadline.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise error("the deadline has passed")
    return left if timeout is None else min(timeout, left)


def bounded(response: httpx2.Response, *, end: float, longest_line: int) -> httpx2.Response:
    """Return an answer whose body raises where it goes on for too long.

    :raises AnswerRefused: it is compressed, which no request asks for: a megabyte could become a gigabyte.
    """
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        response.close()
        raise AnswerRefused("the answer is compressed")
    streams_events = response.headers.get("content-type", "").startswith("text/event-stream")
    response.stream = _BoundedStream(
        cast(httpx2.SyncByteStream, response.stream),
        end=end,
        longest=MAX_BYTES if response.status_code < 300 else MAX_REFUSAL_BYTES,
        longest_line=longest_line if streams_events else MAX_BYTES,
    )
    return response


class _BoundedStream(httpx2.SyncByteStream):
    def __init__(
        self, stream: httpx2.SyncByteStream, *, end: float, longest: int, longest_line: int
    ) -> None:
        self._stream = stream
        self._end = end
        self._longest = longest
        self._longest_line = longest_line

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self._stream)
        total = line = 0
        while (piece := self._next(pieces)) is not None:
            total += len(piece)
            last_break = piece.rfind(b"\n")
            line = line + len(piece) if last_break < 0 else len(piece) - last_break
            if total > self._longest or line > self._longest_line:
                raise AnswerRefused("the answer is too long")
            yield piece

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        # Set for this one step only: whoever reads on may do so in another context.
        with until(self._end):
            return next(pieces, None)

    def close(self) -> None:
        self._stream.close()
