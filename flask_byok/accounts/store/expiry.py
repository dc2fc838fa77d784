"""Find accounts' keys that expire, and delete those that have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, or_, select

from ...keys.session_store import AuditEvent
from ...model.credential import CredentialRecord
from ...storage.database import Database
from ...storage.deadline import LONG_LIMIT
from ...storage.tables import credentials, promotions
from . import changes as steps
from .audit import AuditLog
from .audit_chain import Chain, to_milliseconds
from .rows import to_record

_c = credentials.c

_IS_EXPIRED = _c.expires_at < bindparam("before")
_COUNT = select(func.count()).select_from(credentials).where(_IS_EXPIRED)
_EXPIRED = select(_c.id, _c.owner).where(_IS_EXPIRED).limit(bindparam("batch"))
_STILL_EXPIRED = select(credentials).where(_c.id.in_(bindparam("ids", expanding=True)), _IS_EXPIRED)
_FORGET = delete(promotions).where(promotions.c.promoted_at < bindparam("before"))
_BETWEEN = (
    select(credentials)
    .where(
        _c.expires_at >= bindparam("start"),
        _c.expires_at <= bindparam("end"),
        or_(_c.expires_at > bindparam("start"), _c.id > bindparam("after")),
    )
    .order_by(_c.expires_at, _c.id)
    .limit(bindparam("batch"))
)


class AccountExpiry:
    """Looks along the index of when keys expire, so the others cost nothing."""

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    def count(self, before: datetime) -> int:
        """Return how many keys expired before a time."""
        return int(self._all(_COUNT, {"before": to_milliseconds(before)})[0][0])

    def between(
        self, start: datetime, end: datetime, *, batch: int = 500
    ) -> Iterator[CredentialRecord]:
        """Yield the keys that expire from one time to another, the first to go first."""
        values: dict[str, Any] = {"start": to_milliseconds(start), "end": to_milliseconds(end)}
        values |= {"batch": batch, "after": ""}
        while found := self._all(_BETWEEN, values):
            yield from map(to_record, found)
            values |= {"start": found[-1].expires_at, "after": found[-1].id}

    def purge(self, before: datetime, event: AuditEvent, *, limit: int = 1000) -> int:
        """Delete at most so many keys that expired before a time, and return how many.

        Each owner's are a transaction of their own; a key whose time was changed meanwhile stays.
        """
        expired: dict[str, list[str]] = {}
        for row in self._all(_EXPIRED, {"before": to_milliseconds(before), "batch": limit}):
            expired.setdefault(row.owner, []).append(row.id)
        return sum(self._purge(owner, ids, before, event) for owner, ids in expired.items())

    def forget_ended(self, before: datetime) -> int:
        """Forget which of sessions' records were over before a time, and return how many.

        No session may still have them: it has to be longer ago than a session can last.
        """

        def forget() -> int:
            with self._database.transactions.single() as connection:
                return connection.execute(_FORGET, {"before": to_milliseconds(before)}).rowcount

        return self._database.call(forget, limit=LONG_LIMIT)

    def _purge(self, owner: str, ids: list[str], before: datetime, event: AuditEvent) -> int:
        values = {"ids": ids, "before": to_milliseconds(before)}

        def work(connection: Connection, chain: Chain) -> int:
            return len(steps.delete(connection, chain, _STILL_EXPIRED, values, event))

        return self._audit.change(owner, work)

    def _all(self, query: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        def read() -> Sequence[Any]:
            with self._database.transactions.single() as connection:
                return connection.execute(query, values).all()

        return self._database.call(read, limit=LONG_LIMIT)
