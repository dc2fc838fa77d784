"""Describe the HTTP interface as OpenAPI 3.1, from the table of routes and from the types that the calls use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_type_hints

import msgspec

from ..errors import (
    ByokError,
    InvalidFieldError,
    OwnerRequiredError,
    RevealDisabledError,
    StoreError,
    VersionConflictError,
)
from ..model.credential import Secret
from .problems import Problem

_Schema = dict[str, Any]

_REF = "#/components/schemas/"
_TAGS = {
    "keys": "The present caller's keys, by provider.",
    "records": "The signed-in user's own keys in the database, one by one.",
    "admin": "The keys of teams and of the system, for admins.",
}
_ABOUT = {
    "summary": "Bring your own API key.",
    "description": "Every answer has `Cache-Control: no-store`. Times are UTC, ISO 8601 with `Z`. "
    "A key's value is in no answer, unless the operator allows people to read back their own.",
}
_HEADERS = {
    "Cache-Control": {"description": "Always no-store.", "schema": {"const": "no-store"}},
    "ETag": {"description": "The record's version, for If-Match.", "schema": {"type": "string"}},
    "Location": {"description": "The new record's address.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
}
#: Place, name, type and description of parameters that no query type has.
_ID = ("path", "id", "string", "The record's id.")
_CSRF_TOKEN = (
    *("header", "X-CSRFToken", "string"),
    "The `csrf_token` of the list. Needed unless the host has switched CSRF protection off.",
)
_IF_MATCH = (
    *("header", "If-Match", "string"),
    "The ETag that was seen, or `*`; if the record has changed since, the call changes nothing.",
)
_INCLUDE_VALUE = (
    *("query", "include_value", "boolean"),
    "Show the key itself: only if BYOK_ALLOW_REVEAL is set, and after a recent sign-in.",
)
_CSRF = (400, "csrf", "The CSRF token is missing or stale, or the request came from another site")
#: Status, code and description of the problems that every call may have which changes something.
_REQUEST_PROBLEMS = (
    _CSRF,
    (400, "bad_request", "The body is not JSON, or `If-Match` is no list of quoted tags"),
    (413, "too_large", "The body has more than 64 KiB"),
    (415, "unsupported_media_type", "Send application/json"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """One call of the interface; the app's route and its description are both made from it.

    The call's annotations name the types of its ``body``, its ``query`` and its answer. The first line of its docstring
    is the summary, that of the answer's type the description of the answer.
    """

    method: str
    path: str
    name: str
    tag: str
    call: Callable[..., Any]
    #: Returns the call's first arguments. It runs before anything else is read from the request.
    open: Callable[..., list[Any]] = list
    #: Errors besides those that every call may raise.
    problems: Sequence[type[ByokError]] = ()
    #: The answer may contain a key, if the request asks for it.
    reveals: bool = False

    @property
    def types(self) -> dict[str, Any]:
        """The types of ``body``, ``query`` and ``return``, as far as the call has them."""
        hints = get_type_hints(self.call, include_extras=True)
        return {name: hints[name] for name in ("body", "query", "return") if name in hints}

    @property
    def changes(self) -> bool:
        """True if the call needs a CSRF token and may have a body."""
        return self.method != "GET"

    @property
    def status(self) -> HTTPStatus:
        """The status of a good answer."""
        if self.types["return"] is type(None):
            return HTTPStatus.NO_CONTENT
        return HTTPStatus.CREATED if self.name.endswith("create_record") else HTTPStatus.OK


def describe(routes: Sequence[Route], *, url: str, version: str) -> _Schema:
    """Return the OpenAPI document.

    :param url: the address that the routes' paths start from.
    """
    found = [route.types.get(part) for route in routes for part in ("body", "return")]
    types = [Problem, *(kind for kind in found if _has_fields(kind))]
    _, schemas = msgspec.json.schema_components(
        types, schema_hook=_secret_schema, ref_template=f"{_REF}{{name}}"
    )
    paths: dict[str, _Schema] = {}
    for route in routes:
        path = route.path.replace("<", "{").replace(">", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    document: _Schema = _tidied(
        {
            "openapi": "3.1.0",
            "info": {"title": "flask-byok", "version": version, **_ABOUT},
            "servers": [{"url": url, "description": "BYOK_URL_PREFIX"}],
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
            "paths": paths,
            "components": {"headers": _HEADERS, "schemas": schemas},
        }
    )
    return document


def _has_fields(kind: Any) -> bool:
    return bool(getattr(kind, "__annotations__", None))


def _secret_schema(kind: type) -> _Schema:
    if kind is not Secret:
        raise NotImplementedError
    return {"type": "string", "description": "It is in no answer.", "writeOnly": True}


def _tidied(node: Any) -> Any:
    """Give components the names that clients know, and declare that objects have no other fields."""
    if isinstance(node, list):
        return [_tidied(each) for each in node]
    if isinstance(node, str):
        return node.removesuffix("Facts")
    if not isinstance(node, dict):
        return node
    tidied = {name.removesuffix("Facts"): _tidied(each) for name, each in node.items()}
    if node.get("type") == "object" and "properties" in node:
        tidied["additionalProperties"] = False
    return tidied


def _operation(route: Route) -> _Schema:
    operation: _Schema = {
        "operationId": route.name,
        "summary": _first_line(route.call),
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if body := route.types.get("body"):
        content = {"application/json": {"schema": {"$ref": f"{_REF}{body.__name__}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route) -> list[_Schema]:
    found = [
        {"name": name, "in": place, "schema": {"type": kind}, "description": description}
        | ({"required": True} if place == "path" else {})
        for is_taken, (place, name, kind, description) in (
            ("<id>" in route.path, _ID),
            (route.reveals, _INCLUDE_VALUE),
            (route.changes, _CSRF_TOKEN),
            (VersionConflictError in route.problems, _IF_MATCH),
        )
        if is_taken
    ]
    if query := route.types.get("query"):
        _, schemas = msgspec.json.schema_components([query])
        for name, schema in schemas[query.__name__]["properties"].items():
            found.append({"name": name, "in": "query", "schema": schema})
    return found


def _responses(route: Route) -> _Schema:
    problems: dict[int, dict[str, str]] = {}
    for status, code, description in _problems(route):
        problems.setdefault(status, {})[code] = description
    responses = {str(route.status.value): _answer(route)}
    for status, codes in sorted(problems.items()):
        schema = {"$ref": f"{_REF}Problem", "properties": {"code": {"enum": list(codes)}}}
        said = "; ".join(f"`{code}`: {description}" for code, description in codes.items())
        headers = ["Retry-After"] if status in (429, 503) else []
        responses[str(status)] = _response(f"{said}.", headers, "problem+json", schema)
    return responses


def _problems(route: Route) -> list[tuple[int, str, str]]:
    errors: list[type[ByokError]] = [OwnerRequiredError, RevealDisabledError, StoreError]
    errors += route.problems
    found: list[tuple[int, str, str]] = [_CSRF] if route.reveals else []
    if route.changes:
        errors.append(InvalidFieldError)
        found += _REQUEST_PROBLEMS
    return found + [(error.status, error.code, error.title) for error in errors]


def _answer(route: Route) -> _Schema:
    answer = route.types["return"]
    if answer is type(None):
        return _response("Deleted.", [])
    headers = ["ETag"] if "version" in getattr(answer, "__annotations__", ()) else []
    headers += ["Location"] if route.status == HTTPStatus.CREATED else []
    named = {"$ref": f"{_REF}{answer.__name__}"}
    schema = named if _has_fields(answer) else {"type": "object"}
    return _response(_first_line(answer), headers, "json", schema)


def _response(
    description: str, headers: list[str], kind: str = "", schema: _Schema | None = None
) -> _Schema:
    names = ["Cache-Control", *headers]
    response: _Schema = {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if schema is not None:
        response["content"] = {f"application/{kind}": {"schema": schema}}
    return response


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
