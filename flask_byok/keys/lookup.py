"""Find the credential that serves a caller: the tiers in order, one decision for every path.

The status endpoint, the settings dialog, the provider factory and streams all come through here, so what is shown
as the source is what is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..catalog import ProviderSpec
from ..errors import (
    MissingCredentialError,
    RejectedCredentialError,
    SessionRequiredError,
    StoreError,
    UnreadableCredentialError,
)
from ..model.credential import Credential, Verdict
from ..model.owner import ACCOUNT_TIERS, OPERATOR_TIERS, PERSONAL_TIERS, SHARED_TIERS, Caller, Tier
from ..settings import FallbackReason, Settings
from .tiers import Candidate, Found, TierReader


class Resolver:
    """Asks the tiers in order.

    The next tier is asked only when this one has nothing usable: absent, inactive or expired. A key that is
    unreadable or was refused stops the search, unless ``BYOK_FALLBACK_ON`` names that reason.
    """

    def __init__(self, readers: Iterable[TierReader], settings: Settings) -> None:
        kept = {tier: reader for reader in readers for tier in reader.tiers}
        self._readers = {tier: kept[tier] for tier in settings.precedence if tier in kept}
        self._settings = settings

    @property
    def tiers(self) -> list[Tier]:
        """The tiers that are asked, in order."""
        return list(self._readers)

    def resolve(self, caller: Caller, spec: ProviderSpec, *, refused: bool = False) -> Credential:
        """Return the credential to use for this provider.

        :param refused: let one pass that its provider refused, as it may be asked about again.
        :raises MissingCredentialError: no tier has a key.
        :raises RejectedCredentialError: the provider refused the key that would be used.
        :raises UnreadableCredentialError: the key that would be used does not open.
        :raises StoreError: a store does not answer.
        """
        chosen = self.choose(self._walk(caller, spec, self._readers))
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
        found: dict[str, list[Candidate]] = {spec.id: [] for spec in specs}
        for tier, theirs in self._look_up(caller, specs, self._readers, need_session):
            for spec in specs:
                found[spec.id] += self._of(tier, spec, theirs)
        return found

    def choose(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the candidate that decides: the one to use, or the one that stops the search."""
        return next((candidate for candidate in candidates if not self._passes(candidate)), None)

    def personal_tiers(self, caller: Caller) -> list[Tier]:
        """Name the tiers that this caller can keep keys of their own in."""
        mine = PERSONAL_TIERS if caller.authenticated else (Tier.SESSION,)
        return [tier for tier in mine if tier in self._settings.precedence]

    def locked(
        self,
        caller: Caller,
        spec: ProviderSpec,
        candidates: Iterable[Candidate],
        tier: Tier | None = None,
    ) -> bool:
        """Say whether no key of the caller's own counts, or none in that tier: set so, or for one shared before it."""
        personal = self.personal_tiers(caller) if tier is None else [tier]
        return self._locked(spec, candidates, personal)

    def locked_for(self, caller: Caller, spec: ProviderSpec, tier: Tier | None = None) -> bool:
        """Say the same, or that of one personal tier, asking only the tiers that can lock."""
        personal = self.personal_tiers(caller) if tier is None else [tier]
        asked = [shared for shared in self._readers if self._precedes(shared, personal)]
        return self._locked(spec, self._walk(caller, spec, asked), personal)

    def _locked(
        self, spec: ProviderSpec, candidates: Iterable[Candidate], personal: Sequence[Tier]
    ) -> bool:
        return self.listed_as_locked(spec) or any(
            self._precedes(candidate.tier, personal) and not self._passes(candidate)
            for candidate in candidates
        )

    def _precedes(self, tier: Tier, personal: Sequence[Tier]) -> bool:
        """Say whether a tier's key is a shared one that counts before what any of these personal tiers has."""
        order = self._settings.precedence
        return tier in SHARED_TIERS and all(
            mine not in order or order.index(tier) < order.index(mine) for mine in personal
        )

    def _walk(
        self, caller: Caller, spec: ProviderSpec, tiers: Iterable[Tier]
    ) -> Iterator[Candidate]:
        for tier, found in self._look_up(caller, [spec], tiers):
            yield from self._of(tier, spec, found)

    def _look_up(
        self,
        caller: Caller,
        specs: Sequence[ProviderSpec],
        tiers: Iterable[Tier],
        need_session: bool = False,
    ) -> Iterator[tuple[Tier, Found]]:
        """Yield each tier with what its reader found, asking each reader when first needed and once."""
        asked: dict[TierReader, Found] = {}
        wanted = list(tiers)
        for tier in wanted:
            # A key may be on its way from the session into the account: in this order it is seen.
            first = [Tier.SESSION] if tier in ACCOUNT_TIERS and Tier.SESSION in wanted else []
            for each in (*first, tier):
                reader = self._readers[each]
                if reader not in asked:
                    asked[reader] = self._ask(reader, caller, specs, need_session)
            yield tier, asked[reader]

    def _of(self, tier: Tier, spec: ProviderSpec, found: Found) -> Iterator[Candidate]:
        if tier in OPERATOR_TIERS or not self.listed_as_locked(spec):
            yield from found.get((tier, spec.id), ())

    def _ask(
        self,
        reader: TierReader,
        caller: Caller,
        specs: Sequence[ProviderSpec],
        need_session: bool,
    ) -> Found:
        if self._settings.locked_providers and OPERATOR_TIERS.isdisjoint(reader.tiers):
            specs = [spec for spec in specs if not self.listed_as_locked(spec)]
        try:
            return reader.find(caller, specs)
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

    def listed_as_locked(self, spec: ProviderSpec) -> bool:
        """Say whether the operator has set that only the operator's own keys count."""
        return not self._settings.locked_providers.isdisjoint((spec.id, *spec.aliases))


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
