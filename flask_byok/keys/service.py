"""The verbs: get, set, clear, validate, promote, resolve. HTTP, Python, command line and dialog all call these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..accounts.promotion import Promoter
from ..accounts.promotion_work import Promotion, PromotionParts, is_kept
from ..accounts.record_parts import Limiter, RecordParts
from ..accounts.shelf import Records
from ..catalog import Catalog, ProviderSpec
from ..errors import (
    MalformedApiKeyError,
    OwnerRequiredError,
    SessionRequiredError,
    UnreadableCredentialError,
)
from ..http import Outbound
from ..model.credential import Credential, Secret, Validation
from ..model.owner import Caller, SessionRef, Tier
from ..providers import BaseProvider, make_provider
from ..sealing.keyring import Keyring
from ..sealing.records import session_owner
from ..settings import Settings
from .checks import Notify, Verdicts
from .journal import Journal
from .lookup import Resolver
from .save import OwnKeys
from .session_store import AuditEvent, SessionStore
from .sessions import SessionKeys
from .status import KeyList, Status, build_status, storage_sentence
from .tiers import Candidate
from .typed import NewKey, read_typed, require_word
from .usage import Count, UsageRecorder

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore


class Service:
    """Everything one app does with keys, for a caller whom the host has identified."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        keyring: Keyring,
        resolver: Resolver,
        sessions: SessionStore,
        accounts: AccountStore | None,
        outbound: Outbound,
        validate_limit: Limiter,
        set_limit: Limiter,
        notify: Notify,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.resolver = resolver
        self.sessions = sessions
        #: None where no tier is kept in the database.
        self.accounts = accounts
        self.journal = Journal(accounts)
        add = None if accounts is None else accounts.usage.add
        self.usage = UsageRecorder(add, count=sessions.count)
        self.outbound = outbound
        self.keyring = keyring
        self._keys = SessionKeys(sessions, accounts)
        self._promoter = Promoter(
            PromotionParts(
                sessions=sessions,
                keys=self._keys,
                settings=settings,
                keyring=keyring,
                journal=self.journal,
            ),
            accounts if Tier.USER in settings.precedence else None,
            resolver,
        )
        self._validate_limit = validate_limit
        self._set_limit = set_limit
        self._notify = notify
        self.verdicts = Verdicts(settings, sessions, accounts, outbound, self.journal, notify)
        parts = RecordParts(
            settings=settings,
            catalog=catalog,
            keyring=keyring,
            resolver=resolver,
            verdicts=self.verdicts,
            journal=self.journal,
            validate_limit=validate_limit,
            set_limit=set_limit,
            notify=notify,
        )
        self.records = Records(parts, accounts)
        self._own = OwnKeys(parts, sessions, self._keys, accounts)

    # get

    def get(self, caller: Caller, *, need_session: bool = True) -> KeyList:
        """Return the status of every provider, and what applies to all of them.

        :raises SessionRequiredError: the caller's session has ended and must be established anew; without
            ``need_session`` it then counts as empty.
        """
        self._require_login(caller)
        specs = list(self.catalog)
        found = self._survey(caller, specs, need_session=need_session)
        return {
            "providers": [self._status(caller, spec, found[spec.id]) for spec in specs],
            "precedence": list(self.settings.precedence),
            "authenticated": caller.authenticated,
            "can_persist": Tier.USER in self.resolver.personal_tiers(caller),
            "storage": storage_sentence(self.settings, caller, self.sessions.name),
        }

    def get_one(self, caller: Caller, provider: str) -> Status:
        """Return the status of one provider."""
        self._require_login(caller)
        spec = self.catalog.get(provider)
        return self._status(caller, spec, self._survey(caller, [spec])[spec.id])

    def resolve(self, caller: Caller, provider: str) -> Credential:
        """Return the credential that serves this caller; see ``Resolver.resolve`` for the errors.

        It counts as used now, as what is done with it is not seen.
        """
        credential, count = self.take(caller, provider)
        if count is not None:
            count("used")
        return credential

    def take(self, caller: Caller, provider: str) -> tuple[Credential, Count | None]:
        """Return the same, and what is to be told the outcome of each call with it."""
        self._require_login(caller)
        credential = self._choose(caller, self.catalog.get(provider))
        self._tell_use(credential)
        return credential, self._counter(caller, credential)

    def _choose(self, caller: Caller, spec: ProviderSpec, *, refused: bool = False) -> Credential:
        """Return the credential in use; ``refused`` lets one pass that its provider refused."""
        if self.settings.promote != "ask" and caller.authenticated:
            chosen = self.resolver.choose(self._survey(caller, [spec])[spec.id])
            return self.resolver.settle(chosen, spec, refused=refused)
        return self.resolver.resolve(caller, spec, refused=refused)

    def resolve_many(
        self, caller: Caller, providers: Sequence[str], *, field: str
    ) -> dict[str, Credential]:
        """Return the credentials for these providers that have this field; one round of look-ups.

        :raises CredentialError: the key that would be used is unreadable or was refused.
        """
        looked_up = self._look_up(caller, providers)
        found = {name: one for name, one in looked_up.items() if field in one.fields}
        for credential in found.values():
            self._tell_use(credential)
            if (count := self._counter(caller, credential)) is not None:
                count("used")
        return found

    def missing(self, caller: Caller, providers: Sequence[str]) -> list[str]:
        """Return those of these providers that have no key; one round of look-ups.

        :raises CredentialError: the key that would be used is unreadable or was refused.
        """
        found = self._look_up(caller, providers)
        return [provider for provider in providers if provider not in found]

    def _look_up(self, caller: Caller, providers: Sequence[str]) -> dict[str, Credential]:
        self._require_login(caller)
        specs = {provider: self.catalog.get(provider) for provider in providers}
        found = self._survey(caller, list(specs.values()))
        chosen = {name: self.resolver.choose(found[spec.id]) for name, spec in specs.items()}
        return {
            name: self.resolver.settle(candidate, specs[name])
            for name, candidate in chosen.items()
            if candidate is not None
        }

    def _counter(self, caller: Caller, credential: Credential) -> Count | None:
        return self.usage.counter(caller, credential)

    def _tell_use(self, credential: Credential) -> None:
        facts = {"provider": credential.provider, "source": str(credential.source)}
        self._notify("key_used", facts)

    # set and clear

    def set(self, caller: Caller, provider: str, new: NewKey) -> tuple[Status, Validation | None]:
        """Store a key of the caller's own; see ``OwnKeys``. Return the provider's new status and what a check found."""
        self._require_login(caller)
        spec = self.catalog.get(provider)
        validation = self._own.set(caller, spec, new)
        return self.get_one(caller, spec.id), validation

    def clear(self, caller: Caller, provider: str, tier: str = "all") -> tuple[list[str], Status]:
        """Delete the caller's own key and return the tiers it was in, and the provider's new status."""
        self._require_login(caller)
        spec = self.catalog.get(provider)
        cleared = self._own.clear(caller, spec, tier)
        return cleared, self.get_one(caller, spec.id)

    def forget(self, caller: Caller, owner: str) -> list[str]:
        """Delete all that an owner has whom the host deletes, and return the providers of the keys that there were."""
        if self.accounts is None:
            return []
        event = AuditEvent(caller.identity or "system", "clear", request_id=caller.request_id)
        gone = self.accounts.owners.forget(owner, event)
        return sorted({record.provider for record in gone})

    # validate

    def validate(
        self,
        caller: Caller,
        provider: str,
        fields: Mapping[str, Secret] | None = None,
        base_url: str | None = None,
    ) -> Validation:
        """Ask the provider about a typed key, or about the one in use; nothing is stored but the verdict."""
        self._require_login(caller)
        spec = self.catalog.get(provider)
        self._validate_limit.check(caller.counted_as)
        if fields is not None:
            typed = read_typed(spec, fields, base_url, self.settings)
            return self.verdicts.of_typed(caller, spec, typed)
        if base_url is not None:
            raise MalformedApiKeyError(
                "A key goes only to the address that it was saved with: type the key too.",
                provider=spec.id,
            )
        return self.verdicts.of_stored(caller, spec, self._choose(caller, spec, refused=True))

    # promote

    def promote(
        self, caller: Caller, providers: Sequence[str] | None = None, on_conflict: str = "keep"
    ) -> dict[str, list[str]]:
        """Make what was saved before signing in the user's own; returns ``promoted`` and ``kept`` provider ids.

        ``on_conflict`` says what happens where the user has another key already: ``keep`` that one, or ``replace`` it.
        One that only the operator may set, or that does not open, is left where it is. With ``BYOK_PROMOTE="never"``
        what a visitor left is deleted, and only the user's own are promoted.

        :raises InvalidFieldError: ``on_conflict`` is another word.
        :raises UnreadableCredentialError: nothing was promoted or kept, for this reason.
        """
        require_word(on_conflict, "on_conflict", ("keep", "replace"))
        if not caller.authenticated:
            raise OwnerRequiredError("Sign in first; what you saved can then be kept for you.")
        session = self._session(caller)
        self._set_limit.check(caller.counted_as)
        specs = list(self.catalog)
        if providers is not None:
            # Once each, whatever names and aliases it was asked for by.
            specs = list({spec.id: spec for spec in map(self.catalog.get, providers)}.values())
        if self.settings.promote == "never":
            self._own.clear_waiting(caller, [spec.id for spec in specs])
        replace = on_conflict == "replace"
        result = self._promote(caller, session, specs, replace=replace, own=True)
        if result.unreadable and not result.promoted and not result.kept:
            raise UnreadableCredentialError(
                "The key that was saved before signing in cannot be read. Save it again.",
                provider=result.unreadable[0],
                tier=Tier.SESSION,
            )
        return {"promoted": result.promoted, "kept": result.kept}

    def _promote(
        self,
        caller: Caller,
        session: SessionRef,
        specs: Sequence[ProviderSpec],
        *,
        replace: bool,
        own: bool,
    ) -> Promotion:
        result = self._promoter.promote(caller, session, specs, replace=replace, own=own)
        for provider in result.promoted:
            self._notify("key_promoted", {"provider": provider})
        return result

    def _survey(
        self, caller: Caller, specs: Sequence[ProviderSpec], *, need_session: bool = False
    ) -> dict[str, list[Candidate]]:
        """Return what the tiers have, after ``BYOK_PROMOTE`` was applied to what waits; ``ask`` leaves it."""
        found = self.resolver.survey(caller, specs, need_session=need_session)
        waiting = [s for s in specs if any(c.state == "waiting" for c in found[s.id])]
        if not waiting or self.settings.promote == "ask" or caller.session is None:
            return found
        if self.settings.promote == "never":
            self._own.clear_waiting(caller, [spec.id for spec in waiting])
        else:
            self._promote(caller, caller.session, waiting, replace=False, own=False)
        return self.resolver.survey(caller, specs)

    # provider objects

    def provider(self, caller: Caller, provider: str, **options: Any) -> BaseProvider:
        """Return a new provider object on the credential that serves this caller."""
        credential, count = self.take(caller, provider)
        return make_provider(
            self.catalog.get(provider),
            credential,
            self.outbound,
            report=self.verdicts.reporter(caller, credential),
            count=count,
            **options,
        )

    # shared steps

    def _status(
        self, caller: Caller, spec: ProviderSpec, candidates: Sequence[Candidate]
    ) -> Status:
        return build_status(
            spec,
            candidates,
            caller=caller,
            resolver=self.resolver,
            in_account=self._is_kept(caller, candidates),
        )

    def _is_kept(self, caller: Caller, candidates: Sequence[Candidate]) -> bool:
        """Say whether the key that could be kept, of the session's, is in the account already."""
        kept = [c.record for c in candidates if c.tier is Tier.USER and c.record is not None]
        here = [c for c in candidates if c.tier is Tier.SESSION]
        offered = next((c for c in here if c.state == "waiting"), here[0] if here else None)
        if offered is None or offered.record is None or caller.session is None or not kept:
            return False
        identity = "" if offered.state == "waiting" else caller.identity
        owner = session_owner(caller.session, identity)
        return is_kept(self.keyring, owner, offered.record, kept)

    def _require_login(self, caller: Caller) -> None:
        if self.settings.require_login and not caller.authenticated:
            raise OwnerRequiredError("Sign in to use API keys here.")

    def _session(self, caller: Caller) -> SessionRef:
        if caller.session is None:
            raise SessionRequiredError
        return caller.session
