"""Make the keys that a visitor saved the signed-in user's own, within the session.

This is promotion in an app without accounts; with accounts see ``accounts.promotion``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..catalog import ProviderSpec
from ..errors import SessionRequiredError, UnreadableCredentialError
from ..model.credential import CredentialRecord
from ..model.owner import Caller, SessionRef, session_owner
from ..sealing.keyring import Context, Keyring
from .lookup import Lookup
from .ports import Accounts, Promotion
from .sessions import Sessions


class Adoption:
    """Adopts waiting keys, each in the very step that deletes the visitor's record."""

    def __init__(
        self, sessions: Sessions, accounts: Accounts, lookup: Lookup, keyring: Keyring
    ) -> None:
        self._sessions = sessions
        self._accounts = accounts
        self._lookup = lookup
        self._keyring = keyring

    def adopt(
        self,
        caller: Caller,
        session: SessionRef,
        specs: Sequence[ProviderSpec],
        *,
        replace: bool,
    ) -> Promotion:
        """Adopt the waiting keys of these providers, except those that only the operator may set.

        :param replace: also in the place of a key that the user has already in the session.
        :raises SessionRequiredError: the session has ended.
        """
        view = self._sessions.read(session, caller.identity, [spec.id for spec in specs])
        if not view.alive:
            raise SessionRequiredError
        result = Promotion()
        for spec in specs:
            waiting = view.visitor_records.get(spec.id)
            if waiting is None or self._lookup.locked(caller, spec):
                continue
            taken = spec.id in view.records and not replace
            try:
                outcome = self._adopt(caller, session, waiting, replace=replace, taken=taken)
            except UnreadableCredentialError:
                result.unreadable.append(spec.id)
                continue
            if outcome == "adopted":
                result.promoted.append(spec.id)
            elif outcome == "kept":
                result.kept.append(spec.id)
        return result

    def _adopt(
        self,
        caller: Caller,
        session: SessionRef,
        record: CredentialRecord,
        *,
        replace: bool,
        taken: bool,
    ) -> str:
        provider, identity = record.provider, caller.identity
        fields, base_url = self._keyring.open_record("session", session_owner(session, ""), record)
        if not taken:
            self._accounts.note(caller, "promote", provider, fields)
        owner = session_owner(session, identity)
        sealed = self._keyring.seal_fields(Context("session", owner, provider), fields, base_url)
        # The key is the same, so its version and its verdict stay.
        adopted = dataclasses.replace(record, owner=owner, ciphertext=sealed)
        outcome: str = self._sessions.adopt(session, identity, adopted, replace=replace)
        return outcome
