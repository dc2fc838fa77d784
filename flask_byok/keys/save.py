"""The one recipe that stores a key: typed, checked, sealed, audited, stored.

Sessions, accounts, records, commands and imports all use it; they differ only in the destination.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from ..catalog import Catalog, ProviderSpec
from ..model.credential import (
    CredentialRecord,
    RecordedVerdict,
    Secret,
    Validation,
    make_hint,
    new_version,
    utcnow,
)
from ..model.owner import Caller, SessionRef, session_owner, tier_of
from ..sealing.keyring import Context, Keyring
from ..settings import Settings
from .checks import Checks, Notify
from .expiry import capped_expiry, in_utc, read_expiry
from .ports import Accounts
from .sessions import Sessions
from .typed import NewKey, Typed, clean_text, read_typed

# Without texts and expiry.
_PLAIN = NewKey(fields={})


class Destination(Protocol):
    """A place that takes a key."""

    @property
    def context(self) -> Context:
        """What the key is sealed for."""

    def admit(self, typed: Typed) -> None:
        """Refuse the key before its provider is asked, if it cannot be stored here."""

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log that a check forbade storing the key."""

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Log and store a sealed record, and return it as stored."""


class Saver:
    """Carries out the recipe."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        keyring: Keyring,
        checks: Checks,
        notify: Notify,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.keyring = keyring
        self.checks = checks
        self._notify = notify

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
        """Store a key that ``read``, or another function of ``keys.typed``, has cleaned; see ``save``."""
        to.admit(typed)
        ask = not new.imported
        validation = self.checks.before_set(caller, spec, typed, new.validate, to.refused, ask=ask)
        fields, base_url = typed.fields, typed.base_url
        record = new_record(self.keyring, to.context, spec, fields, base_url, validation, new)
        stored = to.store(record, typed)
        if ask:
            self.tell("key_set", stored)
        return stored, validation

    def read(self, spec: ProviderSpec, new: NewKey) -> tuple[Typed, NewKey]:
        """Return the cleaned credential, and the key with its texts and expiry as they are stored."""
        if new.imported:
            wanted = new.expires_at and in_utc(new.expires_at, "expires_at", spec.id)
            expires_at = capped_expiry(wanted, self.settings)
        else:
            expires_at = read_expiry(new.expires_at, spec.id, self.settings)
        typed = read_typed(spec, new.fields, new.base_url, self.settings)
        label = clean_text(new.label, "label", typed.fields, self.catalog)
        description = clean_text(new.description, "description", typed.fields, self.catalog)
        return typed, replace(new, label=label, description=description, expires_at=expires_at)

    def tell(self, event: str, record: CredentialRecord) -> None:
        """Send a signal about a record: its provider, tier and hint."""
        facts = {"provider": record.provider, "tier": tier_of(record.owner).value}
        self._notify(event, facts | ({"hint": record.hint} if event == "key_set" else {}))


def new_record(
    keyring: Keyring,
    context: Context,
    spec: ProviderSpec,
    fields: Mapping[str, Secret],
    base_url: str | None,
    validation: Validation | None = None,
    new: NewKey = _PLAIN,
) -> CredentialRecord:
    """Return the sealed record of a key, with its hint, version, times and the verdict of its check."""
    now, version, api_key = utcnow(), new_version(), fields.get("api_key")
    found = None
    if validation is not None:
        found = RecordedVerdict(validation.verdict, validation.checked_at, version)
    return CredentialRecord(
        provider=spec.id,
        owner=context.owner,
        slot=context.slot,
        ciphertext=keyring.seal_fields(context, fields, base_url),
        hint=make_hint(api_key.reveal() if api_key else "", spec.prefixes),
        version=version,
        created_at=now,
        updated_at=now,
        expires_at=new.expires_at,
        label=new.label,
        description=new.description,
        active=new.active,
        validity=found,
    )


class InSession:
    """The caller's session as a destination."""

    def __init__(
        self,
        caller: Caller,
        session: SessionRef,
        spec: ProviderSpec,
        sessions: Sessions,
        accounts: Accounts,
    ) -> None:
        self.context = Context("session", session_owner(session, caller.identity), spec.id)
        self._caller = caller
        self._session = session
        self._sessions = sessions
        self._accounts = accounts

    def admit(self, typed: Typed) -> None:
        """Take every key."""

    def refused(self, typed: Typed, verdict: str) -> None:
        """Log a refusal."""
        self._note(typed.fields, verdict)

    def store(self, record: CredentialRecord, typed: Typed) -> CredentialRecord:
        """Log the key, then store it.

        :raises SessionRequiredError: the session has ended.
        """
        self._note(typed.fields, "done")
        self._sessions.write(self._session, self._caller.identity, record)
        return record

    def _note(self, fields: Mapping[str, Secret], outcome: str) -> None:
        self._accounts.note(self._caller, "set", self.context.provider, fields, outcome=outcome)
