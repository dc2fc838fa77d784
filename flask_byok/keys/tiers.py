"""Read what each tier has for a caller: the session, the accounts in the database, the operator's own files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ..catalog import ProviderSpec
from ..errors import (
    EndpointNotAllowedError,
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from ..http import endpoint_for
from ..model.credential import Credential, CredentialRecord, State, utcnow
from ..model.owner import ACCOUNT_TIERS, Caller, Tier
from ..sealing.keyring import Context, Keyring, UnknownKeyIdError
from ..sealing.records import open_record, session_owner
from ..settings import Settings
from .operator import OperatorKey
from .sessions import Sessions, SessionView

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

_logger = logging.getLogger("flask_byok.tiers")


class Candidate(NamedTuple):
    """What one tier has for a provider.

    ``credential`` is None where it does not open, is inactive or expired, and where it is ``waiting``: left by a
    visitor, not yet kept by the user who signed in.
    """

    tier: Tier
    state: State | Literal["waiting"]
    credential: Credential | None = None
    record: CredentialRecord | None = None
    operator_name: str | None = None


#: What there is, by tier and provider id. Each may be gone through once; a key that nobody asks for is not opened.
Found = Mapping[tuple[Tier, str], Iterable[Candidate]]


class TierReader(Protocol):
    """Looks up what one store has, for the tiers that it keeps."""

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers it keeps."""

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return what its tiers have for these providers, in at most one round trip."""


class OperatorKeys(Protocol):
    """Holds the operator's keys: see ``stores.operator``."""

    def find(self, spec: ProviderSpec) -> OperatorKey | None:
        """Return the key for a provider, or None."""


class SessionTier:
    """The caller's own keys in the session."""

    tiers = (Tier.SESSION,)

    def __init__(self, sessions: Sessions, keyring: Keyring, settings: Settings) -> None:
        self._sessions = sessions
        self._keyring = keyring
        self._opener = Opener(keyring, settings)

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the session's records, each opened or marked unreadable.

        What a visitor left before somebody signed in waits, unused, until the user keeps it.

        :raises SessionRequiredError: the session has ended.
        """
        if caller.session is None or not specs:
            return {}
        view = self._sessions.read(caller.session, caller.identity, [spec.id for spec in specs])
        if not view.alive:
            raise SessionRequiredError
        owner = session_owner(caller.session, caller.identity)
        return {
            (Tier.SESSION, spec.id): self._candidates(spec, caller, owner, view) for spec in specs
        }

    def _candidates(
        self, spec: ProviderSpec, caller: Caller, owner: str, view: SessionView
    ) -> Iterator[Candidate]:
        if record := view.records.get(spec.id):
            candidate = self._opener.open(spec, Tier.SESSION, "session", owner, record)
            if candidate.credential and self._keyring.needs_rotation(record.ciphertext):
                self._seal_anew(caller, owner, record)
            yield candidate
        if record := view.visitor_records.get(spec.id):
            yield Candidate(Tier.SESSION, "waiting", record=record)

    def _seal_anew(self, caller: Caller, owner: str, record: CredentialRecord) -> None:
        """Put the record, sealed with the current encryption key, in its own place, if that can be done."""
        context = Context("session", owner, record.provider)
        sealed = self._keyring.seal(self._keyring.open(record.ciphertext, context), context)
        anew = replace(record, ciphertext=sealed)
        with suppress(StoreError):
            if caller.session is not None:
                self._sessions.reseal(caller.session, caller.identity, anew)


class AccountTiers:
    """The keys in the database: the caller's own, their teams' and the system's."""

    def __init__(self, store: AccountStore, keyring: Keyring, settings: Settings) -> None:
        self.tiers = tuple(tier for tier in settings.precedence if tier in ACCOUNT_TIERS)
        self._store = store
        self._opener = Opener(keyring, settings)

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the keys of all these tiers, read in one statement.

        Of several teams' keys the one comes first whose team the host names first; of several slots' the first slot.
        """
        owners = [(tier, owner) for tier, owner in caller.account_owners() if tier in self.tiers]
        if not owners or not specs:
            return {}
        kept = self._store.places([owner for _, owner in owners], [spec.id for spec in specs])
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
            # By name: some databases compare without regard to case, and what is Ann's is not ann's.
            for record in kept.get((owner, spec.id), ()):
                yield self._opener.open(spec, tier, "account", owner, record)


class Opener:
    """Opens stored records."""

    def __init__(self, keyring: Keyring, settings: Settings) -> None:
        self._keyring = keyring
        self._settings = settings

    def open(
        self, spec: ProviderSpec, tier: Tier, scope: str, owner: str, record: CredentialRecord
    ) -> Candidate:
        """Return what a record comes to: a credential, or a state that says why there is none."""
        state = record.state(utcnow())
        if state in ("inactive", "expired"):
            return Candidate(tier, state, record=record)
        try:
            credential = self.credential(spec, tier, scope, owner, record)
        except UnreadableCredentialError as error:
            _warn(error)
            return Candidate(tier, "unreadable", record=record)
        return Candidate(tier, state, credential, record)

    def credential(
        self, spec: ProviderSpec, tier: Tier, scope: str, owner: str, record: CredentialRecord
    ) -> Credential:
        """Return what a record holds, whatever its state.

        :raises UnreadableCredentialError: it does not open, or may no longer be sent where it was saved for.
        """
        fields, base_url = open_record(self._keyring, scope, owner, record)
        try:
            endpoint = endpoint_for(spec, self._settings.base_urls, base_url)
        except EndpointNotAllowedError:
            raise UnreadableCredentialError(provider=spec.id) from None
        if base_url is not None and endpoint.base_url != base_url:
            # The operator has set an address since; this key was for the person's own.
            raise UnreadableCredentialError(provider=spec.id)
        return Credential(
            provider=spec.id,
            source=tier,
            owner=owner,
            fields=fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
            hint=record.hint,
            version=record.version,
            id=record.id,
        )


class OperatorTier:
    """The operator's keys from the environment or from secret files."""

    def __init__(self, tier: Tier, keys: OperatorKeys, settings: Settings) -> None:
        self.tiers = (tier,)
        self._tier = tier
        self._keys = keys
        self._settings = settings

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the operator's keys; they are the same for every caller."""
        found = ((spec, self._candidate(spec)) for spec in specs)
        return {(self._tier, spec.id): [one] for spec, one in found if one is not None}

    def _candidate(self, spec: ProviderSpec) -> Candidate | None:
        try:
            key = self._keys.find(spec)
            if key is None:
                return None
            endpoint = endpoint_for(spec, self._settings.base_urls, None)
        except (UnreadableCredentialError, EndpointNotAllowedError):
            return Candidate(self._tier, "unreadable")
        credential = Credential(
            provider=spec.id,
            source=self._tier,
            owner="system",
            fields=key.fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
        )
        return Candidate(self._tier, "active", credential, operator_name=key.name)


def _warn(error: Exception) -> None:
    # To people it is one of the keys that do not open; only the operator can mend this one.
    if isinstance(error, UnknownKeyIdError):
        _logger.warning(
            "A stored key was sealed with an encryption key that is not configured: retired too early? "
            "Add it to BYOK_ENCRYPTION_KEY_FALLBACKS."
        )
