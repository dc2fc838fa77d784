"""The one recipe that stores a key: typed, checked, sealed, audited, stored.

Sessions, accounts, records, commands and imports all use it; they differ only in the destination.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..catalog import ProviderSpec
from ..catalog.endpoints import expand
from ..errors import SessionRequiredError, UnreadableCredentialError
from ..model.credential import (
    CredentialRecord,
    RecordedVerdict,
    Validation,
    new_version,
    utcnow,
)
from ..model.owner import Caller, session_owner, tier_of
from ..sealing.keyring import Context, Keyring, context_of
from .ports import Promotion
from .typed import NewKey, Typed, clean_text, read_expiry, read_typed

if TYPE_CHECKING:
    from .lookup import Specs
    from .service import Service


class Destination(Protocol):
    """A place that takes a key."""

    #: What the key is sealed for.
    context: Context

    def admit(self, typed: Typed) -> None:
        """Refuse the key before its provider is asked, if it cannot be stored here."""

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Log and store a sealed record, and return it as stored."""


@dataclass(eq=False)
class Saver:
    """Carries out the recipe."""

    core: Service

    def save(
        self, caller: Caller, spec: ProviderSpec, new: NewKey, to: Destination
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a new key, and return its record with the result of the check.

        :raises InvalidFieldError: a field, text or time cannot be stored, or a text holds a key.
        :raises MalformedApiKeyError: this cannot be a key.
        :raises KeyRefusedError: the check forbids storing; what was stored before stays.
        """
        typed, new = self.read(spec, new)
        return self.store(caller, spec, typed, new, to)

    def store(
        self, caller: Caller, spec: ProviderSpec, typed: Typed, new: NewKey, to: Destination
    ) -> tuple[CredentialRecord, Validation | None]:
        """Store a key that was cleaned, by ``read`` or for a replacement; see ``save``."""
        to.admit(typed)
        validation = self.core.checks.before_set(caller, spec, typed, new, to)
        record = new_record(self.core.keyring, to.context, spec, typed, new)
        if validation is not None:
            verdict = RecordedVerdict(validation.verdict, validation.checked_at, record.version)
            record = dataclasses.replace(record, validity=verdict)
        stored = to.store(record, typed)
        if not new.imported:
            self.tell("key_set", stored)
        return stored, validation

    def read(self, spec: ProviderSpec, new: NewKey) -> tuple[Typed, NewKey]:
        """Return the cleaned credential, and the key with its texts and expiry as they are stored."""
        settings = self.core.settings
        expires_at = read_expiry(new.expires_at, spec.id, settings, past=new.imported)
        typed = read_typed(spec, new.fields, new.base_url, settings)
        label = clean_text(new.label, "label", typed.fields, self.core.catalog)
        description = clean_text(new.description, "description", typed.fields, self.core.catalog)
        return typed, dataclasses.replace(
            new, label=label, description=description, expires_at=expires_at
        )

    def tell(self, event: str, record: CredentialRecord) -> None:
        """Send a signal about a record: its provider, tier and hint."""
        facts = {"provider": record.provider, "tier": tier_of(record.owner).value}
        self.core.notify(event, facts | ({"hint": record.hint} if event == "key_set" else {}))


def new_record(
    keyring: Keyring, context: Context, spec: ProviderSpec, typed: Typed, new: NewKey
) -> CredentialRecord:
    """Return the sealed record of a key, with its hint, version and times."""
    now = utcnow()
    return CredentialRecord(
        provider=spec.id,
        owner=context.owner,
        slot=context.slot,
        ciphertext=keyring.seal_fields(context, typed.fields, typed.base_url),
        hint=spec.hint(typed.fields),
        version=new_version(),
        created_at=now,
        updated_at=now,
        expires_at=new.expires_at,
        label=new.label,
        description=new.description,
        active=new.active,
    )


@dataclass(eq=False, repr=False)
class InSession:
    """The caller's session as a destination.

    :raises SessionRequiredError: none is established.
    """

    core: Service
    caller: Caller
    spec: ProviderSpec

    def __post_init__(self) -> None:
        self.session = self.caller.require_session()
        owner = session_owner(self.session, self.caller.identity)
        self.context = context_of(owner, self.spec.id)

    def admit(self, typed: Typed) -> None:
        """Take every key."""

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log a refusal."""
        self.core.accounts.note(self.caller, "set", self.spec.id, typed.fields, outcome=verdict)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Log the key, then store it.

        :raises SessionRequiredError: the session has ended.
        """
        self.core.accounts.note(self.caller, "set", self.spec.id, typed.fields)
        self.core.sessions.write(self.session, self.caller.identity, record)
        return record


def adopt_waiting(
    core: Service, caller: Caller, specs: Specs, *, replace: bool, asked: bool
) -> Promotion:
    """Make a visitor's keys the user's own within the session: promotion in an app without accounts.

    :param replace: also in the place of the user's own key.
    :param asked: the user asks for it.
    :raises SessionRequiredError: the session has ended.
    """
    session = caller.require_session()
    view = core.sessions.read(session, caller.identity, [spec.id for spec in specs])
    if not view.alive:
        raise SessionRequiredError
    result = Promotion()
    visitor, owner = session_owner(session, ""), session_owner(session, caller.identity)
    for spec in expand(specs, view.providers):
        waiting = view.visitor_records.get(spec.id)
        if waiting is None or core.lookup.locked(caller, spec):
            continue
        try:
            fields, base_url = core.keyring.open_record(visitor, waiting)
        except UnreadableCredentialError:
            result.unreadable.append(spec.id)
            continue
        if not waiting.may_move(base_url, asked=asked):
            result.kept.append(spec.id)
            continue
        if replace or spec.id not in view.records:
            core.accounts.note(caller, "promote", spec.id, fields)
        sealed = core.keyring.seal_fields(context_of(owner, spec.id), fields, base_url)
        # The key is the same, so its version and its verdict stay.
        adopted = dataclasses.replace(waiting, owner=owner, ciphertext=sealed)
        outcome = core.sessions.adopt(session, caller.identity, adopted, replace=replace)
        if outcome != "gone":
            (result.promoted if outcome == "adopted" else result.kept).append(spec.id)
    return result
