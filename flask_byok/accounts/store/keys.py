"""Change accounts' keys, each change in one transaction with its row in the audit log.

Every change holds the head of its owner's audit chain until its transaction ends, so changes of one
owner's keys come one after the other, on any database, and cannot deadlock: each holds one head
before it touches a key. A verdict, a count of uses and rotation hold no head; they touch one key at a
time or wait for none.

The store knows no ciphertext and no rule: it is given functions that seal a record for its slot, and
that decide what happens to it within the transaction.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import case, delete, insert, or_, select, update

from ...catalog.endpoints import is_named, refuse_if_full
from ...errors import KeyExistsError, KeyNotFoundError, VersionConflictError
from ...model.credential import REFUSALS, CredentialRecord, RecordedVerdict, to_milliseconds, utcnow
from ...storage.sql import Database
from ...storage.tables import credentials, promotions, usage
from . import AuditEvent, Subject
from .audit import Chain
from .audit_verify import AuditLog
from .reseal import AccountSeals
from .rows import (
    KeyReader,
    Owners,
    by_id,
    changed_values,
    new_values,
    over,
    to_record,
    verdict_values,
)
from .usage import UsageStore

if TYPE_CHECKING:
    from ..wing import AuditSecret

#: Returns a record sealed for the slot that it goes to, given the slots its owner has for the provider; raises to
#: store nothing.
Seat = Callable[[CredentialRecord, Collection[str]], CredentialRecord]
#: What becomes of a session's record: it is stored; it was before; another key of the owner's stays; or
#: it was promoted or replaced before, and nothing is there now.
PromotionOutcome = Literal["promoted", "known", "kept", "gone"]
#: Decides about a record, given the owner's one in its slot or None, and whether the session's is over.
Decide = Callable[[CredentialRecord, CredentialRecord | None, bool], PromotionOutcome]

_c = credentials.c

T = TypeVar("T")


class AccountStore(KeyReader):
    """Keeps credentials by owner, provider and slot.

    Every method raises ``StoreError`` if the database does not answer; a change has then happened
    wholly or not at all. PostgreSQL has its time limit, and longer for what no request waits for:
    batches, counts of all keys and the verification of the log.

    :param log_secret: keys the audit log, and tells what keys the records hold.
    """

    name = "the database"

    def __init__(self, database: Database, log_secret: AuditSecret) -> None:
        super().__init__(database)
        self.engine, self.breaker = database.engine, database.breaker
        self.canary = log_secret
        self.audit = AuditLog(database, log_secret)
        self.usage = UsageStore(database)
        self.seals = AccountSeals(self.audit)

    def put(
        self,
        record: CredentialRecord,
        event: AuditEvent,
        *,
        seat: Seat = lambda record, _: record,
        ended: Collection[str] = (),
    ) -> CredentialRecord:
        """Store a record, replacing the one in its place, and return it with its id and version.

        :param seat: chooses its slot within the transaction; by default its own.
        :param ended: the versions of the session's records that it replaces; see ``over``.
        :raises KeyExistsError: the owner has as many named endpoints as allowed.
        """

        def work(chain: Chain) -> CredentialRecord:
            return _put(chain, seat(record, _slots(chain, record)), event, ended)

        return self.audit.change(record.owner, work)

    def change(
        self,
        id: str,
        owners: Owners,
        changes: Mapping[str, Any] | Callable[[CredentialRecord], Mapping[str, Any]],
        event: AuditEvent,
        *,
        if_version: int | None = None,
    ) -> CredentialRecord:
        """Change ``label``, ``description``, ``active``, ``expires_at``, or ``ciphertext`` with ``hint``.

        The verdict stays unless the ciphertext changes; a new one may bring its ``validity``. If
        nothing differs, nothing is written and the version stays.

        :param changes: or a function that returns them for the record as it is within the
            transaction; if it raises, nothing is done.
        :raises KeyNotFoundError: it is not there, or these owners do not have it.
        :raises VersionConflictError: it was changed since that version.
        """

        def work(chain: Chain) -> CredentialRecord:
            found = _require(chain, id, owners, if_version)
            record = to_record(found)
            wanted = changes(record) if callable(changes) else changes
            values = changed_values(wanted)
            if all(getattr(record, name) == value for name, value in wanted.items()):
                return record
            return _set(chain, found, values, event)

        return self.audit.change(self.get(id, owners).owner, work)

    def delete(
        self, id: str, owners: Owners, event: AuditEvent, *, if_version: int | None = None
    ) -> CredentialRecord:
        """Delete a record and return it as it was.

        :raises KeyNotFoundError: it is not there, or these owners do not have it.
        :raises VersionConflictError: it was changed since that version.
        """

        def work(chain: Chain) -> CredentialRecord:
            return _delete(chain, [_require(chain, id, owners, if_version)], event)[0]

        return self.audit.change(self.get(id, owners).owner, work)

    def clear(self, owner: str, providers: Sequence[str] | None, event: AuditEvent) -> list[str]:
        """Delete all that an owner has for these providers, or for all, and return those that had a key."""
        theirs = select(credentials).where(_c.owner == owner)
        if providers is not None:
            theirs = theirs.where(_c.provider.in_(providers))

        def work(chain: Chain) -> list[str]:
            gone = _delete(chain, chain.connection.execute(theirs).all(), event)
            return sorted({record.provider for record in gone})

        # An owner without keys gets no chain.
        return self.audit.change(owner, work) if self.find([owner], providers) else []

    def forget(self, owner: str, event: AuditEvent) -> list[str]:
        """Delete all of an owner except the audit log: keys, counts of uses, and what was promoted.

        Return the providers that had a key. If it fails half way it can be repeated.
        """
        gone = self.clear(owner, None, event)
        # Apart from the keys: a count of uses holds the row of its count, and waits for the key's.
        for table in (usage, promotions):
            self.database.write(delete(table).where(table.c.owner == owner))
        return gone

    def purge_expired(self, before: datetime, event: AuditEvent, *, limit: int = 1000) -> int:
        """Delete a batch of keys that expired before a time, and return how many.

        Each owner's are a transaction of their own; a key whose time was changed meanwhile stays.
        """
        is_expired = _c.expires_at < to_milliseconds(before)
        expired: dict[str, list[str]] = {}
        for row in self.database.read(select(_c.id, _c.owner).where(is_expired).limit(limit)):
            expired.setdefault(row.owner, []).append(row.id)

        def purge(chain: Chain, ids: Collection[str]) -> int:
            still = select(credentials).where(_c.id.in_(ids), is_expired)
            return len(_delete(chain, chain.connection.execute(still).all(), event))

        change = self.audit.change
        return sum(change(owner, partial(purge, ids=ids)) for owner, ids in expired.items())

    def record_verdict(
        self, id: str, version: str, verdict: RecordedVerdict, event: AuditEvent | None = None
    ) -> bool:
        """Store a verdict; return False if the record is no longer in the version that it is about.

        A verdict that says nothing of the key leaves a refusal of that version. An event is written
        in any case: a person asked for the check.
        """
        of_version = int(version)
        values = verdict_values(verdict) | {"verdict_version": of_version}
        statement = update(credentials).where(_c.id == id, _c.version == of_version).values(values)
        if verdict.verdict.valid is None:
            is_refused = _c.verdict.in_([refusal.value for refusal in REFUSALS])
            statement = statement.where(
                or_(_c.verdict.is_(None), ~is_refused, _c.verdict_version != of_version)
            )
        if event is None:
            return self.database.write(statement) == 1
        record = self.get(id, None)

        def work(chain: Chain) -> bool:
            done = chain.connection.execute(statement).rowcount == 1
            chain.append(event, record)
            return done

        return self.audit.change(record.owner, work)

    def promote(
        self,
        records: Sequence[CredentialRecord],
        event: AuditEvent,
        *,
        seat: Seat,
        decide: Decide,
        ended: Mapping[str, Collection[str]],
    ) -> dict[str, PromotionOutcome]:
        """Store records that leave a session, in one transaction, and return what became of each, by provider.

        A record is stored, and its version over, if ``decide`` returns ``promoted``.

        :param records: one owner's, sealed for them; each with the version that it has in the session.
        :param ended: by a record's version, those of the session's records that it replaces.
        """

        def work(chain: Chain) -> dict[str, PromotionOutcome]:
            outcomes: dict[str, PromotionOutcome] = {}
            for record in records:
                seated, version = seat(record, _slots(chain, record)), record.version
                there = _in_place(chain, seated)
                known, is_over = there and to_record(there), bool(_over(chain, [version]))
                outcome = decide(seated, known, is_over)
                outcomes[record.provider] = outcome
                if outcome == "promoted":
                    try:
                        _put(chain, seated, event, {version, *ended[version]})
                    except KeyExistsError:
                        outcomes[record.provider] = "kept"
            return outcomes

        return self.audit.change(records[0].owner, work)

    def end(
        self, owner: str, versions: Collection[str], event: AuditEvent, subject: Subject
    ) -> set[str]:
        """Note that these versions of sessions' records are over; return those that were not before."""

        def work(chain: Chain) -> set[str]:
            fresh = _end(chain, versions)
            chain.append(event, subject)
            return fresh

        return self.audit.change(owner, work)

    def forget_over(self, before: datetime) -> int:
        """Forget which of sessions' records were over before a time, and return how many.

        No session may have them any longer, so it has to be longer ago than a session can last.
        """
        is_long_ago = promotions.c.promoted_at < to_milliseconds(before)
        return self.database.write(delete(promotions).where(is_long_ago))


