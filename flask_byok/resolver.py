"""Find the credential that serves a caller: the tiers in order, one decision for every path.

The status endpoint, the settings dialog, the provider factory and streams all come through here, so what is shown
as the source is what is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .catalog import ProviderSpec
from .credentials import Credential, CredentialRecord, State, Verdict, utcnow
from .errors import (
    EndpointNotAllowedError,
    MissingCredentialError,
    RejectedCredentialError,
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from .keyring import Keyring, UnknownKeyIdError
from .outbound import endpoint_for
from .owners import OPERATOR_TIERS, Caller, Tier
from .sealing import open_record, session_owner
from .settings import FallbackReason, Settings
from .stores.base import SessionStore
from .stores.operator import OperatorKey

_logger = logging.getLogger("flask_byok.resolver")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one tier has for a provider.

    ``credential`` is None where it does not open, is inactive or expired, and where it is ``waiting``: left by a
    visitor, not yet kept by the user who signed in.
    """

    tier: Tier
    state: State | Literal["waiting"]
    credential: Credential | None = None
    record: CredentialRecord | None = None
    operator_name: str | None = None


Found = Mapping[str, Sequence[Candidate]]


class TierReader(Protocol):
    """Looks up one tier."""

    tier: Tier

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return what the tier has for these providers, by provider id, in at most one round trip."""


class OperatorKeys(Protocol):
    """Holds the operator's keys: see ``stores.operator``."""

    def find(self, spec: ProviderSpec) -> OperatorKey | None:
        """Return the key for a provider, or None."""


class SessionTier:
    """The caller's own keys in the session."""

    tier = Tier.SESSION

    def __init__(self, store: SessionStore, keyring: Keyring, settings: Settings) -> None:
        self._store = store
        self._keyring = keyring
        self._settings = settings

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the session's records, each opened or marked unreadable.

        What a visitor left before somebody signed in waits, unused, until the user keeps it.

        :raises SessionRequiredError: the session has ended.
        """
        if caller.session is None or not specs:
            return {}
        view = self._store.read(caller.session, caller.identity, [spec.id for spec in specs])
        if not view.alive:
            raise SessionRequiredError
        owner = session_owner(caller.session, caller.identity)
        found: dict[str, list[Candidate]] = {}
        for spec in specs:
            if record := view.records.get(spec.id):
                found.setdefault(spec.id, []).append(self._candidate(spec, owner, record))
            if record := view.visitor_records.get(spec.id):
                found.setdefault(spec.id, []).append(Candidate(self.tier, "waiting", record=record))
        return found

    def _candidate(self, spec: ProviderSpec, owner: str, record: CredentialRecord) -> Candidate:
        state = record.state(utcnow())
        if state in ("inactive", "expired"):
            return Candidate(self.tier, state, record=record)
        try:
            fields, base_url = open_record(self._keyring, "session", owner, record)
            endpoint = endpoint_for(spec, self._settings.base_urls, base_url)
        except (UnreadableCredentialError, EndpointNotAllowedError) as error:
            _warn(error)
            return Candidate(self.tier, "unreadable", record=record)
        credential = Credential(
            provider=spec.id,
            source=self.tier,
            owner=owner,
            fields=fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
            hint=record.hint,
            version=record.version,
        )
        return Candidate(self.tier, state, credential, record)


class OperatorTier:
    """The operator's keys from the environment or from secret files."""

    def __init__(self, tier: Tier, keys: OperatorKeys, settings: Settings) -> None:
        self.tier = tier
        self._keys = keys
        self._settings = settings

    def find(self, caller: Caller, specs: Sequence[ProviderSpec]) -> Found:
        """Return the operator's keys; they are the same for every caller."""
        found = ((spec, self._candidate(spec)) for spec in specs)
        return {spec.id: [candidate] for spec, candidate in found if candidate is not None}

    def _candidate(self, spec: ProviderSpec) -> Candidate | None:
        try:
            key = self._keys.find(spec)
            if key is None:
                return None
            endpoint = endpoint_for(spec, self._settings.base_urls, None)
        except (UnreadableCredentialError, EndpointNotAllowedError):
            return Candidate(self.tier, "unreadable")
        credential = Credential(
            provider=spec.id,
            source=self.tier,
            owner="system",
            fields=key.fields,
            base_url=endpoint.base_url,
            trust=endpoint.trust,
        )
        return Candidate(self.tier, "active", credential, operator_name=key.name)


