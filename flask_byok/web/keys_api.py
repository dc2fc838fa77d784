"""The five calls of ``/api/providers/keys``, and the functions that the settings page shares with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec
from flask import Blueprint, Response, url_for
from flask.sansio.blueprints import BlueprintSetupState
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from ..errors import ByokError, SessionRequiredError
from ..keys.typed import NewKey
from ..model.credential import Secret
from .bodies import read_body, typed_fields
from .caller import current_caller, established_caller, get_state
from .guards import (
    csrf_token,
    limit_body,
    on_csrf_error,
    refuse_cross_site,
    refuse_unrouted,
    refuse_value,
    secure,
)
from .problems import http_problem_response, problem_response
from .records_api import register_records

_OPENAPI = "/providers/openapi.json"


class _SetBody(msgspec.Struct, forbid_unknown_fields=True):
    provider: str
    api_key: Secret | None = None
    fields: dict[str, Secret] | None = None
    persist: bool = False
    label: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    base_url: str | None = None
    validate: Literal["off", "warn", "require"] | None = None


class _ClearBody(msgspec.Struct, forbid_unknown_fields=True):
    provider: str
    tier: Literal["session", "user", "all"] = "all"


class _ValidateBody(msgspec.Struct, forbid_unknown_fields=True):
    provider: str
    api_key: Secret | None = None
    fields: dict[str, Secret] | None = None
    base_url: str | None = None


class _PromoteBody(msgspec.Struct, forbid_unknown_fields=True):
    providers: list[str] | None = None
    on_conflict: Literal["keep", "replace"] = "keep"


def snapshot() -> dict[str, Any]:
    """Return the body of ``GET /api/providers/keys``; establishes the session as the call does."""
    state = get_state()
    try:
        body = state.service.get(established_caller(state))
    except SessionRequiredError:
        body = state.service.get(established_caller(state, anew=True))
    return body | {"csrf_token": csrf_token()}


def set_key(provider: str, fields: Mapping[str, Secret], **options: Any) -> dict[str, Any]:
    """Store a key for the present caller; ``options`` are those of ``NewKey``."""
    state = get_state()
    caller = current_caller(state)
    status, validation = state.service.set(caller, provider, NewKey(fields=fields, **options))
    return {
        "success": True,
        "provider": status,
        "validation": None if validation is None else validation.to_dict(),
    }


def clear_key(provider: str, tier: str = "all") -> dict[str, Any]:
    """Delete the present caller's key."""
    state = get_state()
    cleared, status = state.service.clear(current_caller(state), provider, tier)
    return {"success": True, "cleared": cleared, "provider": status}


def validate_key(
    provider: str, fields: Mapping[str, Secret] | None = None, base_url: str | None = None
) -> dict[str, Any]:
    """Check a typed key, or the one in use."""
    state = get_state()
    return state.service.validate(current_caller(state), provider, fields, base_url).to_dict()


def promote_keys(
    providers: list[str] | None = None, on_conflict: str = "keep"
) -> dict[str, list[str]]:
    """Keep for the signed-in user what was saved before signing in."""
    state = get_state()
    return state.service.promote(current_caller(state), providers, on_conflict)


def create_blueprint(url_prefix: str) -> Blueprint:
    """Return the blueprint ``byok`` with the JSON calls; the extension adds the pages."""
    blueprint = Blueprint(
        "byok",
        "flask_byok",
        url_prefix=url_prefix or None,
        static_folder=str(Path(__file__).parent.parent / "static"),
        static_url_path="/providers/static",
    )
    blueprint.record_once(_limit_bodies)
    ours = (f"{url_prefix}{path}" for path in ("/providers", "/keys", "/admin/keys"))
    blueprint.before_app_request(refuse_unrouted(*ours))
    blueprint.before_request(refuse_cross_site)
    blueprint.after_request(secure)
    blueprint.register_error_handler(ByokError, problem_response)
    blueprint.register_error_handler(CSRFError, on_csrf_error)
    blueprint.register_error_handler(HTTPException, http_problem_response)
    _add_routes(blueprint)
    return blueprint


def _limit_bodies(setup: BlueprintSetupState) -> None:
    # At the front: whoever opens the body first decides how much of it is read.
    setup.app.before_request_funcs.setdefault(None, []).insert(0, limit_body)


def _add_routes(blueprint: Blueprint) -> None:
    calls: list[tuple[str, str, Callable[[], Any]]] = [
        ("GET", "/providers/keys", snapshot),
        ("POST", "/providers/keys/set", _set),
        ("POST", "/providers/keys/clear", _clear),
        ("POST", "/providers/keys/validate", _validate),
        ("POST", "/providers/keys/promote", _promote),
    ]
    for method, path, call in calls:
        endpoint = f"{call.__name__.lstrip('_')}_keys"
        blueprint.add_url_rule(path, endpoint, _json_view(call), methods=[method])
    register_records(blueprint)
    blueprint.add_url_rule(_OPENAPI, "openapi", _openapi, methods=["GET"])


def _json_view(call: Callable[[], Any]) -> Callable[[], Response]:
    def view() -> Response:
        refuse_value()
        return Response(msgspec.json.encode(call()), mimetype="application/json")

    return view


def _set() -> dict[str, Any]:
    body = read_body(_SetBody)
    fields = typed_fields(body.api_key, body.fields) or {}
    return set_key(
        body.provider,
        fields,
        base_url=body.base_url,
        label=body.label,
        description=body.description,
        expires_at=body.expires_at,
        validate=body.validate,
        persist=body.persist,
    )


def _clear() -> dict[str, Any]:
    body = read_body(_ClearBody)
    return clear_key(body.provider, body.tier)


def _validate() -> dict[str, Any]:
    body = read_body(_ValidateBody)
    return validate_key(body.provider, typed_fields(body.api_key, body.fields), body.base_url)


def _promote() -> dict[str, Any]:
    body = read_body(_PromoteBody)
    return promote_keys(body.providers, body.on_conflict)


def _openapi() -> Response:
    description = msgspec.json.decode(files("flask_byok.web").joinpath("openapi.json").read_bytes())
    description["servers"][0]["url"] = url_for(".openapi").removesuffix(_OPENAPI) or "/"
    return Response(msgspec.json.encode(description), mimetype="application/json")
