"""Describe the HTTP interface as OpenAPI 3.1, from the table of routes and from the types that the calls use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_type_hints

from msgspec.json import schema_components

from ..errors import ALL_ERRORS
from ..model.credential import Secret
from .problems import Problem

_Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_ABOUT = {
    "title": "flask-byok",
    "summary": "Bring your own API key.",
    "description": "Every answer has `Cache-Control: no-store`. Times are UTC, ISO 8601 with `Z`. "
    "A key's value is in no answer, unless the operator allows people to read back their own.",
}
#: Place, type and description of the parameters that no query type has.
_PARAMETERS = {
    "provider": (
        "path",
        "string",
        "Its id; or v1 for OpenAI's format, in which the model names it.",
    ),
    "path": ("path", "string", "A path of the provider's own API, with its slashes."),
    "id": ("path", "string", "The record's id."),
    "include_value": ("query", "boolean", "Show the key itself, if BYOK_ALLOW_REVEAL is set."),
    "X-CSRFToken": ("header", "string", "The list's `csrf_token`; null if none is needed."),
    "If-Match": ("header", "string", "The ETag that was seen: change nothing else. Or `*`."),
}


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
    #: The answer may contain a key, if the request asks for it.
    reveals: bool = False
    #: Its answer may come with 503 too.
    may_fail: bool = False

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


def describe(routes: Sequence[Route], *, url: str, version: str, gateway: bool = False) -> _Schema:
    """Return the OpenAPI document.

    :param url: the address that the routes' paths start from.
    :param gateway: describe it, too.
    """
    found = [route.types.get(part) for route in routes for part in ("body", "return")]
    kinds = [Problem, *filter(_has_fields, found)]
    _, schemas = schema_components(kinds, schema_hook=_secret_schema, ref_template=_REF)
    for schema in schemas.values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    problems = _problems()
    paths: dict[str, _Schema] = {}
    for route in routes:
        path = route.path.replace("<", "{").replace(">", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, problems)
    if gateway:
        paths["/gateway/{provider}/{path}"] = {m: _passed(m) for m in ("get", "post")}
    return {
        "openapi": "3.1.0",
        "info": {"version": version, **_ABOUT},
        "servers": [{"url": url, "description": "BYOK_URL_PREFIX"}],
        "paths": paths,
        "components": {"responses": problems, "schemas": schemas},
    }


def _passed(method: str) -> _Schema:
    """Describe the gateway, whose bodies and answers are the providers' own."""
    answer = {"description": "The provider's answer, or an error in its shape."}
    return {
        "operationId": f"gateway_{method}",
        "summary": "Call a provider's own API with the caller's key put in.",
        "tags": ["gateway"],
        "parameters": _described("provider", "path"),
        "responses": {"default": answer},
    }


def _problems() -> _Schema:
    """Return an answer for each status that a problem has, with all its codes; any call may bring it."""
    codes = {400: ["csrf", "bad_request"], 413: ["too_large"], 415: ["unsupported_media_type"]}
    for kind in ALL_ERRORS:
        codes.setdefault(kind.status, []).append(kind.code)
    return {
        str(status): _content(Problem) | {"description": f"The code is {' or '.join(names)}."}
        for status, names in sorted(codes.items())
        if status != HTTPStatus.INTERNAL_SERVER_ERROR
    }


def _has_fields(kind: Any) -> bool:
    return bool(getattr(kind, "__annotations__", None))


def _secret_schema(kind: type) -> _Schema:
    if kind is not Secret:
        raise NotImplementedError
    return {"type": "string", "description": "It is in no answer.", "writeOnly": True}


def _operation(route: Route, problems: _Schema) -> _Schema:
    operation: _Schema = {
        "operationId": route.name,
        "summary": _first_line(route.call),
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": {
            str(route.status.value): _content(route.types["return"]),
            **{status: {"$ref": f"#/components/responses/{status}"} for status in problems},
        },
    }
    if route.may_fail:
        operation["responses"]["503"] = _content(route.types["return"])
    if body := route.types.get("body"):
        operation["requestBody"] = {"required": True, **_content(body)}
    return operation


def _parameters(route: Route) -> list[_Schema]:
    taken = {
        "id": "<id>" in route.path,
        "include_value": route.reveals,
        "X-CSRFToken": route.changes,
        "If-Match": route.method in ("PATCH", "PUT", "DELETE"),
    }
    found = _described(*filter(taken.get, taken))
    if query := route.types.get("query"):
        _, schemas = schema_components([query])
        for name, schema in schemas[query.__name__]["properties"].items():
            found.append({"name": name, "in": "query", "schema": schema})
    return found


def _described(*names: str) -> list[_Schema]:
    found: list[_Schema] = []
    for name in names:
        place, kind, text = _PARAMETERS[name]
        schema = {"type": kind, "description": text}
        found.append({"name": name, "in": place, "required": place == "path", "schema": schema})
    return found


def _content(kind: type) -> _Schema:
    """Describe a body that has a type's schema, or is any object."""
    if kind is type(None):
        return {"description": "Deleted."}
    schema = {"$ref": _REF.format(name=kind.__name__)} if _has_fields(kind) else {"type": "object"}
    form = "problem+json" if kind is Problem else "json"
    content = {f"application/{form}": {"schema": schema}}
    return {"description": _first_line(kind), "content": content}


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
