"""Where a key goes in an account: a slot for a new one, or a stored key whose secret is replaced.

Each place is a destination of the recipe in ``keys.save``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from ..catalog import ProviderSpec
from ..catalog.endpoints import shown
from ..errors import (
    InvalidFieldError,
    KeyExistsError,
    MalformedApiKeyError,
    UnreadableCredentialError,
    VersionConflictError,
)
from ..keys.typed import (
    Typed,
    capped_expiry,
    has_invisible,
    in_utc,
    read_expiry,
    read_typed,
    refuse_key,
)
from ..model.credential import CredentialRecord, Fields, Secret, utcnow
from ..sealing.keyring import Keyring, Opened, context_of
from ..settings import Settings, ValidateOnSet
from .store import NoRecord, free_slot, has_place

if TYPE_CHECKING:
    from .records import AccountRecords


@dataclass(repr=False)
class _Place:
    """One owner's place for a provider's key: a destination of the recipe in ``keys.save``."""

    records: AccountRecords
    owner: str
    spec: ProviderSpec
    slot: str | None = None

    def __post_init__(self) -> None:
        self.context = context_of(self.owner, self.spec.id, self.slot or "")

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""
        subject = NoRecord(self.context.provider, self.context.slot)
        self.records.log(self.owner, subject, "set", typed.fields, verdict)

    def _there(self) -> list[CredentialRecord]:
        """Return the owner's records for the provider."""
        return self.records.wing.store.find([self.owner], [self.spec.id])


class MainSlot(_Place):
    """The caller's main slot for a provider, see ``accounts.store.main_slot``; it replaces the session's own key."""

    def admit(self, typed: Typed) -> None:
        """Refuse a key that the name of one of the owner's slots holds: it may go there."""
        for record in self._there():
            check_place(record.owner, record.slot, typed.secrets)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key in the account, and remove the session's own, which would be used before it."""
        wing, caller, sessions = self.records.wing, self.records.caller, self.records.core.sessions
        session, identity = caller.session, record.owner
        leaving: list[CredentialRecord] = []
        if session is not None:
            there = sessions.read(session, identity, [record.provider]).records
            leaving = sessions.mark_leaving(session, identity, there.values())

        def seat(record: CredentialRecord, taken: Collection[str]) -> CredentialRecord:
            seated = wing.seat(record, taken)
            check_place(seated.owner, seated.slot, typed.secrets)
            return seated

        ended = [one.version for one in leaving]
        stored = wing.store.put(record, wing.event(caller, "set"), seat=seat, ended=ended)
        if session is not None:
            sessions.remove(session, identity, leaving)
        return stored


@dataclass(repr=False)
class Slot(_Place):
    """A slot that is named, or the first free one.

    :param slot: None for the first free one.
    :param replace: take the place of the key that is there.
    :param action: the audit log's word.
    :param created_at: when an imported key was first saved; by default now.
    """

    replace: bool = False
    action: str = "set"
    created_at: datetime | None = None

    def admit(self, typed: Typed) -> None:
        """Choose the slot, and refuse a key that its name holds, and a name that cannot be shown.

        :raises KeyExistsError: it is taken, or the owner has as many keys as allowed.
        """
        catalog = self.records.core.catalog
        check_place(self.owner, self.context.slot, typed.secrets, catalog)
        self.choose()

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key; without a named slot in the one that is free by now.

        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        """
        if self.created_at is not None:
            # It is saved here now: its longest lifetime begins now.
            record = dataclasses.replace(
                record, created_at=self.created_at, set_at=record.created_at
            )
        records = self.records
        event = records.wing.event(records.caller, self.action)
        return records.wing.store.put(record, event, seat=self._seat)

    def choose(self) -> None:
        """Choose the slot.

        :raises KeyExistsError: it is taken, or the owner has as many keys as allowed.
        """
        slot = self._slot_beside({record.slot for record in self._there()})
        self.context = self.context._replace(slot=slot)

    def _seat(self, record: CredentialRecord, taken: Collection[str]) -> CredentialRecord:
        return in_slot(self.records.core.keyring, record, self._slot_beside(taken))

    def _slot_beside(self, taken: Collection[str]) -> str:
        slot = free_slot(taken) if self.slot is None else self.slot
        full = not has_place(slot, taken, self.records.core.settings.slots_of(self.spec.id))
        if (slot in taken and not self.replace) or full:
            raise KeyExistsError(
                f"There is a key for {self.spec.name} already. Change or delete that one.",
                provider=self.spec.id,
            )
        return slot


def in_slot(keyring: Keyring, record: CredentialRecord, slot: str) -> CredentialRecord:
    """Return an account's record, sealed for another slot.

    :raises UnreadableCredentialError: it does not open.
    """
    if slot == record.slot:
        return record
    there = context_of(record.owner, record.provider, slot)
    plain = keyring.open(record.ciphertext, there._replace(slot=record.slot))
    return dataclasses.replace(record, slot=slot, ciphertext=keyring.seal(plain, there))


class Changes(TypedDict, total=False):
    """Fields of a stored record to change; omitted fields keep their value."""

    label: str | None
    description: str | None
    active: bool
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """The secret part of a change: blank fields keep their stored values."""

    fields: Fields
    base_url: str | None = None
    validate: ValidateOnSet | None = None

    @property
    def given(self) -> dict[str, Secret]:
        """The fields that are not blank."""
        return {name: text for name, text in self.fields.items() if text.reveal().strip()}

    @property
    def is_typed(self) -> bool:
        """True if a field or the address is replaced."""
        return bool(self.base_url or self.given)


def read_replacement(
    spec: ProviderSpec,
    secret: NewSecret,
    stored: Callable[[], Opened],
    settings: Settings,
) -> Typed:
    """Clean a replacement, completed by what stays of the stored key.

    :param stored: opens the stored key; called only if a part of it may stay.
    :raises MalformedApiKeyError: the secret must be typed too, because a stored key is used only with
        the address and the other plain fields that it was saved with.
    """
    given, names = secret.given, {f.name for f in spec.fields} - {"base_url"}
    moves = bool(secret.base_url) or "base_url" in given
    if names <= given.keys() and not spec.personal_base_url:
        return read_typed(spec, given, None, settings)
    try:
        fields, base_url = stored()
    except UnreadableCredentialError:
        if not moves or any(f.secret and f.name not in given for f in spec.fields):
            raise
        fields, base_url = {}, None
    kept = {name: fields[name] for name in names & fields.keys() - given.keys()}
    if moves and any(f.secret and f.name in kept for f in spec.fields):
        raise _retype("A key goes only to the address that it was saved with", spec)
    own = secret.base_url if moves else base_url if spec.personal_base_url else None
    typed = read_typed(spec, {**kept, **given}, own, settings)
    if typed.secrets.keys() & kept.keys() and _plain(spec, typed.fields) != _plain(spec, fields):
        # A plain field may decide where the key is sent, and its editor may not know the key.
        raise _retype("A key is used only with what it was saved with", spec)
    return typed


def _retype(reason: str, spec: ProviderSpec) -> MalformedApiKeyError:
    return MalformedApiKeyError(f"{reason}: type the key too.", provider=spec.id)


def _plain(spec: ProviderSpec, fields: Fields) -> dict[str, str]:
    # A name and a model decide nothing about where a key goes.
    plain = {f.name for f in spec.fields if not f.secret} - shown(spec).keys()
    return {name: value.reveal() for name, value in fields.items() if name in plain}


def changed_expiry(
    wanted: datetime | None, record: CredentialRecord, settings: Settings, *, is_new: bool
) -> datetime | None:
    """Return the new expiry of a stored key; see ``read_expiry``.

    :param is_new: the key is replaced too, so that its lifetime begins now, and not when it was saved.
    """
    wanted = wanted and in_utc(wanted, "expires_at", record.provider)
    ends = capped_expiry(wanted, settings, record.saved_at)
    if not is_new and wanted == record.expires_at and (ends is None or ends <= utcnow()):
        return wanted  # unchanged, so no mistake
    return read_expiry(wanted, record.provider, settings, None if is_new else record.saved_at)


def renewed_expiry(record: CredentialRecord, settings: Settings) -> datetime | None:
    """Return a record's expiry for a new key in its place, unless it is past."""
    ends = record.expires_at
    is_past = ends is not None and ends <= utcnow()
    return capped_expiry(None if is_past else ends, settings)


