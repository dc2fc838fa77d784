"""Move keys out of a session into the account of the user who signed in.

A key that is promoted is in two stores, and the process may end between any two steps. So it moves in three: the
session's record is marked as leaving; the account's transaction stores the key and notes that the record's version
is over; the record is removed. A record that is leaving counts until its version is over, and not after that,
whether the last step happens or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..catalog import ProviderSpec
from ..catalog.endpoints import expand
from ..errors import InvalidFieldError, SessionRequiredError, UnreadableCredentialError
from ..keys.documents import SessionView
from ..keys.lookup import Specs
from ..keys.ports import Promotion
from ..keys.service import Service
from ..keys.typed import capped_expiry
from ..model.credential import CredentialRecord, Fields, utcnow
from ..model.owner import Caller, SessionRef, Tier, session_owner
from ..sealing.keyring import Keyring, Opened, context_of
from .changes import check_place
from .store import main_slot

if TYPE_CHECKING:
    from .store.keys import Decide, PromotionOutcome
    from .wing import Wing


def promote(
    wing: Wing, core: Service, caller: Caller, specs: Specs, *, replace: bool, own: bool
) -> Promotion:
    """Promote the session's keys for these providers, except those that only the operator may set.

    Keys that do not open or work stay; so does one with an address of its own, unless the user asks (``own``). With
    ``BYOK_PROMOTE="never"`` a visitor's keys stay too.

    :param replace: in the place of a key that the account has already.
    :param own: promote the user's own session keys too. With ``replace`` the visitor's come before them, else
        they come before the visitor's.
    :raises SessionRequiredError: the session has ended.
    """
    session = caller.require_session()
    view = core.sessions.read(session, caller.identity, [spec.id for spec in specs])
    if not view.alive:
        raise SessionRequiredError
    if core.settings.promote == "never":
        view = dataclasses.replace(view, visitor_records={})
    there = {*view.visitor_records, *(view.records if own else ())}
    held = [spec for spec in expand(specs, there) if spec.id in there]
    free = [spec for spec in held if not core.lookup.locked(caller, spec, Tier.USER)]
    return _Move(wing, core, caller, session, view, replace, own).run(free)


def promotion_rule(
    keyring: Keyring, *, replace: bool, confirm: Callable[[CredentialRecord], object]
) -> Decide:
    """Return the rule for a session's record in its slot of the account, within the transaction.

    :param replace: it replaces a key that the account has there.
    :param confirm: raises ``InvalidFieldError`` to keep it out of this slot.
    """

    def decide(
        seated: CredentialRecord, there: CredentialRecord | None, is_over: bool
    ) -> PromotionOutcome:
        if is_over:
            if there is None:
                return "gone"
            return "known" if _is_same_key(keyring, seated, there) else "kept"
        if there is not None and not replace:
            return "kept"
        try:
            confirm(seated)
        except InvalidFieldError:
            return "kept"
        return "promoted"

    return decide


def _is_same_key(keyring: Keyring, *records: CredentialRecord) -> bool:
    """Return True if accounts' records open and hold the same key."""
    try:
        one, other = (keyring.open_record(r.owner, r) for r in records)
    except UnreadableCredentialError:
        return False
    return one == other


@dataclass(frozen=True, slots=True)
class _Moved:
    """A record sealed for the account, its secrets, and the session's records that end with it, itself first."""

    record: CredentialRecord
    secrets: Fields
    ending: list[CredentialRecord]


