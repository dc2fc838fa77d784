"""The accounts of one database, and the wing's side of ``keys.ports``: what the core asks of them."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ..catalog import ProviderSpec
from ..catalog.endpoints import expand
from ..errors import KeyNotFoundError, UnreadableCredentialError
from ..keys.lookup import Candidate, Found, Opener
from ..keys.ports import Accounts
from ..keys.service import Service
from ..model.credential import Credential, CredentialRecord, Fields, RecordedVerdict, Use
from ..model.owner import ACCOUNT_TIERS, Caller, Tier
from ..sealing.keyring import Canary, Keyring
from ..settings import Settings
from .changes import MainSlot, in_slot
from .promotion import promote
from .records import AccountRecords
from .store import AuditEvent, NoRecord, main_slot

if TYPE_CHECKING:
    from .store.keys import AccountStore

_WRONG_KEY = (
    "BYOK_ENCRYPTION_KEY is not the one that this database's keys are sealed with. Set the right one, or add it to "
    "BYOK_ENCRYPTION_KEY_FALLBACKS. If it is lost, none of these keys opens any more, and the audit log cannot go on: "
    "set BYOK_DATABASE_URL to a new database."
)


def open_accounts(
    engine_or_url: Any, keyring: Keyring, *, tolerant: bool = False, **opening: Any
) -> AccountStore:
    """Return the store of accounts' keys in a database.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tolerant: read keys without a look at the canary.
    :param opening: how to open a URL, see ``storage.sql.Database``.
    """
    from ..storage.sql import Database
    from ..storage.tables import metadata
    from .store.audit import hold_secret
    from .store.keys import AccountStore

    database = Database(engine_or_url, metadata.sorted_tables, **opening)
    return AccountStore(
        database, AuditSecret(keyring, partial(hold_secret, database), tolerant=tolerant)
    )


class AuditSecret(Canary):
    """The canary of the accounts' database: 32 random bytes that key the audit log and the fingerprints of keys."""

    def __init__(
        self, keyring: Keyring, hold: Callable[..., str], *, tolerant: bool = False
    ) -> None:
        # The canaries of apps have names of 16 hex digits.
        text = secrets.token_bytes(32)
        super().__init__(keyring, "audit", hold, text, _WRONG_KEY, tolerant)

    def fingerprint(self, fields: Fields) -> str:
        """Return a keyed hash of a key (64 hex digits); rotation of the encryption key keeps it."""
        plain = sorted((name, one.reveal()) for name, one in fields.items())
        message = b"fingerprint" + msgspec.json.encode(plain)
        return hmac.digest(self.secret(), message, "sha256").hex()

    def fingerprint_of(self, record: CredentialRecord) -> str | None:
        """Return the fingerprint of an account's stored key, None if it does not open."""
        try:
            fields, _ = self.keyring.open_record(record.owner, record)
        except UnreadableCredentialError:
            return None
        return self.fingerprint(fields)


class Wing(Accounts):
    """Keys of users, teams and the system in the database."""

    def __init__(self, store: AccountStore, keyring: Keyring, settings: Settings) -> None:
        self.store = store
        self.tiers = tuple(tier for tier in settings.precedence if tier in ACCOUNT_TIERS)
        self.opener = Opener(keyring, settings)
        self._keyring = keyring
        self.settings = settings

    # look up

    def probe(self) -> None:
        """Raise if keys cannot be found here; see ``keys.ports``."""
        self.store.canary.secret()
        self.store.places([""], [""])

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the keys of these tiers that may serve the caller, read in one statement.

        Of several teams' keys the one comes first whose team the host names first; of several slots the first.
        """
        owners = [(tier, owner) for tier, owner in caller.account_owners() if tier in self.tiers]
        if not owners or not specs:
            return {}
        self.store.canary.confirm()
        kept = self.store.places([owner for _, owner in owners], [spec.id for spec in specs])
        return {
            (tier, spec.id): self._candidates(spec, tier, owners, kept)
            for spec in expand(specs, {provider for _, provider in kept})
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
                yield self.opener.open(spec, owner, record)

    # the audit log

    def event(
        self, caller: Caller, action: str, fields: Fields | None = None, outcome: str = "done"
    ) -> AuditEvent:
        """Return an event for the log.

        :param fields: the key that an event is about which stores none; the log itself adds a stored key's
            fingerprint.
        """
        fingerprint = self.store.canary.fingerprint(fields) if fields else None
        return AuditEvent(caller.actor, action, str(outcome), caller.request_id, fingerprint)

    def note(
        self,
        caller: Caller,
        action: str,
        provider: str,
        fields: Fields | None = None,
        *,
        outcome: str = "done",
        ended: Collection[str] = (),
    ) -> set[str]:
        """Log what a signed-in caller does in the session or at a provider; see ``keys.ports``."""
        if not caller.authenticated:
            return set()
        event = self.event(caller, action, fields, outcome)
        return self.store.end(caller.identity, ended, event, NoRecord(provider))

    def over(self, owner: str, versions: Collection[str]) -> set[str]:
        """Return those versions of the owner's session records that are over."""
        return self.store.over(owner, versions)

    # the verbs

    def main_place(self, core: Service, caller: Caller, spec: ProviderSpec) -> MainSlot:
        """Return where a key goes that the caller keeps in the account."""
        records = AccountRecords(self, core, caller, [caller.identity])
        return MainSlot(records, caller.identity, spec)

    def seat(self, record: CredentialRecord, taken: Collection[str]) -> CredentialRecord:
        """Return an account's record, sealed for the slot of the owner's main key."""
        at_most = self.settings.slots_of(record.provider)
        return in_slot(self._keyring, record, main_slot(taken, at_most))

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
            subject = NoRecord(credential.provider, id=credential.id)
            self.store.audit.note(credential.owner, event, subject)

    def count(self, use: Use) -> None:
        """Add uses to the owner's statistics."""
        self.store.usage.add(use)

    promote = promote

    def forget(self, caller: Caller, owner: str) -> list[str]:
        """Delete everything of an owner but the audit log, and return the providers that had keys."""
        return self.store.forget(owner, self.event(caller, "clear"))

    # records

    def own(self, core: Service, caller: Caller) -> Any:
        """Return the caller's own records."""
        if caller.authenticated and Tier.USER in self.tiers:
            return AccountRecords(self, core, caller, [caller.identity])
        return super().own(core, caller)

    def shared(self, core: Service, caller: Caller) -> Any:
        """Return all teams' and the system's records, for an admin."""
        kept = [tier.value for tier in (Tier.SYSTEM, Tier.TEAM) if tier in self.tiers]
        if caller.authenticated and caller.admin and kept:
            return AccountRecords(self, core, caller, kept)
        return super().shared(core, caller)

    def everything(self, core: Service) -> AccountRecords:
        """Return all records, for an operator's command."""
        return AccountRecords(self, core, Caller(command=True), None)
