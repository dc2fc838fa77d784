"""Find the credential that serves a caller: ask the tiers in order, with one decision for every path.

The status endpoint, the settings dialog, the provider factory and streams all come through here, so the
source that is shown is the source that is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from ..catalog import ProviderSpec
from ..catalog.endpoints import expand, is_named
from ..errors import (
    EndpointNotAllowedError,
    MissingCredentialError,
    ProviderLockedError,
    RejectedCredentialError,
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from ..http import endpoint_for
from ..model.credential import Credential, CredentialRecord, State, utcnow
from ..model.owner import (
    ACCOUNT_TIERS,
    OPERATOR_TIERS,
    PERSONAL_TIERS,
    Caller,
    SessionRef,
    Tier,
    session_owner,
    tier_of,
)
from ..sealing.keyring import Keyring, UnknownKeyIdError
from ..settings import Settings
from .documents import SessionView
from .faults import Faults, fault_in
from .sessions import KeysLostError, Sessions

_logger = logging.getLogger("flask_byok.keys")


Specs = Sequence[ProviderSpec]


class Candidate(NamedTuple):
    """A key that a tier has for a provider.

    ``credential`` is None if the key does not open, is inactive or expired, or is ``waiting``: saved by a
    visitor and not yet kept by the user who signed in. ``offered`` is True if such a key works. ``name`` is that of a
    named endpoint, as typed.
    """

    tier: Tier
    state: State | Literal["waiting"]
    credential: Credential | None = None
    record: CredentialRecord | None = None
    operator_name: str | None = None
    offered: bool = False
    name: str = ""


#: Candidates by tier and provider id; for a pattern (``custom/*``) those of the endpoints that it stands for. Each may
#: be iterated once; keys that are not reached are not opened.
Found = Mapping[tuple[Tier, str], Iterable[Candidate]]


class TierReader(Protocol):
    """Looks up keys in one store, for the tiers that it keeps."""

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that it keeps."""

    def find(self, caller: Caller, specs: Specs) -> Found:
        """Return the keys for these providers, in at most one round trip."""


