"""The chat models that providers offer, as data that ships with the package.

The facts come from the packages that ``models.json`` names, on the day that it names; ``scripts/models.py`` writes it.
Listed are the models that answer a conversation with a stream of text: none that make embeddings, images or speech, and
none of which a source said that day that they had retired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    from .verdicts import Answer

#: How many models are read from a provider's own list, and how long a model's name may be. OpenRouter, which has the
#: most, lists 600.
MAX_MODELS = 1000
MAX_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model; None is unknown, and nothing is guessed.

    :param id: what the provider's API takes as ``model``.
    :param name: the id without what stands before its last ``/``.
    :param display_name: for people; the name, if there is no better one.
    :param context_window: tokens of the conversation and the answer together. Of some models only the longest
        conversation is known.
    :param max_output: tokens of an answer.
    :param supports_streaming: True for every model in the data, since the paths for conversations stream.
    :param input_price: US dollars for a million tokens, before discounts and steps; ``output_price`` likewise.
    """

    id: str
    name: str = ""
    display_name: str = ""
    context_window: int | None = None
    max_output: int | None = None
    supports_tools: bool | None = None
    supports_vision: bool | None = None
    supports_streaming: bool | None = None
    supports_reasoning: bool | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.id.rpartition("/")[2])
        object.__setattr__(self, "display_name", self.display_name or self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them, under the names of the attributes."""
        return cast(dict[str, Any], msgspec.to_builtins(self))


def models_of(provider_id: str) -> tuple[ModelInfo, ...]:
    """Return the models of a provider, sorted by id; none if the data does not know the provider."""
    return tuple(_known(provider_id).values())


# What ends the id of a snapshot: gpt-4o-2024-08-06, claude-haiku-4-5-20251001, kimi-latest.
_SNAPSHOT = re.compile(r"[-@](\d{4}-\d\d-\d\d|20\d{6}|latest)$")


def model_info(provider_id: str, model: str) -> ModelInfo | None:
    """Return what is known of a provider's model.

    Its id may be in any case, and have ``models/`` or the provider's id before it. A snapshot that is not in the data
    has the facts of the model that it is of, and a model that is in it as ``-latest`` only has the facts of that.
    """
    known = _known(provider_id)
    plain = model.lower().removeprefix("models/")
    short = plain.removeprefix(f"{provider_id}/")
    bare = _SNAPSHOT.sub("", short)
    return next(
        (known[key] for key in (plain, short, bare, f"{bare}-latest") if key in known), None
    )


@cache
def _data() -> dict[str, Any]:
    data = files(__package__).joinpath("models.json").read_bytes()
    return cast(dict[str, Any], msgspec.json.decode(data))


@lru_cache
def _known(provider_id: str) -> dict[str, ModelInfo]:
    """Return the models of a provider by their id in lower case."""
    fields, lines = _data()["fields"], _data()["models"].get(provider_id, ())
    rows = (dict(zip(fields, line, strict=True)) for line in lines)
    return {row["id"].lower(): ModelInfo(**row, supports_streaming=True) for row in rows}


def read_models(answer: Answer) -> tuple[str, ...]:
    """Return the names of the models in a list, at most 1,000; none from an answer that is no list.

    Three shapes are known: OpenAI's ``{"data": [{"id": …}]}``, which most share, the same list alone, and Google's
    ``{"models": [{"name": "models/…"}]}``.
    """
    data = {"data": answer.data} if isinstance(answer.data, list) else answer.data
    if answer.status != 200 or not isinstance(data, dict):
        return ()
    names = []
    for container, name in (("data", "id"), ("models", "name")):
        entries = data.get(container)
        for entry in entries if isinstance(entries, list) else ():
            value = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH and value.isprintable():
                names.append(value.removeprefix("models/"))
    return tuple(dict.fromkeys(names))[:MAX_MODELS]
