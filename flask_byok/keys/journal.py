"""Say in the audit log what people do with keys.

What changes the database carries its event with it, into the same transaction. What happens elsewhere (in a session,
at a provider) is noted first: nothing is done that could not be noted. A visitor is nobody whom a log could name, so
what visitors do with their session's keys is not in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.credential import CredentialRecord, Secret
from ..model.owner import Caller
from .session_store import AuditEvent

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about, where that has no record in the database."""

    provider: str
    slot: str = ""
    id: str = ""


class Journal:
    """Makes events, and writes those that belong to no change of the database.

    :param accounts: has the log; None where there is no database.
    """

    def __init__(self, accounts: AccountStore | None) -> None:
        self._accounts = accounts

    def event(
        self,
        caller: Caller,
        action: str,
        fields: Mapping[str, Secret] | None = None,
        outcome: str = "done",
    ) -> AuditEvent:
        """Return what somebody does, with a fingerprint of the key where there is one."""
        fingerprint = None
        if fields and self._accounts is not None:
            fingerprint = self._accounts.audit.fingerprint(fields)
        return AuditEvent(caller.identity, action, str(outcome), caller.request_id, fingerprint)

    def note(
        self,
        caller: Caller,
        action: str,
        subject: Subject | CredentialRecord,
        fields: Mapping[str, Secret] | None = None,
        outcome: str = "done",
        ended: Collection[str] = (),
    ) -> set[str]:
        """Write what somebody who is signed in does in the session or at a provider.

        :param ended: the versions of the session's records that are over then.
        :return: those of them that were not over before.
        :raises StoreError: it could not be written; nothing may be done then.
        """
        if self._accounts is None or not caller.authenticated:
            return set()
        event = self.event(caller, action, fields, outcome)
        about = Subject(subject.provider, subject.slot, subject.id)
        if ended:
            return self._accounts.end(caller.identity, ended, event, about)
        self._accounts.audit.note(caller.identity, event, about)
        return set()