def new_id() -> str:
    """Return an id that grows with time: 48 bits of milliseconds and 80 random ones, in hex digits."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


# The steps of a change, within the transaction that holds the owner's chain.


def _slots(chain: Chain, record: CredentialRecord) -> set[str]:
    slots = select(_c.slot).where(_c.owner == record.owner, _c.provider == record.provider)
    return set(chain.connection.scalars(slots))


def _in_place(chain: Chain, record: CredentialRecord) -> Any:
    place = (_c.owner == record.owner, _c.provider == record.provider, _c.slot == record.slot)
    return chain.connection.execute(select(credentials).where(*place)).one_or_none()


def _require(chain: Chain, id: str, owners: Owners, if_version: int | None) -> Any:
    row = chain.connection.execute(by_id(id, owners)).one_or_none()
    if row is None:
        raise KeyNotFoundError
    if if_version is not None and row.version != if_version:
        raise VersionConflictError(provider=row.provider)
    return row


def _put(
    chain: Chain, record: CredentialRecord, event: AuditEvent, ended: Collection[str]
) -> CredentialRecord:
    """Store a record in its slot, and end the session's records that it replaces.

    :raises KeyExistsError: the owner has as many named endpoints as allowed; nothing is done.
    """
    if is_named(record.provider):
        theirs = select(_c.provider).where(_c.owner == record.owner)
        refuse_if_full(chain.connection.scalars(theirs), record.provider)
    _end(chain, ended)
    was = _in_place(chain, record)
    if was is None:
        id = new_id()
        chain.connection.execute(insert(credentials), {"id": id, **new_values(record)})
        return _written(chain, id, None, event)
    names = ("ciphertext", "hint", "label", "description", "active", "expires_at", "validity")
    wanted = {name: getattr(record, name) for name in names} | {"set_at": record.saved_at}
    return _set(chain, was, changed_values(wanted), event)


def _set(chain: Chain, was: Any, values: Mapping[str, Any], event: AuditEvent) -> CredentialRecord:
    """Change these columns of a row, and count its version on; a verdict that stays is about the new version."""
    new = _c.version + 1
    carried = case((_c.verdict_version == _c.version, new), else_=_c.verdict_version)
    about = new if "verdict" in values else carried
    sets = {**values, "version": new, "verdict_version": about}
    chain.connection.execute(update(credentials).where(_c.id == was.id).values(sets))
    return _written(chain, was.id, was, event)


def _written(chain: Chain, id: str, was: Any, event: AuditEvent) -> CredentialRecord:
    row = chain.connection.execute(by_id(id, None)).one()
    chain.change(event, was, row)
    return to_record(row)


def _delete(chain: Chain, rows: Sequence[Any], event: AuditEvent) -> list[CredentialRecord]:
    chain.connection.execute(delete(credentials).where(_c.id.in_([row.id for row in rows])))
    for row in rows:
        chain.change(event, row, None)
    return [to_record(row) for row in rows]


def _over(chain: Chain, versions: Collection[str]) -> set[str]:
    return set(chain.connection.scalars(over(chain.owner, versions)))


def _end(chain: Chain, versions: Collection[str]) -> set[str]:
    # No other transaction notes the same meanwhile, as this one holds the chain.
    fresh = set(versions) - _over(chain, versions) if versions else set()
    now = to_milliseconds(utcnow())
    rows = [{"owner": chain.owner, "origin": one, "promoted_at": now} for one in fresh]
    if rows:
        chain.connection.execute(insert(promotions), rows)
    return fresh
