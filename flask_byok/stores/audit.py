"""The audit log: one chain an owner, written in the transaction of what it is about.

Each row's hash covers the row and the hash before it, under a secret that the database holds sealed
only (see :mod:`.canary`). The head of a chain has its number, its last hash and a seal over both,
so that rows cut off at the end are missed as well. Somebody who can write to the database and has
no encryption key can neither make a row nor a head.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ..credentials import utcnow
from .canary import Canary
from .sql_database import Database
from .tables import audit, audit_heads, credentials

#: Rows that ``verify`` holds at a time.
_PAGE = 1000
_encoder = msgspec.json.Encoder()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, and what came of it.

    ``actor`` is ``user:<id>``, ``system`` or ``cli``. ``fingerprint`` tells keys apart, never shows
    one.
    """

    actor: str
    action: str
    outcome: str = "done"
    request_id: str | None = None
    fingerprint: str | None = None


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


class Subject(Protocol):
    """What an event is about; a credential's record is one."""

    @property
    def provider(self) -> str: ...
    @property
    def slot(self) -> str: ...
    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Nothing:
    provider: str = ""
    slot: str = ""
    id: str = ""


#: What an event is about that concerns no single key.
NOTHING: Subject = _Nothing()

_NEW_HEAD = {"owner": bindparam("of_owner"), "number": 0, "hash": "", "seal": ""}
_OF_OWNER = audit_heads.c.owner == bindparam("of_owner")
_HEAD = (audit_heads.c.number, audit_heads.c.hash, audit_heads.c.seal)
_READ_HEAD = select(*_HEAD).where(_OF_OWNER)
#: Adds or changes nothing, and in either case holds the row to the transaction's end.
_HOLD = {
    "postgresql": postgresql.insert(audit_heads)
    .values(_NEW_HEAD)
    .on_conflict_do_update(index_elements=["owner"], set_={"number": audit_heads.c.number})
    .returning(*_HEAD),
    "sqlite": sqlite.insert(audit_heads)
    .values(_NEW_HEAD)
    .on_conflict_do_update(index_elements=["owner"], set_={"number": audit_heads.c.number})
    .returning(*_HEAD),
}
_GENERIC_HOLD = update(audit_heads).where(_OF_OWNER).values(number=audit_heads.c.number)
_GENERIC_ADD = insert(audit_heads).values(_NEW_HEAD)
_MOVE_HEAD = (
    update(audit_heads)
    .where(_OF_OWNER)
    .values(number=bindparam("to"), hash=bindparam("last"), seal=bindparam("sealed"))
)
#: What there is of an owner whose head is new or not ours: the last row's number, and any key.
_REMAINS = select(
    select(func.max(audit.c.number))
    .where(audit.c.owner == bindparam("of_owner"))
    .scalar_subquery()
    .label("number"),
    select(func.min(credentials.c.id))
    .where(credentials.c.owner == bindparam("of_owner"))
    .scalar_subquery()
    .label("key"),
)
_IN_HASH = tuple(column.name for column in audit.columns if column.name != "hash")


class Chain:
    """One owner's chain, held from its making to the end of the transaction.

    Whoever makes one waits for the transactions that hold it, so all changes of an owner's keys
    come one after the other.
    """

    def __init__(self, connection: Connection, owner: str, secret: bytes) -> None:
        self._connection = connection
        self._owner = owner
        self._secret = secret
        self._rows: list[dict[str, Any]] = []
        self._number, self._hash, seal = _hold(connection, owner)
        self._new = not (self._number or self._hash or seal)
        self._whole = self._new or hmac.compare_digest(
            seal, _seal(secret, owner, self._number, self._hash)
        )
        if self._new or not self._whole:
            self._look_behind()

    def append(self, event: AuditEvent, subject: Subject = NOTHING) -> None:
        """Add an event; ``close`` writes it."""
        self._number += 1
        row: dict[str, Any] = {
            "owner": self._owner,
            "number": self._number,
            "at": to_milliseconds(utcnow()),
            "actor": event.actor,
            "action": event.action,
            "outcome": event.outcome,
            "provider": subject.provider,
            "slot": subject.slot,
            "credential_id": subject.id,
            "request_id": event.request_id,
            "fingerprint": event.fingerprint,
            "previous": self._hash,
        }
        self._hash = row["hash"] = _hash(self._secret, row)
        self._rows.append(row)

    def close(self) -> None:
        """Write what was added, and the head."""
        if self._rows:
            self._connection.execute(insert(audit), self._rows)
        if self._rows or self._new:
            # A chain that was tampered with goes on, and is never sealed again.
            seal = _seal(self._secret, self._owner, self._number, self._hash) if self._whole else ""
            self._connection.execute(
                _MOVE_HEAD,
                {"of_owner": self._owner, "to": self._number, "last": self._hash, "sealed": seal},
            )

    def _look_behind(self) -> None:
        remains = self._connection.execute(_REMAINS, {"of_owner": self._owner}).one()
        if remains.number is not None or remains.key is not None:
            self._whole = False  # no key was ever stored without an event
        self._number = max(self._number, remains.number or 0)


