"""Read what a request brings in its body: JSON of a known shape, secrets as secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from ..errors import InvalidFieldError
from ..model.credential import Secret

#: What is to be said of fields of which the kind of value does not say all.
_FORMS = {
    "expires_at": "is a time with its zone, such as '2027-01-31T00:00:00Z', or null.",
}

# How msgspec names what is wrong. Somebody may have sent a key as a field's name: only a plain word is repeated.
_AT = re.compile(r"`\$\.(\w+)[^`]*`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field (?:`([a-z_]{1,30})`$)?")

_Body = TypeVar("_Body", bound=msgspec.Struct)


def read_body(model: type[_Body]) -> _Body:
    """Return the request's JSON body; what was sent is never repeated."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    try:
        return msgspec.json.decode(request.get_data(cache=False), type=model, dec_hook=_secret)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(_explain(str(error), model.__struct_fields__)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is not JSON.") from None


def _explain(error: str, names: Sequence[str]) -> str:
    """Say which field is wrong, in words of ours: msgspec's may repeat what was sent."""
    if named := _AT.search(error):
        name = named[1]
        wanted = _FORMS.get(name, "has a value that cannot be used.")
        return f"The field {name!r} {wanted}"
    if missing := _MISSING.fullmatch(error):
        return f"The field {missing[1]!r} is missing."
    known = ", ".join(map(repr, names)) or "none"
    if unknown := _UNKNOWN.match(error):
        which = repr(unknown[1]) if unknown[1] else "of that name"
        return f"There is no field {which} here. The fields are: {known}."
    return f"The body is a JSON object. Its fields are: {known}."


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
