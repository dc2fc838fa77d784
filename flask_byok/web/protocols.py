"""A provider's answer as a stream that a front end reads: our own events, and those of three common clients."""

from __future__ import annotations

import errno
import logging
import select
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal, cast
from uuid import uuid4

import msgspec
from flask import Response, has_request_context, request, url_for

from ..errors import ByokError, CredentialError, InvalidFieldError, ProviderUnavailableError
from ..providers import BaseProvider
from ..wires.events import StreamEvent
from .caller import SOURCE_HEADER
from .problems import Problem, problem

#: The forms in which an answer may be streamed.
Protocol = Literal["byok", "openai", "ui-message", "text"]
#: Seconds of silence after which a comment is sent; proxies cut connections that are silent for 60.
HEARTBEAT = 9.0
#: The same where only writing shows whether the browser has left: each time that a conversation yields None.
_BLIND_HEARTBEAT = 0.9
COMMENT = b":\n\n"
#: Codes of errors, beside those about credentials, that another key in the settings mends.
_MENDED_THERE = ("no_credit", "not_permitted")

_logger = logging.getLogger("flask_byok.web")

#: What a conversation yields: None stands for a while of silence.
Events = Iterator[StreamEvent | None]


class _Writer:
    """Writes the events of one answer in one protocol, our own: each has its name and JSON."""

    mimetype: ClassVar[str] = "text/event-stream"
    headers: ClassVar[Mapping[str, str]] = {}
    #: What is sent in a long silence, and after a whole answer.
    heartbeat: ClassVar[bytes] = COMMENT
    end: ClassVar[bytes] = b"event: done\ndata: {}\n\n"

    def event(self, event: StreamEvent) -> bytes:
        """Return the bytes for an event; none for one that the protocol does not tell."""
        name = "delta" if event.type == "text" else event.type
        return frame(event.to_dict(), name)

    def error(self, told: Problem) -> bytes:
        """Return the bytes for an error, which ends the stream.

        :raises ConnectionResetError: the protocol can only break off.
        """
        return frame(told, "error")


class _OpenAI(_Writer):
    """``chat.completion.chunk``, as OpenAI's SDKs read it.

    Source: https://platform.openai.com/docs/api-reference/chat-streaming
    """

    end: ClassVar[bytes] = b"data: [DONE]\n\n"

    def __init__(self) -> None:
        self._facts = _facts("chat.completion.chunk")
        self._calls = 0
        self._usage = b""

    def event(self, event: StreamEvent) -> bytes:
        match event.type:
            case "start":
                # Beside OpenAI's model, provider and source; a second start tells those of another key.
                is_first = "model" not in self._facts
                self._facts["model"] = event.model
                begun = {"role": "assistant", "content": ""} if is_first else {}
                return self._chunk(begun, **event.to_dict())
            case "text":
                return self._chunk({"content": event.text})
            case "reasoning":
                return self._chunk({"reasoning_content": event.text})
            case "tool_call":
                number, self._calls = self._calls, self._calls + 1
                return self._chunk({"tool_calls": [{"index": number, **_call_of(event)}]})
            case "usage":  # OpenAI tells it after the finish
                self._usage = frame({**self._facts, "choices": [], "usage": _usage_of(event)})
                return b""
            case _:
                return self._chunk({}, _reason_of(event)) + self._usage

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return frame({**self._facts, **more, "choices": [choice]})

    def error(self, told: Problem) -> bytes:
        facts = {"message": told["detail"], "type": told["code"], "param": None}
        return frame({"error": {**told, **facts}})


def _facts(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time())}


def _call_of(event: StreamEvent) -> dict[str, Any]:
    function = {"name": event.name, "arguments": event.arguments}
    return {"id": event.id, "type": "function", "function": function}


def _usage_of(event: StreamEvent) -> dict[str, int]:
    used = {"prompt_tokens": event.input_tokens, "completion_tokens": event.output_tokens}
    return {**used, "total_tokens": sum(used.values())}


def _reason_of(event: StreamEvent) -> str:
    return "content_filter" if event.reason == "refusal" else event.reason


