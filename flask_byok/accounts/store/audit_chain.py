"""Write the audit log: one chain an owner, in the transaction of what it is about.

Each row's hash covers the row and the hash before it, under a secret that the database holds sealed
only (see :mod:`.canary`). The head of a chain has its number, its last hash and a seal over both,
so that rows cut off at the end are missed as well. Rows about a change have the key's new version,
and hashes of its record as the change found and as it left it, so that keys and chain have to agree:
what somebody changed past the log shows, also where a later change has made it its own. Somebody who
can write to the database and has no encryption key can neither make a row nor a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ...keys.session_store import AuditEvent
from ...model.credential import utcnow
from ...storage.tables import audit, audit_heads, credentials
from .audit_hashes import head_seal, is_mac, record_hash, row_hash


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
#: The version of a key that is deleted.
GONE = 0

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
#: No chain is that long; what somebody put there may be.
LONGEST = 2**62
#: What there is of an owner whose head is new or not ours: the last row's number, and any key.
_REMAINS = select(
    select(func.max(audit.c.number))
    .where(audit.c.owner == bindparam("of_owner"), audit.c.number < LONGEST)
    .scalar_subquery()
    .label("number"),
    select(func.min(credentials.c.id))
    .where(credentials.c.owner == bindparam("of_owner"))
    .scalar_subquery()
    .label("key"),
)


class Chain:
    """One owner's chain, held from its making to the end of the transaction.

    Whoever makes one waits for the transactions that hold it, so all changes of an owner's keys
    come one after the other.

    :param secret: as known to this process.
    :param look_up: reads it anew; for a chain that does not fit, as the log may have been begun anew.
    :param fingerprint: returns that of the key in a row under a secret, None where it does not open.
    """

    def __init__(
        self,
        connection: Connection,
        owner: str,
        secret: bytes,
        look_up: Callable[[Connection], bytes],
        fingerprint: Callable[[bytes, Any], str | None],
    ) -> None:
        self._connection = connection
        self._owner = owner
        self._secret = secret
        self._fingerprint = fingerprint
        self._rows: list[dict[str, Any]] = []
        number, self._hash, seal = _hold(connection, owner)
        # SQLite keeps whatever somebody put there.
        self._number = number if isinstance(number, int) and number < LONGEST else -1
        self._new = not (number or self._hash or seal)
        self._whole = self._fits(seal)
        if not self._whole:
            self._secret = look_up(connection)
            self._whole = self._new or self._fits(seal)
            self._look_behind()

    def append(self, event: AuditEvent, subject: Subject = NOTHING) -> None:
        """Add an event that changes no key; ``close`` writes it."""
        self._add(event, subject, None, None)

    def change(self, event: AuditEvent, was: Any, became: Any) -> None:
        """Add an event that changes a key.

        :param was: its row in ``byok_credentials`` as the event found it, with all columns; None for a new key.
        :param became: the same as the event left it; None for a deleted key.
        """
        if became is not None and (was is None or was.ciphertext != became.ciphertext):
            # Under the secret as it is now, whatever whoever made the event knew.
            known = self._fingerprint(self._secret, became)
            event = event if known is None else replace(event, fingerprint=known)
        self._add(event, was if became is None else became, was, became)

    def _add(self, event: AuditEvent, subject: Subject, was: Any, became: Any) -> None:
        self._number += 1
        after = Link(self._owner, self._number, self._hash)
        row = make_row(self._secret, after, event, subject, was, became)
        self._hash = row["hash"]
        self._rows.append(row)

    def close(self) -> None:
        """Write what was added, and the head."""
        if self._rows:
            self._connection.execute(insert(audit), self._rows)
        if self._rows or self._new:
            # A chain that was tampered with goes on, and is never sealed again.
            seal = (
                head_seal(self._secret, self._owner, self._number, self._hash)
                if self._whole
                else ""
            )
            self._connection.execute(
                _MOVE_HEAD,
                {"of_owner": self._owner, "to": self._number, "last": self._hash, "sealed": seal},
            )

    def _fits(self, seal: object) -> bool:
        return is_mac(seal, head_seal(self._secret, self._owner, self._number, self._hash))

    def _look_behind(self) -> None:
        remains = self._connection.execute(_REMAINS, {"of_owner": self._owner}).one()
        if self._new and (remains.number is not None or remains.key is not None):
            self._whole = False  # no key was ever stored without an event
        self._number = max(self._number, int(remains.number or 0))


@dataclass(frozen=True, slots=True)
class Link:
    """Where in a chain a row comes: its number, and the hash before it."""

    owner: str
    number: int = 1
    previous: str = ""


def make_row(
    secret: bytes,
    link: Link,
    event: AuditEvent,
    subject: Subject,
    was: Any = None,
    became: Any = None,
) -> dict[str, Any]:
    """Return a row with its hash; ``was`` and ``became`` as for ``Chain.change``."""
    row: dict[str, Any] = {
        "owner": link.owner,
        "number": link.number,
        "at": to_milliseconds(utcnow()),
        "actor": event.actor,
        "action": event.action,
        "outcome": event.outcome,
        "provider": subject.provider,
        "slot": subject.slot,
        "credential_id": subject.id,
        "version": _version(was, became),
        "request_id": event.request_id,
        "fingerprint": event.fingerprint,
        "previous": link.previous,
        "was": None if was is None else record_hash(secret, was),
        "became": None if became is None else record_hash(secret, became),
    }
    return row | {"hash": row_hash(secret, row)}


def _version(was: Any, became: Any) -> Any:
    if became is not None:
        return became.version
    return None if was is None else GONE


def to_milliseconds(moment: datetime) -> int:
    """Return a time as stored."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(stored: int) -> datetime:
    """Return a stored time."""
    return datetime.fromtimestamp(stored / 1000, UTC)


def _hold(connection: Connection, owner: str) -> tuple[Any, Any, Any]:
    values = {"of_owner": owner}
    statement = _HOLD.get(connection.dialect.name)
    if statement is not None:
        row = connection.execute(statement, values).one()
    else:
        if connection.execute(_GENERIC_HOLD, values).rowcount != 1:
            connection.execute(_GENERIC_ADD, values)
        row = connection.execute(_READ_HEAD, values).one()
    return row.number, row.hash, row.seal
