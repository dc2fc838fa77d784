"""The calls of ``/api/keys`` and ``/api/admin/keys``: keys in the database, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict, cast

import msgspec
from flask import request
from msgspec import UNSET, Meta, UnsetType

from ..accounts.changes import Changes, NewSecret
from ..accounts.records import AccountRecords, Page, Record, Stats
from ..errors import KeyNotFoundError, VersionConflictError
from ..keys.service import Service
from ..keys.status import ProviderFacts
from ..model.credential import CredentialRecord, Validation, ValidationFacts
from ..model.owner import LONGEST_ID, Caller
from ..settings import ValidateOnSet
from .caller import for_caller, get_state
from .guards import RECORD_ID, asks_for_value, keep_from_logs
from .keys_api import Description, Judged, Label, NewKeyRequest, ProviderName, TypedKey, judged
from .openapi import Route

# Python's "$" lets a last line break pass; the rest of each pattern does not.
_SLOT = Meta(pattern=r"^[A-Za-z0-9_-]{0,40}$(?!\n)", description="By default the first free one.")
_CURSOR = Meta(pattern=r"^[0-9a-f]{32}$(?!\n)", description="The `next` of the page before.")
_SHARED = rf"^(system|team:[^\x00-\x1f\x7f]{{1,{LONGEST_ID}}})$(?!\n)"
_OWNER = Meta(pattern=_SHARED, description="`system` or `team:<id>`.")


class NewRecord(NewKeyRequest, kw_only=True):
    """A key to store for the signed-in user."""

    slot: Annotated[str, _SLOT] | None = None
    active: bool = True


class NewSharedRecord(NewRecord, kw_only=True):
    """A key to store for a team, or for the system."""

    owner: Annotated[str, _OWNER] = "system"


class RecordChanges(TypedKey, kw_only=True):
    """Fields to change; omitted fields keep their value, and so does a blank key or field.

    ``base_url`` changes only together with the key.
    """

    label: Label | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    expires_at: datetime | UnsetType | None = UNSET
    validate: ValidateOnSet | None = None


class PageQuery(msgspec.Struct):
    """Which records to list."""

    cursor: Annotated[str, _CURSOR] | None = None
    limit: Annotated[int, Meta(ge=1, le=100, description="The page's size.")] = 50
    provider: ProviderName | None = None


class SharedPageQuery(PageQuery):
    """Which records of teams and of the system to list."""

    owner: Annotated[str, _OWNER] | None = None


class ShownRecord(Record):
    """The record; with the key itself, if it was asked for and may be shown."""

    value: NotRequired[str | None]
    fields: NotRequired[dict[str, str]]


class CheckedRecord(Record, Judged):
    """The record, with the result of the check of its new key."""


class Services(TypedDict):
    """The catalog."""

    services: list[ProviderFacts]


def list_services() -> Services:
    """List the providers that keys can be kept for."""
    return {"services": for_caller(Service.services)}


def list_own(records: AccountRecords, query: PageQuery) -> Page:
    """List the caller's own keys."""
    return records.page(provider=query.provider, after=query.cursor, limit=query.limit)


def list_shared(records: AccountRecords, query: SharedPageQuery) -> Page:
    """List the keys of teams and of the system."""
    return records.page(
        owner=query.owner, provider=query.provider, after=query.cursor, limit=query.limit
    )


def stats(records: AccountRecords) -> Stats:
    """Count the keys and their uses."""
    return records.stats()


def show(records: AccountRecords, record: CredentialRecord) -> ShownRecord:
    """Show one key."""
    shown = cast(ShownRecord, records.describe(record))
    if asks_for_value():
        fields = records.reveal(record, fresh=get_state().loaders.fresh_login)
        plain = {name: secret.reveal() for name, secret in fields.items()}
        keep_from_logs(plain.values())
        shown |= {"value": plain.get("api_key"), "fields": plain}
    return shown


def create_own(records: AccountRecords, body: NewRecord) -> CheckedRecord:
    """Store a new key."""
    owner = records.caller.identity
    made = records.create(owner, body.provider, body.new_key(), slot=body.slot)
    return _checked(records, body, *made)


def create_shared(records: AccountRecords, body: NewSharedRecord) -> CheckedRecord:
    """Store a new key of a team or of the system."""
    made = records.create(body.owner, body.provider, body.new_key(), slot=body.slot)
    return _checked(records, body, *made)


def change(records: AccountRecords, record: CredentialRecord, body: RecordChanges) -> CheckedRecord:
    """Change a key, or the facts beside it; omitted fields keep their value."""
    sent = {name: getattr(body, name) for name in Changes.__annotations__}
    changes = cast(Changes, {name: value for name, value in sent.items() if value is not UNSET})
    secret = NewSecret(fields=body.typed() or {}, base_url=body.base_url, validate=body.validate)
    changed = records.change(record, changes, secret, if_version=_if_match(record))
    return _checked(records, body, *changed)


def delete(records: AccountRecords, record: CredentialRecord) -> None:
    """Delete a key."""
    records.delete(record, if_version=_if_match(record))


def validate(records: AccountRecords, record: CredentialRecord) -> ValidationFacts:
    """Ask the provider about this key, whether it is in use or not."""
    return records.validate(record).to_dict()


def _checked(
    records: AccountRecords, body: TypedKey, record: CredentialRecord, validation: Validation | None
) -> CheckedRecord:
    typed = NewSecret(fields=body.typed() or {}).given
    return {**records.describe(record), **judged(validation, record.provider, typed)}


def _if_match(record: CredentialRecord) -> int | None:
    """Return the version that the client has seen, if it names one.

    :raises VersionConflictError: the record has another version.
    """
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    # A weak tag (W/"3") names no version: RFC 9110, 13.1.1 compares strongly.
    if not request.if_match.contains(record.version):
        raise VersionConflictError(provider=record.provider)
    return int(record.version)


# the routes


def _open(find: Callable[[Service, Caller], Any], id: str | None = None) -> list[Any]:
    """Return the records, and the record, that a call is about.

    Who asks, and for what, is looked at first: a caller who may not see the record learns nothing else.
    """
    records = for_caller(find)
    if id is None:
        return [records]
    if not RECORD_ID.fullmatch(id):
        keep_from_logs([id])  # it may be a pasted key
        raise KeyNotFoundError
    return [records, records.get(id)]


def _routes(
    base: str,
    tag: str,
    find: Callable[[Service, Caller], Any],
    list_them: Callable[..., Page],
    create: Callable[..., CheckedRecord],
) -> Iterator[Route]:
    """Yield the calls on one owner's or all shared records; ``tag`` is ``records`` or ``admin``."""
    opener, prefix = partial(_open, find), "" if tag == "records" else f"{tag}_"
    for method, path, name, call in (
        ("GET", "", "list_records", list_them),
        ("POST", "", "create_record", create),
        ("GET", "/stats", "record_stats", stats),
        ("GET", "/<id>", "get_record", show),
        ("PATCH", "/<id>", "change_record", change),
        ("PUT", "/<id>", "put_record", change),
        ("DELETE", "/<id>", "delete_record", delete),
        ("POST", "/<id>/validate", "validate_record", validate),
    ):
        reveals = call is show and tag == "records"
        yield Route(method, base + path, prefix + name, tag, call, opener, reveals)


ROUTES = (
    *_routes("/keys", "records", Service.own_records, list_own, create_own),
    Route("GET", "/keys/services", "services", "records", list_services),
    *_routes("/admin/keys", "admin", Service.shared_records, list_shared, create_shared),
)
