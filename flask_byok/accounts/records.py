"""Records one by one: list, create, change, check, reveal and delete the keys of some owners."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
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
from ..keys.expiry import capped_expiry, read_expiry
from ..keys.lookup import locked_error
from ..keys.save import new_record
from ..keys.service import Service
from ..keys.typed import (
    Changes,
    NewKey,
    NewSecret,
    Typed,
    check_shown,
    clean_text,
    read_replacement,
)
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
from ..model.owner import Caller, Tier, tier_of
from ..sealing.keyring import Context

if TYPE_CHECKING:
    from .wing import Wing

#: How often a partly replaced key is checked if others change the stored part meanwhile.
_TRIES = 2


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


class AccountRecords:
    """The records of some owners, for a caller who may see and change them.

    :param owners: names, or a bare ``team`` for every team; None for everybody.
    """

    def __init__(
        self, wing: Wing, core: Service, caller: Caller, owners: Collection[str] | None
    ) -> None:
        self.caller = caller
        self._wing = wing
        self._store = wing.store
        self._core = core
        self._owners = owners

    def require_owner(self, owner: str) -> str:
        """Return the owner, if its records are among these.

        :raises NotAllowedError: they are not.
        """
        kind = owner.partition(":")[0]
        if self._owners is None or owner in self._owners or kind in self._owners:
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
        wanted = None if provider is None else self._core.catalog.get(provider).id
        owners = self._owners if owner is None else [self.require_owner(owner)]
        found, cursor = self._store.page(owners, after=after, limit=limit, provider=wanted)
        return {"keys": [self.describe(record) for record in found], "next": cursor}

    def get(self, id: str) -> CredentialRecord:
        """Return one record.

        :raises KeyNotFoundError: it does not exist or is not among these.
        """
        return self._store.get(id, self._owners)

    def describe(self, record: CredentialRecord) -> Record:
        """Return a record as a JSON-able mapping, without its key."""
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
        """Return the number of keys and of their uses; see ``UsageStore.stats``."""
        return cast(Stats, self._store.usage.stats(self._owners))

    def reveal(
        self, record: CredentialRecord, *, fresh: Callable[[], bool]
    ) -> Mapping[str, Secret]:
        """Return the caller's own key in plain, after logging that.

        :param fresh: returns True if the caller has just signed in; asked only if keys may be shown at all.
        :raises RevealDisabledError: the operator does not allow it, or the key is not the caller's own.
        :raises FreshLoginRequiredError: the caller signed in some time ago.
        :raises UnreadableCredentialError: the key does not open.
        """
        if not self._core.settings.allow_reveal or record.owner != self.caller.identity:
            raise RevealDisabledError(provider=record.provider)
        if not fresh():
            raise FreshLoginRequiredError(provider=record.provider)
        self._count_attempt()
        fields, base_url = self._open(record)
        event = self._wing.event(self.caller, "reveal", fields)
        self._store.audit.note(record.owner, event, record)
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
        self._require_unlocked(self.require_owner(owner), self._core.catalog.get(provider))
        self._count_attempt()
        return self.put(owner, provider, new, slot=slot)

    def put(
        self,
        owner: str,
        provider: str,
        new: NewKey,
        *,
        slot: str | None,
        **options: Any,
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a key, also in a locked provider and as often as wanted; for commands and imports.

        :param slot: None for the first free one.
        :param options: those of ``wing.Slot``: ``replace``, ``action`` and ``created_at``.
        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        """
        spec = self._core.catalog.get(provider)
        owner = self.require_owner(owner)
        place = self._wing.slot(self._core, self.caller, owner, spec, slot, **options)
        return self._core.saver.save(self.caller, spec, new, place)

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
            values = partial(self._values, changes)
            return self._write(record, "change", values, if_version), None
        for _ in range(_TRIES - 1):
            try:
                return self._replace(record, changes, secret, if_version)
            except VersionConflictError:
                if if_version is not None:
                    raise
                record = self._store.get(record.id, self._owners)
        return self._replace(record, changes, secret, if_version)

    def _replace(
        self,
        record: CredentialRecord,
        changes: Changes,
        secret: NewSecret,
        if_version: int | None,
    ) -> tuple[CredentialRecord, Validation | None]:
        spec, saver = self._core.catalog.get(record.provider), self._core.saver
        self._require_unlocked(record.owner, spec)
        typed = self._typed(spec, secret, record)
        is_new = any(field.secret and field.name in secret.given for field in spec.fields)
        # Before the key goes to its provider.
        self._values_with(typed, changes, record, is_new=is_new)
        refused = partial(self._refused, record)
        checks = self._core.checks
        validation = checks.before_set(self.caller, spec, typed, secret.validate, refused)
        context = Context("account", record.owner, record.provider, record.slot)
        keyring = self._core.keyring
        fresh = new_record(keyring, context, spec, typed.fields, typed.base_url, validation)
        sealed = {name: getattr(fresh, name) for name in ("ciphertext", "hint", "validity")}

        def values(now: CredentialRecord) -> dict[str, Any]:
            if self._typed(spec, secret, now) != typed:
                raise VersionConflictError(provider=spec.id)
            return self._values_with(typed, changes, now, is_new=is_new) | sealed

        changed = self._write(record, "set", values, if_version)
        saver.tell("key_set", changed)
        return changed, validation

    def _refused(self, record: CredentialRecord, typed: Typed, verdict: str) -> None:
        event = self._wing.event(self.caller, "set", typed.fields, verdict)
        self._store.audit.note(record.owner, event, record)

    def _typed(self, spec: ProviderSpec, secret: NewSecret, record: CredentialRecord) -> Typed:
        return read_replacement(spec, secret, partial(self._open, record), self._core.settings)

    def _values(
        self, changes: Changes, record: CredentialRecord, *, is_new: bool = False
    ) -> dict[str, Any]:
        """Return the changed fields of a record in its present state.

        :param is_new: the key is replaced too, so that its lifetime begins now.
        """
        values: dict[str, Any] = {**changes, **self._texts(record, changes)}
        if "expires_at" in changes:
            wanted, settings = changes["expires_at"], self._core.settings
            values["expires_at"] = (
                read_expiry(wanted, record.provider, settings)
                if is_new
                else self._later_expiry(wanted, record)
            )
        return values

    def _later_expiry(self, wanted: datetime | None, record: CredentialRecord) -> datetime | None:
        """Return the new expiry of a stored key, whose lifetime began when it was saved."""
        settings = self._core.settings
        ends = capped_expiry(wanted, settings, record.saved_at)
        if wanted == record.expires_at and (ends is None or ends <= utcnow()):
            return wanted  # unchanged, so no mistake
        return read_expiry(wanted, record.provider, settings, record.saved_at)

    def _values_with(
        self, typed: Typed, changes: Changes, record: CredentialRecord, *, is_new: bool
    ) -> dict[str, Any]:
        """Return the changed fields beside a new key, after checking that no shown text holds it."""
        values = self._values(changes, record, is_new=is_new)
        check_shown(dataclasses.replace(record, **values), typed.secrets)
        if is_new:
            values.setdefault("expires_at", self._renewed_expiry(record))
        return values | {"set_at": utcnow() if is_new else record.saved_at}

    def _renewed_expiry(self, record: CredentialRecord) -> datetime | None:
        """Return the old record's expiry for a new key in its place, unless it is past."""
        ends = record.expires_at
        is_past = ends is not None and ends <= utcnow()
        return capped_expiry(None if is_past else ends, self._core.settings)

    def _texts(self, record: CredentialRecord, changes: Changes) -> Changes:
        """Return the changed label and description as they are stored, without the stored key in them."""
        texts: Changes = {}
        names: tuple[Literal["label", "description"], ...] = ("label", "description")
        given = {name: changes[name] for name in names if changes.get(name) is not None}
        fields = self._stored(record) if given else {}
        for name, text in given.items():
            texts[name] = clean_text(text, name, fields, self._core.catalog)
        return texts

    def _stored(self, record: CredentialRecord) -> Mapping[str, Secret]:
        try:
            return self._open(record)[0]
        except UnreadableCredentialError:
            return {}

    def _write(
        self,
        record: CredentialRecord,
        action: str,
        values: Callable[[CredentialRecord], Mapping[str, Any]],
        if_version: int | None,
    ) -> CredentialRecord:
        event = self._wing.event(self.caller, action)
        return self._store.change(record.id, self._owners, values, event, if_version=if_version)

    # clear

    def delete(self, record: CredentialRecord, *, if_version: int | None = None) -> None:
        """Delete a record.

        :raises VersionConflictError: it was changed since that version.
        """
        self._count_attempt()
        event = self._wing.event(self.caller, "clear")
        self._store.delete(record.id, self._owners, event, if_version=if_version)
        self._core.saver.tell("key_cleared", record)

    # validate

    def validate(self, record: CredentialRecord) -> Validation:
        """Ask the provider about this key, and store the verdict.

        :raises UnreadableCredentialError: it does not open.
        """
        spec = self._core.catalog.get(record.provider)
        self._core.validate_limit.check(self.caller.counted_as)
        return self._core.checks.of_stored(self.caller, spec, self._credential(record, spec))

    # steps

    def _count_attempt(self) -> None:
        if not self.caller.command:
            self._core.set_limit.check(self.caller.counted_as)

    def _require_unlocked(self, owner: str, spec: ProviderSpec) -> None:
        tier, lookup = tier_of(owner), self._core.lookup
        if (tier is Tier.TEAM and lookup.listed_as_locked(spec)) or (
            tier is Tier.USER and lookup.locked(self.caller, spec, tier)
        ):
            raise locked_error(spec)

    def _open(self, record: CredentialRecord) -> tuple[dict[str, Secret], str | None]:
        return self._core.keyring.open_record("account", record.owner, record)

    def _state(self, record: CredentialRecord) -> State:
        if record.provider not in self._core.catalog:
            return record.state(utcnow())
        spec = self._core.catalog.get(record.provider)
        tier = tier_of(record.owner)
        return cast(
            State, self._wing.opener.open(spec, tier, "account", record.owner, record).state
        )

    def _credential(self, record: CredentialRecord, spec: ProviderSpec) -> Credential:
        tier = tier_of(record.owner)
        return self._wing.opener.credential(spec, tier, "account", record.owner, record)