@dataclass(repr=False)
class Replacement:
    """The place of a stored key whose secret is replaced: a destination of the recipe in ``keys.save``."""

    records: AccountRecords
    record: CredentialRecord
    changes: Changes
    secret: NewSecret
    spec: ProviderSpec
    if_version: int | None

    def __post_init__(self) -> None:
        record = self.record
        self.context = context_of(record.owner, record.provider, record.slot)
        given = self.secret.given
        self._is_new = any(field.secret and field.name in given for field in self.spec.fields)

    def typed(self, record: CredentialRecord) -> Typed:
        """Return the new key, completed by what stays of a record's."""
        stored = partial(self.records.open, record)
        return read_replacement(self.spec, self.secret, stored, self.records.core.settings)

    def admit(self, typed: Typed) -> None:
        """Refuse a change that cannot be stored, before the key goes to its provider."""
        self._values(typed, self.record)

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""
        self.records.log(self.record.owner, self.record, "set", typed.fields, verdict)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Put the new key into the stored record.

        :raises VersionConflictError: what stays of the stored key has changed since.
        """
        sealed = {name: getattr(record, name) for name in ("ciphertext", "hint", "validity")}

        def values(now: CredentialRecord) -> dict[str, Any]:
            if self.typed(now) != typed:
                raise VersionConflictError(provider=self.spec.id)
            return self._values(typed, now) | sealed

        return self.records.write(self.record, "set", values, self.if_version)

    def _values(self, typed: Typed, record: CredentialRecord) -> dict[str, Any]:
        """Return the changed fields beside the new key, after checking that no shown text holds it."""
        values = self.records.values(self.changes, record, is_new=self._is_new)
        check_shown(dataclasses.replace(record, **values), typed.secrets)
        if self._is_new:
            values.setdefault("expires_at", renewed_expiry(record, self.records.core.settings))
        return values | {"set_at": utcnow() if self._is_new else record.saved_at}


def check_place(owner: str, slot: str, fields: Fields, specs: Iterable[ProviderSpec] = ()) -> None:
    """Refuse a slot or a team's id that cannot be shown; the host chooses its users' ids.

    :raises InvalidFieldError: it has invisible characters or seems to hold a key.
    """
    for name, text in _place(owner, slot).items():
        if has_invisible(text):
            raise InvalidFieldError(f"The field {name!r} has printable characters only.")
        refuse_key(text, name, fields, specs)


def check_shown(record: CredentialRecord, fields: Fields) -> None:
    """Refuse a new key that occurs in a text shown beside it.

    :raises InvalidFieldError: it does.
    """
    texts = {"label": record.label, "description": record.description}
    for name, text in {**texts, **_place(record.owner, record.slot)}.items():
        refuse_key(text or "", name, fields)


def _place(owner: str, slot: str) -> dict[str, str]:
    return {"slot": slot, "owner": owner} if owner.startswith("team:") else {"slot": slot}
