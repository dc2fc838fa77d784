"""Read the audit log, and find whatever was changed, removed or reordered in it.

What it cannot find is a log, or one owner's chain together with all of its keys, taken away as a
whole or put back to what a backup has: the database holds nothing else to compare with.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, and_, func, or_, select

from ..credentials import Secret
from .audit_chain import (
    NOTHING,
    Chain,
    Subject,
    from_milliseconds,
    head_seal,
    row_hash,
    to_milliseconds,
)
from .base import AuditEvent
from .canary import Canary
from .sql_database import Database
from .sql_engine import LONG_LIMIT
from .tables import audit, audit_heads, credentials

__all__ = ["AuditEntry", "AuditEvent", "AuditLog", "Finding"]

#: Rows that ``verify`` holds at a time.
_PAGE = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of the log."""

    owner: str
    number: int
    at: datetime
    event: AuditEvent
    provider: str
    slot: str
    credential_id: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a chain; ``number`` is the row's, None where the whole chain is meant."""

    owner: str
    number: int | None
    problem: str


class AuditLog:
    """Reads the log, and opens chains for writing."""

    def __init__(self, database: Database, canary: Canary) -> None:
        self._database = database
        self._canary = canary

    def change(
        self, owner: str, work: Callable[[Connection, Chain], T], *, limit: float | None = None
    ) -> T:
        """Run a function in a transaction that holds the owner's chain, and write what it appends."""
        secret = self._canary.secret()

        def within(connection: Connection) -> T:
            chain = Chain(connection, owner, secret)
            result = work(connection, chain)
            chain.close()
            return result

        return self._database.change(within, limit=limit)

    def fingerprint(self, fields: Mapping[str, Secret]) -> str:
        """Return a keyed hash of a key (64 hex digits), the same whatever the encryption key is."""
        plain = sorted((name, secret.reveal()) for name, secret in fields.items())
        text = b"fingerprint" + msgspec.json.encode(plain)
        return hmac.digest(self._canary.secret(), text, "sha256").hex()

    def note(self, owner: str, event: AuditEvent, subject: Subject = NOTHING) -> None:
        """Write an event that changes nothing in the database."""
        self.change(owner, lambda _, chain: chain.append(event, subject))

    def entries(
        self, owner: str | None = None, *, before: datetime | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """Return the newest entries, of one owner or all."""
        query = select(audit).order_by(audit.c.at.desc(), audit.c.number.desc()).limit(limit)
        if owner is not None:
            query = query.where(audit.c.owner == owner)
        if before is not None:
            query = query.where(audit.c.at < to_milliseconds(before))
        return [_entry(row) for row in self._database.call(self._all, query)]

    def count(self, owner: str | None = None) -> int:
        """Return how many entries there are, of one owner or all."""
        query = select(func.count()).select_from(audit)
        if owner is not None:
            query = query.where(audit.c.owner == owner)
        return int(self._patiently(query)[0][0])

    def verify(
        self, owner: str | None = None, report: Callable[[int, int], object] | None = None
    ) -> list[Finding]:
        """Return everything that is wrong, of one owner or all; nothing is good.

        It may run beside writers: each page is read with the head as it then was.

        :param report: is told now and then, and at the end, of how many rows and chains were looked at.
        """
        secret = self._canary.secret()
        findings = [*self._headless(owner), *self._rowless(owner, secret)]
        check: _Check | None = None
        rows = chains = 0
        for row in self._rows(owner):
            if check is None or check.owner != row.owner:
                findings += check.finish() if check else []
                check = _Check(row.owner, secret)
                chains += 1
            findings += check.row(row)
            rows += 1
            if report is not None and rows % _PAGE == 0:
                report(rows, chains)
        if report is not None:
            report(rows, chains)
        return findings + (check.finish() if check else [])

    def _rows(self, owner: str | None) -> Iterator[Any]:
        heads = (
            audit_heads.c.number.label("head_number"),
            audit_heads.c.hash.label("head_hash"),
            audit_heads.c.seal.label("head_seal"),
        )
        query = (
            select(audit, *heads)
            .select_from(audit.outerjoin(audit_heads, audit.c.owner == audit_heads.c.owner))
            .order_by(audit.c.owner, audit.c.number)
            .limit(_PAGE)
        )
        if owner is not None:
            query = query.where(audit.c.owner == owner)
        page = self._patiently(query)
        while page:
            yield from page
            last = page[-1]
            same = and_(audit.c.owner == last.owner, audit.c.number > last.number)
            page = self._patiently(query.where(or_(audit.c.owner > last.owner, same)))

    def _rowless(self, owner: str | None, secret: bytes) -> list[Finding]:
        """Find chains whose rows are all gone."""
        query = select(audit_heads).where(
            ~select(audit.c.number).where(audit.c.owner == audit_heads.c.owner).exists()
        )
        if owner is not None:
            query = query.where(audit_heads.c.owner == owner)
        return [
            Finding(head.owner, None, "all rows are missing")
            for head in self._patiently(query)
            if head.number or head.seal != head_seal(secret, head.owner, 0, "")
        ]

    def _headless(self, owner: str | None) -> list[Finding]:
        """Find owners of keys who have no chain at all."""
        query = (
            select(credentials.c.owner)
            .distinct()
            .where(
                ~select(audit_heads.c.owner)
                .where(audit_heads.c.owner == credentials.c.owner)
                .exists()
            )
        )
        if owner is not None:
            query = query.where(credentials.c.owner == owner)
        return [
            Finding(row.owner, None, "there are keys, but no chain")
            for row in self._patiently(query)
        ]

    def _patiently(self, query: Any) -> Sequence[Any]:
        return self._database.call(self._all, query, limit=LONG_LIMIT)

    def _all(self, query: Any) -> Sequence[Any]:
        with self._database.transactions.single() as connection:
            return connection.execute(query).all()


class _Check:
    """Follows one owner's chain row by row."""

    def __init__(self, owner: str, secret: bytes) -> None:
        self.owner = owner
        self._secret = secret
        self._number = 0
        self._hash = ""
        self._last: Any = None

    def row(self, row: Any) -> Iterator[Finding]:
        if row.number != self._number + 1:
            yield Finding(self.owner, row.number, "rows before it are missing")
        elif row.previous != self._hash:
            yield Finding(self.owner, row.number, "it does not follow the row before it")
        if not hmac.compare_digest(row.hash, row_hash(self._secret, row._mapping)):
            yield Finding(self.owner, row.number, "it was changed")
        self._number, self._hash, self._last = row.number, row.hash, row

    def finish(self) -> list[Finding]:
        last = self._last
        if last.head_number is None:
            return [Finding(self.owner, None, "its head is missing")]
        if (last.head_number, last.head_hash) != (self._number, self._hash):
            return [Finding(self.owner, None, "rows at its end are missing")]
        if last.head_seal != head_seal(self._secret, self.owner, self._number, self._hash):
            return [Finding(self.owner, None, "its head was changed")]
        return []


def _entry(row: Any) -> AuditEntry:
    event = AuditEvent(row.actor, row.action, row.outcome, row.request_id, row.fingerprint)
    at = from_milliseconds(row.at)
    return AuditEntry(row.owner, row.number, at, event, row.provider, row.slot, row.credential_id)
