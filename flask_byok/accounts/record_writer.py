"""Write single keys into accounts: create one, change one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from ..catalog import ProviderSpec
from ..errors import (
    KeyExistsError,
    KeyRefusedError,
    NotAllowedError,
    ProviderLockedError,
    UnreadableCredentialError,
    VersionConflictError,
)
from ..keys.journal import Subject
from ..keys.notes import check_place, check_shown, clean_note
from ..keys.typed import (
    NewKey,
    NewSecret,
    Typed,
    cut_short,
    read_expiry,
    read_replacement,
    read_typed,
)
from ..model.credential import (
    CredentialRecord,
    Secret,
    Validation,
    free_slot,
    has_place,
    utcnow,
)
from ..model.owner import Caller, Tier
from ..sealing.keyring import Context
from ..sealing.records import new_record
from ..settings import ValidateOnSet
from .record_parts import RecordParts, open_stored, tier_of

if TYPE_CHECKING:
    from .store.keys import AccountStore

#: How often a key is checked of which a part is kept, where others change that part meanwhile.
_TRIES = 2


class Changes(TypedDict, total=False):
    """What is to become of a record; what is left out stays as it is."""

    label: str | None
    description: str | None
    active: bool
    expires_at: datetime | None


class RecordWriter:
    """Creates and changes keys of some owners, for a caller who may.

    :param owners: as stores take them: a name, or a bare ``team`` for every team.
    """

    def __init__(
        self, parts: RecordParts, accounts: AccountStore, caller: Caller, owners: Collection[str]
    ) -> None:
        self._parts = parts
        self._accounts = accounts
        self.caller = caller
        self._owners = owners

    def require_owner(self, owner: str) -> str:
        """Return the owner, if it is one whose keys are here.

        :raises NotAllowedError: it is not.
        """
        if owner in self._owners or owner.partition(":")[0] in self._owners:
            return owner
        raise NotAllowedError("Keys of this owner are not kept here.")

    def create(
        self,
        owner: str,
        provider: str,
        new: NewKey,
        *,
        slot: str | None = None,
        active: bool = True,
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a new key and return its record with what a check found.

        :param slot: by default the first free one.
        :raises InvalidFieldError: a note, the slot or the team's id cannot be kept as it is, or a key is in it.
        :raises KeyExistsError: the slot is taken, or there are as many as there may be.
        :raises KeyRefusedError: the check forbids storing.
        """
        parts = self._parts
        spec = parts.catalog.get(provider)
        self._require_unlocked(self.require_owner(owner), spec)
        parts.set_limit.check(self.caller.counted_as)
        expires_at = read_expiry(new.expires_at, spec.id, parts.settings)
        typed = read_typed(spec, new.fields, new.base_url, parts.settings)
        new = new.with_clean_notes(typed.fields, parts.catalog)
        check_place(owner, slot or "", typed.secrets, parts.catalog)
        place = self._free_slot(owner, spec, slot)
        validation = self._checked(owner, Subject(spec.id, place), spec, typed, new.validate)
        record = new_record(
            parts.keyring,
            Context("account", owner, spec.id, place),
            spec,
            typed.fields,
            typed.base_url,
            label=new.label,
            description=new.description,
            expires_at=expires_at,
            validation=validation,
        )
        stored = self._store(dataclasses.replace(record, active=active), spec, typed, slot)
        self._parts.tell("key_set", stored, hint=stored.hint)
        return stored, validation

    def change(
        self,
        record: CredentialRecord,
        changes: Changes,
        secret: NewSecret | None = None,
        *,
        if_version: int | None = None,
    ) -> tuple[CredentialRecord, Validation | None]:
        """Change a record and return it with what a check found of a new key.

        Where it is as wanted already, nothing is written and its version stays. What has to go with
        the rest of the record (a key with the notes beside it) is checked as the record is when it
        is written, whoever changed it since it was read.

        :param if_version: the version that the caller has seen.
        :raises InvalidFieldError: a note cannot be kept as it is, or a key is in what is shown.
        :raises VersionConflictError: it was changed since; or, time after time, what is to be kept of the stored key.
        :raises KeyRefusedError: the check forbids storing; what was there before stays.
        """
        self._parts.set_limit.check(self.caller.counted_as)
        if secret is None or not secret.is_typed:
            values = partial(self._values, changes)
            return self._write(record, "change", values, if_version), None
        for _ in range(_TRIES - 1):
            try:
                return self._replace(record, changes, secret, if_version)
            except VersionConflictError:
                if if_version is not None:
                    raise
                record = self._accounts.get(record.id, self._owners)
        return self._replace(record, changes, secret, if_version)

    def _replace(
        self,
        record: CredentialRecord,
        changes: Changes,
        secret: NewSecret,
        if_version: int | None,
    ) -> tuple[CredentialRecord, Validation | None]:
        spec = self._parts.catalog.get(record.provider)
        self._require_unlocked(record.owner, spec)
        typed = self._typed(spec, secret, record)
        is_new = any(field.secret and field.name in secret.given for field in spec.fields)
        # Before the key goes to its provider.
        self._values_with(typed, changes, record, is_new=is_new)
        validation = self._checked(record.owner, record, spec, typed, secret.validate)
        sealed = self._sealed(record, spec, typed, validation)

        def values(now: CredentialRecord) -> dict[str, Any]:
            if self._typed(spec, secret, now) != typed:
                raise VersionConflictError(provider=spec.id)
            return self._values_with(typed, changes, now, is_new=is_new) | sealed

        changed = self._write(record, "set", values, if_version, typed.fields)
        self._parts.tell("key_set", changed, hint=changed.hint)
        return changed, validation

    def _typed(self, spec: ProviderSpec, secret: NewSecret, record: CredentialRecord) -> Typed:
        """Return what was typed, with what is kept of the stored key."""
        parts = self._parts
        return read_replacement(spec, secret, lambda: open_stored(parts, record), parts.settings)[0]

    def _values(
        self, changes: Changes, record: CredentialRecord, *, is_new: bool = False
    ) -> dict[str, Any]:
        """Return what changes make of a record as it is now.

        :param is_new: its key is replaced too; one that stays is as old as it was.
        """
        values: dict[str, Any] = {**changes, **self._notes(record, changes)}
        if "expires_at" in changes:
            wanted = changes["expires_at"]
            values["expires_at"] = (
                read_expiry(wanted, record.provider, self._parts.settings)
                if is_new
                else self._later_expiry(wanted, record)
            )
        return values

    def _later_expiry(self, wanted: datetime | None, record: CredentialRecord) -> datetime | None:
        """Return when a key expires that stays, counted from when it was saved; what it has already is no mistake."""
        ends = cut_short(wanted, self._parts.settings, record.saved_at)
        if wanted == record.expires_at and (ends is None or ends <= utcnow()):
            return wanted
        return read_expiry(wanted, record.provider, self._parts.settings, record.saved_at)

    def _values_with(
        self, typed: Typed, changes: Changes, record: CredentialRecord, *, is_new: bool
    ) -> dict[str, Any]:
        """Return what changes make of it with what was typed, of which no secret is in what is shown then."""
        values = self._values(changes, record, is_new=is_new)
        check_shown(dataclasses.replace(record, **values), typed.secrets)
        if is_new:
            values.setdefault("expires_at", self._renewed_expiry(record))
        return values | {"set_at": utcnow() if is_new else record.saved_at}

    def _require_unlocked(self, owner: str, spec: ProviderSpec) -> None:
        tier, resolver = tier_of(owner), self._parts.resolver
        if (tier is Tier.TEAM and resolver.listed_as_locked(spec)) or (
            tier is Tier.USER and resolver.locked_for(self.caller, spec, tier)
        ):
            raise ProviderLockedError(
                f"The key for {spec.name} is managed by the operator and cannot be changed here.",
                provider=spec.id,
            )

    def _renewed_expiry(self, record: CredentialRecord) -> datetime | None:
        """Return when a new key in an old record's place expires: as that would, were it not over already."""
        ends = record.expires_at
        is_over = ends is not None and ends <= utcnow()
        return cut_short(None if is_over else ends, self._parts.settings)

    def _notes(self, record: CredentialRecord, changes: Changes) -> Changes:
        """Return the notes among the changes as they are kept, without the stored key in them."""
        label, description = changes.get("label"), changes.get("description")
        if label is None and description is None:
            return {}
        fields, specs, notes = self._stored(record), self._parts.catalog, Changes()
        if label is not None:
            notes["label"] = clean_note(label, "label", fields, specs)
        if description is not None:
            notes["description"] = clean_note(description, "description", fields, specs)
        return notes

    def _stored(self, record: CredentialRecord) -> Mapping[str, Secret]:
        """Return what a record holds, by field; nothing where it does not open."""
        try:
            return open_stored(self._parts, record)[0]
        except UnreadableCredentialError:
            return {}

    def _free_slot(self, owner: str, spec: ProviderSpec, slot: str | None) -> str:
        taken = {record.slot for record in self._accounts.find([owner], [spec.id])}
        place = free_slot(taken) if slot is None else slot
        if place in taken or not has_place(place, taken, self._parts.settings.keys_per_provider):
            raise KeyExistsError(
                f"There is a key for {spec.name} already. Change or delete that one.",
                provider=spec.id,
            )
        return place

    def _checked(
        self,
        owner: str,
        subject: Subject | CredentialRecord,
        spec: ProviderSpec,
        typed: Typed,
        asked: ValidateOnSet | None,
    ) -> Validation | None:
        try:
            return self._parts.verdicts.before_set(self.caller, spec, typed, asked)
        except KeyRefusedError as error:
            verdict = error.validation.verdict
            event = self._parts.journal.event(self.caller, "set", typed.fields, verdict)
            self._accounts.audit.note(owner, event, subject)
            raise

    def _store(
        self, record: CredentialRecord, spec: ProviderSpec, typed: Typed, slot: str | None
    ) -> CredentialRecord:
        """Create a record; where somebody took its slot just now and none was asked for, in the next one."""
        event = self._parts.journal.event(self.caller, "set", typed.fields)
        at_most = self._parts.settings.keys_per_provider
        for _ in range(at_most):  # as often as others can be first
            try:
                return self._accounts.create(record, event, at_most=at_most)
            except KeyExistsError:
                place = self._free_slot(record.owner, spec, slot)
            context = Context("account", record.owner, spec.id, place)
            sealed = self._parts.keyring.seal_fields(context, typed.fields, typed.base_url)
            record = dataclasses.replace(record, slot=place, ciphertext=sealed)
        raise KeyExistsError(provider=spec.id)

    def _sealed(
        self,
        record: CredentialRecord,
        spec: ProviderSpec,
        typed: Typed,
        validation: Validation | None,
    ) -> dict[str, Any]:
        fresh = new_record(
            self._parts.keyring,
            Context("account", record.owner, record.provider, record.slot),
            spec,
            typed.fields,
            typed.base_url,
            validation=validation,
        )
        return {name: getattr(fresh, name) for name in ("ciphertext", "hint", "validity")}

    def _write(
        self,
        record: CredentialRecord,
        action: str,
        values: Callable[[CredentialRecord], Mapping[str, Any]],
        if_version: int | None,
        fields: Mapping[str, Secret] | None = None,
    ) -> CredentialRecord:
        event = self._parts.journal.event(self.caller, action, fields)
        return self._accounts.change(record.id, self._owners, values, event, if_version=if_version)