class AuditLog:
    """Reads the log, and opens chains for writing."""

    def __init__(self, database: Database, canary: Canary) -> None:
        self._database = database
        self._canary = canary

    def change(self, owner: str, work: Callable[[Connection, Chain], T]) -> T:
        """Run a function in a transaction that holds the owner's chain, and write what it appends."""
        secret = self._canary.secret()

        def within(connection: Connection) -> T:
            chain = Chain(connection, owner, secret)
            result = work(connection, chain)
            chain.close()
            return result

        return self._database.change(within)

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

    def verify(self, owner: str | None = None) -> list[Finding]:
        """Return everything that is wrong, of one owner or all; nothing is good.

        It may run beside writers: each page is read with the head as it then was.
        """
        secret = self._canary.secret()
        findings = [*self._headless(owner), *self._rowless(owner, secret)]
        check: _Check | None = None
        for row in self._rows(owner):
            if check is None or check.owner != row.owner:
                findings += check.finish() if check else []
                check = _Check(row.owner, secret)
            findings += check.row(row)
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
        page = self._database.call(self._all, query)
        while page:
            yield from page
            last = page[-1]
            same = and_(audit.c.owner == last.owner, audit.c.number > last.number)
            page = self._database.call(
                self._all, query.where(or_(audit.c.owner > last.owner, same))
            )

    def _rowless(self, owner: str | None, secret: bytes) -> list[Finding]:
        """Find chains whose rows are all gone."""
        query = select(audit_heads).where(
            ~select(audit.c.number).where(audit.c.owner == audit_heads.c.owner).exists()
        )
        if owner is not None:
            query = query.where(audit_heads.c.owner == owner)
        return [
            Finding(head.owner, None, "all rows are missing")
            for head in self._database.call(self._all, query)
            if head.number or head.seal != _seal(secret, head.owner, 0, "")
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
            for row in self._database.call(self._all, query)
        ]

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
        if not hmac.compare_digest(row.hash, _hash(self._secret, row._mapping)):
            yield Finding(self.owner, row.number, "it was changed")
        self._number, self._hash, self._last = row.number, row.hash, row

    def finish(self) -> list[Finding]:
        last = self._last
        if last.head_number is None:
            return [Finding(self.owner, None, "its head is missing")]
        if (last.head_number, last.head_hash) != (self._number, self._hash):
            return [Finding(self.owner, None, "rows at its end are missing")]
        if last.head_seal != _seal(self._secret, self.owner, self._number, self._hash):
            return [Finding(self.owner, None, "its head was changed")]
        return []


def to_milliseconds(moment: datetime) -> int:
    """Return a time as stored."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(stored: int) -> datetime:
    """Return a stored time."""
    return datetime.fromtimestamp(stored / 1000, UTC)


def _hold(connection: Connection, owner: str) -> tuple[int, str, str]:
    values = {"of_owner": owner}
    statement = _HOLD.get(connection.dialect.name)
    if statement is not None:
        row = connection.execute(statement, values).one()
    else:
        if connection.execute(_GENERIC_HOLD, values).rowcount != 1:
            connection.execute(_GENERIC_ADD, values)
        row = connection.execute(_READ_HEAD, values).one()
    return row.number, row.hash, row.seal


def _hash(secret: bytes, row: Mapping[str, Any]) -> str:
    # JSON keeps the columns apart, and None from an empty string.
    return _mac(secret, ["row", *(row[name] for name in _IN_HASH)])


def _seal(secret: bytes, owner: str, number: int, last: str) -> str:
    return _mac(secret, ["head", owner, number, last])


def _mac(secret: bytes, parts: Sequence[Any]) -> str:
    return hmac.digest(secret, _encoder.encode(parts), "sha256").hex()


def _entry(row: Any) -> AuditEntry:
    event = AuditEvent(row.actor, row.action, row.outcome, row.request_id, row.fingerprint)
    at = from_milliseconds(row.at)
    return AuditEntry(row.owner, row.number, at, event, row.provider, row.slot, row.credential_id)
