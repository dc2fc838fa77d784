"""Stand-in until the state machine of sessions is merged: the same names over today's stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import StoreError
from ..model.credential import CredentialRecord
from ..model.owner import SessionRef
from .session_store import SessionStore, SessionView

Over = Callable[[str, Collection[str]], set[str]]


class Sessions:
    """The records of sessions, without those that are over."""

    def __init__(self, store: SessionStore, over: Over | None = None) -> None:
        self.store = store
        self.over = over

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        view = self.store.read(session, identity, providers)
        both = [*view.records.values(), *view.visitor_records.values()]
        leaving = [record.version for record in both if record.leaving]
        if not leaving or not identity or self.over is None:
            return view
        over = self.over(identity, leaving)
        self.remove(session, identity, [r for r in both if r.leaving and r.version in over])
        gone = lambda r: r.leaving and r.version in over  # noqa: E731
        return replace(
            view,
            records={n: r for n, r in view.records.items() if not gone(r)},
            visitor_records={n: r for n, r in view.visitor_records.items() if not gone(r)},
        )

    def mark_leaving(
        self, session: SessionRef, identity: str, records: Iterable[CredentialRecord]
    ) -> list[CredentialRecord]:
        if not identity or self.over is None:
            return []
        return [
            r
            for r in records
            if any(
                self.store.exchange(session, identity, replace(r, leaving=True), visitor=v)
                for v in (False, True)
            )
        ]

    def remove(
        self, session: SessionRef, identity: str, records: Iterable[CredentialRecord]
    ) -> None:
        with suppress(StoreError):
            for r in records:
                for v in (False, True):
                    self.store.discard(session, identity, r.provider, r.version, visitor=v)

    def reseal(self, session: SessionRef, identity: str, record: CredentialRecord) -> bool:
        return self.store.exchange(session, identity, record)
