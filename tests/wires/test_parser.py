"""The parser of events, with bytes that nobody has thought of, and with too many of them."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_byok.errors import StreamIncompleteError
from flask_byok.wires import WIRES, events
from flask_byok.wires.events import Reader, read_events

from .streams import STREAMS, Events, chunk, data, delta, part, read_until_error

WIRE = st.sampled_from(sorted(WIRES))
#: What a stream is made of: its real frames, pieces of syntax, JSON of the wires' names, and anything.
NAMES = sorted(
    {
        "choices",
        "delta",
        "content",
        "index",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "id",
        "message",
        "usage",
    }
    | {
        "finish_reason",
        "reasoning",
        "refusal",
        "error",
        "type",
        "candidates",
        "parts",
        "text",
        "functionCall",
        "args",
    }
    | {
        "finishReason",
        "usageMetadata",
        "promptFeedback",
        "blockReason",
        "content_block",
        "stop_reason",
        "x_groq",
    }
    | {
        "promptTokenCount",
        "prompt_tokens",
        "input_tokens",
        "function_call",
        "thinking",
        "partial_json",
    }
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [
            "stop",
            "STOP",
            "tool_use",
            "message_stop",
            "message_delta",
            "content_block_delta",
            "error",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
FRAMES = st.one_of(
    st.sampled_from([frame for stream in STREAMS for frame in stream.frames]),
    OBJECTS.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b"\r\n",
            b"data",
            b"data:",
            b": x",
            b"event: error",
            b"\xef\xbb\xbf",
            b"{",
            b"[",
        ]
    ),
    st.binary(max_size=10),
)


def fuzz(wire: str, frames: list[bytes], sizes: list[int]) -> None:
    """Read a stream in one piece, in pieces and cut: never another error, always the same events."""
    whole = b"".join(frames)
    expected = read_until_error(whole, wire)
    reader = WIRES[wire].reader()
    with patch.object(events, "monotonic", return_value=0.0):  # a busy machine is no silence
        assert read_until_error(_divide(whole, sizes, reader), wire, reader) == expected
    kinds = [event.type for event in expected[0]]
    assert ("finish" in kinds) == (not expected[1])
    assert kinds == sorted(kinds, key=["text", "reasoning"].__contains__, reverse=True)
    cut, error = read_until_error(whole[: sum(sizes)], wire)
    said = _said(cut)
    assert _said(expected[0])[: len(said)] == said or error == "" or expected[1] == "ErrorInStream"


def _said(found: Events) -> str:
    return "".join(event.text for event in found)


def _divide(whole: bytes, sizes: list[int], reader: Reader) -> Iterator[bytes | None]:
    """Yield the bytes in pieces, with silences before the end mark; one after it ends the reading."""
    for size in sizes:
        yield whole[:size]
        whole = whole[size:]
        if not reader.ended:
            yield None
    yield whole


ARGUMENTS = (WIRE, st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 40), max_size=6))


@settings(deadline=None, max_examples=300)
@given(*ARGUMENTS)
def test_any_bytes(wire: str, frames: list[bytes], sizes: list[int]) -> None:
    """Whatever comes, events come out or one of the two errors, and no division into pieces changes them."""
    fuzz(wire, frames, sizes)


@pytest.mark.stress
def test_any_bytes_for_ten_minutes() -> None:
    """The same holds for as many streams as fit into ten minutes."""
    end = time.monotonic() + 600
    checks = (HealthCheck.too_slow, HealthCheck.data_too_large)
    run = settings(deadline=None, max_examples=2000, database=None, suppress_health_check=checks)(
        given(*ARGUMENTS)(fuzz)
    )
    while time.monotonic() < end:
        run()


MIB = 1024 * 1024
KILO = b"x" * 1000


def _repeat(frame: bytes, size: int, first: bytes = b"") -> Iterator[bytes]:
    """Yield the frame in pieces of 64 KiB, until there are ``size`` bytes."""
    yield first
    piece = frame * max(1, 65_536 // len(frame))
    for _ in range(size // len(piece) + 1):
        yield piece


#: Streams of any length that try to fill the memory: what is repeated, and what comes first.
HOSTILE: dict[str, tuple[str, bytes, bytes]] = {
    "one line": ("openai", KILO, b"data: "),
    "no field": ("openai", KILO, b""),
    "comments": ("openai", b": " + KILO + b"\n\n", b""),
    "data lines": ("openai", b"data:\n", b""),
    "line ends": ("openai", b"\r\n\r", b""),
    "names": ("openai", b"event: " + KILO + b"\n", b""),
    "text": ("openai", chunk({"content": "x" * 100}), b""),
    "tiny events": ("openai", b"data:1\n\n", b""),
    "tiny objects": ("openai", b"data:{}\n\n", b""),
    "halves": ("openai", chunk({"content": "\ud83d"}), b""),
    "calls": ("openai", chunk({"tool_calls": [{"function": {"name": "f"}}]}), b""),
    "arguments": (
        "openai",
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "xy"}}]}),
        b"",
    ),
    "reasons": ("openai", chunk({}, "stop"), b""),
    "usage": ("openai", chunk({}, usage={"prompt_tokens": "9" * 500}), b""),
    "blocks": ("anthropic", data({"content_block": {"type": "tool_use"}, "index": 0}), b""),
    "pieces": (
        "anthropic",
        delta(0, partial_json="xy"),
        data({"content_block": {"type": "tool_use"}, "index": 0}),
    ),
    "functions": ("google", part({"functionCall": {"name": "f", "args": {"a": "x" * 100}}}), b""),
}


def _most_memory(make: Callable[[], Iterator[bytes]], wire: str) -> int:
    """Return the most bytes that reading holds, whatever its end."""
    tracemalloc.start()
    try:
        for _ in read_events(make(), WIRES[wire].reader()):
            pass
    except StreamIncompleteError:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_flat(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile stream of ten times the largest event takes the memory of a few such events, or less."""
    monkeypatch.setattr(events, "EVENT_LIMIT", MIB // 2)
    wire, frame, first = HOSTILE[name]
    assert _most_memory(lambda: _repeat(frame, 5 * MIB, first), wire) < 2 * MIB


def _resident() -> int:
    """Return the bytes of memory that this process has; tracing each of them would take an hour."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.stress
@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_flat_for_a_gigabyte(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for a gigabyte, without the limit for a whole stream."""
    monkeypatch.setattr(events, "STREAM_LIMIT", 1 << 40)
    wire, frame, first = HOSTILE[name]
    before = _resident()
    most = 0

    def pieces() -> Iterator[bytes]:
        nonlocal most
        for piece in _repeat(frame, 1024 * MIB, first):
            most = max(most, _resident())
            yield piece

    with suppress(StreamIncompleteError):
        for _ in read_events(pieces(), WIRES[wire].reader()):
            pass
    assert most - before < 4 * events.EVENT_LIMIT


def test_small_pieces_of_a_long_line() -> None:
    """A line of 4 MiB in pieces of 16 bytes is read in a time that grows with its length, not with its square."""
    times = []
    for size in (MIB // 4, MIB):
        line = chunk({"content": "x" * size})
        begin = time.process_time()
        found, error = read_until_error(
            (line[at : at + 16] for at in range(0, len(line), 16)), "openai"
        )
        times.append(time.process_time() - begin)
        assert (len(_said(found)), error) == (size, "StreamIncompleteError")
    assert times[1] < 12 * times[0]


@pytest.mark.parametrize("size", [1000, 65_536])
@pytest.mark.parametrize(
    ("first", "repeated"), [(b"data: ", b"x"), (b"data: x", b"\ndata: x"), (b"", b"x"), (b"", b":")]
)
def test_one_event_has_a_limit(
    first: bytes, repeated: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event above its limit ends the stream, after what came before."""
    monkeypatch.setattr(events, "EVENT_LIMIT", 100_000)
    whole = chunk({"content": "Hi"}) + first + repeated * 110_000 + b"\n\n"
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    found, error = read_until_error(pieces, "openai")
    assert (_said(found), error) == ("Hi", "StreamIncompleteError")
    with pytest.raises(StreamIncompleteError, match="too long"):
        list(read_events(pieces, WIRES["openai"].reader()))


def test_a_stream_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream above its limit is incomplete, also after its end mark."""
    monkeypatch.setattr(events, "STREAM_LIMIT", 1000)
    pieces = [chunk({}, "stop")] + [b": x\n\n"] * 300
    with pytest.raises(StreamIncompleteError, match="too long"):
        list(read_events(pieces, WIRES["openai"].reader()))


@pytest.mark.parametrize("opening", [b'{"choices":', b'{"error":', b"["])
@pytest.mark.parametrize("wire", WIRES)
def test_deep_nesting(wire: str, opening: bytes) -> None:
    """JSON of any depth breaks nothing."""
    for depth in (500, 900, 100_000):
        frame = b"data: " + opening * depth + b"\n\n"
        assert read_until_error(frame, wire) == ([], "StreamIncompleteError")
        inner = b'{"a":' * depth + b"1" + b"}" * depth
        nested = b'{"choices":[{"delta":{"content":' + b"[" * depth + b"]" * depth + b"}}]}"
        content = b"data: " + nested + b"\n\n"
        assert read_until_error(content, wire) == ([], "StreamIncompleteError")
        call = (
            b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":'
            + inner
            + b"}}]}}]}\n\n"
        )
        assert read_until_error(call + b"data: [DONE]\n\n", wire)[1] in (
            "",
            "StreamIncompleteError",
        )
