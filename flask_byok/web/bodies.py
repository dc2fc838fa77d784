"""Read what a request brings in its body: JSON of a known shape, secrets as secrets, notes without keys in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from ..credentials import Secret, clean_api_key
from ..errors import InvalidFieldError, MalformedApiKeyError
from .state import get_state

_Body = TypeVar("_Body", bound=msgspec.Struct)

# Shorter words that begin as keys do ("sk-learn") are words.
_SHORTEST_REAL_KEY = 20


def read_body(model: type[_Body]) -> _Body:
    """Return the request's JSON body; what was sent is never repeated."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    try:
        return msgspec.json.decode(request.get_data(cache=False), type=model, dec_hook=_secret)
    except msgspec.ValidationError as error:
        known = [name for name in model.__struct_fields__ if f"$.{name}" in str(error)]
        which = f"The field {known[0]!r} has" if known else "A field is missing, unknown, or has"
        raise InvalidFieldError(f"{which} a value that cannot be used.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not JSON.") from None


def _secret(kind: type, value: Any) -> Secret:
    """Turn text into a secret at once, so that no repr of a body shows it."""
    if kind is not Secret or not isinstance(value, str):
        raise TypeError("not a string")
    return Secret(value)


def typed_fields(
    api_key: Secret | None, fields: dict[str, Secret] | None
) -> dict[str, Secret] | None:
    """Return the secrets as typed, by field name; None where none was sent."""
    if api_key is not None and fields is not None:
        raise InvalidFieldError("Send either 'api_key' or 'fields', not both.")
    return {"api_key": api_key} if api_key is not None else fields


def clean_note(
    value: str | None, name: str, longest: int, fields: Mapping[str, Secret]
) -> str | None:
    """Return a text that is kept beside the key and shown."""
    text = (value or "").strip()
    if len(text) > longest or re.search(r"[\x00-\x1f\x7f]", text):
        raise InvalidFieldError(f"The field {name!r} has up to {longest} printable characters.")
    if _holds_key(text, fields):
        raise InvalidFieldError(f"The field {name!r} seems to hold an API key, but it is shown.")
    return text or None


def _holds_key(text: str, fields: Mapping[str, Secret]) -> bool:
    typed = (secret for name, secret in fields.items() if name != "base_url")
    return _looks_like_key(text) or any(_is_within(secret, text) for secret in typed)


def _looks_like_key(text: str) -> bool:
    """Say whether a known beginning of a key stands anywhere but within a word, with enough after it."""
    specs = get_state().service.catalog
    known = {prefix for spec in specs for prefix in (*spec.prefixes, *spec.refused_prefixes)}
    beginning = "|".join(map(re.escape, known))
    words = re.finditer(rf"(?<![A-Za-z0-9])(?:{beginning})[\w.-]*", text) if known else ()
    return any(len(word[0]) >= _SHORTEST_REAL_KEY for word in words)


def _is_within(secret: Secret, text: str) -> bool:
    """Say whether a text holds a typed key as it would be kept; what cannot be a key is not kept."""
    try:
        return clean_api_key(secret.reveal()) in text
    except MalformedApiKeyError:
        return False
