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

_TAGS = {
    "keys": "The present caller's keys, by provider.",
    "records": "The signed-in user's own keys in the database, one by one.",
    "admin": "The keys of teams and of the system, for admins.",
}
_DESCRIPTION = (
    "Every answer has `Cache-Control: no-store`. Times are UTC, ISO 8601 with `Z`. "
    "A key's value is in no answer, unless the operator allows people to read back their own."
)
_HEADERS = {
    "Cache-Control": {"description": "Always no-store.", "schema": {"const": "no-store"}},
    "ETag": {"description": "The record's version, for If-Match.", "schema": {"type": "string"}},
    "Location": {"description": "The new record's address.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
}
_CSRF_TOKEN = (
    "header",
    "X-CSRFToken",
    {"type": "string"},
    "The `csrf_token` of the list. Needed unless the host has switched CSRF protection off.",
)
_IF_MATCH = (
    "header",
    "If-Match",
    {"type": "string"},
    "The ETag that was seen, or `*`; if the record has changed since, the call changes nothing.",
)
_INCLUDE_VALUE = (
    "query",
    "include_value",
    {"type": "boolean"},
    "Show the key itself: only if BYOK_ALLOW_REVEAL is set, and after a recent sign-in.",
)
_ID = ("path", "id", {"type": "string"}, "The record's id.")

#: Status and description of the problems that any call with a body may have.
_REQUEST_PROBLEMS = {
    "csrf": (400, "The CSRF token is missing or stale, or the request came from another site"),
    "bad_request": (400, "The body is not JSON, or `If-Match` is no list of quoted tags"),
    "too_large": (413, "The body has more than 64 KiB"),
    "unsupported_media_type": (415, "Send application/json"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call of the interface: the app's route and its description are made from it.

    The call's annotations name the types of its ``body``, of its ``query`` and of its answer; the first line of its
    docstring is the summary.
    """

    method: str
    path: str
    name: str
    tag: str
    call: Callable[..., Any]
    #: Returns the call's first arguments. It runs before the rest of the request is looked at.
    open: Callable[..., list[Any]] = lambda: []
    #: Errors besides those that every call, or every call with a body, may answer.
    problems: Sequence[type[ByokError]] = ()
    #: The answer may contain a key, if it was asked for and is allowed.
    reveals: bool = False

    @property
    def types(self) -> dict[str, Any]:
        """The types of ``body``, ``query`` and ``return``, as far as there are any."""
        hints = get_type_hints(self.call, include_extras=True)
        return {name: hints[name] for name in ("body", "query", "return") if name in hints}

    @property
    def changes(self) -> bool:
        """True if the call needs a CSRF token, and may have a body."""
        return self.method != "GET"

    @property
    def status(self) -> int:
        """The status of a good answer."""
        if self.types["return"] is type(None):
            return HTTPStatus.NO_CONTENT
        return HTTPStatus.CREATED if self.name.endswith("create_record") else HTTPStatus.OK


def describe(routes: Sequence[Route], *, url: str, version: str) -> _Schema:
    """Return the OpenAPI document.

    :param url: the address that the routes' paths are below.
    """
    types = [Problem, *(kind for route in routes for kind in _bodies_and_answers(route))]
    _, components = msgspec.json.schema_components(
        types, schema_hook=_secret_schema, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, _Schema] = {}
    for route in routes:
        operations = paths.setdefault(route.path.replace("<", "{").replace(">", "}"), {})
        operations[route.method.lower()] = _operation(route)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "flask-byok",
            "version": version,
            "summary": "Bring your own API key.",
            "description": _DESCRIPTION,
        },
        "servers": [{"url": url, "description": "BYOK_URL_PREFIX"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"headers": _HEADERS, "schemas": components},
    }
    tidied: _Schema = _tidied(document)
    return tidied


def _bodies_and_answers(route: Route) -> list[Any]:
    kinds = (route.types.get("body"), route.types["return"])
    return [kind for kind in kinds if _has_fields(kind)]


def _has_fields(kind: Any) -> bool:
    return bool(getattr(kind, "__annotations__", None))


def _secret_schema(kind: type) -> _Schema:
    if kind is not Secret:
        raise NotImplementedError
    return {"type": "string", "description": "It is in no answer.", "writeOnly": True}


def _tidied(node: Any) -> Any:
    """Name components as clients know them, and say that answers have no other fields."""
    if isinstance(node, list):
        return [_tidied(each) for each in node]
    if not isinstance(node, dict):
        return node.removesuffix("Facts") if isinstance(node, str) else node
    tidied = {name.removesuffix("Facts"): _tidied(each) for name, each in node.items()}
    if "properties" in node and "$ref" not in node and isinstance(node.get("type"), str):
        tidied.setdefault("additionalProperties", False)
    return tidied


def _operation(route: Route) -> _Schema:
    operation: _Schema = {
        "operationId": route.name,
        "summary": _first_line(route.call),
        "tags": [route.tag],
        "parameters": [_parameter(*each) for each in _parameters(route)],
        "responses": _responses(route),
    }
    if body := route.types.get("body"):
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _parameters(route: Route) -> list[tuple[str, str, _Schema, str]]:
    found: list[tuple[str, str, _Schema, str]] = []
    if "<id>" in route.path:
        found.append(_ID)
    if query := route.types.get("query"):
        _, schemas = msgspec.json.schema_components([query])
        for name, schema in schemas[query.__name__]["properties"].items():
            found.append(("query", name, schema, schema.pop("description")))
    if route.reveals:
        found.append(_INCLUDE_VALUE)
    if route.changes:
        found.append(_CSRF_TOKEN)
    if VersionConflictError in route.problems:
        found.append(_IF_MATCH)
    return found


def _parameter(place: str, name: str, schema: _Schema, description: str) -> _Schema:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": schema,
    }


def _responses(route: Route) -> _Schema:
    responses = {str(int(route.status)): _good_response(route)}
    by_status: dict[int, dict[str, str]] = {}
    for code, (status, text) in _problems(route).items():
        by_status.setdefault(status, {})[code] = text
    for status, codes in sorted(by_status.items()):
        headers = ["Retry-After"] if status in (429, 503) else []
        schema = {
            "$ref": "#/components/schemas/Problem",
            "properties": {"code": {"enum": list(codes)}},
        }
        text = "; ".join(f"`{code}`: {text}" for code, text in codes.items())
        responses[str(status)] = _response(f"{text}.", headers, "problem+json", schema)
    return responses


def _good_response(route: Route) -> _Schema:
    answer = route.types["return"]
    if answer is type(None):
        return _response("Deleted.", [])
    headers = ["ETag"] if "version" in getattr(answer, "__annotations__", ()) else []
    if route.status == HTTPStatus.CREATED:
        headers.append("Location")
    named = {"$ref": f"#/components/schemas/{answer.__name__}"}
    schema = named if _has_fields(answer) else {"type": "object"}
    return _response(_first_line(answer), headers, "json", schema)


def _response(
    description: str, headers: list[str], kind: str | None = None, schema: _Schema | None = None
) -> _Schema:
    names = ["Cache-Control", *headers]
    response: _Schema = {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if kind is not None:
        response["content"] = {f"application/{kind}": {"schema": schema}}
    return response


def _problems(route: Route) -> dict[str, tuple[int, str]]:
    """Return the problems that a call may answer: status and description by code."""
    errors: list[type[ByokError]] = [OwnerRequiredError, RevealDisabledError, StoreError]
    errors += route.problems
    if route.changes:
        errors.append(InvalidFieldError)
    found = dict(_REQUEST_PROBLEMS) if route.changes else {}
    if route.reveals:
        found["csrf"] = _REQUEST_PROBLEMS["csrf"]
    return found | {error.code: (error.status, error.title) for error in errors}


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
