"""Let keys leave a session for good, wherever they go.

A key that is promoted, replaced by an account's or cleared is in two stores, and whoever moves it may be ended between
any two steps. So it goes in three of them: the session's record is marked as ``leaving``; the account's transaction
does what is to be done and notes that the record's version is over; the record is deleted. A record that is leaving
counts until its version is over, and not one moment longer, whether the last step happens or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..model.credential import CredentialRecord
from ..model.owner import SessionRef
from .session_store import SessionStore, SessionView

if TYPE_CHECKING:
    from ..accounts.store.keys import AccountStore

Records = Mapping[str, CredentialRecord]


class SessionKeys:
    """The records of sessions, without those that are over.

    :param accounts: knows which are; None where there is no database of accounts.
    """

    def __init__(self, store: SessionStore, accounts: AccountStore | None) -> None:
        self._store = store
        self._accounts = accounts

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        """Return what counts of a session: see ``SessionStore.read``.

        One statement more where something is leaving.
        """
        view = self._store.read(session, identity, providers)
        both = (view.records, view.visitor_records)
        leaving = [
            record.version for records in both for record in records.values() if record.leaving
        ]
        if not leaving or not identity or self._accounts is None:
            return view
        over = self._accounts.over(identity, leaving)
        self.discard(session, identity, _of(view.records, over))
        self.discard(session, identity, _of(view.visitor_records, over), visitor=True)
        return replace(
            view,
            records=_without(view.records, over),
            visitor_records=_without(view.visitor_records, over),
        )

    def set_aside(
        self, session: SessionRef, identity: str, record: CredentialRecord, *, visitor: bool = False
    ) -> bool:
        """Mark a record as leaving; False where that version is gone."""
        leaving = replace(record, leaving=True)
        return self._store.exchange(session, identity, leaving, visitor=visitor)

    def set_all_aside(
        self,
        session: SessionRef,
        identity: str,
        records: Records,
        visitor_records: Records = MappingProxyType({}),
    ) -> list[str]:
        """Mark the user's own and what the visitor left, and return the versions; none where no account ends them."""
        if not identity or self._accounts is None:
            return []
        own, left = records.values(), visitor_records.values()
        return [r.version for r in own if self.set_aside(session, identity, r)] + [
            r.version for r in left if self.set_aside(session, identity, r, visitor=True)
        ]

    def discard(
        self,
        session: SessionRef,
        identity: str,
        records: Iterable[CredentialRecord],
        *,
        visitor: bool = False,
    ) -> None:
        """Delete records that are over; what stays because the store does not answer does not count all the same."""
        with suppress(StoreError):
            for record in records:
                self._store.discard(
                    session, identity, record.provider, record.version, visitor=visitor
                )


def _of(records: Records, over: Collection[str]) -> list[CredentialRecord]:
    return [record for record in records.values() if record.leaving and record.version in over]


def _without(records: Records, over: Collection[str]) -> dict[str, CredentialRecord]:
    gone = _of(records, over)
    return {name: record for name, record in records.items() if record not in gone}