def completion(events: Iterable[StreamEvent | None]) -> dict[str, Any]:
    """Return a whole answer as OpenAI's ``chat.completion``."""
    whole, reason = _facts("chat.completion"), None
    texts: dict[str, list[str]] = {"text": [], "reasoning": []}
    message: dict[str, Any] = {"role": "assistant"}
    for event in filter(None, events):
        match event.type:
            case "start":
                whole["model"] = event.model
            case "tool_call":
                message.setdefault("tool_calls", []).append(_call_of(event))
            case "usage":
                whole["usage"] = _usage_of(event)
            case "finish":
                reason = _reason_of(event)
            case kind:
                texts[kind].append(event.text)
    message["content"] = "".join(texts["text"]) or None
    if texts["reasoning"]:
        message["reasoning_content"] = "".join(texts["reasoning"])
    whole["choices"] = [{"index": 0, "message": message, "finish_reason": reason}]
    return whole


class _UIMessage(_Writer):
    """The AI SDK's UI message stream, as ``useChat`` reads it.

    Source: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol
    """

    headers: ClassVar[Mapping[str, str]] = {"x-vercel-ai-ui-message-stream": "v1"}
    end: ClassVar[bytes] = _OpenAI.end

    def __init__(self) -> None:
        self._begun = False
        self._part, self._id = "", "0"
        self._finish: dict[str, Any] = {"type": "finish"}

    def event(self, event: StreamEvent) -> bytes:
        match event.type:
            case "start":
                facts = {"messageMetadata": event.to_dict()}
                if self._begun:
                    return frame({"type": "message-metadata", **facts})
                self._begun = True
                return frame({"type": "start", **facts}) + frame({"type": "start-step"})
            case "text" | "reasoning":
                begin = b"" if self._part == event.type else self._end() + self._begin(event.type)
                delta = {"type": f"{event.type}-delta", "id": self._id, "delta": event.text}
                return begin + frame(delta)
            case "tool_call":
                return self._end() + frame(self._call(event))
            case "usage":
                used = {"inputTokens": event.input_tokens, "outputTokens": event.output_tokens}
                used["totalTokens"] = sum(used.values())
                self._finish["messageMetadata"] = {"usage": used}
                return b""
            case _:
                self._finish["finishReason"] = _reason_of(event).replace("_", "-")
                return self._end() + frame({"type": "finish-step"}) + frame(self._finish)

    def _begin(self, part: str) -> bytes:
        self._part, self._id = part, str(int(self._id) + 1)
        return frame({"type": f"{part}-start", "id": self._id})

    def _end(self) -> bytes:
        part, self._part = self._part, ""
        return frame({"type": f"{part}-end", "id": self._id}) if part else b""

    @staticmethod
    def _call(event: StreamEvent) -> dict[str, Any]:
        facts = {"toolCallId": event.id, "toolName": event.name, "dynamic": True}
        try:
            arguments = msgspec.json.decode(event.arguments)
        except msgspec.DecodeError:
            text = "The arguments of this call are not JSON."
            fault = {"type": "tool-input-error", "input": event.arguments, "errorText": text}
            return {**fault, **facts}
        return {"type": "tool-input-available", **facts, "input": arguments}

    def error(self, told: Problem) -> bytes:
        facts = {"type": "data-byok-error", "data": told, "transient": True}
        return frame(facts) + frame({"type": "error", "errorText": told["detail"]})


class _Text(_Writer):
    """The texts alone. There is no way to tell an error in it, so the connection breaks off, and ``fetch`` fails."""

    mimetype: ClassVar[str] = "text/plain"
    heartbeat: ClassVar[bytes] = b""
    end: ClassVar[bytes] = b""

    def event(self, event: StreamEvent) -> bytes:
        return event.text.encode() if event.type == "text" else b""

    def error(self, told: Problem) -> bytes:
        # Servers close the connection then, and log no fault of the program's.
        raise ConnectionResetError(errno.ECONNRESET, told["code"])


_WRITERS: Mapping[Protocol, Callable[[], _Writer]] = {
    "byok": _Writer,
    "openai": _OpenAI,
    "ui-message": _UIMessage,
    "text": _Text,
}


