"""Read what a request brings in its body: JSON of a known shape, secrets as secrets."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from ..credentials import Secret
from ..errors import InvalidFieldError

_Body = TypeVar("_Body", bound=msgspec.Struct)


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
