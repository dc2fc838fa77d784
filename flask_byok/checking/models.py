"""The models that a provider lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..http import Answer

MAX_MODELS = 200
MAX_NAME_LENGTH = 200


def read_models(answer: Answer) -> tuple[str, ...]:
    """Return the names of the models in a list, at most 200; none from an answer that is no list.

    Two shapes are known: OpenAI's ``{"data": [{"id": …}]}``, which most share, and Google's
    ``{"models": [{"name": "models/…"}]}``.
    """
    if answer.status != 200 or not answer.complete:
        return ()
    names = dict.fromkeys(_names(answer.data) if isinstance(answer.data, dict) else ())
    return tuple(names)[:MAX_MODELS]


def _names(body: dict[str, Any]) -> Iterator[str]:
    for container, name in (("data", "id"), ("models", "name")):
        entries = body.get(container)
        for entry in entries if isinstance(entries, list) else ():
            value = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable():
                yield value.removeprefix("models/")
