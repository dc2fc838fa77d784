"""The conversation of every fake provider, in any wire format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .wire import ConnectionDropped, Request

#: A model of this name, or a last message that is just this word, ends a stream after two words:
#: the connection is dropped, an error event is sent, or the key is revoked and the stream says so.
ENDINGS = ("fail-midstream", "error-midstream", "revoked-midstream")

WORDS_BEFORE_ENDING = 2
QUOTED_CHARACTERS = 200


@dataclass(frozen=True)
class Turn:
    """One answer: its words in order, and how it ends ("" when it ends well)."""

    words: list[str]
    ending: str
    tokens_in: int

    @property
    def text(self) -> str:
        return "".join(self.words)


def reply_text(provider: str, message: str) -> str:
    """Say what the fake provider answers to `message`; the same message, the same answer."""
    quoted = message.strip()
    if len(quoted) > QUOTED_CHARACTERS:
        quoted = quoted[:QUOTED_CHARACTERS] + "…"
    return (
        f"Hello! This is the {provider} provider of the flask-byok test server. "
        f"You said: “{quoted}”. Your key works, and this answer came word by word."
    )


def take_turn(provider: str, model: str, message: str) -> Turn:
    """Plan the answer to the last `message` a person wrote."""
    ending = next((e for e in ENDINGS if e in (model, message.strip())), "")
    words = re.findall(r"\s*\S+", reply_text(provider, message))
    if ending:
        words = words[:WORDS_BEFORE_ENDING]
    return Turn(words, ending, tokens_in=len(message.split()))


def bad_end(request: Request, ending: str) -> str:
    """End a stream as asked: revoke the key, and name the behaviour whose error is to be sent.

    :raises ConnectionDropped: for "fail-midstream".
    """
    if ending == "fail-midstream":
        raise ConnectionDropped
    if ending == "revoked-midstream":
        request.revoke()
        return "bad"
    return "overloaded"


def text_of(content: object) -> str:
    """Read the text of a message's content: a string, or a list of parts with `text`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(part for part in parts if isinstance(part, str))


def last_message(entries: object, content_field: str) -> str:
    """Read the text of the last entry whose role is the person's."""
    if not isinstance(entries, list):
        return ""
    theirs = [
        entry
        for entry in entries
        if isinstance(entry, Mapping) and entry.get("role", "user") == "user"
    ]
    return text_of(theirs[-1].get(content_field)) if theirs else ""
