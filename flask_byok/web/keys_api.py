"""The calls of ``/api/providers/keys``: the verbs over HTTP, for the present caller; and health, for everyone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from flask import Flask, Response, request
from msgspec import Meta

from ..catalog.paste import KeyWarning
from ..errors import InvalidFieldError, RevealDisabledError
from ..keys.health import HealthFacts
from ..keys.service import Service
from ..keys.status import KeyList, Status
from ..keys.typed import NewKey
from ..model.credential import Fields, Secret, Validation, ValidationFacts
from ..settings import ValidateOnSet
from .caller import for_caller, get_state, in_session
from .guards import asks_for_value, csrf_token, expect_no_body, read_body, read_query
from .openapi import Route

_PROVIDER = Meta(
    description="Id or alias of a provider, such as openai.", extra_json_schema={"maxLength": 100}
)

# Not Literal[True], of which msgspec before 0.21 makes no schema.
_Done = Annotated[bool, Meta(extra_json_schema={"const": True})]

ProviderName = Annotated[str, _PROVIDER]
Label = Annotated[str, Meta(extra_json_schema={"maxLength": 100})]
Description = Annotated[str, Meta(extra_json_schema={"maxLength": 500})]


class TypedKey(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a person typed: ``api_key``, or ``fields`` for providers that need several.

    ``name`` makes of a server of one's own a named endpoint; ``model`` is its default model.
    """

    api_key: Secret | None = None
    fields: Annotated[dict[str, Secret], Meta(max_length=16)] | None = None
    base_url: str | None = None
    name: Annotated[str, Meta(extra_json_schema={"maxLength": 100})] | None = None
    model: Annotated[str, Meta(extra_json_schema={"maxLength": 200})] | None = None

    def typed(self) -> dict[str, Secret] | None:
        """Return the secrets by field name; None if none was sent.

        :raises InvalidFieldError: both were sent.
        """
        if self.api_key is not None and self.fields is not None:
            raise InvalidFieldError("Send either 'api_key' or 'fields', not both.")
        fields = {"api_key": self.api_key} if self.api_key is not None else self.fields
        shown = {"name": self.name, "model": self.model}
        beside = {name: Secret(text) for name, text in shown.items() if text is not None}
        if fields and beside.keys() & fields.keys():
            raise InvalidFieldError("Send 'name' and 'model' once.")
        return {**(fields or {}), **beside} if beside else fields


class NewKeyRequest(TypedKey, kw_only=True):
    """A key to store."""

    provider: ProviderName
    label: Label | None = None
    description: Description | None = None
    expires_at: datetime | None = None
    validate: ValidateOnSet | None = None

    def new_key(self) -> NewKey:
        """Return what the service stores: the fields of the same names, and the secrets as typed."""
        names = {each.name for each in dataclasses.fields(NewKey)} & set(self.__struct_fields__)
        given = {name: getattr(self, name) for name in names}
        return NewKey(**given | {"fields": self.typed() or {}})


class SetRequest(NewKeyRequest, kw_only=True):
    """A key to store for the session, or with ``persist`` in the account."""

    persist: bool = False


class ClearRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A key to remove."""

    provider: ProviderName
    tier: Literal["session", "user", "all"] = "all"


class ValidateRequest(TypedKey, kw_only=True):
    """A key to check; without ``api_key`` and ``fields`` the one in use."""

    provider: ProviderName


class PromoteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Keys to keep in the account: those of all providers, unless some are named."""

    providers: list[ProviderName] | None = None
    on_conflict: Literal["keep", "replace"] = "keep"


class Keys(KeyList):
    """The status of every provider that is switched on."""

    csrf_token: str | None


class Judged(TypedDict):
    """The result of a typed key's check, if there was one, and what the key's look tells."""

    validation: ValidationFacts | None
    warnings: list[KeyWarning]


class SetResponse(Judged):
    """The key is stored, and effective at once; ``provider`` is null if a store is away that only the status needs."""

    success: _Done
    provider: Status | None


class CheckResponse(ValidationFacts):
    """The result of the check; ``warnings`` are about a typed key."""

    warnings: list[KeyWarning]