def respond(provider: BaseProvider, events: Events, protocol: Protocol) -> Response:
    """Return the answer that streams these events.

    Its head and the first event leave at once. ``text`` waits for the first text instead: an error before it is raised,
    and answered with its own status.

    :raises InvalidFieldError: there is no such protocol.
    """
    if protocol not in _WRITERS:
        raise InvalidFieldError(f"A stream's protocol is one of {', '.join(map(repr, _WRITERS))}.")
    writer = _WRITERS[protocol]()
    link = Link()
    if protocol == "text":
        events = begun(events, link, ("text", "finish"))
    settings = url_for("byok.settings_page") if has_request_context() else None
    body = _pieces(provider, events, writer, link, settings)
    response = Response(body, mimetype=writer.mimetype)
    response.headers.update(writer.headers)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Accel-Buffering"] = "no"  # nginx: pass each event on at once
    response.headers[SOURCE_HEADER] = next(reversed(provider.served), provider.source)
    return response


def begun(events: Events, link: Link, types: Collection[str]) -> Events:
    """Read up to the first event of these types, and return all; nothing more if the browser leaves meanwhile.

    :raises ByokError: there is none.
    """
    read: list[StreamEvent] = []
    for event in events:
        if event is not None:
            read.append(event)
            if event.type in types:
                break
        elif link.is_gone():
            _close(events)

    def all_of_them() -> Events:
        try:
            yield from read
            yield from events
        finally:
            _close(events)

    return all_of_them()


def _pieces(
    provider: BaseProvider, events: Events, writer: _Writer, link: Link, settings: str | None
) -> Iterator[bytes]:
    latest = time.monotonic()
    try:
        for event in events:
            if event is None and link.is_gone():
                return
            piece = b"" if event is None else writer.event(event)
            if not piece and link.needs_beat(latest):
                piece = writer.heartbeat
            if piece:
                latest = time.monotonic()
                yield piece
        yield writer.end
    except ByokError as error:
        yield writer.error(_told(error, settings))
    except Exception as error:
        # The error's text may contain the key: it is neither sent nor logged.
        _logger.error("A stream of %s broke: %s", provider.name, type(error).__name__)
        yield writer.error(_told(ProviderUnavailableError(provider=provider.name), settings))
    finally:
        _close(events)


def _close(events: Events) -> None:
    if (close := getattr(events, "close", None)) is not None:
        close()


def _told(error: ByokError, settings: str | None) -> Problem:
    told = problem(error)
    if settings and (isinstance(error, CredentialError) or error.code in _MENDED_THERE):
        told["settings_url"] = settings
    return told


class Link:
    """The connection to the browser, as far as the server hands it over.

    gunicorn's threaded and greenlet workers and Werkzeug do, for the present request; others do not.
    """

    def __init__(self) -> None:
        environ = request.environ if has_request_context() else {}
        self._connection: Any = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
        #: None if nothing tells whether the browser is there.
        self._poll = _system_poll() if hasattr(self._connection, "fileno") else None

    def needs_beat(self, latest: float) -> bool:
        """Return True if silence since a time of ``time.monotonic`` has lasted long enough to write something.

        Where the browser's leaving cannot be seen, only writing shows it.
        """
        longest = HEARTBEAT if self._poll else _BLIND_HEARTBEAT
        return time.monotonic() - latest > longest

    def is_gone(self) -> bool:
        """Return True if the browser has closed the connection."""
        if self._poll is None:
            return False
        with suppress(OSError, ValueError):
            # Not a peek with recv: of TLS that would show the record that says good-bye, and eat it.
            poll = self._poll()
            poll.register(self._connection.fileno(), select.POLLIN | _HUNG_UP)
            return any(event & _GONE for _, event in poll.poll(0)) or self._is_at_end()
        return True

    def _is_at_end(self) -> bool:
        """Ask systems that do not tell a half-closed connection (all but Linux)."""
        if hasattr(select, "POLLRDHUP"):
            return False
        with suppress(BlockingIOError):
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            return bool(self._connection.recv(1, flags) == b"")
        return False


def _system_poll() -> Callable[[], select.poll] | None:
    """Return the system's own ``poll``; None where there is none. That of gevent does not tell of the other end."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_object_patched("select", "poll"):
        return cast("Callable[[], select.poll]", gevent.get_original("select", "poll"))
    return getattr(select, "poll", None)


_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)
# Windows has none of these.
_GONE = _HUNG_UP | sum(getattr(select, name, 0) for name in ("POLLHUP", "POLLERR", "POLLNVAL"))


def frame(data: Mapping[str, Any], name: str = "") -> bytes:
    """Return an event of ``text/event-stream``, by default without a name."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"
