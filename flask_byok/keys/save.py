"""Set and clear what is a person's own: in their session, or in their account."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..accounts.record_parts import RecordParts
from ..catalog import ProviderSpec
from ..errors import (
    InvalidFieldError,
    KeyRefusedError,
    OwnerRequiredError,
    ProviderLockedError,
    SessionRequiredError,
)
from ..model.credential import CredentialRecord, Validation
from ..model.owner import PERSONAL_TIERS, Caller, SessionRef, Tier
from ..sealing.keyring import Context
from ..sealing.records import new_record, session_owner
from .journal import Subject
from .notes import check_place
from .sessions import Sessions
from .typed import NewKey, Typed, read_expiry, read_typed, require_word

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore


class OwnKeys:
    """Changes one person's own keys, whichever of the two stores they are in.

    :param accounts: None where no tier is kept in the database.
    """

    def __init__(
        self,
        parts: RecordParts,
        sessions: Sessions,
        accounts: AccountStore | None,
    ) -> None:
        self._parts = parts
        self._sessions = sessions
        self._accounts = accounts

    # set

    def set(self, caller: Caller, spec: ProviderSpec, new: NewKey) -> Validation | None:
        """Store a key in the caller's session, or account, and return what a check found.

        What is kept in the account takes the place of the session's own, which would be used before it.

        :raises InvalidFieldError: the label or the description is too long, or a key is in it.
        :raises KeyRefusedError: the check forbids storing; what was there before stays.
        """
        parts = self._parts
        tier = self._place(caller, spec, new.persist)
        session = caller.session
        if tier is Tier.SESSION and session is None:
            raise SessionRequiredError
        parts.set_limit.check(caller.counted_as)
        expires_at = read_expiry(new.expires_at, spec.id, parts.settings)
        typed = read_typed(spec, new.fields, new.base_url, parts.settings)
        new = new.with_clean_notes(typed.fields, parts.catalog)
        if tier is Tier.USER:
            self._check_slots(caller, spec, typed)
        validation = self._checked(caller, spec, typed, new)
        record = new_record(
            parts.keyring,
            _context(caller, session, spec, tier),
            spec,
            typed.fields,
            typed.base_url,
            label=new.label,
            description=new.description,
            expires_at=expires_at,
            validation=validation,
        )
        if tier is Tier.USER:
            self._keep_in_account(caller, record, typed)
        elif session is not None:
            parts.journal.note(caller, "set", record, typed.fields)
            self._sessions.write(session, caller.identity, record)
        parts.notify("key_set", {"provider": spec.id, "tier": tier.value, "hint": record.hint})
        return validation

    def _place(self, caller: Caller, spec: ProviderSpec, persist: bool) -> Tier:
        """Return the tier that a key is to be stored in, if the caller may."""
        precedence = self._parts.settings.precedence
        if persist and Tier.USER not in precedence and Tier.SESSION in precedence:
            raise InvalidFieldError(
                "Keys are kept for the session only here: leave out 'persist'.", provider=spec.id
            )
        tier = Tier.USER if persist or Tier.SESSION not in precedence else Tier.SESSION
        if tier not in precedence or self._parts.resolver.locked_for(caller, spec, tier):
            raise ProviderLockedError(
                f"The key for {spec.name} is managed by the operator and cannot be changed here.",
                provider=spec.id,
            )
        if tier is Tier.USER and not caller.authenticated:
            raise OwnerRequiredError(
                "Sign in first: a visitor has no account to keep a key in.", provider=spec.id
            )
        return tier

    def _check_slots(self, caller: Caller, spec: ProviderSpec, typed: Typed) -> None:
        """Refuse a key that one of the slots in the account is called by: it may go there."""
        there = self._accounts.find([caller.identity], [spec.id]) if self._accounts else []
        for record in there:
            check_place(record.owner, record.slot, typed.secrets)

    def _checked(
        self, caller: Caller, spec: ProviderSpec, typed: Typed, new: NewKey
    ) -> Validation | None:
        try:
            return self._parts.verdicts.before_set(caller, spec, typed, new.validate)
        except KeyRefusedError as error:
            self._parts.journal.note(
                caller, "set", Subject(spec.id), typed.fields, error.validation.verdict
            )
            raise

    def _keep_in_account(self, caller: Caller, record: CredentialRecord, typed: Typed) -> None:
        session, ended = caller.session, []
        if session is not None:
            there = self._sessions.read(session, caller.identity, [record.provider])
            ended = self._mark_leaving(session, caller, there.records.values())
        if self._accounts is not None:
            event = self._parts.journal.event(caller, "set", typed.fields)
            self._accounts.keep(
                record,
                event,
                at_most=self._parts.settings.keys_per_provider,
                ended=ended,
                check=lambda seated: check_place(seated.owner, seated.slot, typed.secrets),
            )
        if session is not None:
            self._sessions.clear(session, caller.identity, [record.provider])

    # clear

    def clear(self, caller: Caller, spec: ProviderSpec, tier: str) -> list[str]:
        """Delete the caller's own key and return the tiers it was in.

        :param tier: ``session``, ``user`` or ``all``.
        :raises InvalidFieldError: it is another word.
        :raises RateLimitedError: the caller has changed keys too often.
        """
        require_word(tier, "tier", [*map(str, PERSONAL_TIERS), "all"])
        places = [name for name in PERSONAL_TIERS if tier in (name, "all")]
        self._parts.set_limit.check(caller.counted_as)
        cleared = [name.value for name in places if self._clear_place(caller, spec, name)]
        for name in cleared:
            self._parts.notify("key_cleared", {"provider": spec.id, "tier": name})
        return cleared

    def clear_waiting(self, caller: Caller, providers: Sequence[str]) -> list[str]:
        """Delete what a visitor left before this caller signed in."""
        if caller.session is None or not caller.authenticated:
            return []
        return self._sessions.clear(caller.session, caller.identity, providers, visitor=True)

    def _clear_place(self, caller: Caller, spec: ProviderSpec, tier: Tier) -> bool:
        """Delete what is there and say whether anything was; what was not is in no log."""
        if tier is Tier.SESSION:
            return caller.session is not None and self._clear_session(caller, caller.session, spec)
        if self._accounts is None or not caller.authenticated:
            return False
        event = self._parts.journal.event(caller, "clear")
        return bool(self._accounts.clear(caller.identity, [spec.id], event))

    def _clear_session(self, caller: Caller, session: SessionRef, spec: ProviderSpec) -> bool:
        there = self._sessions.read(session, caller.identity, [spec.id])
        if not there.records and not there.visitor_records:
            return False
        both = [*there.records.values(), *there.visitor_records.values()]
        leaving = self._mark_leaving(session, caller, both)
        ended = self._parts.journal.note(caller, "clear", Subject(spec.id), ended=leaving)
        own = self._sessions.clear(session, caller.identity, [spec.id])
        left = self.clear_waiting(caller, [spec.id])
        # A promotion at the same time, which comes too late, may have deleted what is over.
        return bool(ended or own or left)

    def _mark_leaving(
        self, session: SessionRef, caller: Caller, records: Iterable[CredentialRecord]
    ) -> list[str]:
        """Mark records and return the versions of those that are still there."""
        marked = self._sessions.mark_leaving(session, caller.identity, records)
        return [record.version for record in marked]


def _context(caller: Caller, session: SessionRef | None, spec: ProviderSpec, tier: Tier) -> Context:
    if tier is Tier.USER or session is None:
        return Context("account", caller.identity, spec.id)
    return Context("session", session_owner(session, caller.identity), spec.id)
