"""What the wires' answers say: every end, cut at every byte, and the forms of servers that are nearly compatible."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from flask_byok.errors import ProviderUnavailableError, StreamIncompleteError
from flask_byok.wires import WIRES
from flask_byok.wires.events import ErrorInStream, StreamEvent, read_events

from .streams import (
    DONE,
    PING,
    STOP,
    STREAMS,
    USED,
    Events,
    Stream,
    block,
    call,
    chunk,
    data,
    delta,
    finish,
    message_end,
    part,
    piece,
    read,
    read_until_error,
    text,
    usage,
)

HI = chunk({"content": "Hi"})
#: The halves of 🙂, which `data` writes as escapes.
HALVES = "\ud83d", "\ude42"
END = chunk({}, "stop")


@pytest.fixture(params=STREAMS, ids=lambda stream: stream.name)
def stream(request: pytest.FixtureRequest) -> Stream:
    """Give each recorded stream."""
    return request.param


def test_each_end_is_told(stream: Stream) -> None:
    """Texts come as they are sent; tool calls, usage and the wire's own end follow at the end."""
    assert read(stream.whole, stream.wire) == stream.events


def test_a_cut_stream_has_no_end(stream: Stream) -> None:
    """Cut at any byte before its end mark is complete, a stream gives the beginning of its texts and is incomplete."""
    texts = "".join(event.text for event in stream.events)
    for length in range(len(stream.whole)):
        events, error = read_until_error(stream.whole[:length], stream.wire)
        assert texts.startswith("".join(event.text for event in events))
        kinds = {event.type for event in events}
        if length < stream.marked:
            assert (error, kinds & {"tool_call", "usage", "finish"}) == (
                "StreamIncompleteError",
                set(),
            )
        else:
            assert (error, events[-1]) == ("", stream.events[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_of_any_size(stream: Stream, size: int) -> None:
    """However the bytes are divided, the events are the same."""
    whole = stream.whole
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert read(pieces, stream.wire) == stream.events


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 10_000])
def test_line_ends(stream: Stream, line_end: bytes, size: int) -> None:
    """Any line end, a byte order mark, comments, other fields and data without a space are read."""
    noise = b"\n\n: hello\n\n:\nretry: 10\nid: 1\n\ndata\n\nnonsense\n\n"
    plain = stream.whole.replace(b"\r\n", b"\n").replace(b"data: ", b"data:")
    whole = b"\xef\xbb\xbf" + plain.replace(b"\n\n", noise).replace(b"\n", line_end)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert read(pieces, stream.wire) == stream.events


#: How each wire sends a piece of text, of reasoning, and of a tool call's arguments, which are one here.
PIECES: dict[str, tuple[Any, Any, Any, bytes]] = {
    "openai": (
        lambda said: chunk({"content": said}),
        lambda said: chunk({"reasoning_content": said}),
        lambda said: piece(0, said, "call_a", "f"),
        chunk({}, "stop"),
    ),
    "anthropic": (
        lambda said: delta(0, type="text_delta", text=said),
        lambda said: delta(0, type="thinking_delta", thinking=said),
        lambda said: (
            block(1, type="tool_use", id="call_a", name="f", input={})
            + b"".join(delta(1, type="input_json_delta", partial_json=half) for half in said)
        ),
        message_end("end_turn"),
    ),
    "google": (
        lambda said: part({"text": said}),
        lambda said: part({"text": said, "thought": True}),
        lambda said: part({"functionCall": {"id": "call_a", "name": "f", "args": {"a": said}}}),
        part(reason="STOP"),
    ),
}


