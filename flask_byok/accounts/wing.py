"""The wing's side of ``keys.ports``: what the core asks of accounts, and the slots that take a key."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..catalog import ProviderSpec
from ..errors import KeyExistsError, KeyNotFoundError
from ..keys.lookup import Candidate, Found, Opener
from ..keys.ports import Accounts, AuditEvent, Promotion
from ..keys.service import Service
from ..keys.typed import Typed, check_place
from ..model.credential import (
    Credential,
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Use,
    free_slot,
    has_place,
    main_slot,
)
from ..model.owner import ACCOUNT_TIERS, Caller, SessionRef, Tier
from ..sealing.keyring import Context, Keyring
from ..settings import Settings
from .promotion import promote
from .records import AccountRecords

if TYPE_CHECKING:
    from .store.keys import AccountStore


class Unrecorded(NamedTuple):
    """The subject of an event that has no record in the database."""

    provider: str
    slot: str = ""
    id: str = ""


class Wing(Accounts):
    """Keys of users, teams and the system in the database."""

    def __init__(self, store: AccountStore, keyring: Keyring, settings: Settings) -> None:
        self.store = store
        self.tiers = tuple(tier for tier in settings.precedence if tier in ACCOUNT_TIERS)
        self.opener = Opener(keyring, settings)
        self._keyring = keyring
        self._at_most = settings.keys_per_provider

    # look up

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the keys of these tiers that may serve the caller, read in one statement.

        Of several teams' keys the one comes first whose team the host names first; of several slots the first.
        """
        owners = [(tier, owner) for tier, owner in caller.account_owners() if tier in self.tiers]
        if not owners or not specs:
            return {}
        kept = self.store.places([owner for _, owner in owners], [spec.id for spec in specs])
        return {
            (tier, spec.id): self._candidates(spec, tier, owners, kept)
            for spec in specs
            for tier in self.tiers
        }

    def _candidates(
        self,
        spec: ProviderSpec,
        tier: Tier,
        owners: Iterable[tuple[Tier, str]],
        kept: Mapping[tuple[str, str], Iterable[CredentialRecord]],
    ) -> Iterator[Candidate]:
        for owner in (owner for its_tier, owner in owners if its_tier is tier):
            # By exact name: some databases compare without regard to case, and Ann's key is not ann's.
            for record in kept.get((owner, spec.id), ()):
                yield self.opener.open(spec, tier, "account", owner, record)

    # the audit log

    def event(
        self,
        caller: Caller,
        action: str,
        fields: Mapping[str, Secret] | None = None,
        outcome: str = "done",
    ) -> AuditEvent:
        """Return an event for the log.

        :param fields: the key that an event is about which stores none; the log itself adds a stored key's
            fingerprint.
        """
        fingerprint = self.store.audit.fingerprint(fields) if fields else None
        return AuditEvent(caller.actor, action, str(outcome), caller.request_id, fingerprint)

    def note(
        self,
        caller: Caller,
        action: str,
        provider: str,
        fields: Mapping[str, Secret] | None = None,
        *,
        outcome: str = "done",
        ended: Collection[str] = (),
    ) -> set[str]:
        """Log what a signed-in caller does in the session or at a provider; see ``keys.ports``."""
        if not caller.authenticated:
            return set()
        event = self.event(caller, action, fields, outcome)
        if ended:
            return self.store.end(caller.identity, ended, event, Unrecorded(provider))
        self.store.audit.note(caller.identity, event, Unrecorded(provider))
        return set()

    def over(self, owner: str, versions: Collection[str]) -> set[str]:
        """Return those versions of the owner's session records that are over."""
        return self.store.over(owner, versions)

    # the verbs

    def main_place(self, core: Service, caller: Caller, spec: ProviderSpec) -> MainSlot:
        """Return where a key goes that the caller keeps in the account."""
        return MainSlot(self, core, caller, caller.identity, spec)

    def seat(self, record: CredentialRecord, taken: Collection[str]) -> CredentialRecord:
        """Return an account's record, sealed for the slot of the owner's main key."""
        return self._keyring.in_slot(record, main_slot(taken, self._at_most))

    def clear(self, caller: Caller, provider: str) -> bool:
        """Delete the caller's keys for a provider, and return True if there were any."""
        if not caller.authenticated:
            return False
        event = self.event(caller, "clear")
        return bool(self.store.clear(caller.identity, [provider], event))

    def record_verdict(
        self, credential: Credential, verdict: RecordedVerdict, asked_by: Caller | None = None
    ) -> None:
        """Store a verdict about a key of these tiers, and log the check that a signed-in caller asked for."""
        event = None
        if asked_by is not None and asked_by.authenticated:
            event = self.event(asked_by, "validate", credential.fields, verdict.verdict)
        with suppress(KeyNotFoundError):  # deleted during the check
            self.store.record_verdict(credential.id, verdict.version, verdict, event)
            return
        if event is not None:
            subject = Unrecorded(credential.provider, id=credential.id)
            self.store.audit.note(credential.owner, event, subject)

    def count(self, use: Use) -> None:
        """Add uses to the owner's statistics."""
        self.store.usage.add(use)

    def promote(
        self,
        core: Service,
        caller: Caller,
        session: SessionRef,
        specs: Sequence[ProviderSpec],
        *,
        replace: bool,
        own: bool,
    ) -> Promotion:
        """Move keys from the session into the caller's account; see ``accounts.promotion``."""
        return promote(self, core, caller, session, specs, replace=replace, own=own)

    def forget(self, caller: Caller, owner: str) -> list[str]:
        """Delete everything of an owner but the audit log, and return the providers that had keys."""
        return self.store.forget(owner, self.event(caller, "clear"))

    # records

    def slot(
        self,
        core: Service,
        caller: Caller,
        owner: str,
        spec: ProviderSpec,
        slot: str | None,
        **options: Any,
    ) -> Slot:
        """Return where a key of this owner goes; see ``Slot``."""
        return Slot(self, core, caller, owner, spec, slot, **options)

    def own(self, core: Service, caller: Caller) -> AccountRecords:
        """Return the caller's own records."""
        if caller.authenticated and Tier.USER in self.tiers:
            return AccountRecords(self, core, caller, [caller.identity])
        refused: AccountRecords = super().own(core, caller)
        return refused

    def shared(self, core: Service, caller: Caller) -> AccountRecords:
        """Return all teams' and the system's records, for an admin."""
        kept = [tier.value for tier in (Tier.SYSTEM, Tier.TEAM) if tier in self.tiers]
        if caller.authenticated and caller.admin and kept:
            return AccountRecords(self, core, caller, kept)
        refused: AccountRecords = super().shared(core, caller)
        return refused

    def everything(self, core: Service) -> AccountRecords:
        """Return all records, for an operator's command."""
        return AccountRecords(self, core, Caller(command=True), None)


