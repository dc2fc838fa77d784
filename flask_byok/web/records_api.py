"""The calls of ``/api/keys`` and ``/api/admin/keys``: keys in the database, one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from flask import Blueprint, Response, request, url_for
from msgspec import UNSET, UnsetType
from werkzeug.exceptions import BadRequest

from ..accounts.shelf import Shelf
from ..errors import InvalidFieldError, KeyNotFoundError, VersionConflictError
from ..keys.typed import Changes, NewKey, NewSecret
from ..model.credential import CredentialRecord, Secret, Validation
from ..model.owner import LONGEST_ID
from .bodies import read_body, typed_fields
from .caller import current_caller, get_state
from .guards import asks_for_value, keep_from_logs, refuse_value

_ID = re.compile("[0-9a-f]{32}")
_SLOT = re.compile("[A-Za-z0-9_-]{0,40}")
_SHARED = re.compile(rf"system|team:[^\x00-\x1f\x7f]{{1,{LONGEST_ID}}}")
_LIMIT = re.compile("[1-9][0-9]?|100")

# RFC 9110, 13.1.1: a list of entity tags, in which there may be empty places.
_TAG = r'(?:W/)?"[!#-~]*"'
_TAGS = re.compile(rf"[\t ,]*{_TAG}(?:[\t ]*,[\t ,]*{_TAG})*[\t ,]*")

_Mode = Literal["off", "warn", "require"]


class _NewBody(msgspec.Struct, forbid_unknown_fields=True):
    provider: str
    api_key: Secret | None = None
    fields: dict[str, Secret] | None = None
    slot: str | None = None
    label: str | None = None
    description: str | None = None
    expires_at: datetime | None = None
    base_url: str | None = None
    active: bool = True
    validate: _Mode | None = None


class _NewSharedBody(_NewBody):
    owner: str = "system"


class _ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    label: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET
    api_key: Secret | None = None
    fields: dict[str, Secret] | None = None
    base_url: str | None = None
    validate: _Mode | None = None


class _NoBody(msgspec.Struct, forbid_unknown_fields=True):
    pass


def register_records(blueprint: Blueprint) -> None:
    """Add the calls to the blueprint: first a person's own keys, then teams' and the system's."""
    _add_routes(blueprint, "/keys", "record", _own_keys, _create_own)
    _add_routes(blueprint, "/admin/keys", "shared_record", _shared_keys, _create_shared)
    blueprint.add_url_rule("/keys/services", "services", _services, methods=["GET"])


def _add_routes(
    blueprint: Blueprint,
    path: str,
    name: str,
    keys: Callable[[], Shelf],
    create: Callable[[Shelf], Response],
) -> None:
    calls: list[tuple[str, str, str, list[str], Callable[..., Response]]] = [
        ("", "s", "list", ["GET"], _list),
        ("", "s", "create", ["POST"], create),
        ("/stats", "", "stats", ["GET"], _stats),
        ("/<id>", "", "", ["GET"], _show),
        ("/<id>", "", "change", ["PATCH", "PUT"], _change),
        ("/<id>", "", "delete", ["DELETE"], _delete),
        ("/<id>/validate", "", "validate", ["POST"], _validate),
    ]
    for below, plural, verb, methods, call in calls:
        endpoint = "_".join(filter(None, [verb, f"{name}{plural}"]))
        blueprint.add_url_rule(f"{path}{below}", endpoint, _view(keys, call), methods=methods)


def _view(keys: Callable[[], Shelf], call: Callable[..., Response]) -> Callable[..., Response]:
    # Who asks comes first: whoever may not is told nothing else.
    def view(**path: str) -> Response:
        return call(keys(), **path)

    return view


def _own_keys() -> Shelf:
    state = get_state()
    shelf: Shelf = state.service.own_records(current_caller(state))
    return shelf


def _shared_keys() -> Shelf:
    state = get_state()
    shelf: Shelf = state.service.shared_records(current_caller(state))
    return shelf


def _services() -> Response:
    state = get_state()
    services = state.service.services(current_caller(state))
    refuse_value()
    return _json({"services": services})


def _list(shelf: Shelf) -> Response:
    refuse_value()
    page = shelf.page(
        owner=_query("owner", _SHARED, "'system' or 'team:<id>'") if shelf.is_shared else None,
        provider=request.args.get("provider"),
        after=_query("cursor", _ID, "what 'next' said"),
        limit=int(_query("limit", _LIMIT, "a whole number from 1 to 100") or 50),
    )
    return _json(page)


def _stats(shelf: Shelf) -> Response:
    refuse_value()
    return _json(shelf.stats())


