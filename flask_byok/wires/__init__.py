"""The three wires: OpenAI's, Anthropic's and Google's streamed chat, written and read without their SDKs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import anthropic, google, openai
from .events import Reader
from .messages import Chat, Facts


class Wire(NamedTuple):
    """How a chat is asked for, and how the answer is read.

    :param reader: makes what :func:`read_events` reads one answer with.
    """

    write: Callable[[Chat, Facts], tuple[str, dict[str, Any]]]
    reader: Callable[[], Reader]

    def body(self, chat: Chat, facts: Facts) -> tuple[str, dict[str, Any]]:
        """Return the path below what the provider's SDK calls its base URL, and the JSON of a streamed call.

        ``extra`` goes in last: an object is added to the one that is there, all else replaces.

        :raises InvalidFieldError: a message or a parameter has no form in this wire.
        """
        path, body = self.write(chat, facts)
        for name, value in (chat.params.extra or {}).items():
            old = body.get(name)
            if isinstance(old, dict) and isinstance(value, dict):
                value = {**old, **value}
            body[name] = value
        return path, body


WIRES: Mapping[str, Wire] = {
    "openai": Wire(openai.write, openai.OpenAIReader),
    "anthropic": Wire(anthropic.write, anthropic.AnthropicReader),
    "google": Wire(google.write, google.GoogleReader),
}