class Lookup:
    """Asks the tiers in order.

    The next tier is asked only if this one has nothing usable: absent, inactive or expired. An unreadable or
    rejected key ends the search, unless ``BYOK_FALLBACK_ON`` names that reason.
    """

    def __init__(
        self, readers: Iterable[TierReader], settings: Settings, faults: Faults | None = None
    ) -> None:
        kept = {tier: reader for reader in readers for tier in reader.tiers}
        self._readers = {tier: kept[tier] for tier in settings.precedence if tier in kept}
        #: The tiers that are asked, in order.
        self.tiers = list(self._readers)
        self._settings = settings
        self._faults = faults

    def resolve(self, caller: Caller, spec: ProviderSpec, *, rejected: bool = False) -> Credential:
        """Return the credential to use for this provider.

        :param rejected: return a key that its provider rejected, to check it again.
        :raises MissingCredentialError: no tier has a key.
        :raises RejectedCredentialError: the provider rejected the key that would be used.
        :raises UnreadableCredentialError: the key that would be used does not open.
        :raises StoreError: a store does not answer.
        """
        chosen = self.choose(one for _, one in self._walk(caller, [spec], self._readers))
        return self.settle(chosen, spec, rejected=rejected)

    def settle(
        self, chosen: Candidate | None, spec: ProviderSpec, *, rejected: bool = False
    ) -> Credential:
        """Return the deciding candidate's credential, or raise the error that it stands for; see ``resolve``."""
        if chosen is None:
            text = f"No API key for {spec.name} is configured. Add one in the API key settings."
            raise MissingCredentialError(text, provider=spec.id)
        if chosen.state == "rejected" and not rejected:
            text = f"{spec.name} rejected this API key. Replace it in the API key settings."
            raise RejectedCredentialError(text, provider=spec.id, tier=chosen.tier)
        if chosen.credential is None:
            text = f"The stored API key for {spec.name} cannot be read. Save it again in the API key settings."
            raise UnreadableCredentialError(text, provider=spec.id, tier=chosen.tier)
        return chosen.credential

    def survey(
        self, caller: Caller, specs: Specs, *, need_session: bool = False
    ) -> dict[str, list[Candidate]]:
        """Return every tier's candidates for these providers, in order; one round trip a store.

        For a pattern there are those of all named endpoints that the caller has.

        :raises SessionRequiredError: the session has ended, and ``need_session`` was asked for.
        """
        found: dict[str, list[Candidate]] = {spec.id: [] for spec in expand(specs, ())}
        for provider, candidate in self._walk(caller, specs, self._readers, need_session):
            found.setdefault(provider, []).append(candidate)
        return found

    def choose(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the candidate that decides: the one to use, or the one that ends the search.

        If there is no other, the first that was passed over for its fault serves, or says what is wrong with it.
        """
        over = None
        for candidate in candidates:
            if not self._passes(candidate):
                return candidate
            if over is None and candidate.state not in ("inactive", "expired", "waiting"):
                over = candidate
        return over

    def to_check(self, caller: Caller, spec: ProviderSpec) -> Credential:
        """Return the key that a check is about: the one in use, or the caller's own that was passed over before it.

        No tier is asked that a call would not ask. For the errors see :meth:`resolve`.
        """
        asked: list[Candidate] = []

        def noted() -> Iterator[Candidate]:
            for _, candidate in self._walk(caller, [spec], self._readers):
                asked.append(candidate)
                yield candidate

        chosen = self.choose(noted())
        over = self.passed_over(asked, chosen)
        if over and over.tier in PERSONAL_TIERS and over.credential:
            return over.credential
        return self.settle(chosen, spec, rejected=True)

    def passed_over(
        self, candidates: Iterable[Candidate], chosen: Candidate | None
    ) -> Candidate | None:
        """Return the first key, if another one was chosen."""
        first = next((one for one in candidates if one.state != "waiting"), None)
        return None if chosen is None or first is chosen else first

    def personal_tiers(self, caller: Caller) -> list[Tier]:
        """Return the tiers in which this caller can keep keys."""
        mine = PERSONAL_TIERS if caller.authenticated else (Tier.SESSION,)
        return [tier for tier in mine if tier in self._settings.precedence]

    def locked(
        self,
        caller: Caller,
        spec: ProviderSpec,
        tier: Tier | None = None,
        candidates: Iterable[Candidate] | None = None,
    ) -> bool:
        """Return True if no key of the caller's own can serve: the operator says so, or a shared key comes first.

        :param tier: one personal tier; by default all of the caller's.
        :param candidates: what a survey found; by default only the tiers that can lock are asked.
        """
        personal = self.personal_tiers(caller) if tier is None else [tier]
        if self.listed_as_locked(spec):
            return True
        if candidates is None:
            before = [shared for shared in self._readers if self._precedes(shared, personal)]
            candidates = (one for _, one in self._walk(caller, [spec], before))
        return any(self._precedes(c.tier, personal) and not self._passes(c) for c in candidates)

    def listed_as_locked(self, spec: ProviderSpec) -> bool:
        """Return True if ``BYOK_LOCKED_PROVIDERS`` names the provider, or that of a named endpoint."""
        return spec.id.partition("/")[0] in self._settings.locked_providers

    def _precedes(self, tier: Tier, personal: Sequence[Tier]) -> bool:
        """Return True if a tier is shared and comes before all of these personal tiers."""
        order = self._settings.precedence
        return tier not in PERSONAL_TIERS and all(
            mine not in order or order.index(tier) < order.index(mine) for mine in personal
        )

    def _walk(
        self, caller: Caller, specs: Specs, tiers: Iterable[Tier], need_session: bool = False
    ) -> Iterator[tuple[str, Candidate]]:
        """Yield the candidates of each tier, with their provider's id.

        Each reader is asked when first needed, and once.
        """
        unlocked = [spec for spec in specs if not self.listed_as_locked(spec)]
        asked: dict[TierReader, Found] = {}
        wanted = list(tiers)
        for tier in wanted:
            # A key may be moving from the session into the account: read in this order, it is seen.
            first = [Tier.SESSION] if tier in ACCOUNT_TIERS and Tier.SESSION in wanted else []
            for reader in (self._readers[each] for each in (*first, tier)):
                if reader not in asked:
                    theirs = unlocked if OPERATOR_TIERS.isdisjoint(reader.tiers) else specs
                    asked[reader] = self._ask(reader, caller, theirs, need_session)
            found = asked[self._readers[tier]]
            theirs = specs if tier in OPERATOR_TIERS else unlocked
            for spec in expand(theirs, [id for its_tier, id in found if its_tier is tier]):
                for candidate in found.get((tier, spec.id), ()):
                    yield spec.id, candidate

    def _ask(self, reader: TierReader, caller: Caller, specs: Specs, need_session: bool) -> Found:
        try:
            return reader.find(caller, specs)
        except SessionRequiredError as error:
            if need_session or isinstance(error, KeysLostError):
                raise
        except StoreError:
            if self._settings.on_store_failure != "skip":
                raise
        return {}

    def _passes(self, candidate: Candidate) -> bool:
        """Return True if the search goes on: there is no usable key, or its fault is in ``BYOK_FALLBACK_ON``."""
        if candidate.state in ("inactive", "expired", "waiting"):
            return True
        return self.fault_of(candidate) is not None

    def fault_of(self, candidate: Candidate) -> str | None:
        """Return the reason in ``BYOK_FALLBACK_ON`` for which a key is passed over; None if it is not."""
        if not self._settings.fallback_on:
            return None
        fault: str | None = candidate.state
        if candidate.state == "active" and candidate.record is not None:
            fault = fault_in(candidate.record.current_validity())
        elif candidate.state == "active" and candidate.credential and self._faults:
            with suppress(StoreError):  # what is not known does not count
                fault = self._faults.find(candidate.credential)
        return fault if fault in self._settings.fallback_on else None


@dataclass(eq=False, repr=False)
class SessionTier:
    """Reads the caller's own keys in the session."""

    sessions: Sessions
    opener: Opener
    tiers = (Tier.SESSION,)

    def find(self, caller: Caller, specs: Specs) -> Found:
        """Return the session's keys; a visitor's wait, unused, until the user who signed in keeps them.

        :raises SessionRequiredError: the session has ended.
        :raises KeysLostError: the store has lost the key for one of these providers, and no call has said so yet.
        """
        session = caller.session
        if session is None or not specs:
            return {}
        view = self.sessions.read(session, caller.identity, [spec.id for spec in specs])
        lost = any(spec.id in view.lost for spec in expand(specs, view.lost))
        if (saved := session.saved) and saved.telling and lost:
            saved.note(None)
            raise KeysLostError
        if not view.alive:
            if saved and not view.lost:
                saved.note(None)
            raise SessionRequiredError
        return {
            (Tier.SESSION, spec.id): self._candidates(spec, caller, session, view)
            for spec in expand(specs, view.providers)
        }

    def _candidates(
        self, spec: ProviderSpec, caller: Caller, session: SessionRef, view: SessionView
    ) -> Iterator[Candidate]:
        owner = session_owner(session, caller.identity)
        mine, left = view.records.get(spec.id), view.visitor_records.get(spec.id)
        if mine is not None:
            candidate, keyring = self.opener.open(spec, owner, mine), self.opener.keyring
            if keyring.needs_rotation(mine.ciphertext) and (new := keyring.renewed(mine, owner)):
                with suppress(StoreError):  # it stays as it was
                    self.sessions.reseal(session, caller.identity, replace(mine, ciphertext=new))
            yield candidate
        if left is not None:
            owner = session_owner(session, "")
            opened = self.opener.open(spec, owner, left)
            works = opened.state == "active"
            yield Candidate(Tier.SESSION, "waiting", record=left, offered=works, name=opened.name)


@dataclass(eq=False, repr=False)
class Opener:
    """Opens stored records."""

    keyring: Keyring
    settings: Settings

    def open(self, spec: ProviderSpec, owner: str, record: CredentialRecord) -> Candidate:
        """Return a record's credential, or the state that explains why there is none."""
        tier, state = tier_of(owner), record.state(utcnow())
        idle = state in ("inactive", "expired")
        if idle and not is_named(spec.id):
            return Candidate(tier, state, record=record)
        try:
            credential = self.credential(spec, owner, record)
        except UnreadableCredentialError as error:
            if isinstance(error, UnknownKeyIdError):  # only the operator can mend this one
                _logger.warning(
                    "A stored key needs a retired encryption key: add it to BYOK_ENCRYPTION_KEY_FALLBACKS."
                )
            return Candidate(tier, state if idle else "unreadable", record=record)
        name = credential.reveal("name") if is_named(spec.id) else ""
        return Candidate(tier, state, None if idle else credential, record, name=name)

    def credential(self, spec: ProviderSpec, owner: str, record: CredentialRecord) -> Credential:
        """Return a record's credential in any state.

        :raises UnreadableCredentialError: it does not open, or may no longer be sent to its address.
        """
        fields, base_url = self.keyring.open_record(owner, record)
        for part in spec.fields:
            if not part.secret and part.name in fields:
                fields[part.name].show()
        with suppress(EndpointNotAllowedError):
            endpoint = endpoint_for(spec, self.settings.base_urls, base_url, fields)
            # If the operator has set an address since, the key stays: it was for the person's own.
            if base_url in (None, endpoint.base_url):
                return Credential(
                    provider=spec.id,
                    source=tier_of(owner),
                    owner=owner,
                    fields=fields,
                    base_url=endpoint.base_url,
                    trust=endpoint.trust,
                    hint=record.hint,
                    version=record.version,
                    id=record.id,
                )
        raise UnreadableCredentialError(provider=spec.id)


def locked_error(spec: ProviderSpec) -> ProviderLockedError:
    """Return the error for a key that only the operator may change."""
    text = f"The key for {spec.name} is managed by the operator and cannot be changed here."
    return ProviderLockedError(text, provider=spec.id)
