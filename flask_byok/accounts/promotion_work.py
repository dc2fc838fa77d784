"""What a promotion does: within the session, or out of it into the account."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec
from ..errors import SessionRequiredError, UnreadableCredentialError
from ..keys.journal import Journal, Subject
from ..keys.notes import check_place
from ..keys.sessions import Adoption, Sessions, SessionView
from ..keys.typed import cut_short
from ..model.credential import CredentialRecord, Secret, utcnow
from ..model.owner import Caller, SessionRef
from ..sealing.keyring import Context, Keyring
from ..sealing.records import open_record, seal, session_owner
from ..settings import Settings
from .store.slots import main_slot

if TYPE_CHECKING:
    from .store.keys import AccountStore


@dataclass(frozen=True, slots=True)
class Promotion:
    """Provider ids by what became of the session's keys.

    ``promoted`` are now the user's own, or were before: of a key that the account has already only the session's copy
    goes. ``kept`` means that another key of the user's own stayed, and what waits waits on. A provider is in both where
    the user's own key was promoted and the visitor's was not.
    """

    promoted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionParts:
    """What promotions work with."""

    sessions: Sessions
    settings: Settings
    keyring: Keyring
    journal: Journal


def is_kept(
    keyring: Keyring, owner: str, record: CredentialRecord, kept: Iterable[CredentialRecord]
) -> bool:
    """Say whether a record of the session's holds the very key that one of the account's, in use, holds."""
    alike = [one for one in kept if one.hint == record.hint and one.state(utcnow()) == "active"]
    opened = [("session", owner, record)] + [("account", one.owner, one) for one in alike]
    try:
        first, *others = (open_record(keyring, *each) for each in opened)
    except UnreadableCredentialError:
        return False
    return first in others


@dataclass(frozen=True)
class _Work:
    """One promotion out of one session."""

    by: PromotionParts
    caller: Caller
    session: SessionRef
    view: SessionView
    replace: bool
    result: Promotion = field(default_factory=Promotion, init=False)


class WithinSession(_Work):
    """Makes what waits the user's own, each in the very step that deletes the visitor's."""

    def run(self, providers: Sequence[str]) -> Promotion:
        """Promote what waits for these providers."""
        for provider in providers:
            try:
                outcome = self._adopt(self.view.visitor_records[provider])
            except UnreadableCredentialError:
                self.result.unreadable.append(provider)
                continue
            if outcome == "adopted":
                self.result.promoted.append(provider)
            elif outcome == "kept":
                self.result.kept.append(provider)
        return self.result

    def _adopt(self, record: CredentialRecord) -> Adoption:
        owner = session_owner(self.session, "")
        fields, base_url = open_record(self.by.keyring, "session", owner, record)
        if self.replace or record.provider not in self.view.records:
            self.by.journal.note(self.caller, "promote", record, fields)
        adopted = self._sealed(record, fields, base_url)
        return self.by.sessions.adopt(
            self.session, self.caller.identity, adopted, replace=self.replace
        )

    def _sealed(
        self, record: CredentialRecord, fields: Mapping[str, Secret], base_url: str | None
    ) -> CredentialRecord:
        owner = session_owner(self.session, self.caller.identity)
        context = Context("session", owner, record.provider)
        # The key is the same, so its version and what is known about it stay.
        sealed = seal(self.by.keyring, context, fields, base_url)
        return dataclasses.replace(record, owner=owner, ciphertext=sealed)


@dataclass(frozen=True, slots=True)
class _Source:
    """A record in the session, the user's own or a visitor's."""

    record: CredentialRecord
    visitor: bool


@dataclass(frozen=True, slots=True)
class _Move:
    """A record sealed for the account, and what ends in the session with it: its source and what it replaces."""

    record: CredentialRecord
    fields: Mapping[str, Secret]
    ending: list[_Source]

    @property
    def version(self) -> str:
        """Which of the session's records it was."""
        return self.record.version

    @property
    def replaced(self) -> set[str]:
        """The versions of those that it takes the place of."""
        return {source.record.version for source in self.ending} - {self.version}


