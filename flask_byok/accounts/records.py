"""Records one by one: list, create, change, check, reveal and delete the keys of some owners."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from msgspec import Meta

from ..catalog import ProviderSpec
from ..errors import (
    FreshLoginRequiredError,
    NotAllowedError,
    RevealDisabledError,
    UnreadableCredentialError,
    VersionConflictError,
)
from ..keys.lookup import locked_error
from ..keys.service import Service
from ..keys.typed import NewKey, clean_text
from ..model.credential import (
    CredentialRecord,
    Fields,
    Secret,
    State,
    Timestamp,
    Validation,
    ValidityFacts,
    isoformat,
    utcnow,
)
from ..model.owner import Caller, Tier, tier_of
from ..sealing.keyring import Opened
from .changes import Changes, NewSecret, Replacement, Slot, changed_expiry
from .store import Subject

if TYPE_CHECKING:
    from .wing import Wing


NonNegative = Annotated[int, Meta(ge=0)]


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
    usage_count: NonNegative
    validity: ValidityFacts | None
    version: Annotated[int, Meta(ge=1)]


class Page(TypedDict):
    """One page of keys, oldest first."""

    keys: list[Record]
    next: Annotated[str | None, Meta(description="The cursor of the next page.")]


class _Uses(TypedDict):
    rejected: NonNegative
    failed: NonNegative
    input_tokens: NonNegative
    output_tokens: NonNegative


class ProviderUses(_Uses):
    """How many keys there are for a provider, all calls that were made with them, and the tokens that these took."""

    keys: NonNegative
    uses: NonNegative
    last_used_at: Timestamp | None


class DayUses(_Uses):
    """The calls of one day (UTC), by outcome, and the tokens that they took."""

    day: Annotated[str, Meta(extra_json_schema={"format": "date"})]
    used: NonNegative


class Stats(TypedDict):
    """How many keys there are, and how often they were used; ``daily`` covers the last 30 days."""

    total: NonNegative
    active: NonNegative
    expired: NonNegative
    by_provider: dict[str, ProviderUses]
    daily: list[DayUses]


@dataclass(frozen=True, slots=True, repr=False)
class AccountRecords:
    """The records of some owners, for a caller who may see and change them.

    :param owners: names, or a bare ``team`` for every team; None for everybody.
    """

    wing: Wing
    core: Service
    caller: Caller
    owners: Collection[str] | None

    def require_owner(self, owner: str) -> str:
        """Return the owner, if its records are among these.

        :raises NotAllowedError: they are not.
        """
        kind = owner.partition(":")[0]
        if self.owners is None or owner in self.owners or kind in self.owners:
            return owner
        raise NotAllowedError("Keys of this owner are not kept here.")

    # get

    def page(
        self,
        *,
        owner: str | None = None,
        provider: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Return records, oldest first, and the cursor of the next page or None.

        :param owner: only this owner's.
        """
        wanted = None if provider is None else self.core.catalog.get(provider).id
        owners = self.owners if owner is None else [self.require_owner(owner)]
        found, cursor = self.wing.store.page(owners, after=after, limit=limit, provider=wanted)
        return {"keys": [self.describe(record) for record in found], "next": cursor}

    def get(self, id: str) -> CredentialRecord:
        """Return one record.

        :raises KeyNotFoundError: it does not exist or is not among these.
        """
        return self.wing.store.get(id, self.owners)

    def describe(self, record: CredentialRecord) -> Record:
        """Return a record as a JSON-able mapping, without its key."""
        facts = {name: getattr(record, name, None) for name in Record.__annotations__}
        times = {
            k: isoformat(moment) for k, moment in facts.items() if isinstance(moment, datetime)
        }
        validity = record.current_validity()
        facts |= times | {
            "state": self._state(record),
            "expires_soon": record.expires_soon(utcnow()),
            "validity": validity.to_dict() if validity else None,
            "version": int(record.version),
        }
        return cast(Record, facts)

    def stats(self) -> Stats:
        """Return the number of keys and of their uses; see ``UsageStore.stats``."""
        return cast(Stats, self.wing.store.usage.stats(self.owners))

    def reveal(self, record: CredentialRecord, *, fresh: Callable[[], bool]) -> Fields:
        """Return the caller's own key in plain, after logging that.

        :param fresh: returns True if the caller has just signed in; asked only if keys may be shown at all.
        :raises RevealDisabledError: the operator does not allow it, or the key is not the caller's own.
        :raises FreshLoginRequiredError: the caller signed in some time ago.
        :raises UnreadableCredentialError: the key does not open.
        """
        if not self.core.settings.allow_reveal or record.owner != self.caller.identity:
            raise RevealDisabledError(provider=record.provider)
        if not fresh():
            raise FreshLoginRequiredError(provider=record.provider)
        self._count_attempt()
        fields, base_url = self.open(record)
        self.log(record.owner, record, "reveal", fields)
        return fields if base_url is None else {**fields, "base_url": Secret(base_url)}

    # set

    def create(
        self, owner: str, provider: str, new: NewKey, *, slot: str | None = None
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a new key, and return its record with the result of the check.

        :param slot: by default the first free one.
        :raises InvalidFieldError: a text, the slot or the team's id cannot be stored, or a key is in it.
        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        :raises KeyRefusedError: the check forbids storing.
        """
        spec = self.core.catalog.get_typed(provider, new.fields)
        self._require_unlocked(self.require_owner(owner), spec)
        self._count_attempt()
        return self.put(owner, provider, new, slot=slot)

    def put(
        self, owner: str, provider: str, new: NewKey, *, slot: str | None, **options: Any
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a key, also in a locked provider and as often as wanted; for commands and imports.

        :param slot: None for the first free one.
        :param options: those of ``Slot``: ``replace``, ``action`` and ``created_at``.
        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        """
        spec = self.core.catalog.get_typed(provider, new.fields)
        owner = self.require_owner(owner)
        place = Slot(self, owner, spec, slot, **options)
        return self.core.saver.save(self.caller, spec, new, place)

    def change(
        self,
        record: CredentialRecord,
        changes: Changes,
        secret: NewSecret | None = None,
        *,
        if_version: int | None = None,
    ) -> tuple[CredentialRecord, Validation | None]:
        """Change a record, and return it with the result of the check of a new key.

        If nothing would change, nothing is written and the version stays. What must fit the rest of the record
        (a key and the texts beside it) is checked again inside the transaction that writes it.

        :param if_version: the version that the caller has seen.
        :raises InvalidFieldError: a text cannot be stored, or holds the key.
        :raises VersionConflictError: the record was changed since, or keeps changing.
        :raises KeyRefusedError: the check forbids storing; the stored key stays.
        """
        self._count_attempt()
        if secret is None or not secret.is_typed:
            values = partial(self.values, changes)
            return self.write(record, "change", values, if_version), None
        try:
            return self._replace(record, changes, secret, if_version)
        except VersionConflictError:  # others changed the stored part during the check
            if if_version is not None:
                raise
        return self._replace(self.get(record.id), changes, secret, None)

    def _replace(
        self, record: CredentialRecord, changes: Changes, secret: NewSecret, if_version: int | None
    ) -> tuple[CredentialRecord, Validation | None]:
        spec = self.core.catalog.get(record.provider)
        self._require_unlocked(record.owner, spec)
        new = NewKey(fields={}, validate=secret.validate)
        place = Replacement(self, record, changes, secret, spec, if_version)
        return self.core.saver.store(self.caller, spec, place.typed(record), new, place)

    def values(
        self, changes: Changes, record: CredentialRecord, *, is_new: bool = False
    ) -> dict[str, Any]:
        """Return the changed fields of a record in its present state.

        :param is_new: the key is replaced too, so that its lifetime begins now.
        """
        values: dict[str, Any] = {**changes, **self._texts(record, changes)}
        if "expires_at" in changes:
            settings, wanted = self.core.settings, changes["expires_at"]
            values["expires_at"] = changed_expiry(wanted, record, settings, is_new=is_new)
        return values

    def _texts(self, record: CredentialRecord, changes: Changes) -> dict[str, str | None]:
        """Return the changed label and description as they are stored, without the stored key in them."""
        names: tuple[Literal["label", "description"], ...] = ("label", "description")
        given = [name for name in names if changes.get(name) is not None]
        fields: Fields = {}
        with suppress(UnreadableCredentialError):
            fields = self.open(record)[0] if given else {}
        return {name: clean_text(changes[name], name, fields, self.core.catalog) for name in given}

    def write(
        self,
        record: CredentialRecord,
        action: str,
        values: Callable[[CredentialRecord], Mapping[str, Any]],
        if_version: int | None,
    ) -> CredentialRecord:
        """Write what a function makes of the record as it is within the transaction."""
        event = self.wing.event(self.caller, action)
        return self.wing.store.change(record.id, self.owners, values, event, if_version=if_version)

    # clear

    def delete(self, record: CredentialRecord, *, if_version: int | None = None) -> None:
        """Delete a record.

        :raises VersionConflictError: it was changed since that version.
        """
        if not self.caller.command:
            self.core.set_limit.check_removal(self.caller.counted_as)
        event = self.wing.event(self.caller, "clear")
        self.wing.store.delete(record.id, self.owners, event, if_version=if_version)
        self.core.saver.tell("key_cleared", record)

    # validate

    def validate(self, record: CredentialRecord) -> Validation:
        """Ask the provider about this key, and store the verdict.

        :raises UnreadableCredentialError: it does not open.
        """
        spec = self.core.catalog.get(record.provider)
        self.core.validate_limit.check(self.caller.counted_as)
        credential = self.wing.opener.credential(spec, record.owner, record)
        return self.core.checks.validate(self.caller, spec, credential)

    # steps, also of a replacement

    def log(
        self, owner: str, subject: Subject, action: str, fields: Fields, outcome: str = "done"
    ) -> None:
        """Log what changes nothing in the database."""
        event = self.wing.event(self.caller, action, fields, outcome)
        self.wing.store.audit.note(owner, event, subject)

    def _count_attempt(self) -> None:
        if not self.caller.command:
            self.core.set_limit.check(self.caller.counted_as)

    def _require_unlocked(self, owner: str, spec: ProviderSpec) -> None:
        tier, lookup = tier_of(owner), self.core.lookup
        if (tier is Tier.TEAM and lookup.listed_as_locked(spec)) or (
            tier is Tier.USER and lookup.locked(self.caller, spec, tier)
        ):
            raise locked_error(spec)

    def open(self, record: CredentialRecord) -> Opened:
        """Return a stored key's fields, and the person's own base URL or None."""
        return self.core.keyring.open_record(record.owner, record)

    def _state(self, record: CredentialRecord) -> State:
        if record.provider not in self.core.catalog:
            return record.state(utcnow())
        spec = self.core.catalog.get(record.provider)
        return cast(State, self.wing.opener.open(spec, record.owner, record).state)