class ClearResponse(TypedDict):
    """The key is removed; ``cleared`` is empty if there was none. For ``provider`` see ``SetResponse``."""

    success: _Done
    cleared: list[Annotated[str, Meta(extra_json_schema={"enum": ["session", "user"]})]]
    provider: Status | None


class PromoteResponse(TypedDict):
    """The providers whose keys moved to the account, and those whose account key stayed."""

    promoted: list[str]
    kept: list[str]


def list_keys(*, telling: bool = True) -> Keys:
    """Return for each provider whether there is a key, and whose it is; establish the session."""
    state = get_state()
    found = in_session(state, state.service.get, telling=telling)
    return {**found, "csrf_token": csrf_token()}


def set_key(body: SetRequest) -> SetResponse:
    """Store or replace a key."""
    status, found = for_caller(Service.set, body.provider, body.new_key())
    return {"success": True, "provider": status, **judged(found, body.provider, body.typed())}


def judged(found: Validation | None, provider: str, typed: Fields | None) -> Judged:
    """Return what is told of a typed key beside the key's own facts."""
    warnings = get_state().service.warnings(provider, typed) if typed else []
    return {"validation": found.to_dict() if found else None, "warnings": warnings}


def clear_key(body: ClearRequest) -> ClearResponse:
    """Remove the caller's own key; it is no error if there is none."""
    cleared, status = for_caller(Service.clear, body.provider, body.tier)
    return {"success": True, "cleared": cleared, "provider": status}


def validate_key(body: ValidateRequest) -> CheckResponse:
    """Ask the provider about a typed key, or about the one in use."""
    found = for_caller(Service.validate, body.provider, body.typed(), body.base_url).to_dict()
    return {**found, "warnings": get_state().service.warnings(body.provider, body.typed())}


def promote_keys(body: PromoteRequest) -> PromoteResponse:
    """Keep in the signed-in user's account what was saved before signing in."""
    done = for_caller(Service.promote, body.providers, body.on_conflict)
    return {"promoted": done["promoted"], "kept": done["kept"]}


def health(app: Flask | None = None) -> HealthFacts:
    """Return if keys can be found here, and the state of each store; no key and no session is needed."""
    return get_state(app).service.health.look()


def make_view(route: Route) -> Callable[..., Response]:
    """Return the view that answers a route: it reads body and query as the call's types, and encodes its answer.

    :raises RevealDisabledError: the request asks for the key itself, of a call that never shows it.
    """
    types, status, changes = route.types, route.status, route.changes

    def view(**path: str) -> Response:
        arguments = route.open(**path)
        if asks_for_value() and not route.reveals:
            raise RevealDisabledError
        if "query" in types:
            arguments.append(read_query(types["query"]))
        if "body" in types:
            arguments.append(read_body(types["body"]))
        elif changes:
            expect_no_body()
        return respond(route, route.call(*arguments), status)

    return view


def respond(route: Route, answer: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return the answer of a route's call as a response."""
    if answer is None:
        response = Response(status=status)
        del response.headers["Content-Type"]
        return response
    if route.may_fail and answer["status"] == "down":
        status = HTTPStatus.SERVICE_UNAVAILABLE
    response = Response(msgspec.json.encode(answer), status, mimetype="application/json")
    if "version" in answer:
        response.set_etag(str(answer["version"]))
    if status == HTTPStatus.CREATED:
        response.headers["Location"] = f"{request.script_root}{request.path}/{answer['id']}"
    return response


HEALTH = Route("GET", "/providers/health", "health", "operations", health, may_fail=True)
ROUTES = (
    Route("GET", "/providers/keys", "get", "keys", list_keys),
    Route("POST", "/providers/keys/set", "set", "keys", set_key),
    Route("POST", "/providers/keys/clear", "clear", "keys", clear_key),
    Route("POST", "/providers/keys/validate", "validate", "keys", validate_key),
    Route("POST", "/providers/keys/promote", "promote", "keys", promote_keys),
    HEALTH,
)
