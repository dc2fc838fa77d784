"""Keys that the database keeps, one by one: a person's own, and for admins those of teams and the system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

from msgspec import Meta

from ..catalog import ProviderSpec
from ..catalog.spec import FieldFacts
from ..errors import (
    FreshLoginRequiredError,
    NotAllowedError,
    OwnerRequiredError,
    RevealDisabledError,
)
from ..keys.tiers import Opener
from ..model.credential import (
    Credential,
    CredentialRecord,
    Secret,
    State,
    Timestamp,
    Validation,
    ValidityFacts,
    isoformat,
    utcnow,
)
from ..model.owner import Caller, Tier
from .record_parts import RecordParts, open_stored, tier_of
from .record_writer import RecordWriter

if TYPE_CHECKING:
    from .store.keys import AccountStore


Count = Annotated[int, Meta(ge=0)]


class Record(TypedDict):
    """What may be shown of a stored key.

    ``owner`` is ``user:<id>``, ``team:<id>`` or ``system``. ``slot`` is empty for an owner's first key. A
    key ``expires_soon`` if it works, but expires within a week.
    """

    id: str
    provider: str
    slot: str
    label: str | None
    description: str | None
    hint: str
    owner: str
    active: bool
    state: State
    expires_at: Timestamp | None
    expires_soon: bool
    created_at: Timestamp
    updated_at: Timestamp
    last_used_at: Timestamp | None
    usage_count: Count
    validity: ValidityFacts | None
    version: Annotated[int, Meta(ge=1)]


class Page(TypedDict):
    """One page of keys, oldest first."""

    keys: list[Record]
    next: Annotated[str | None, Meta(description="The cursor of the next page.")]


class Service(TypedDict):
    """A provider that people may keep keys for."""

    provider: str
    name: str
    aliases: list[str]
    standalone: bool
    fields: list[FieldFacts]
    get_key_url: Annotated[str | None, Meta(extra_json_schema={"format": "uri"})]


class ProviderUses(TypedDict):
    """How many keys there are for a provider, and all calls that were made with them."""

    keys: Count
    uses: Count
    rejected: Count
    failed: Count
    last_used_at: Timestamp | None


class DayUses(TypedDict):
    """The calls of one day (UTC), by outcome."""

    day: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    used: Count
    rejected: Count
    failed: Count


class Stats(TypedDict):
    """How many keys there are, and how often they were used; ``daily`` covers the last 30 days."""

    total: Count
    active: Count
    expired: Count
    by_provider: dict[str, ProviderUses]
    daily: list[DayUses]


class Records:
    """Opens the shelf of keys that a caller may see and change."""

    def __init__(self, parts: RecordParts, accounts: AccountStore | None) -> None:
        self._parts = parts
        self._accounts = accounts

    def own(self, caller: Caller) -> Shelf:
        """Return the caller's own keys.

        :raises OwnerRequiredError: nobody is signed in.
        :raises NotAllowedError: people have no keys in accounts here.
        """
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in to see the keys in your account.")
        if self._accounts is None or Tier.USER not in self._parts.settings.precedence:
            raise NotAllowedError("No keys are kept in accounts here.")
        return Shelf(self._parts, self._accounts, caller, [caller.identity])

    def shared(self, caller: Caller) -> Shelf:
        """Return the keys of all teams and of the system.

        :raises OwnerRequiredError: nobody is signed in.
        :raises NotAllowedError: the caller is no admin, or there are no shared keys here.
        """
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in as an admin to see shared keys.")
        if not caller.admin:
            raise NotAllowedError("Only admins see and change shared keys.")
        kept = [
            tier.value
            for tier in (Tier.SYSTEM, Tier.TEAM)
            if tier in self._parts.settings.precedence
        ]
        if self._accounts is None or not kept:
            raise NotAllowedError("No shared keys are kept in the database here.")
        return Shelf(self._parts, self._accounts, caller, kept)

    def services(self, caller: Caller) -> list[Service]:
        """Return what people may keep keys for.

        :raises OwnerRequiredError: ``BYOK_REQUIRE_LOGIN`` asks for somebody to be signed in.
        """
        if self._parts.settings.require_login and not caller.authenticated:
            raise OwnerRequiredError("Sign in to use API keys here.")
        return [_service(spec) for spec in self._parts.catalog]


class Shelf(RecordWriter):
    """The keys of some owners, for a caller who may see and change them."""

    # get

    @property
    def is_shared(self) -> bool:
        """Say whether these are teams' and the system's keys, not the caller's own."""
        return self.caller.identity not in self._owners

    def page(
        self,
        *,
        owner: str | None = None,
        provider: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Return records, oldest first, and the cursor of the next page or None.

        :param owner: one of the owners, instead of all.
        """
        wanted = None if provider is None else self._parts.catalog.get(provider).id
        owners = self._owners if owner is None else [self.require_owner(owner)]
        found, cursor = self._accounts.page(owners, after=after, limit=limit, provider=wanted)
        return {"keys": [self.describe(record) for record in found], "next": cursor}

    def get(self, id: str) -> CredentialRecord:
        """Return one record.

        :raises KeyNotFoundError: it is not there, or not theirs.
        """
        return self._accounts.get(id, self._owners)

    def describe(self, record: CredentialRecord) -> Record:
        """Return what may be said of a record, as a JSON-able mapping."""
        validity = record.current_validity()
        return {
            "id": record.id,
            "provider": record.provider,
            "slot": record.slot,
            "label": record.label,
            "description": record.description,
            "hint": record.hint,
            "owner": record.owner,
            "active": record.active,
            "state": self._state(record),
            "expires_at": isoformat(record.expires_at),
            "expires_soon": record.expires_soon(utcnow()),
            "created_at": isoformat(record.created_at),
            "updated_at": isoformat(record.updated_at),
            "last_used_at": isoformat(record.last_used_at),
            "usage_count": record.usage_count,
            "validity": validity.to_dict() if validity else None,
            "version": int(record.version),
        }

    def stats(self) -> Stats:
        """Return how many keys there are and how often they were used: see ``UsageStore.stats``."""
        return cast(Stats, self._accounts.usage.stats(self._owners))

    def reveal(
        self, record: CredentialRecord, *, fresh: Callable[[], bool]
    ) -> Mapping[str, Secret]:
        """Return a person's own key to show it, once that is in the audit log.

        :param fresh: says whether the person has just signed in; asked only where a key may be shown at all.
        :raises RevealDisabledError: the operator does not allow it, or the key is not the caller's own.
        :raises FreshLoginRequiredError: the sign-in was some time ago.
        :raises UnreadableCredentialError: it does not open.
        """
        if not self._parts.settings.allow_reveal or record.owner != self.caller.identity:
            raise RevealDisabledError(provider=record.provider)
        if not fresh():
            raise FreshLoginRequiredError(provider=record.provider)
        self._parts.set_limit.check(self.caller.counted_as)
        fields, base_url = open_stored(self._parts, record)
        event = self._parts.journal.event(self.caller, "reveal", fields)
        self._accounts.audit.note(record.owner, event, record)
        return fields if base_url is None else {**fields, "base_url": Secret(base_url)}

    # clear

    def delete(self, record: CredentialRecord, *, if_version: int | None = None) -> None:
        """Delete a record.

        :raises VersionConflictError: it was changed since that version.
        """
        self._parts.set_limit.check(self.caller.counted_as)
        event = self._parts.journal.event(self.caller, "clear")
        self._accounts.delete(record.id, self._owners, event, if_version=if_version)
        self._parts.tell("key_cleared", record)

    # validate

    def validate(self, record: CredentialRecord) -> Validation:
        """Ask the provider about this key, whichever is in use, and store the verdict.

        :raises UnreadableCredentialError: it does not open.
        """
        spec = self._parts.catalog.get(record.provider)
        self._parts.validate_limit.check(self.caller.counted_as)
        return self._parts.verdicts.of_stored(self.caller, spec, self._credential(record, spec))

    # steps

    def _state(self, record: CredentialRecord) -> State:
        if record.provider not in self._parts.catalog:
            return record.state(utcnow())
        spec = self._parts.catalog.get(record.provider)
        tier = tier_of(record.owner)
        state = self._opener.open(spec, tier, "account", record.owner, record).state
        return cast(State, state)

    def _credential(self, record: CredentialRecord, spec: ProviderSpec) -> Credential:
        tier = tier_of(record.owner)
        return self._opener.credential(spec, tier, "account", record.owner, record)

    @property
    def _opener(self) -> Opener:
        return Opener(self._parts.keyring, self._parts.settings)


def _service(spec: ProviderSpec) -> Service:
    return {
        "provider": spec.id,
        "name": spec.name,
        "aliases": list(spec.aliases),
        "standalone": spec.standalone,
        "fields": [f.to_dict() for f in spec.fields],
        "get_key_url": spec.get_key_url,
    }
