"""Scripted answers to conversations and scripted refusals, the same for every wire format."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from threading import Lock
from typing import Protocol, TypeVar

from .wire import KINDS, Answer, ConnectionDropped, EventStream, Reply, Request, json_answer

#: Our words for the ways an answer ends, in the words of each wire. OpenAI tells a refusal by the field that its text
#: is in; Anthropic has no word for a content filter, Google none for a refusal.
FINISHES = {
    "openai": {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "content_filter": "content_filter",
        "refusal": "stop",
        "other": "other",  # as no provider ends well or badly: "error" is a fault
    },
    "anthropic": {
        "stop": "end_turn",
        "length": "max_tokens",
        "tool_calls": "tool_use",
        "refusal": "refusal",
        "other": "pause_turn",
    },
    "google": {
        "stop": "STOP",
        "length": "MAX_TOKENS",
        "tool_calls": "STOP",
        "content_filter": "SAFETY",
        "other": "OTHER",
    },
}

_HTML = b"<!doctype html><title>Sign in</title><p>Sign in to this network."

#: A tool call as (id, name, arguments as a JSON text).
ToolCall = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the answer to one conversation has, in any provider's format.

    Its *pieces* are its reasoning, its texts and its tool calls, in this order, numbered from 0. A call that asks for
    no stream gets them as one answer.

    :param texts: pieces of text.
    :param reasoning: pieces of reasoning.
    :param tool_calls: tuples of id, name and arguments, these as a mapping or as a JSON text.
    :param usage: the numbers of input and output tokens; by default words and pieces are counted. OpenAI's format
        sends them only if the call asks for them.
    :param finish: ``stop``, ``length``, ``tool_calls``, ``content_filter``, ``refusal``, ``other``, or the provider's
        own word; None for no finish reason. With tool calls ``stop`` means ``tool_calls``.
    :param done: False leaves out the last mark: OpenAI's ``[DONE]``, Anthropic's ``message_stop``.
    :param error: a kind of refusal, sent inside the stream in place of the end.
    :param delay: seconds before the answer begins.
    :param silence: seconds of silence before pieces, by their numbers; the number after the last piece is the end's.
    :param cut_after: the number of pieces after which the connection breaks.
    :param cut_at: the number of bytes of the body after which it breaks.
    :param instead: what comes in place of a stream, with status 200: ``html``, ``error`` (an error object),
        ``completion`` (a whole answer), ``empty``, or bytes or frames of bytes, sent as they are.
    """

    texts: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[tuple[str, str, str | Mapping[str, object]]] = ()
    usage: tuple[int, int] | None = None
    finish: str | None = "stop"
    done: bool = True
    error: str | None = None
    delay: float = 0.0
    silence: Mapping[int, float] = field(default_factory=dict)
    cut_after: int | None = None
    cut_at: int | None = None
    instead: str | bytes | Sequence[bytes] = ""

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls, their arguments as JSON texts."""
        return [
            (id, name, given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))
            for id, name, given in self.tool_calls
        ]

    @property
    def pieces(self) -> list[tuple[str, str | ToolCall]]:
        """The pieces in order, each with its kind: "reasoning", "text" or "tool_call"."""
        return [
            *(("reasoning", text) for text in self.reasoning),
            *(("text", text) for text in self.texts),
            *(("tool_call", call) for call in self.calls),
        ]

    @property
    def tokens(self) -> tuple[int, int]:
        """The numbers of input and output tokens."""
        return self.usage or (0, 0)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.texts)

    def finish_word(self, adapter: str) -> str | None:
        """Return the finish reason in the wire's word."""
        if self.finish is None:
            return None
        finish = "tool_calls" if self.tool_calls and self.finish == "stop" else self.finish
        return FINISHES[adapter].get(finish, finish)

    def check(self, adapter: str) -> None:
        """Check that this wire can say it.

        :raises ValueError: it cannot.
        """
        if adapter not in FINISHES:
            raise ValueError("This provider has no conversations.")
        ours = FINISHES["openai"]
        if self.finish in ours and self.finish not in FINISHES[adapter]:
            known = ", ".join(FINISHES[adapter])
            raise ValueError(f"No finish {self.finish!r} here; there are {known}.")
        if self.error is not None:
            check_kind(self.error, adapter)
        if isinstance(self.instead, str) and self.instead not in ("", *_INSTEAD):
            raise ValueError(f"No answer {self.instead!r}; there are {', '.join(_INSTEAD)}.")
        if not self.instead and (self.cut_after or 0) > len(self.pieces):
            raise ValueError(f"cut_after={self.cut_after}: there are {len(self.pieces)} pieces.")
        if adapter == "google" and not all(is_object(call[2]) for call in self.calls):
            raise ValueError("Google's arguments of a tool call are a JSON object.")


