"""Places in accounts that take a key: the destinations of the recipe in ``keys.save``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec
from ..errors import KeyExistsError
from ..keys.service import Service
from ..keys.typed import Typed, check_place
from ..model.credential import CredentialRecord, free_slot, has_place, main_slot
from ..model.owner import Caller
from ..sealing.keyring import Context, Keyring

if TYPE_CHECKING:
    from .wing import Wing


def in_main_slot(
    keyring: Keyring, at_most: int | None
) -> Callable[[CredentialRecord, Collection[str]], CredentialRecord]:
    """Return a function that seals an account's record for the slot of the owner's main key.

    :param at_most: how many slots the owner may have for a provider.
    """

    def seat(record: CredentialRecord, taken: Collection[str]) -> CredentialRecord:
        return keyring.in_slot(record, main_slot(taken, at_most))

    return seat


class _Place:
    """One owner's place for a provider's key."""

    def __init__(
        self,
        wing: Wing,
        core: Service,
        caller: Caller,
        owner: str,
        spec: ProviderSpec,
        slot: str = "",
    ) -> None:
        self.context = Context("account", owner, spec.id, slot)
        self._wing = wing
        self._core = core
        self._caller = caller
        self._spec = spec

    def admit(self, typed: Typed) -> None:
        """Refuse a key that the place's name holds, and a name that cannot be shown."""
        _, owner, _, slot = self.context
        check_place(owner, slot, typed.secrets, self._core.catalog)

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""
        event = self._wing.event(self._caller, "set", typed.fields, verdict)
        self._wing.store.audit.note(self.context.owner, event, self._wing.subject(self.context))


class MainSlot(_Place):
    """The caller's main slot for a provider, see ``model.credential.main_slot``; it replaces the session's own key."""

    def admit(self, typed: Typed) -> None:
        """Refuse a key that the name of one of the owner's slots holds: it may go there."""
        for record in self._wing.store.find([self.context.owner], [self._spec.id]):
            check_place(record.owner, record.slot, typed.secrets)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key in the account, and remove the session's own, which would be used before it."""
        session, identity, sessions = self._caller.session, record.owner, self._core.sessions
        leaving: list[CredentialRecord] = []
        if session is not None:
            there = sessions.read(session, identity, [record.provider]).records
            leaving = sessions.mark_leaving(session, identity, there.values())
        stored = self._wing.store.keep(
            record,
            self._wing.event(self._caller, "set", typed.fields),
            seat=in_main_slot(self._core.keyring, self._core.settings.keys_per_provider),
            ended=[one.version for one in leaving],
            confirm=lambda seated: check_place(seated.owner, seated.slot, typed.secrets),
        )
        if session is not None:
            sessions.clear(session, identity, [record.provider])
        return stored


class FreeSlot(_Place):
    """A new slot, named or the first free one."""

    def __init__(
        self,
        wing: Wing,
        core: Service,
        caller: Caller,
        owner: str,
        spec: ProviderSpec,
        slot: str | None,
    ) -> None:
        super().__init__(wing, core, caller, owner, spec, slot or "")
        self._named = slot is not None

    def admit(self, typed: Typed) -> None:
        """Choose the slot.

        :raises KeyExistsError: it is taken, or the owner has as many keys as allowed.
        """
        super().admit(typed)
        self._choose()

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Create a record; if another request took the slot just now and none was named, in the next one."""
        event = self._wing.event(self._caller, "set", typed.fields)
        at_most = self._core.settings.keys_per_provider
        for _ in range(at_most):  # as often as others can be first
            try:
                return self._wing.store.create(record, event, at_most=at_most)
            except KeyExistsError:
                self._choose()
            sealed = self._core.keyring.seal_fields(self.context, typed.fields, typed.base_url)
            record = dataclasses.replace(record, slot=self.context.slot, ciphertext=sealed)
        raise KeyExistsError(provider=self._spec.id)

    def _choose(self) -> None:
        found = self._wing.store.find([self.context.owner], [self._spec.id])
        taken = {record.slot for record in found}
        slot = self.context.slot if self._named else free_slot(taken)
        if slot in taken or not has_place(slot, taken, self._core.settings.keys_per_provider):
            raise KeyExistsError(
                f"There is a key for {self._spec.name} already. Change or delete that one.",
                provider=self._spec.id,
            )
        self.context = self.context._replace(slot=slot)


class NamedSlot(_Place):
    """A slot that an operator's command names.

    :param replace: take the place of the key that is there.
    :param action: the audit log's word.
    :param created_at: when an imported key was first saved; by default now.
    """

    def __init__(
        self,
        wing: Wing,
        core: Service,
        caller: Caller,
        owner: str,
        spec: ProviderSpec,
        slot: str,
        *,
        replace: bool,
        action: str,
        created_at: datetime | None,
    ) -> None:
        super().__init__(wing, core, caller, owner, spec, slot)
        self._replace = replace
        self._action = action
        self._created_at = created_at

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Store the key.

        :raises KeyExistsError: the slot is taken, or the owner has as many keys as allowed.
        """
        if self._created_at is not None:
            # It is saved here now, whatever its age: its longest lifetime begins now.
            record = dataclasses.replace(
                record, created_at=self._created_at, set_at=record.created_at
            )
        event = self._wing.event(self._caller, self._action, typed.fields)
        write = self._wing.store.put if self._replace else self._wing.store.create
        return write(record, event, at_most=self._core.settings.keys_per_provider)
