"""What goes in and out of a fake provider, apart from the socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec

if TYPE_CHECKING:
    from .script import Script

#: What a key of a fake provider does. Any key that was never registered is "bad".
#: `blocked` and `team_blocked` differ from `disabled` only at xAI, `service_disabled` from
#: `restricted` only at Google.
BEHAVIOURS = (
    "good",
    "restricted",
    "service_disabled",
    "broke",
    "rate_limited",
    "overloaded",
    "disabled",
    "blocked",
    "team_blocked",
    "slow",
    "bad",
)

#: The documented refusals, under the codes of our own errors; `fake.refuse_next` takes these.
KINDS = (
    "key_rejected",
    "disabled",
    "restricted",
    "not_permitted",
    "region_blocked",
    "no_credit",
    "billing_limit",
    "provider_rate_limited",
    "provider_overloaded",
    "provider_unavailable",
    "context_too_long",
    "model_unknown",
    "content_filtered",
    "request_refused",
)

#: The refusal that a key of this behaviour meets; "" for none.
_KIND_OF = {
    "good": "",
    "slow": "",
    "bad": "key_rejected",
    "broke": "no_credit",
    "rate_limited": "provider_rate_limited",
    "overloaded": "provider_overloaded",
    "blocked": "disabled",
    "team_blocked": "disabled",
}

#: A fixed time of creation, so that every answer is the same on every run.
CREATED = 1_750_000_000


class ConnectionDropped(Exception):
    """Close the connection now, without finishing the answer."""


@dataclass(frozen=True, repr=False)
class Request:
    """One request, with the path below the provider's base URL and the key's behaviour."""

    spec: ProviderSpec
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, object]
    api_key: str | None
    #: The key's behaviour; for a good key the kind of refusal that was scripted, if one was.
    outcome: str
    #: Seconds that a scripted refusal asks to wait.
    retry_after: float | None
    #: Takes the answer that was scripted for this conversation, if one was.
    scripted: Callable[[], Script | None]
    #: Waits for so many seconds; raises ConnectionDropped when the server stops.
    pause: Callable[[float], None]
    #: Makes the request's own key a bad one from now on.
    revoke: Callable[[], None]

    @property
    def provider(self) -> str:
        """The provider's id."""
        return self.spec.id

    @property
    def kind(self) -> str:
        """The kind of refusal that this request meets; "" if it may go on."""
        return _KIND_OF.get(self.outcome, self.outcome)

    @property
    def model(self) -> str:
        """The model that the body names, or the path as Google's does."""
        return str(self.body.get("model") or self.path.partition("/models/")[2].partition(":")[0])


@dataclass
class Answer:
    """A complete answer with its length known."""

    status: int
    content: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    #: Seconds before the status line.
    delay: float = 0.0


@dataclass
class EventStream:
    """Server-sent events, each frame sent as one chunk; a frame may raise ConnectionDropped."""

    frames: Iterator[bytes]
    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    #: Seconds before the status line.
    delay: float = 0.0


@dataclass
class RawStream:
    """Bytes written to the socket as they are, status line included; then it is closed."""

    frames: Iterator[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


Reply = Answer | EventStream | RawStream


def json_answer(status: int, body: object, **headers: str) -> Answer:
    """Build a JSON answer; an underscore in a header's name stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), headers=named)


def event(data: object, name: str | None = None) -> bytes:
    """Build one server-sent event with JSON data."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def answer_event(answer: Answer, name: str | None = None) -> bytes:
    """Build the event that carries, inside a stream, what else were an answer of its own."""
    return event(json.loads(answer.content), name)