@dataclass(frozen=True)
class Refusal:
    """A refusal of one of the `KINDS`."""

    kind: str
    retry_after: float | None = None


def check_kind(kind: str, adapter: str) -> None:
    """Check that this wire has such a refusal.

    :raises ValueError: it has not. Google answers a blocked prompt with status 200.
    """
    known = [k for k in KINDS if (adapter, k) != ("google", "content_filtered")]
    if kind not in known:
        raise ValueError(f"No refusal {kind!r} here; there are {', '.join(known)}.")


def is_object(text: str) -> bool:
    """Return True if this is the text of a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


Scripted = Answer | Script | Refusal
T = TypeVar("T", Answer, Script, Refusal)


class ScriptQueue:
    """What was scripted for each provider, in order. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: defaultdict[str, deque[Scripted]] = defaultdict(deque)

    def add(self, provider: str, scripted: Scripted) -> None:
        """Append what the provider does next."""
        with self._lock:
            self._waiting[provider].append(scripted)

    def take(self, provider: str, kind: type[T]) -> T | None:
        """Take what comes next, if it is of this kind."""
        with self._lock:
            waiting = self._waiting[provider]
            first = waiting[0] if waiting else None
            if isinstance(first, kind):
                waiting.popleft()
                return first
        return None


class Format(Protocol):
    """One answer in a wire's format."""

    def opening(self) -> Iterator[bytes]:
        """Build the frames before the first piece."""

    def piece(self, kind: str, value: str | ToolCall) -> Iterator[bytes]:
        """Build the frames of one piece."""

    def closing(self) -> Iterator[bytes]:
        """Build the frames of the end."""

    def error(self, kind: str) -> Iterator[bytes]:
        """Build the frames of an error of this kind."""

    def whole(self) -> Answer:
        """Build the answer to a call that asks for no stream."""


#: Answers with status 200 that are no stream.
_INSTEAD = ("html", "error", "completion", "empty")


def converse(request: Request, script: Script, answer: Format, *, streamed: bool) -> Reply:
    """Answer a conversation as scripted."""
    reply: Reply
    if not isinstance(script.instead, str):
        given = [script.instead] if isinstance(script.instead, bytes) else script.instead
        frames = _paced(request, script, ([frame] for frame in given))
        reply = EventStream(_cut(script, frames))
    elif script.instead:
        reply = _instead(script.instead, answer)
    elif streamed:
        frames = chain(answer.opening(), _paced(request, script, _steps(script, answer)))
        reply = EventStream(_cut(script, frames))
    else:
        reply = answer.whole()
    reply.delay = script.delay
    return reply


def _instead(form: str, answer: Format) -> Reply:
    if form == "completion":
        return answer.whole()
    if form == "html":
        return Answer(200, _HTML, "text/html; charset=utf-8")
    if form == "error":  # as some servers answer an unknown path
        return json_answer(200, {"error": "Unexpected endpoint or method."})
    return EventStream(iter(()))


def _steps(script: Script, answer: Format) -> Iterator[Iterable[bytes]]:
    """Yield the frames of each piece, and then those of the end."""
    for kind, value in script.pieces:
        yield answer.piece(kind, value)
    yield answer.error(script.error) if script.error else answer.closing()


def _paced(request: Request, script: Script, steps: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    for number, step in enumerate(steps):
        if number == script.cut_after:
            raise ConnectionDropped
        request.pause(script.silence.get(number, 0.0))
        yield from step


def _cut(script: Script, frames: Iterable[bytes]) -> Iterator[bytes]:
    left = math.inf if script.cut_at is None else script.cut_at
    for frame in frames:
        if len(frame) >= left:
            yield frame[: int(left)]
            raise ConnectionDropped
        left -= len(frame)
        yield frame