@pytest.mark.parametrize("wire", WIRES)
def test_halves_of_a_character(wire: str) -> None:
    """A character whose halves come in two pieces arrives whole; a half that stays alone becomes U+FFFD."""
    said, thought, _, end = PIECES[wire]
    first, second = HALVES
    pieces = [thought("a" + first), PING, thought(second), said(first), said(f"{second}b{first}")]
    pieces += [thought(second), said(f"c{second}d"), said("e" + first), said("f"), said(first), end]
    texts = [(event.type, event.text) for event in read(pieces, wire)]
    assert texts == [
        ("reasoning", "a"),
        ("reasoning", "🙂"),
        ("text", "🙂b"),
        ("reasoning", "�"),
        ("text", "�c�d"),
        ("text", "e"),
        ("text", "�f"),
        ("text", "�"),
        ("finish", ""),
    ]


@pytest.mark.parametrize("wire", WIRES)
def test_halves_in_a_tool_call(wire: str) -> None:
    """Halves in names and arguments are joined too, or become U+FFFD."""
    called, end = PIECES[wire][2:]
    first, second = HALVES
    if wire == "openai":
        pieces = [called('{"a": "' + first), piece(0, f'{second}{first}"}}'), end]
    else:
        pieces = [called(f'{{"a": "{first}{second}{first}"}}'), end]
    (made, _) = read(pieces, wire)
    assert "🙂�" in made.arguments
    made.arguments.encode()


def test_time_passes() -> None:
    """Seconds in which a stream says nothing that is told, as in a long tool call, are told as None."""

    def slow() -> Iterator[bytes]:
        yield from (HI, piece(0, "{", "call_a", "f"))
        end = time.monotonic() + 1.05
        while time.monotonic() < end:
            time.sleep(0.05)
            yield PING
        yield from (piece(0, "}"), chunk({}, "stop"))

    events = list(read_events(slow(), WIRES["openai"].reader()))
    assert events[:2] == [StreamEvent("text", "Hi"), None]


def test_silence_passes_through() -> None:
    """None among the pieces comes out as None, at its place."""
    given = [None, HI, None, None, END]
    passed = list(read_events(given, WIRES["openai"].reader()))
    assert passed == [None, *text("Hi"), None, None, finish("stop")]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n\n",
        b"<!doctype html>\n<title>Sign in</title>\n",
        b'{"error": {"message": "no"}}',
        b'{"id": "c", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}',
        b'{"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}',
        b'[{"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}]',
        json.dumps({"error": {"message": "no"}}, indent=2).encode(),
        b": ping\n\n" * 3,
        b"data: null\n\n",
        b"data: [1, 2]\n\n",
        DONE,
        b"\x00\xff" * 50,
    ],
)
def test_what_is_no_stream(wire: str, answer: bytes) -> None:
    """A page, an error, a whole answer, a list or nothing is incomplete, and no end is told."""
    assert read_until_error(answer, wire) == ([], "StreamIncompleteError")
    with pytest.raises(StreamIncompleteError, match="is not a stream"):
        read(answer, wire)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "error",
    [
        data({"error": {"message": "sk-secret", "code": 502}}),
        data({"error": "sk-secret"}),
        data(
            {"type": "error", "error": {"type": "overloaded_error", "message": "sk-secret"}},
            "error",
        ),
        data({"message": "sk-secret"}, "error"),
        b"event: error\ndata: sk-secret\n\n",
        data({"object": "error", "message": "sk-secret", "code": 40303}),
    ],
)
def test_an_error_within_a_stream(wire: str, error: bytes) -> None:
    """An error event is raised with its bytes, after what came before; the message holds none of it."""
    before = {"openai": HI, "anthropic": delta(0, text="Hi"), "google": part({"text": "Hi"})}[wire]
    assert read_until_error(before + error, wire) == (text("Hi"), "ErrorInStream")
    with pytest.raises(ErrorInStream) as raised:
        read(before + error, wire)
    assert raised.value.body.strip() == error.rpartition(b"data: ")[2].strip()
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("wire", "end"),
    [
        *(
            ("openai", chunk({}, reason))
            for reason in ("error", "network_error", "insufficient_system_resource", "abort")
        ),
        *(
            ("google", part(reason=reason))
            for reason in (
                "MALFORMED_FUNCTION_CALL",
                "MALFORMED_RESPONSE",
                "UNEXPECTED_TOOL_CALL",
                "TOO_MANY_TOOL_CALLS",
                "MISSING_THOUGHT_SIGNATURE",
            )
        ),
    ],
)
def test_an_end_that_is_a_failure(wire: str, end: bytes) -> None:
    """An end mark that means a fault makes the answer incomplete: its calls are not told, its tokens are known."""
    said, _, called, _ = PIECES[wire]
    reader = WIRES[wire].reader()
    events = read_events([said("Hi"), called("{}"), end, USED, DONE], reader)
    assert [next(events)] == text("Hi")
    with pytest.raises(StreamIncompleteError, match="ended with an error"):
        next(events)
    assert (reader.tokens is None) == (wire == "google")


