"""From the bytes of an answer to the events of a stream, the same for the three wires.

The parser takes server-sent events as the HTML standard defines them
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream), with one difference: an event
at the end counts without its blank line if its data is whole. Forms are tolerated; the end is not: without the wire's
end mark a stream is incomplete, whatever came before.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from time import monotonic
from typing import Any, ClassVar, Literal

import msgspec

from ..errors import InvalidFieldError, ProviderUnavailableError, StreamIncompleteError
from ..model.credential import Tokens

#: Most bytes of one event (an image is one event), and of all tool calls of a stream.
EVENT_LIMIT = 16 * 1024 * 1024
#: Most bytes of a stream: a million tokens of 250 bytes.
STREAM_LIMIT = 256 * 1024 * 1024
#: Most tokens of one kind that a call can take. A larger number is not believed: sums of them have to fit a database.
MOST_TOKENS = 1_000_000_000

#: An end that is none: the provider could not go on, or the model made nothing that can be used.
_FAILED = "failed"
_NO_STREAM = "is not a stream. Check the model and the base URL, or try again"
#: What the wires call their ends, in lower case. Each of them means the same in each wire that has it.
_REASONS = {
    name: reason
    for reason, names in {
        "stop": "stop end_turn stop_sequence eos eos_token",
        "length": "length max_tokens model_length model_context_window_exceeded continuation",
        "tool_calls": "tool_calls function_call tool_use",
        "content_filter": "content_filter sensitive safety recitation prohibited_content spii blocklist model_armor "
        "escalation image_safety image_prohibited_content image_recitation",
        "refusal": "refusal",
        _FAILED: "error network_error insufficient_system_resource abort malformed_function_call malformed_response "
        "unexpected_tool_call too_many_tool_calls missing_thought_signature",
    }.items()
    for name in names.split()
}
_FIELDS = {
    "start": ("provider", "model", "source"),
    "text": ("text",),
    "reasoning": ("text",),
    "tool_call": ("id", "name", "arguments"),
    "usage": ("input_tokens", "output_tokens"),
    "finish": ("reason",),
}
#: Seconds without an event after which a finish reason is the last one.
_PATIENCE = 5
_decode = msgspec.json.Decoder().decode
# In a text the quotes would be escaped.
_USAGE = re.compile(rb'.*"usage(?:Metadata)?"\s*:\s*(?=\{)', re.DOTALL)
#: Bytes at the end of an event, or of another answer, in which its usage is looked for.
_TAIL = 64 * 1024


Said = Literal["text", "reasoning"]


class StreamEvent(msgspec.Struct, frozen=True):
    """One event of a provider's answer. What a type does not have is empty.

    ``start`` has ``provider``, ``model``, ``source``; ``text`` and ``reasoning`` have ``text``; ``tool_call`` has
    ``id``, ``name`` and ``arguments`` (the text of a JSON object); ``usage`` has ``input_tokens`` and
    ``output_tokens``; ``finish`` has ``reason``: ``stop length tool_calls content_filter refusal other``.
    """

    type: Literal["start", "text", "reasoning", "tool_call", "usage", "finish"]
    text: str = ""
    id: str = ""
    name: str = ""
    arguments: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    reason: str = ""
    provider: str = ""
    model: str = ""
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of this type of event, without the type."""
        return {name: getattr(self, name) for name in _FIELDS[self.type]}