def _show(shelf: Shelf, id: str) -> Response:
    record = _find(shelf, id)
    shown = shelf.describe(record)
    if asks_for_value():
        fields = shelf.reveal(record, fresh=get_state().loaders.fresh_login)
        plain = {name: secret.reveal() for name, secret in fields.items()}
        keep_from_logs(plain.values())
        shown |= {"value": plain.get("api_key"), "fields": plain}
    return _tagged(_json(shown), record)


def _create_own(shelf: Shelf) -> Response:
    refuse_value()
    return _create(shelf, shelf.caller.identity, read_body(_NewBody))


def _create_shared(shelf: Shelf) -> Response:
    refuse_value()
    body = read_body(_NewSharedBody)
    if not _SHARED.fullmatch(body.owner):
        raise InvalidFieldError("The field 'owner' is 'system' or 'team:<id>'.")
    return _create(shelf, body.owner, body)


def _create(shelf: Shelf, owner: str, body: _NewBody) -> Response:
    if body.slot is not None and not _SLOT.fullmatch(body.slot):
        raise InvalidFieldError("The field 'slot' has up to 40 letters, digits, '_' and '-'.")
    fields = typed_fields(body.api_key, body.fields) or {}
    new = NewKey(
        fields=fields,
        base_url=body.base_url,
        label=body.label,
        description=body.description,
        expires_at=body.expires_at,
        active=body.active,
        validate=body.validate,
    )
    made = shelf.create(owner, body.provider, new, slot=body.slot)
    response = _with_validation(shelf, *made, status=201)
    name = "shared_record" if shelf.is_shared else "record"
    response.headers["Location"] = url_for(f".{name}", id=made[0].id)
    return response


def _change(shelf: Shelf, id: str) -> Response:
    record = _find(shelf, id)
    refuse_value()
    if_version = _if_match(record)
    body = read_body(_ChangeBody)
    fields = typed_fields(body.api_key, body.fields) or {}
    secret = NewSecret(fields=fields, base_url=body.base_url, validate=body.validate)
    changed = shelf.change(record, _changes(body), secret, if_version=if_version)
    return _with_validation(shelf, *changed)


def _changes(body: _ChangeBody) -> Changes:
    changes: Changes = {}
    if body.label is not UNSET:
        changes["label"] = body.label
    if body.description is not UNSET:
        changes["description"] = body.description
    if body.active is not UNSET:
        changes["active"] = body.active
    if body.expires_at is not UNSET:
        changes["expires_at"] = body.expires_at
    return changes


def _delete(shelf: Shelf, id: str) -> Response:
    record = _find(shelf, id)
    refuse_value()
    _expect_no_body()
    shelf.delete(record, if_version=_if_match(record))
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def _validate(shelf: Shelf, id: str) -> Response:
    record = _find(shelf, id)
    refuse_value()
    _expect_no_body()
    return _json(shelf.validate(record).to_dict())


def _find(shelf: Shelf, id: str) -> CredentialRecord:
    """Return the record; to be called before anything is said of the rest of the request."""
    if not _ID.fullmatch(id):
        keep_from_logs([id])  # somebody may have put a key there
        raise KeyNotFoundError
    return shelf.get(id)


def _if_match(record: CredentialRecord) -> int | None:
    """Return the version that the client has seen, if it says one.

    :raises BadRequest: the header has another form.
    :raises VersionConflictError: it is another one.
    """
    sent = request.headers.get("If-Match")
    if sent is None or sent.strip() == "*":
        return None
    if not _TAGS.fullmatch(sent):
        raise BadRequest(
            'If-Match is the ETag as it was sent, such as "3": the quotes are part of it.'
        )
    # A weak tag (W/"3") names no version: RFC 9110, 13.1.1 compares strongly.
    if f'"{record.version}"' not in (tag.strip() for tag in sent.split(",")):
        raise VersionConflictError(provider=record.provider)
    return int(record.version)


def _expect_no_body() -> None:
    """Let a call without a body need no content type either; but none that is not JSON, as forms have."""
    if request.mimetype not in ("", "application/json") or request.get_data():
        read_body(_NoBody)


def _query(name: str, form: re.Pattern[str], expected: str) -> str | None:
    value = request.args.get(name)
    if value is not None and not form.fullmatch(value):
        raise InvalidFieldError(f"The query's {name!r} is {expected}.")
    return value


def _with_validation(
    shelf: Shelf, record: CredentialRecord, validation: Validation | None, status: int = 200
) -> Response:
    found = None if validation is None else validation.to_dict()
    body = shelf.describe(record) | {"validation": found}
    return _tagged(_json(body, status), record)


def _tagged(response: Response, record: CredentialRecord) -> Response:
    response.set_etag(record.version)
    return response


def _json(body: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, mimetype="application/json")