@dataclass
class _Move:
    """One promotion out of one session."""

    wing: Wing
    core: Service
    caller: Caller
    session: SessionRef
    view: SessionView
    replace: bool
    own: bool
    result: Promotion = field(default_factory=Promotion)

    def run(self, specs: Specs) -> Promotion:
        """Promote what the session has for these providers, all in one transaction."""
        there = self._in_account([spec.id for spec in specs])
        moves = []
        for spec in specs:
            sources = self._sources(spec.id)
            known = [s for s in sources if self._is_known(s, there[spec.id])]
            if known and self._all_leave(spec.id, known):
                self._drop(spec.id, known)
                continue
            slots = {record.slot for record in there[spec.id]}
            if main_slot(slots, self.core.settings.slots_of(spec.id)) in slots:
                sources = []  # the account's key stays
            if not sources or not self._all_leave(spec.id, sources):
                self.result.kept.append(spec.id)
            if sources and (move := self._prepare(spec, sources)):
                moves.append(move)
        if moves:
            self._store(moves)
        return self.result

    def _in_account(self, providers: Sequence[str]) -> dict[str, list[CredentialRecord]]:
        """Return the account's keys that are not to be replaced, by provider."""
        there: dict[str, list[CredentialRecord]] = {provider: [] for provider in providers}
        if providers and not self.replace:
            for record in self.wing.store.find([self.caller.identity], providers):
                there[record.provider].append(record)
        return there

    def _sources(self, provider: str) -> list[CredentialRecord]:
        """Return the records that leave the session: the one to promote, then those that it replaces."""
        mine = self.view.records.get(provider)
        left = self.view.visitor_records.get(provider)
        own = [mine] if mine and self.own and self._may_move(mine) else []
        waiting = [left] if left and self._may_move(left) else []
        if self.replace:
            return waiting + own
        return own if mine else waiting

    def _may_move(self, record: CredentialRecord) -> bool:
        base_url = None
        with suppress(UnreadableCredentialError):  # which is found out again when it is to move
            base_url = self._open(record)[1]
        return record.may_move(base_url, asked=self.own)

    def _all_leave(self, provider: str, sources: Sequence[CredentialRecord]) -> bool:
        """Return True if these include the visitor's record, or there is none."""
        left = self.view.visitor_records.get(provider)
        return left is None or left in sources

    # a key that the account has already

    def _is_known(self, source: CredentialRecord, there: Iterable[CredentialRecord]) -> bool:
        """Return True if the account has the same key, in use."""
        alike = [r for r in there if r.hint == source.hint and r.state(utcnow()) == "active"]
        try:
            key = self._open(source)
            kept = [self.core.keyring.open_record(r.owner, r) for r in alike]
        except UnreadableCredentialError:
            return False
        return key in kept

    def _drop(self, provider: str, known: Sequence[CredentialRecord]) -> None:
        """Remove the session's copies; the account's key stays as it is."""
        ending = self._mark(known)
        if ending:
            versions = [record.version for record in ending]
            self.wing.note(self.caller, "clear", provider, ended=versions)
            self._remove(ending)
        self.result.promoted.append(provider)

    # a key that moves

    def _prepare(self, spec: ProviderSpec, sources: Sequence[CredentialRecord]) -> _Moved | None:
        """Seal the first record for the account and mark all; None if it does not open or is gone."""
        first, identity = sources[0], self.caller.identity
        try:
            fields, base_url = self._open(first)
        except UnreadableCredentialError:
            self.result.unreadable.append(spec.id)
            return None
        context = context_of(identity, spec.id)
        record = dataclasses.replace(
            first,
            owner=identity,
            ciphertext=self.core.keyring.seal_fields(context, fields, base_url),
            validity=first.current_validity(),
            expires_at=capped_expiry(first.expires_at, self.core.settings),
            leaving=False,
        )
        ending = self._mark(sources)
        versions = [one.version for one in ending]
        secrets = {f.name: fields[f.name] for f in spec.fields if f.secret and f.name in fields}
        return _Moved(record, secrets, ending) if first.version in versions else None

    def _store(self, moves: Sequence[_Moved]) -> None:
        by_version = {move.record.version: move for move in moves}
        keyring = self.core.keyring
        outcomes = self.wing.store.promote(
            [move.record for move in moves],
            self.wing.event(self.caller, "promote"),
            seat=self.wing.seat,
            decide=promotion_rule(
                keyring,
                replace=self.replace,
                confirm=lambda seated: check_place(
                    seated.owner, seated.slot, by_version[seated.version].secrets
                ),
            ),
            ended={
                v: [record.version for record in move.ending[1:]] for v, move in by_version.items()
            },
        )
        for move in moves:
            provider = move.record.provider
            if outcomes[provider] in ("promoted", "known"):
                self.result.promoted.append(provider)
                self._remove(move.ending)
            elif outcomes[provider] == "kept" and provider not in self.result.kept:
                self.result.kept.append(provider)

    # the session's records

    def _open(self, source: CredentialRecord) -> Opened:
        is_left = self.view.visitor_records.get(source.provider) is source
        owner = session_owner(self.session, "" if is_left else self.caller.identity)
        return self.core.keyring.open_record(owner, source)

    def _mark(self, sources: Sequence[CredentialRecord]) -> list[CredentialRecord]:
        """Mark records as leaving, and return those that were still there.

        :raises SessionRequiredError: the session has ended; nothing of it is taken, not half of it.
        """
        sessions, identity = self.core.sessions, self.caller.identity
        marked = sessions.mark_leaving(self.session, identity, sources)
        if len(marked) < len(sources) and not sessions.read(self.session, identity, []).alive:
            raise SessionRequiredError
        return marked

    def _remove(self, records: Sequence[CredentialRecord]) -> None:
        self.core.sessions.remove(self.session, self.caller.identity, records)