class ErrorInStream(Exception):
    """An error that the provider sends as an event of a stream.

    :param body: its data as it came. It can hold the conversation or the key, so it is not in the message.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("The provider reported an error within its answer.")
        self.body = body


class _Call(msgspec.Struct):
    """A tool call that is being put together. The arguments are UTF-8: many short texts would take more memory."""

    id: str
    name: str
    arguments: bytearray = msgspec.field(default_factory=bytearray)


class Reader:
    """What one answer has said so far. Each wire's reader adds how its events are read."""

    #: The numbers of a usage object that add up to the input, and to the output.
    input_names: ClassVar[tuple[str, ...]]
    output_names: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        #: True after the first event; after the end mark; when nothing can follow.
        self.begun = self.ended = self.over = False
        #: The texts of the latest event.
        self.said: list[StreamEvent] = []
        #: First halves of characters.
        self._halves: dict[Said, str] = {}
        self._reason = ""
        self._usage: dict[str, int] = {}
        self._calls: list[_Call] = []
        #: The last call by each index.
        self._open: dict[int | None, _Call] = {}
        self._held = 0

    def read(self, data: dict[str, Any]) -> None:
        """Say the texts of one event, and keep the rest for the end."""
        raise NotImplementedError

    def done(self) -> None:
        """Take note of ``[DONE]``, which means something in OpenAI's wire only."""

    @property
    def tokens(self) -> Tokens | None:
        """The tokens taken until now, as the provider says; None if it has not said any."""
        kinds = self.input_names, self.output_names
        sums = [sum(self._usage.get(name, 0) for name in names) for names in kinds]
        return Tokens(*sums) if self._usage else None

    def end(self) -> Iterator[StreamEvent]:
        """Yield the tool calls, the usage and the finish.

        :raises StreamIncompleteError: the end mark has not come, or means a fault.
        """
        if not self.ended:
            cut = "broke off before its end. Try again" if self.begun else _NO_STREAM
            raise StreamIncompleteError(f"The provider's answer {cut}.")
        if self._reason == _FAILED:
            raise StreamIncompleteError("The provider's answer ended with an error.")
        for kind, half in self._halves.items():
            yield StreamEvent(kind, _whole(half))
        calls_are_meant = bool(self._calls) and self._reason in ("", "stop", "tool_calls")
        for call in self._calls:
            # Any other end may have cut the last call off.
            if calls_are_meant or isinstance(_read_json(call.arguments), dict):
                arguments = call.arguments.decode("utf-8", "surrogatepass") or "{}"
                id, name, arguments = map(_whole, (call.id, call.name, arguments))
                yield StreamEvent("tool_call", id=id, name=name, arguments=arguments)
        if tokens := self.tokens:
            yield StreamEvent("usage", input_tokens=tokens.input, output_tokens=tokens.output)
        reason = "tool_calls" if calls_are_meant else self._reason or "other"
        yield StreamEvent("finish", reason=reason)

    def _say(self, kind: Said, text: Any) -> None:
        """Say a text in whole characters: servers that count in UTF-16 cut some into two events.

        A half that stays alone becomes U+FFFD.
        """
        if not text or not isinstance(text, str):
            return
        text = self._halves.pop(kind, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            self._halves[kind], text = text[-1], text[:-1]
        if text:
            self.said.append(StreamEvent(kind, text if text.isascii() else _whole(text)))

    def _finish(self, reason: Any) -> None:
        """Note the wire's end mark, if this is one."""
        if isinstance(reason, str) and reason and reason != "FINISH_REASON_UNSPECIFIED":
            self.ended, self._reason = True, _REASONS.get(reason.lower(), "other")

    def _note_usage(self, usage: Any) -> None:
        """Note the numbers of a usage object; later ones replace earlier ones."""
        if isinstance(usage, dict):
            for name in (*self.input_names, *self.output_names):
                if usage.get(name) is not None:
                    self._usage[name] = _to_count(usage[name])

    def find_usage(self, data: bytes | bytearray) -> None:
        """Note the last usage object in bytes of JSON, which may begin and end anywhere."""
        if found := _USAGE.match(data := data[-_TAIL:]):
            with suppress(ValueError, RecursionError):
                text = data[found.end() :].decode("utf-8", "replace")
                self._note_usage(json.JSONDecoder().raw_decode(text)[0])

    def _open_call(self, index: int | None, id: Any, name: Any) -> _Call:
        call = _Call(to_text(id) or new_id(), to_text(name))
        self._hold(512 + 4 * len(call.id + call.name))
        self._calls.append(call)
        self._open[index] = call
        return call

    def _add_arguments(self, call: _Call, arguments: Any) -> None:
        """Add a piece of text, or an object as a whole."""
        if isinstance(arguments, dict):
            arguments = "" if call.arguments else json.dumps(arguments, ensure_ascii=False)
        piece = to_text(arguments).encode("utf-8", "surrogatepass")
        if piece == call.arguments and _read_json(piece):
            return  # the whole again, at the end
        self._hold(len(piece))
        call.arguments += piece

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > EVENT_LIMIT:
            raise StreamIncompleteError("The provider's answer has too many tool calls.")


def read_events(pieces: Iterable[bytes | None], reader: Reader) -> Iterator[StreamEvent | None]:
    """Yield the events of an answer, and None about each second, whether the provider says something or not.

    None among the pieces is a second of silence. Other seconds may tell nothing either: they bring comments, or the
    arguments of a tool call.

    The body is read to its end, so that its connection can serve again, but for no more than about a second after the
    end mark; where more can follow, as some servers write a finish reason into every event, for five seconds without an
    event. What happens to it then does not matter.

    :raises StreamIncompleteError: the bytes are no stream, or too many, or end before the end mark.
    :raises ErrorInStream: the provider sent an error within the stream.
    """
    parser, left, fault = _Parser(), STREAM_LIMIT, ""
    told, quiet = monotonic(), 0
    try:
        for piece in chain(pieces, (b"\n\n",)):
            if piece is None:
                pass
            elif (left := left - len(piece)) < 0:
                raise StreamIncompleteError("The provider's answer is too long.")
            else:
                for name, data in parser.feed(piece):
                    quiet = 0
                    _read(reader, name, data)
                    yield from reader.said
                    reader.said = []
            if piece is None or monotonic() - told > 1.0:
                quiet += 1
                if reader.over or (reader.ended and quiet == _PATIENCE):
                    break
                told = monotonic()
                yield None
    except ProviderUnavailableError as error:
        fault = str(error)
    if fault and not reader.ended:
        raise StreamIncompleteError(fault)
    yield from reader.end()


def _whole(text: str) -> str:
    """Join the halves of characters that stand side by side; the others become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode(value: Any) -> bytes:
    """Return a value as JSON. Half a character, where a front end has cut a text, becomes U+FFFD.

    :raises InvalidFieldError: it has objects of other kinds, or is nested too deep.
    """
    with suppress(TypeError, ValueError, RecursionError):
        try:
            return msgspec.json.encode(value)
        except UnicodeEncodeError:
            return _whole(json.dumps(value, ensure_ascii=False)).encode()
    raise InvalidFieldError("Messages and params are values of JSON, not too deep.")


def _read(reader: Reader, name: bytes, data: bytes) -> None:
    """Read one event. Data that is not an object says nothing, unless it is a damaged one."""
    value = _read_json(data)
    if reader.over:
        return
    if _is_error(name, value):
        raise ErrorInStream(data)
    if isinstance(value, dict):
        reader.begun = True
        try:
            reader.read(value)
        except RecursionError:
            raise _damaged() from None
    elif data.strip() == b"[DONE]":
        reader.done()
    elif data.lstrip().startswith(b"{") and not reader.ended:
        raise _damaged()


def _damaged() -> StreamIncompleteError:
    return StreamIncompleteError("An event of the provider's answer is damaged.")


def _is_error(name: bytes, value: Any) -> bool:
    if name == b"error":
        return True
    marks = (value.get("type"), value.get("object")) if isinstance(value, dict) else ()
    return bool(marks) and bool(value.get("error") or "error" in marks)


class Scanner:
    """Looks through an answer that is passed on as it is: for its usage, and in a stream for an error.

    :param is_stream: it is a stream of events; else the usage is looked for at its end, where JSON has it.
    """

    def __init__(self, reader: Reader, *, is_stream: bool) -> None:
        self._reader = reader
        self._parser = _Parser() if is_stream else None
        self._tail = bytearray()

    def feed(self, piece: bytes) -> bytes | None:
        """Return the data of the stream's first error, if it ends in this piece."""
        if self._parser is None:
            self._tail += piece
            if len(self._tail) > 2 * _TAIL:
                del self._tail[:-_TAIL]
            return None
        with suppress(StreamIncompleteError):
            for name, data in self._parser.feed(piece):
                # Most events are not looked into.
                if b'"usage' in data:
                    self._reader.find_usage(data)
                if (name == b"error" or b"error" in data) and _is_error(name, _read_json(data)):
                    self._parser = None
                    return data
            return None
        self._parser = None  # one event has too many bytes
        return None

    @property
    def tokens(self) -> Tokens | None:
        """The tokens that the call has taken, as far as the answer said until now."""
        self._reader.find_usage(self._tail)
        return self._reader.tokens


class _Parser:
    """Takes bytes in pieces of any size, and returns the events that each completes, as name and data."""

    def __init__(self) -> None:
        self._line = bytearray()  # what there is of one that is not complete
        self._after_cr = False
        self._first = True
        self._name = b""
        self._data = bytearray()

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes]]:
        """Return the events that end in this piece.

        :raises StreamIncompleteError: one event has too many bytes.
        """
        events: list[tuple[bytes, bytes]] = []
        if not piece:
            return events
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        lines = piece.splitlines()
        rest = lines.pop() if lines and not piece.endswith((b"\r", b"\n")) else b""
        for line in lines:
            if self._line:
                self._line += line
                line, self._line = bytes(self._line), bytearray()
            if line:
                self._take(line)
            elif self._data or self._name:
                if self._data:
                    events.append((self._name, bytes(self._data)))
                self._name, self._data = b"", bytearray()
        self._line += rest
        self._check(len(self._line))
        return events

    def _take(self, line: bytes) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        self._check(len(line))
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data += value.removeprefix(b" ") + b"\n"
        elif field == b"event":
            self._name = value.removeprefix(b" ")

    def _check(self, size: int) -> None:
        if size + len(self._data) > EVENT_LIMIT:
            raise StreamIncompleteError("An event of the provider's answer is too long.")


def _read_json(data: bytes | bytearray) -> Any:
    """Return the value, or None if this is not JSON.

    msgspec refuses what some servers send: NaN, huge numbers, half a surrogate pair (which stays in its text), bytes
    that are not UTF-8 (which become U+FFFD), control characters in texts.
    """
    with suppress(msgspec.DecodeError, RecursionError):
        return _decode(data)
    with suppress(ValueError, RecursionError):
        return json.loads(data.decode("utf-8", "replace"), strict=False)
    return None


def _to_count(value: Any) -> int:
    """Return a number of tokens, also from a text; 0 if it is none, or cannot be true."""
    with suppress(TypeError, ValueError, OverflowError):
        if 0 <= (count := int(value)) <= MOST_TOKENS:
            return count
    return 0


def new_id() -> str:
    """Return an id for a call without one. Conversations have many calls, so it is unlike all others."""
    return f"call_{secrets.token_hex(8)}"


def to_text(value: Any) -> str:
    """Return the value if it is a text, else an empty one."""
    return value if isinstance(value, str) else ""


def first(choices: Any) -> Mapping[str, Any]:
    """Return the choice with index 0, which is the one that was asked for; or an empty one."""
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index") in (0, None, "0"):
            return choice
    return {}