class Resolver:
    """Asks the tiers in order.

    The next tier is asked only when this one has nothing usable: absent, inactive or expired. A key that is
    unreadable or was refused stops the search, unless ``BYOK_FALLBACK_ON`` names that reason.
    """

    def __init__(self, tiers: Sequence[TierReader], settings: Settings) -> None:
        self._tiers = tiers
        self._settings = settings

    @property
    def tiers(self) -> list[Tier]:
        """The tiers that are asked, in order."""
        return [tier.tier for tier in self._tiers]

    def resolve(self, caller: Caller, spec: ProviderSpec, *, refused: bool = False) -> Credential:
        """Return the credential to use for this provider.

        :param refused: let one pass that its provider refused, as it may be asked about again.
        :raises MissingCredentialError: no tier has a key.
        :raises RejectedCredentialError: the provider refused the key that would be used.
        :raises UnreadableCredentialError: the key that would be used does not open.
        :raises StoreError: a store does not answer.
        """
        chosen = self.choose(self._walk(caller, spec, self._tiers))
        return self.settle(chosen, spec, refused=refused)

    def settle(
        self, chosen: Candidate | None, spec: ProviderSpec, *, refused: bool = False
    ) -> Credential:
        """Return the credential of the candidate that decides, or raise what stands in the way; see ``resolve``."""
        if chosen is None:
            raise MissingCredentialError(
                f"No API key for {spec.name} is configured. Add one in the API key settings.",
                provider=spec.id,
            )
        if chosen.state == "rejected" and not refused:
            raise RejectedCredentialError(
                f"{spec.name} refused this API key. Replace it in the API key settings.",
                provider=spec.id,
                tier=chosen.tier,
            )
        if chosen.credential is None:
            raise UnreadableCredentialError(
                f"The stored API key for {spec.name} cannot be read. Save it again in the API key settings.",
                provider=spec.id,
                tier=chosen.tier,
            )
        return chosen.credential

    def survey(
        self, caller: Caller, specs: Sequence[ProviderSpec], *, need_session: bool = False
    ) -> dict[str, list[Candidate]]:
        """Return what every tier has for these providers, in order; one round trip a store.

        :raises SessionRequiredError: the session has ended, and ``need_session`` was asked for.
        """
        found = [self._ask(tier, caller, specs, need_session) for tier in self._tiers]
        return {spec.id: [c for tier in found for c in tier.get(spec.id, ())] for spec in specs}

    def choose(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the candidate that decides: the one to use, or the one that stops the search."""
        return next((candidate for candidate in candidates if not self._passes(candidate)), None)

    def locked(self, spec: ProviderSpec, candidates: Iterable[Candidate]) -> bool:
        """Say whether only the operator's key counts: set so, or because it comes before any personal key."""
        return self._listed_as_locked(spec) or any(
            candidate.tier in OPERATOR_TIERS and self._before_session(candidate.tier)
            for candidate in candidates
        )

    def locked_for(self, caller: Caller, spec: ProviderSpec) -> bool:
        """Say the same, asking only the tiers that can lock: the operator's."""
        operator = [tier for tier in self._tiers if tier.tier in OPERATOR_TIERS]
        return self.locked(spec, self._walk(caller, spec, operator))

    def _walk(
        self, caller: Caller, spec: ProviderSpec, tiers: Sequence[TierReader]
    ) -> Iterator[Candidate]:
        for tier in tiers:
            yield from self._ask(tier, caller, [spec]).get(spec.id, ())

    def _ask(
        self,
        tier: TierReader,
        caller: Caller,
        specs: Sequence[ProviderSpec],
        need_session: bool = False,
    ) -> Found:
        if tier.tier not in OPERATOR_TIERS and self._settings.locked_providers:
            specs = [spec for spec in specs if not self._listed_as_locked(spec)]
        try:
            return tier.find(caller, specs)
        except SessionRequiredError:
            if need_session:
                raise
            return {}
        except StoreError:
            if self._settings.on_store_failure == "skip":
                return {}
            raise

    def _passes(self, candidate: Candidate) -> bool:
        if candidate.state in ("inactive", "expired", "waiting"):
            return True
        return _reason(candidate) in self._settings.fallback_on

    def _listed_as_locked(self, spec: ProviderSpec) -> bool:
        return not self._settings.locked_providers.isdisjoint((spec.id, *spec.aliases))

    def _before_session(self, tier: Tier) -> bool:
        order = self._settings.precedence
        return Tier.SESSION not in order or order.index(tier) < order.index(Tier.SESSION)


def _warn(error: Exception) -> None:
    # To people it is one of the keys that do not open; only the operator can mend this one.
    if isinstance(error, UnknownKeyIdError):
        _logger.warning(
            "A stored key was sealed with an encryption key that is not configured: retired too early? "
            "Add it to BYOK_ENCRYPTION_KEY_FALLBACKS."
        )


_REASONS: dict[Verdict, FallbackReason] = {
    Verdict.VALID_NO_CREDIT: "no_credit",
    Verdict.VALID_RATE_LIMITED: "rate_limited",
    Verdict.UNREACHABLE: "unreachable",
}


def _reason(candidate: Candidate) -> FallbackReason | None:
    """Name the reason for which an operator may let the search go on past this candidate."""
    if candidate.state in ("rejected", "unreadable"):
        return candidate.state
    validity = candidate.record.current_validity() if candidate.record else None
    return _REASONS.get(validity.verdict) if validity else None