@dataclass(frozen=True)
class ToAccount(_Work):
    """Moves keys into the account, all in one transaction; ``session_keys`` says why nothing is lost or comes back."""

    accounts: AccountStore = field(kw_only=True)
    own: bool = field(kw_only=True)
    specs: Mapping[str, ProviderSpec] = field(kw_only=True)

    def run(self, providers: Sequence[str]) -> Promotion:
        """Promote what the session has for these providers."""
        there = self._there(providers)
        moves = []
        for provider in providers:
            if self._drop(self._known(provider, there[provider])):
                self.result.promoted.append(provider)
                continue
            sources = [] if self._is_taken(there[provider]) else self._sources(provider)
            if not sources or not self._all_leave(provider, sources):
                self.result.kept.append(provider)
            if sources and (move := self._prepare(sources)):
                moves.append(move)
        if moves:
            self._move(moves)
        return self.result

    def _there(self, providers: Sequence[str]) -> dict[str, list[CredentialRecord]]:
        """Return what the account has and is not to be replaced, by provider."""
        there: dict[str, list[CredentialRecord]] = {provider: [] for provider in providers}
        if providers and not self.replace:
            for record in self.accounts.find([self.caller.identity], providers):
                there[record.provider].append(record)
        return there

    def _is_taken(self, there: Sequence[CredentialRecord]) -> bool:
        """Say whether a key in the account stays."""
        slots = {record.slot for record in there}
        return main_slot(slots, self.by.settings.keys_per_provider) in slots

    def _known(self, provider: str, there: Sequence[CredentialRecord]) -> list[_Source]:
        """Return what the session has of a key that the account has too, where nothing else is to be kept."""
        keyring, sources = self.by.keyring, self._sources(provider)
        known = [s for s in sources if is_kept(keyring, self._owner(s), s.record, there)]
        return known if self._all_leave(provider, known) else []

    def _drop(self, known: Sequence[_Source]) -> bool:
        """Let go of these, and say whether there was any: the account's stays as it is."""
        ending = [source for source in known if self._set_aside(source)]
        if ending:
            versions = [source.record.version for source in ending]
            subject = Subject(ending[0].record.provider)
            self.by.journal.note(self.caller, "clear", subject, ended=versions)
            self._discard(ending)
        return bool(known)

    def _sources(self, provider: str) -> list[_Source]:
        """Return what leaves the session: what goes to the account, then what that replaces."""
        mine = self.view.records.get(provider)
        left = self.view.visitor_records.get(provider)
        own = [_Source(mine, visitor=False)] if mine and self.own else []
        waiting = [_Source(left, visitor=True)] if left else []
        if self.replace:
            return waiting + own
        return own if mine else waiting

    def _all_leave(self, provider: str, sources: Sequence[_Source]) -> bool:
        return provider not in self.view.visitor_records or any(s.visitor for s in sources)

    def _prepare(self, sources: Sequence[_Source]) -> _Move | None:
        """Mark what leaves, and seal the first of it for the account; None where it does not open, or is gone."""
        first = sources[0]
        provider = first.record.provider
        try:
            record, fields = self._sealed(first)
        except UnreadableCredentialError:
            self.result.unreadable.append(provider)
            return None
        ending = [source for source in sources if self._set_aside(source)]
        return _Move(record, fields, ending) if first in ending else None

    def _sealed(self, source: _Source) -> tuple[CredentialRecord, dict[str, Secret]]:
        record, identity = source.record, self.caller.identity
        fields, base_url = open_record(self.by.keyring, "session", self._owner(source), record)
        context = Context("account", identity, record.provider)
        sealed = dataclasses.replace(
            record,
            owner=identity,
            ciphertext=seal(self.by.keyring, context, fields, base_url),
            validity=record.current_validity(),
            expires_at=cut_short(record.expires_at, self.by.settings),
            leaving=False,
        )
        return sealed, fields

    def _owner(self, source: _Source) -> str:
        return session_owner(self.session, "" if source.visitor else self.caller.identity)

    def _set_aside(self, source: _Source) -> bool:
        identity = self.caller.identity
        if self.by.sessions.mark_leaving(self.session, identity, [source.record]):
            return True
        # Cleared or replaced meanwhile; but of a session that has ended nothing is taken, not half of it.
        if not self.by.sessions.read(self.session, identity, []).alive:
            raise SessionRequiredError
        return False

    def _move(self, moves: Sequence[_Move]) -> None:
        fingerprint, by_version = self.accounts.audit.fingerprint, {m.version: m for m in moves}
        promoted, kept = self.accounts.promote(
            [move.record for move in moves],
            replace=self.replace,
            event=self.by.journal.event(self.caller, "promote"),
            at_most=self.by.settings.keys_per_provider,
            fingerprints={move.version: fingerprint(move.fields) for move in moves},
            ended={move.version: move.replaced for move in moves},
            check=lambda seated: self._check_slot(seated, by_version[seated.version].fields),
        )
        self.result.promoted.extend(promoted)
        self.result.kept.extend(provider for provider in kept if provider not in self.result.kept)
        for move in moves:
            if move.record.provider in promoted:
                self._discard(move.ending)

    def _check_slot(self, seated: CredentialRecord, fields: Mapping[str, Secret]) -> None:
        secret = [f.name for f in self.specs[seated.provider].fields if f.secret]
        check_place(
            seated.owner, seated.slot, {name: fields[name] for name in secret if name in fields}
        )

    def _discard(self, ending: Sequence[_Source]) -> None:
        records = [source.record for source in ending]
        self.by.sessions.remove(self.session, self.caller.identity, records)
