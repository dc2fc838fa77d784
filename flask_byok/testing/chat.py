"""The conversation of every fake provider, in any wire format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from .script import Script
from .wire import Request

#: A model of this name, or a last message that is just this word, ends a stream after two words:
#: the connection is dropped, an error event is sent, or the key is revoked and the stream says so.
ENDINGS = {
    "fail-midstream": Script(cut_after=2),
    "error-midstream": Script(error="provider_overloaded"),
    "revoked-midstream": Script(error="key_rejected"),
}

WORDS_BEFORE_ENDING = 2
QUOTED_CHARACTERS = 200


def reply_text(provider: str, message: str) -> str:
    """Say what the fake provider answers to `message`; the same message, the same answer."""
    quoted = message.strip()
    if len(quoted) > QUOTED_CHARACTERS:
        quoted = quoted[:QUOTED_CHARACTERS] + "…"
    return (
        f"Hello! This is the {provider} provider of the flask-byok test server. "
        f"You said: “{quoted}”. Your key works, and this answer came word by word."
    )


def plan(request: Request, model: str, message: str) -> Script:
    """Return what to answer to the last `message` a person wrote: as scripted, or else as usual."""
    script = request.scripted() or _usual(request, model, message)
    if script.usage is not None:
        return script
    return dataclasses.replace(script, usage=(len(message.split()), len(script.pieces)))


def _usual(request: Request, model: str, message: str) -> Script:
    words = tuple(re.findall(r"\s*\S+", reply_text(request.provider, message)))
    ending = next((e for e in ENDINGS if e in (model, message.strip())), "")
    if not ending:
        return Script(texts=words)
    if ending == "revoked-midstream":
        request.revoke()
    return dataclasses.replace(ENDINGS[ending], texts=words[:WORDS_BEFORE_ENDING])


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