@dataclass
class _Place:
    """One owner's place for a provider's key: a destination of the recipe in ``keys.save``."""

    wing: Wing
    core: Service
    caller: Caller
    owner: str
    spec: ProviderSpec
    slot: str | None = None

    def __post_init__(self) -> None:
        self.context = Context("account", self.owner, self.spec.id, self.slot or "")

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""
        event = self.wing.event(self.caller, "set", typed.fields, verdict)
        subject = Unrecorded(self.context.provider, self.context.slot)
        self.wing.store.audit.note(self.context.owner, event, subject)

    def _there(self) -> list[CredentialRecord]:
        """Return the owner's records for the provider."""
        return self.wing.store.find([self.context.owner], [self.spec.id])


class MainSlot(_Place):
    """The caller's main slot for a provider, see ``model.credential.main_slot``; it replaces the session's own key."""

    def admit(self, typed: Typed) -> None:
        """Refuse a key that the name of one of the owner's slots holds: it may go there."""
        for record in self._there():
            check_place(record.owner, record.slot, typed.secrets)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key in the account, and remove the session's own, which would be used before it."""
        session, identity, sessions = self.caller.session, record.owner, self.core.sessions
        leaving: list[CredentialRecord] = []
        if session is not None:
            there = sessions.read(session, identity, [record.provider]).records
            leaving = sessions.mark_leaving(session, identity, there.values())
        stored = self.wing.store.keep(
            record,
            self.wing.event(self.caller, "set"),
            seat=self.wing.seat,
            ended=[one.version for one in leaving],
            confirm=lambda seated: check_place(seated.owner, seated.slot, typed.secrets),
        )
        if session is not None:
            sessions.clear(session, identity, [record.provider])
        return stored


@dataclass
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
        check_place(self.context.owner, self.context.slot, typed.secrets, self.core.catalog)
        self.choose()

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key; if another request took the slot just now and none was named, in the next one.

        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        """
        if self.created_at is not None:
            # It is saved here now: its longest lifetime begins now.
            record = dataclasses.replace(
                record, created_at=self.created_at, set_at=record.created_at
            )
        store, at_most = self.wing.store, self.core.settings.keys_per_provider
        event = self.wing.event(self.caller, self.action)
        if self.replace:
            return store.put(record, event, at_most=at_most)
        for _ in range(at_most):  # as often as others can be first
            try:
                return store.create(record, event, at_most=at_most)
            except KeyExistsError:
                self.choose()
            sealed = self.core.keyring.seal_fields(self.context, typed.fields, typed.base_url)
            record = dataclasses.replace(record, slot=self.context.slot, ciphertext=sealed)
        raise KeyExistsError(provider=self.spec.id)

    def choose(self) -> None:
        """Choose the slot.

        :raises KeyExistsError: it is taken, or the owner has as many keys as allowed.
        """
        taken = {record.slot for record in self._there()}
        slot = self.context.slot if self.slot is not None else free_slot(taken)
        at_most = self.core.settings.keys_per_provider
        if (slot in taken and not self.replace) or not has_place(slot, taken, at_most):
            raise KeyExistsError(
                f"There is a key for {self.spec.name} already. Change or delete that one.",
                provider=self.spec.id,
            )
        self.context = self.context._replace(slot=slot)
