"""Chat messages as OpenAI writes them, taken apart for providers that write them otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidFieldError

_SYSTEM_ROLES = ("system", "developer")
_ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. ``role`` is ``user`` or ``assistant``."""

    role: str
    text: str


def split_system(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Turn]]:
    """Return the system's instructions as one text, and the conversation.

    :raises InvalidFieldError: a message has another role, or content other than text.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        role, text = message.get("role"), _text(message.get("content"))
        if role in _SYSTEM_ROLES:
            system.append(text)
        elif role in _ROLES:
            turns.append(Turn(role, text))
        else:
            raise InvalidFieldError("A message's role is one of system, user and assistant.")
    return "\n\n".join(system), turns


def _text(content: Any) -> str:
    """Read a text, or OpenAI's list of text parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidFieldError("A message's content is text.")
    return "".join(map(str, texts))
