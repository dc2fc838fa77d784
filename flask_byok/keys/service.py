"""The verbs: get, set, clear, validate, promote, resolve. HTTP, Python, commands and the dialog all call these."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import metrics
from ..catalog import Catalog, ProviderSpec
from ..catalog.endpoints import expand, is_named, shown
from ..catalog.paste import KeyWarning, warnings_about
from ..errors import (
    ByokError,
    InvalidFieldError,
    NotAllowedError,
    OutdatedTablesError,
    OwnerRequiredError,
    RateLimitedError,
    StoreError,
    UnreadableCredentialError,
)
from ..http import Outbound
from ..model.credential import Credential, Fields, Secret, Validation
from ..model.owner import PERSONAL_TIERS, Caller, Tier
from ..providers import BaseProvider, Count, make_provider
from ..sealing.keyring import Keyring
from ..settings import Settings
from ..storage.rates import RateLimiter
from .checks import Checks, Notify
from .faults import PASSING, Faults, reason_of
from .health import Health
from .lookup import Lookup, Opener, SessionTier, Specs, TierReader, locked_error
from .ports import Accounts, Promotion
from .save import Destination, InSession, Saver, adopt_waiting
from .sessions import Sessions
from .status import KeyList, ProviderFacts, Status, build_status, provider_facts, storage_sentence
from .traffic import Traffic
from .typed import NewKey, read_typed, require_word

_logger = logging.getLogger("flask_byok.keys")

_NONE: Fields = {}


@dataclass(kw_only=True, eq=False, repr=False)
class Service:
    """Everything an app does with keys, for a caller whom the host has identified.

    :param accounts: the wing of accounts; without one see ``keys.ports``.
    :param operator: reads the operator's own keys.
    """

    settings: Settings
    catalog: Catalog
    keyring: Keyring
    sessions: Sessions
    accounts: Accounts
    outbound: Outbound
    operator: TierReader
    validate_limit: RateLimiter
    set_limit: RateLimiter
    notify: Notify

    def __post_init__(self) -> None:
        session_tier = SessionTier(self.sessions, Opener(self.keyring, self.settings))
        self.faults = Faults(self.sessions.documents)
        readers = [session_tier, self.operator, self.accounts]
        self.lookup = Lookup(readers, self.settings, self.faults)
        self.checks, self.saver = Checks(self), Saver(self)
        self.health = Health(self)
        self.traffic = Traffic(self.accounts.count, count=self.sessions.count)

    # get

    def get(self, caller: Caller, *, need_session: bool = True) -> KeyList:
        """Return the status of every provider, and what applies to all of them.

        :param need_session: off: an ended session counts as empty.
        :raises SessionRequiredError: the caller's session has ended and must be established again.
        """
        self._require_login(caller)
        lookup = self.lookup
        found = lookup.survey(caller, self._all(), need_session=need_session)
        specs = expand(self._all(), found)
        return {
            "providers": [build_status(caller, spec, found[spec.id], lookup) for spec in specs],
            "precedence": list(self.settings.precedence),
            "authenticated": caller.authenticated,
            "can_persist": Tier.USER in lookup.personal_tiers(caller),
            "storage": storage_sentence(self.settings, caller, self.sessions.name),
        }

    def own_records(self, caller: Caller) -> Any:
        """Return the caller's own records in the account; see ``accounts.records``."""
        return self.accounts.own(self, caller)

    def shared_records(self, caller: Caller) -> Any:
        """Return all teams' and the system's records, for an admin."""
        return self.accounts.shared(self, caller)

    def services(self, caller: Caller) -> list[ProviderFacts]:
        """Return the providers that people may keep keys for."""
        self._require_login(caller)
        return [provider_facts(spec) for spec in self.catalog]

    # resolve

    def resolve(self, caller: Caller, provider: str) -> Credential:
        """Return the credential that serves this caller; for the errors see ``Lookup.resolve``.

        It counts as used at once, because its later use cannot be seen.
        """
        credential, count = self.take(caller, provider)
        count("used")
        return credential

    def take(
        self, caller: Caller, provider: str, *, visitors_share: bool = True
    ) -> tuple[Credential, Count]:
        """Return the credential and a callback that counts each call's outcome.

        :param visitors_share: off: a shared key serves people who are signed in only.
        :raises OwnerRequiredError: a visitor would use a shared key.
        """
        spec = self._spec(caller, provider)
        with _failures_measured([spec]):
            credential = self.lookup.resolve(caller, spec)
            is_known = visitors_share or caller.authenticated or caller.named
            if not is_known and credential.source not in PERSONAL_TIERS:
                text = f"Sign in to use the shared key for {spec.name}, or add a key of your own."
                raise OwnerRequiredError(text, provider=spec.id)
        return credential, self._counter(caller, credential)

    def resolve_many(self, caller: Caller, providers: Sequence[str]) -> dict[str, Credential]:
        """Return the credentials for these providers that have an API key; one round of look-ups.

        :raises CredentialError: a key that would be used is unreadable or was rejected.
        """
        found = self._look_up(caller, providers)
        found = {name: one for name, one in found.items() if "api_key" in one.fields}
        for credential in found.values():
            self._counter(caller, credential)("used")
        return found

    def missing(self, caller: Caller, providers: Sequence[str]) -> list[str]:
        """Return those of these providers that have no key; one round of look-ups.

        :raises CredentialError: a key that would be used is unreadable or was rejected.
        """
        found = self._look_up(caller, providers)
        return [provider for provider in providers if provider not in found]

    def provider(
        self, caller: Caller, provider: str, *, visitors_share: bool = True, **options: Any
    ) -> BaseProvider:
        """Return a new provider object on the credential that serves this caller; see ``take``."""
        credential, count = self.take(caller, provider, visitors_share=visitors_share)
        tried = {_place(credential)}

        def successor(error: ByokError) -> BaseProvider | None:
            """Return the object on the key that serves now: what was told of the former one decides."""
            is_refusal = error.code == "key_rejected"
            reason = "rejected" if is_refusal else reason_of(PASSING.get(error.code))
            if self.settings.failover and reason in self.settings.fallback_on:
                with suppress(ByokError):
                    other = self.provider(
                        caller, provider, visitors_share=visitors_share, **options
                    )
                    if (place := _place(other.credential)) not in tried:
                        tried.add(place)
                        return other
            return None

        return make_provider(
            self.catalog.get(provider),
            credential,
            self.outbound,
            report=partial(self.checks.of_traffic, caller, credential),
            count=count,
            counted_as=caller.counted_as,
            successor=successor,
            **options,
        )

    def _look_up(self, caller: Caller, providers: Sequence[str]) -> dict[str, Credential]:
        self._require_login(caller)
        specs = {provider: self.catalog.get(provider) for provider in providers}
        credentials = {}
        with _failures_measured(specs.values()):
            found = self.lookup.survey(caller, list(specs.values()))
            for name, spec in specs.items():
                if chosen := self.lookup.choose(found[spec.id]):
                    credentials[name] = self.lookup.settle(chosen, spec)
        return credentials

    def _counter(self, caller: Caller, credential: Credential) -> Count:
        facts = {"provider": credential.provider, "source": str(credential.source)}
        metrics.record("resolves", 1, *facts.values(), "served")
        self.notify("key_used", facts)
        return self.traffic.counter(caller, credential)

    # set and clear

    def set(
        self, caller: Caller, provider: str, new: NewKey
    ) -> tuple[Status | None, Validation | None]:
        """Store a key in the caller's session or account; see ``Saver.save``.

        A key kept in the account replaces the session's own, which would otherwise be used before it.

        :return: the provider's new status, see ``_status_after``, and the result of the check.
        """
        spec = self._spec(caller, provider, new.fields)
        destination = self._destination(caller, spec, new.persist)
        self.set_limit.check(caller.counted_as)
        new = self._completed(caller, spec, new)
        _, validation = self.saver.save(caller, spec, new, destination)
        return self._status_after(caller, spec), validation

    def _completed(self, caller: Caller, spec: ProviderSpec, new: NewKey) -> NewKey:
        """Return a new key of a named endpoint with the name, model and address that it has, if none is sent."""
        typed = {name: text for name, text in new.fields.items() if text.reveal().strip()}
        if not is_named(spec.id) or "name" in typed:
            return new
        candidates = self.lookup.survey(caller, [spec])[spec.id]
        found = (c.credential for c in candidates if c.tier in PERSONAL_TIERS)
        if (own := next(filter(None, found), None)) is None:
            return new
        kept = {name: text for name, text in own.fields.items() if name in shown(spec)}
        if not new.base_url and own.trust == "personal":
            kept["base_url"] = Secret(own.base_url)
        return dataclasses.replace(new, fields={**kept, **typed})

    def _status_after(self, caller: Caller, spec: ProviderSpec) -> Status | None:
        """Return a provider's status after a change; None if a store is away that only the status needs."""
        with suppress(StoreError, OutdatedTablesError):
            found = self.lookup.survey(caller, [spec])[spec.id]
            return build_status(caller, spec, found, self.lookup)
        return None

    def _destination(self, caller: Caller, spec: ProviderSpec, persist: bool) -> Destination:
        """Return where the caller's key goes, if the caller may set it."""
        precedence = self.settings.precedence
        lasting = persist or caller.named
        if lasting and Tier.USER not in precedence and Tier.SESSION in precedence:
            text = "Keys are kept for the session only here: leave out 'persist'."
            if caller.named:
                text = "Keys are kept in sessions only here, so acting_for has no place for one."
            raise InvalidFieldError(text, provider=spec.id)
        if caller.named and not caller.authenticated:
            raise NotAllowedError("The operator's keys are set with 'flask byok set'.")
        tier = Tier.USER if lasting or Tier.SESSION not in precedence else Tier.SESSION
        if tier not in precedence or self.lookup.locked(caller, spec, tier):
            raise locked_error(spec)
        if tier is Tier.USER and not caller.authenticated:
            text = "Sign in first: a visitor has no account to keep a key in."
            raise OwnerRequiredError(text, provider=spec.id)
        if tier is Tier.USER:
            return self.accounts.main_place(self, caller, spec)
        return InSession(self, caller, spec)

    def clear(
        self, caller: Caller, provider: str, tier: str = "all"
    ) -> tuple[list[str], Status | None]:
        """Delete the caller's own key; return the tiers it was in and the provider's status, see ``_status_after``.

        :param tier: ``session``, ``user`` or ``all``.
        :raises InvalidFieldError: it is another word.
        """
        spec = self._spec(caller, provider)
        require_word(tier, "tier", [*map(str, PERSONAL_TIERS), "all"])
        self.set_limit.check_removal(caller.counted_as)
        ways = {Tier.SESSION: self._clear_session, Tier.USER: self.accounts.clear}
        places = [name for name in PERSONAL_TIERS if tier in (name, "all")]
        cleared = [name.value for name in places if ways[name](caller, spec.id)]
        for name in cleared:
            self.notify("key_cleared", {"provider": spec.id, "tier": name})
        return cleared, self._status_after(caller, spec)

    def _clear_session(self, caller: Caller, provider: str) -> bool:
        """Delete the session's key, then log it: a removal waits for no other store than that of the key."""
        session, identity = caller.session, caller.identity
        if session is None:
            return False
        gone = self.sessions.clear(session, identity, [provider])
        view = self.sessions.read(session, identity, [provider])
        both = (*view.records.values(), *view.visitor_records.values())
        # A promotion moves such a key into the account, now or later: only the database can stop it.
        leaving = [record for record in both if record.leaving]
        ended: set[str] = set()
        try:
            if gone or leaving:
                versions = [record.version for record in leaving]
                ended = self.accounts.note(caller, "clear", provider, ended=versions)
        except ByokError:
            if leaving:
                raise
            text = "The audit log lacks a row, as the database failed: %s removed the session's key for %s."
            _logger.warning(text, caller.actor, provider)
        self.sessions.remove(session, identity, leaving)
        return bool(gone or ended)

    # validate

    def validate(
        self,
        caller: Caller,
        provider: str,
        fields: Fields | None = None,
        base_url: str | None = None,
    ) -> Validation:
        """Ask the provider about a typed key or the one in use; only the verdict on a stored key is stored."""
        spec = self._spec(caller, provider, fields or {})
        self.validate_limit.check(caller.counted_as)
        is_name = bool(fields) and set(fields or ()) <= shown(spec).keys()
        if base_url is not None or (fields is not None and not is_name):
            # A stored key goes only to the address that it was saved with: another one needs a typed key.
            typed = read_typed(spec, fields or {}, base_url, self.settings)
            return self.checks.validate(caller, spec, typed)
        return self.checks.validate(caller, spec, self.lookup.to_check(caller, spec))

    def warnings(self, provider: str, fields: Fields | None) -> list[KeyWarning]:
        """Return what the look of a typed key tells, such as whose it seems to be; nobody is asked."""
        return warnings_about(fields or {}, self.catalog.get(provider), self.catalog)

    def report_rejected(self, caller: Caller, provider: str) -> Validation | None:
        """Check the key in use, which a host's own call was refused with; None if that was done too often."""
        spec = self._spec(caller, provider)
        credential = self.lookup.resolve(caller, spec, rejected=True)
        try:
            self.validate_limit.check(caller.counted_as)
        except RateLimitedError:
            return None
        validation = self.checks.validate(caller, spec, credential)
        if validation.valid is False:
            self.checks.tell_rejected(credential)
        return validation

    # promote

    def promote(
        self, caller: Caller, providers: Sequence[str] | None = None, on_conflict: str = "keep"
    ) -> dict[str, list[str]]:
        """Make the keys saved before signing in the user's own, and return ``promoted`` and ``kept`` provider ids.

        A key that only the operator may set, or that does not work or open, stays where it is. With
        ``BYOK_PROMOTE="never"`` a visitor's keys are deleted, and only the user's own are promoted.

        :param on_conflict: if the user has another key already, ``keep`` or ``replace`` it.
        :raises InvalidFieldError: ``on_conflict`` is another word.
        :raises UnreadableCredentialError: nothing was promoted or kept, for this reason.
        """
        require_word(on_conflict, "on_conflict", ("keep", "replace"))
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in first; your saved keys can then be kept for you.")
        if caller.named:  # has no session to promote from
            return {"promoted": [], "kept": []}
        self.set_limit.check(caller.counted_as)
        # Once each, under any id or alias.
        named = self._all() if providers is None else map(self.catalog.get, providers)
        specs = list({spec.id: spec for spec in named}.values())
        result = self._promote(caller, specs, replace=on_conflict == "replace", own=True)
        if result.unreadable and not result.promoted and not result.kept:
            text = "The key that was saved before signing in cannot be read. Save it again."
            provider = result.unreadable[0]
            raise UnreadableCredentialError(text, provider=provider, tier=Tier.SESSION)
        return {"promoted": result.promoted, "kept": result.kept}

    def signed_in(self, caller: Caller) -> None:
        """Apply ``BYOK_PROMOTE`` to the keys that a visitor saved, when that visitor signs in."""
        if caller.session and caller.authenticated and self.settings.promote != "ask":
            self._promote(caller, self._all(), replace=False, own=False)

    def _promote(self, caller: Caller, specs: Specs, *, replace: bool, own: bool) -> Promotion:
        session = caller.require_session()
        if self.settings.promote == "never":
            waiting = [spec.id for spec in specs]
            self.sessions.clear(session, caller.identity, waiting, visitor=True)
            if not own:
                return Promotion()
        if Tier.USER in self.accounts.tiers:
            result = self.accounts.promote(self, caller, specs, replace=replace, own=own)
        else:
            result = adopt_waiting(self, caller, specs, replace=replace, asked=own)
        for provider in result.promoted:
            self.notify("key_promoted", {"provider": provider})
        return result

    # shared steps

    def _spec(self, caller: Caller, provider: str, fields: Fields = _NONE) -> ProviderSpec:
        self._require_login(caller)
        return self.catalog.get_typed(provider, fields)

    def _all(self) -> list[ProviderSpec]:
        """Return the catalog, and what stands for all named endpoints that a person has."""
        return [*self.catalog, *self.catalog.patterns]

    def _require_login(self, caller: Caller) -> None:
        if self.settings.require_login and not (caller.authenticated or caller.named):
            raise OwnerRequiredError("Sign in to use API keys here.")


@contextmanager
def _failures_measured(specs: Iterable[ProviderSpec]) -> Iterator[None]:
    """Measure look-ups that fail: of the provider that an error names, else of all."""
    try:
        yield
    except ByokError as error:
        for spec in specs:
            if error.provider in (None, spec.id):
                metrics.record("resolves", 1, spec.id, str(error.tier or "none"), error.code)
        raise


def _place(credential: Credential) -> tuple[str, str, str | None]:
    return str(credential.source), credential.id, credential.version
