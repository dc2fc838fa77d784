"""The scanner of answers that are passed on as they are."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from flask_byok.wires import WIRES, events
from flask_byok.wires.events import Scanner

from .streams import chunk, data
from .test_parser import HOSTILE, MIB, _repeat

USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


def scanner(*, is_stream: bool, wire: str = "openai") -> Scanner:
    return Scanner(WIRES[wire].reader(), is_stream=is_stream)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("tiny")])
def test_memory_is_flat(name: str, is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile answer of any length takes the memory of a few events at most: the body is not kept."""
    monkeypatch.setattr(events, "EVENT_LIMIT", MIB // 2)
    wire, frame, first = HOSTILE[name]
    scanned = scanner(is_stream=is_stream, wire=wire)
    tracemalloc.start()
    for piece in _repeat(frame, 5 * MIB, first):
        scanned.feed(piece)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * MIB


def test_small_pieces() -> None:
    """A body in pieces of one byte takes a time that grows with its length."""
    scanned, times = scanner(is_stream=False), []
    for _ in range(2):
        started = time.process_time()
        for _ in range(150_000):
            scanned.feed(b"x")
        times.append(time.process_time() - started)
    assert times[1] < 4 * times[0]
    scanned.feed(b'"usage": {"prompt_tokens": 3}}')
    assert scanned.tokens == (3, 0)


def test_usage_after_an_event_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of too many bytes, such as an image, is let go; the usage at the end is found all the same."""
    monkeypatch.setattr(events, "EVENT_LIMIT", 1000)
    scanned = scanner(is_stream=True)
    for piece in (b"data: " + b"x" * 2000, b"\n\n", chunk({}, usage=USAGE)):
        assert scanned.feed(piece) is None
    assert scanned.tokens == (3, 4)


def test_the_first_error_is_told_once() -> None:
    """An error event is returned as it came, and no other after it."""
    scanned = scanner(is_stream=True)
    error = {"error": {"message": "no"}}
    assert scanned.feed(data({}) + data(error)) == b'{"error": {"message": "no"}}\n'
    assert scanned.feed(data(error)) is None
    assert scanned.tokens is None