def test_no_error() -> None:
    """``"error": null`` is none."""
    assert read(chunk({"content": "Hi"}, error=None) + END) == [*text("Hi"), finish("stop")]


@pytest.mark.parametrize(
    ("frames", "events"),
    [
        pytest.param(
            [data({"choices": None}), data({"choices": []}), data({}), HI, END],
            [*text("Hi"), finish("stop")],
            id="no choices",
        ),
        pytest.param(
            [chunk([]), chunk(None), chunk({"content": None}), HI, END],
            [*text("Hi"), finish("stop")],
            id="no delta",
        ),
        pytest.param(
            [
                chunk(
                    {
                        "content": [
                            {"type": "text", "text": "H"},
                            "i",
                            "",
                            {"text": ""},
                            {"type": "image"},
                            3,
                            None,
                        ]
                    }
                ),
                END,
            ],
            [*text("H", "i"), finish("stop")],
            id="content in parts",
        ),
        pytest.param(
            [
                chunk(
                    {
                        "content": [
                            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}
                        ]
                    }
                ),
                HI,
                END,
            ],
            [StreamEvent("reasoning", "Hm"), *text("Hi"), finish("stop")],
            id="reasoning in parts",
        ),
        pytest.param(
            [
                data(
                    {
                        "choices": [
                            {"index": 1, "delta": {"content": "Lo"}, "finish_reason": "length"},
                            {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None},
                        ]
                    }
                ),
                data(
                    {"choices": [{"index": 1, "delta": {"content": "Lo"}, "finish_reason": "stop"}]}
                ),
                data({"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]}),
            ],
            [*text("Hi", "!"), finish("stop")],
            id="several choices",
        ),
        pytest.param(
            [
                data({"choices": [{"index": 0, "message": {"content": "H"}}]}),
                data({"choices": [{"index": 0, "delta": None, "message": {"content": "i"}}]}),
                END,
            ],
            [*text("H", "i"), finish("stop")],
            id="message instead of delta",
        ),
        pytest.param(
            [
                HI,
                data(
                    {
                        "choices": [
                            {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}
                        ]
                    }
                ),
            ],
            [*text("Hi"), finish("stop")],
            id="whole message at the end",
        ),
        pytest.param(
            [HI, END, USED, END, USED, DONE, DONE, HI],
            [*text("Hi"), usage(9, 3), finish("stop")],
            id="end twice",
        ),
        pytest.param([HI, END], [*text("Hi"), finish("stop")], id="no DONE"),
        pytest.param([HI + END.rstrip()], [*text("Hi"), finish("stop")], id="no last line end"),
        pytest.param(
            [END, chunk({"content": "more"}), DONE],
            [*text("more"), finish("stop")],
            id="text after the end",
        ),
        pytest.param(
            [
                HI,
                chunk(
                    {},
                    "stop",
                    x_groq={"id": "r", "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
                ),
            ],
            [*text("Hi"), usage(5, 2), finish("stop")],
            id="usage of Groq",
        ),
        pytest.param(
            [
                chunk({"content": "H"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
                chunk({"content": "i"}, usage={"prompt_tokens": "5", "completion_tokens": 2.0}),
                chunk({}, "stop", usage=None),
            ],
            [*text("H", "i"), usage(5, 2), finish("stop")],
            id="usage in each chunk",
        ),
        pytest.param(
            [
                HI,
                chunk({}, "stop", usage={"prompt_tokens": "many", "completion_tokens": {}, "x": 1}),
            ],
            [*text("Hi"), usage(0, 0), finish("stop")],
            id="usage of no use",
        ),
        pytest.param(
            [
                HI,
                chunk(
                    {}, "stop", usage={"prompt_tokens": 10**9 + 1, "completion_tokens": "9" * 99}
                ),
            ],
            [*text("Hi"), usage(0, 0), finish("stop")],
            id="usage that no sum could hold",
        ),
        pytest.param(
            [
                chunk({"reasoning": "Hm"}),
                chunk({"reasoning": "Hm", "reasoning_content": "Hm"}),
                END,
            ],
            [StreamEvent("reasoning", "Hm")] * 2 + [finish("stop")],
            id="reasoning twice",
        ),
        pytest.param(
            [chunk({"refusal": "No."}), DONE],
            [*text("No."), finish("refusal")],
            id="refusal and DONE",
        ),
        pytest.param(
            [b'data: {"choices": [{"index": 0,\ndata: "delta": {"content": "Hi"}}]}\n\n', END],
            [*text("Hi"), finish("stop")],
            id="data in two lines",
        ),
        pytest.param(
            [b"data: keep-alive\n\n", b"data: 1\n\n", HI, b'data: "x"\n\n', END],
            [*text("Hi"), finish("stop")],
            id="data without JSON",
        ),
        pytest.param(
            [
                b'data: {"choices": [{"delta": {"content": "a\\ud83d"}, "x": NaN}]}\n\n',
                b'data: {"choices": [{"delta": {"content": "\xff\x01"}, "y": 1e999}]}\n\n',
                END,
            ],
            [*text("a", "\ufffd\ufffd\x01"), finish("stop")],
            id="what is not quite JSON",
        ),
        pytest.param(
            [HI, END, b'data: {"choices": [], "usage": {"prompt'],
            [*text("Hi"), finish("stop")],
            id="cut usage",
        ),
    ],
)
def test_nearly_compatible_servers(frames: list[bytes], events: Events) -> None:
    """Forms that servers invent are read as they are meant, in one piece and byte by byte."""
    whole = b"".join(frames)
    assert read(whole) == events
    for line_end in (b"\n", b"\r\n"):
        given = whole.replace(b"\n", line_end)
        assert read(given[at : at + 1] for at in range(len(given))) == events


def _calls(*entries: dict[str, Any]) -> list[bytes]:
    return [chunk({"tool_calls": [entry]}) for entry in entries]


F, G = {"name": "f", "arguments": '{"a":'}, {"name": "g", "arguments": "{}"}
REST = {"arguments": "1}"}
FIRST, SECOND = call("x", "f", '{"a":1}'), call("y", "g", "{}")


@pytest.mark.parametrize(
    ("frames", "calls"),
    [
        pytest.param(
            _calls({"id": "x", "function": F}, {"function": REST}, {"id": "y", "function": G}),
            [FIRST, SECOND],
            id="no index",
        ),
        pytest.param(
            _calls(
                {"index": 0, "function": F},
                {"index": 0, "function": REST},
                {"index": 1, "function": G},
            ),
            [call("call_0", "f", '{"a":1}'), call("call_1", "g", "{}")],
            id="no id",
        ),
        pytest.param(
            _calls({"function": F}, {"function": REST}, {"function": G}),
            [call("call_0", "f", '{"a":1}'), call("call_1", "g", "{}")],
            id="neither",
        ),
        pytest.param(
            _calls(
                {"index": 0, "id": "x", "function": F},
                {"index": 0, "function": REST},
                {"index": 0, "id": "y", "function": G},
            ),
            [FIRST, SECOND],
            id="index always 0",
        ),
        pytest.param(
            _calls(
                {"index": 0, "id": "x", "function": F},
                {"index": 0, "id": "x", "function": {"name": "f", "arguments": "1}"}},
            ),
            [FIRST],
            id="id and name in each piece",
        ),
        pytest.param(
            _calls({"index": 0, "id": "x", "function": {"name": "f", "arguments": {"a": 1}}}),
            [call("x", "f", '{"a": 1}')],
            id="arguments as an object",
        ),
        pytest.param(
            _calls(
                *[{"index": 0, "id": "x", "function": {"name": "f", "arguments": '{"a":1}'}}] * 3
            ),
            [FIRST],
            id="the whole again and again",
        ),
        pytest.param(
            [chunk({"function_call": F}), chunk({"function_call": REST})],
            [call("call_0", "f", '{"a":1}')],
            id="function_call",
        ),
        pytest.param(
            [
                chunk(
                    {
                        "tool_calls": [
                            {"index": 0, "id": "x", "function": F},
                            {"index": 1, "id": "y", "function": G},
                        ]
                    }
                ),
                *_calls({"index": 0, "function": REST}),
            ],
            [FIRST, SECOND],
            id="two in one chunk",
        ),
        pytest.param(
            _calls(
                {"index": None, "id": None, "function": {"name": "f", "arguments": None}},
                {"index": []},
                {},
            ),
            [call("call_0", "f", "{}")],
            id="nulls",
        ),
    ],
)
@pytest.mark.parametrize("end", [chunk({}, "tool_calls"), END, DONE])
def test_tool_calls_of_any_form(frames: list[bytes], calls: Events, end: bytes) -> None:
    """Each call comes once and whole, and the finish says so also if the server says stop or nothing."""
    assert read(b"".join(frames) + end) == [*calls, finish("tool_calls")]


def test_ids_of_calls_without_one() -> None:
    """An id that is made up is never the same again, so that a conversation can have many such calls."""
    frames = chunk({"tool_calls": [{"function": G}]}) + DONE
    made = {next(read_events([frames], WIRES["openai"].reader())).id for _ in range(50)}
    assert len(made) == 50


def test_a_call_that_the_limit_cuts() -> None:
    """Of the calls before another end, those that are not whole are left out."""
    frames = piece(0, '{"a":1}', "x", "f") + piece(1, '{"a":', "y", "g") + chunk({}, "length")
    assert read(frames) == [FIRST, finish("length")]


@pytest.mark.parametrize(
    ("wire", "frames", "events"),
    [
        pytest.param(
            "anthropic",
            [delta(0, text="Hi"), STOP],
            [*text("Hi"), finish("other")],
            id="message_stop alone",
        ),
        pytest.param(
            "anthropic",
            [delta(0, text="Hi"), message_end("end_turn", input_tokens=20, output_tokens=5), DONE],
            [*text("Hi"), usage(20, 5), finish("stop")],
            id="no message_stop",
        ),
        pytest.param(
            "anthropic",
            [
                block(0, type="text", text="H"),
                delta(0, text="i"),
                block(1, type="tool_use", id="x", name="f", input={"a": 1}),
                block(2, type="server_tool_use", id="z", name="web_search", input={}),
                delta(2, partial_json='{"query": "x"}'),
                message_end("tool_use"),
            ],
            [*text("H", "i"), call("x", "f", '{"a": 1}'), finish("tool_calls")],
            id="input at once",
        ),
        pytest.param(
            "anthropic",
            [
                PING,
                data({"type": "message_start", "message": None}),
                data({"type": "content_block_delta", "delta": None}),
                data({"type": "new_event", "delta": {"stop_reason": "end_turn"}}),
                message_end(None),
                STOP,
            ],
            [finish("other")],
            id="nulls",
        ),
        pytest.param(
            "google",
            [
                data({"candidates": None}),
                data({"candidates": [{"content": None}]}),
                data(
                    {
                        "candidates": [
                            {
                                "content": {"parts": None},
                                "finishReason": "FINISH_REASON_UNSPECIFIED",
                            }
                        ]
                    }
                ),
                data({"candidates": [{"index": 1, "content": {"parts": [{"text": "no"}]}}]}),
                data({"usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1}}),
                part(
                    {"text": ""},
                    {"thoughtSignature": "x"},
                    reason="STOP",
                    usageMetadata={"promptTokenCount": 2},
                ),
            ],
            [usage(2, 1), finish("stop")],
            id="nulls",
        ),
        pytest.param(
            "google", [part(reason="LANGUAGE")], [finish("other")], id="nothing but an end"
        ),
    ],
)
def test_the_other_wires_are_tolerant_too(wire: str, frames: list[bytes], events: Events) -> None:
    """Missing, empty and new fields of Anthropic's and Google's wires lose nothing."""
    assert read(b"".join(frames), wire) == events


def test_a_damaged_event() -> None:
    """An object that is not JSON means that text is lost, so the stream is incomplete."""
    damaged = b'data: {"choices": [{"delta": {"content": "lo\n\n'
    assert read_until_error(HI + damaged + END, "openai") == (text("Hi"), "StreamIncompleteError")


def _broken(*pieces: bytes | None) -> Iterator[bytes | None]:
    yield from pieces
    raise ProviderUnavailableError("The connection broke.")


def test_a_fault_of_the_connection() -> None:
    """A fault before the end mark makes the answer incomplete; after it, the answer is whole."""
    with pytest.raises(StreamIncompleteError):
        read(_broken(HI))
    assert read(_broken(HI, END)) == [*text("Hi"), finish("stop")]


def test_a_connection_that_stays_open() -> None:
    """After the last mark a silence ends the reading, so that a server that does not close delays nobody."""
    assert read(_broken(HI, END, DONE, None)) == [*text("Hi"), finish("stop")]
    silent = iter([HI, END, DONE, None, HI])
    assert read(silent) == [*text("Hi"), finish("stop")]
    assert next(silent) == HI


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        ("google", [part({"text": each}, reason="STOP") for each in "abc"]),
        ("openai", [chunk({"content": each}, "stop") for each in "abc"]),
    ],
)
def test_a_finish_reason_in_every_event(wire: str, events: list[bytes]) -> None:
    """Pauses between events that all have one cut nothing off."""
    pauses: list[bytes | None] = [None] * 4
    pieces = [events[0], *pauses, events[1], *pauses, events[2]]
    assert read(iter(pieces), wire) == [*text("a"), *text("b"), *text("c"), finish("stop")]


def test_the_fields_of_each_event() -> None:
    """``to_dict`` returns what the contract names for the type; an event cannot be changed."""
    said = StreamEvent("text", "Hi")
    assert said.to_dict() == {"text": "Hi"}
    assert StreamEvent("reasoning", "Hm").to_dict() == {"text": "Hm"}
    assert FIRST.to_dict() == {"id": "x", "name": "f", "arguments": '{"a":1}'}
    assert usage(1, 2).to_dict() == {"input_tokens": 1, "output_tokens": 2}
    assert finish("stop").to_dict() == {"reason": "stop"}
    begun = StreamEvent("start", provider="openai", model="m", source="session")
    assert begun.to_dict() == {"provider": "openai", "model": "m", "source": "session"}
    with pytest.raises(AttributeError):
        said.text = "Ho"
    assert msgspec.json.encode(said.to_dict()) == b'{"text":"Hi"}'


def test_nothing_after_the_end_mark_holds_the_end_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stays open after its end mark, silent or with comments for ever, does not delay the finish."""
    clock = itertools.count()
    monkeypatch.setattr("flask_byok.wires.events.monotonic", lambda: next(clock))
    mark = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
    for more in (b": still here\n\n", None):
        after = iter([more] * 1000)
        found = read(itertools.chain([mark], after))
        assert [event.type for event in found] == ["text", "finish"]
        assert len(list(after)) > 990
