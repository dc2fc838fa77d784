"""Keys of users, teams and the system, in a SQL database.

Every change holds the head of its owner's audit chain to the end of its transaction, so changes of
one owner's keys come one after the other, on any database, and cannot deadlock: each holds one head
before it touches a key. What holds no head (a verdict, the count of uses, sealing anew) touches one
key at a time or waits for none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import Connection

from ...errors import KeyExistsError, KeyNotFoundError
from ...model.credential import CredentialRecord, RecordedVerdict
from ...sealing.keyring import Keyring
from ...sealing.records import in_slot
from ...storage.database import Database
from ...storage.tables import metadata
from . import changes as steps
from . import statements
from .audit import AuditEvent, AuditLog
from .audit_chain import Chain, Subject
from .canary import Canary
from .changes import Check
from .expiry import AccountExpiry
from .owners import AccountOwners
from .reseal import AccountSeals
from .rows import changed_values, place_of, to_record, verdict_values
from .slots import has_place, main_slot, serving_order
from .statements import Owners
from .usage import UsageStore

T = TypeVar("T")


class AccountStore:
    """Keeps credentials by owner, provider and slot.

    Every method raises ``StoreError`` when the database does not answer; a change has then happened
    wholly or not at all. PostgreSQL is given half a second, and longer for what keeps no request
    waiting: batches, counts of everything and the check of the log.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param own_file: the address is of a file that nothing else uses; an older version's tables in
        it are upgraded at first use.
    """

    name = "the database"

    def __init__(self, engine_or_url: Any, keyring: Keyring, *, own_file: bool = False) -> None:
        self._database = Database(engine_or_url, metadata.sorted_tables, own_file=own_file)
        self._keyring = keyring
        self.engine, self.breaker = self._database.engine, self._database.breaker
        self.canary = Canary(self._database, keyring)
        self.audit = AuditLog(self._database, self.canary, keyring)
        self.usage = UsageStore(self._database)
        self.expiry = AccountExpiry(self._database, self.audit)
        self.owners = AccountOwners(self._database, self.audit)
        self.seals = AccountSeals(self._database, self.audit, keyring)

    # reading

    def find(
        self, owners: Sequence[str], providers: Sequence[str] | None = None
    ) -> list[CredentialRecord]:
        """Return all that these owners have for these providers, or all, in one statement.

        Slots come in the order that they serve in.
        """
        return list(_in_order(self._rows(*statements.find(owners, providers))))

    def places(
        self, owners: Sequence[str], providers: Sequence[str]
    ) -> dict[tuple[str, str], Iterator[CredentialRecord]]:
        """Return the same by owner and provider; records that nobody asks for are not made."""
        rows: dict[tuple[str, str], list[Any]] = {}
        for row in self._rows(*statements.find(owners, providers)):
            rows.setdefault(place_of(row), []).append(row)
        return {place: _in_order(theirs) for place, theirs in rows.items()}

    def page(
        self,
        owners: Owners,
        *,
        after: str | None = None,
        limit: int = 50,
        provider: str | None = None,
    ) -> tuple[list[CredentialRecord], str | None]:
        """Return so many records from a cursor on, oldest first, and the next cursor or None."""
        found = self._records(*statements.page(owners, provider, after, limit + 1))
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def get(self, id: str, owners: Owners) -> CredentialRecord:
        """Return one record.

        :raises KeyNotFoundError: it is not there, or not theirs.
        """
        found = self._records(statements.by_id(id, owners), {})
        if not found:
            raise KeyNotFoundError
        return found[0]

    # changing

    def create(
        self, record: CredentialRecord, event: AuditEvent, *, at_most: int | None = None
    ) -> CredentialRecord:
        """Store a new record and return it with its id and version.

        :param at_most: how many slots the owner may have for that provider.
        :raises KeyExistsError: the owner has one for that provider and slot, or as many as there may be.
        """

        def work(connection: Connection, chain: Chain) -> CredentialRecord:
            taken = steps.slots(connection, record)
            if record.slot in taken or not has_place(record.slot, taken, at_most):
                raise KeyExistsError(provider=record.provider)
            return steps.add(connection, chain, record, event)

        return self.audit.change(record.owner, work)

    def put(
        self, record: CredentialRecord, event: AuditEvent, *, at_most: int | None = None
    ) -> CredentialRecord:
        """Store a record in the place of the one for its owner, provider and slot, if there is one.

        :param at_most: how many slots the owner may have for that provider.
        :raises KeyExistsError: there is none in that slot, and as many others as there may be.
        """

        def work(connection: Connection, chain: Chain) -> CredentialRecord:
            if not has_place(record.slot, steps.slots(connection, record), at_most):
                raise KeyExistsError(provider=record.provider)
            return steps.put(connection, chain, record, event)

        return self.audit.change(record.owner, work)

    def keep(
        self,
        record: CredentialRecord,
        event: AuditEvent,
        *,
        at_most: int | None = None,
        ended: Collection[str] = (),
        check: Check | None = None,
    ) -> CredentialRecord:
        """Store a record in the owner's main slot for its provider; see ``slots.main_slot``.

        :param at_most: how many slots the owner may have for that provider.
        :param ended: the versions of the session's records that it takes the place of; see ``over``.
        :param check: is shown the record in its slot; nothing is done where it raises.
        """

        def work(connection: Connection, chain: Chain) -> CredentialRecord:
            seated = self._seated(connection, record, at_most)
            if check is not None:
                check(seated)
            steps.end(connection, record.owner, ended)
            return steps.put(connection, chain, seated, event)

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

        What leaves the ciphertext alone carries the verdict along; with a new one may come its
        ``validity``. Where all is as wanted already, nothing is written and the version stays.

        :param changes: or what says them of the record as it is then, which nobody else changes
            meanwhile; nothing is done where it raises.
        :raises KeyNotFoundError: it is not there, or not theirs.
        :raises VersionConflictError: it was changed since that version.
        """

        def work(connection: Connection, chain: Chain) -> CredentialRecord:
            found = steps.require(connection, id, owners, if_version)
            record = to_record(found)
            wanted = changes(record) if callable(changes) else changes
            values = changed_values(wanted)
            if all(getattr(record, name) == value for name, value in wanted.items()):
                return record
            return steps.set_columns(connection, chain, found, values, event)

        return self.audit.change(self.get(id, owners).owner, work)

    def delete(
        self, id: str, owners: Owners, event: AuditEvent, *, if_version: int | None = None
    ) -> CredentialRecord:
        """Delete a record and return it as it was.

        :raises KeyNotFoundError: it is not there, or not theirs.
        :raises VersionConflictError: it was changed since that version.
        """

        def work(connection: Connection, chain: Chain) -> CredentialRecord:
            found = steps.require(connection, id, owners, if_version)
            connection.execute(statements.DELETE, {"ids": [id]})
            chain.change(event, found, None)
            return to_record(found)

        return self.audit.change(self.get(id, owners).owner, work)

    def clear(self, owner: str, providers: Sequence[str], event: AuditEvent) -> list[str]:
        """Delete all that an owner has for these providers and return those that there were."""
        query, values = statements.find([owner], providers)

        def work(connection: Connection, chain: Chain) -> list[str]:
            gone = steps.delete(connection, chain, query, values, event)
            present = {record.provider for record in gone}
            return [provider for provider in providers if provider in present]

        return self.audit.change(owner, work) if self.find([owner], providers) else []

    def record_verdict(
        self, id: str, version: str, verdict: RecordedVerdict, event: AuditEvent | None = None
    ) -> bool:
        """Store a verdict if the record is still in the version it is about, and say so.

        One that says nothing of the key leaves a refusal of that version as it is. An event is
        written in any case, for a check that somebody asked for.
        """
        values = {
            "of_id": id,
            "of_version": int(version),
            **steps.new_parameters(verdict_values(verdict)),
        }
        is_open = verdict.verdict.valid is None
        statement = statements.OPEN_VERDICT if is_open else statements.VERDICT
        if event is None:
            return self._database.call(self._execute, statement, values) == 1

        def work(connection: Connection, chain: Chain) -> bool:
            done = connection.execute(statement, values).rowcount == 1
            chain.append(event, record)
            return done

        record = self.get(id, None)
        return self.audit.change(record.owner, work)

    def promote(
        self,
        records: Sequence[CredentialRecord],
        *,
        replace: bool,
        event: AuditEvent,
        at_most: int | None = None,
        fingerprints: Mapping[str, str] | None = None,
        ended: Mapping[str, Collection[str]] = MappingProxyType({}),
        check: Check | None = None,
    ) -> tuple[list[str], list[str]]:
        """Take over what comes out of a session, all or nothing, and each only once ever.

        Each goes to the owner's main slot for its provider; see ``slots.main_slot``.

        :param records: sealed for their new owner, one and the same; each with the version that it
            has in the session.
        :param at_most: how many slots the owner may have for a provider.
        :param fingerprints: of the keys, by version, for the log.
        :param ended: by the version of each, those of the session's records that it takes the place of.
        :param check: is shown each record in its slot; it stays out where that raises ``InvalidFieldError``.
        :return: the providers whose record is the owner's, now or since before, and those where a
            record of the owner's own stayed. One that was cleared meanwhile is in neither.
        """
        owners = {record.owner for record in records}
        if len(owners) != 1:
            raise ValueError("records of one owner are promoted together")
        (owner,) = owners

        def work(connection: Connection, chain: Chain) -> tuple[list[str], list[str]]:
            said: dict[steps.Taken, list[str]] = {"promoted": [], "kept": [], "gone": []}
            for record in records:
                known = (fingerprints or {}).get(record.version, event.fingerprint)
                happened = dataclasses.replace(event, fingerprint=known)
                seated = self._seated(connection, record, at_most)
                done = steps.promote(
                    connection, chain, self._keyring, seated, replace, happened, check
                )
                if done == "promoted":
                    steps.end(connection, owner, ended.get(record.version, ()))
                said[done].append(record.provider)
            return said["promoted"], said["kept"]

        return self.audit.change(owner, work)

    def over(self, owner: str, versions: Collection[str]) -> set[str]:
        """Return those versions of sessions' records that are over: promoted, replaced or cleared.

        One of them counts no longer, wherever a session still has it, and is never promoted again.
        """
        values = {"of_owner": owner, "origins": list(versions)}
        return {row.origin for row in self._database.call(self._all, statements.OVER, values)}

    def end(
        self, owner: str, versions: Collection[str], event: AuditEvent, subject: Subject
    ) -> set[str]:
        """Note that these versions of sessions' records are over, and return those that were not before."""

        def work(connection: Connection, chain: Chain) -> set[str]:
            fresh = steps.end(connection, owner, versions)
            chain.append(event, subject)
            return fresh

        return self.audit.change(owner, work)

    def _seated(
        self, connection: Connection, record: CredentialRecord, at_most: int | None
    ) -> CredentialRecord:
        slot = main_slot(steps.slots(connection, record), at_most)
        return in_slot(self._keyring, record, slot)

    def _records(self, query: Any, values: Mapping[str, Any]) -> list[CredentialRecord]:
        return list(map(to_record, self._rows(query, values)))

    def _rows(self, query: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        return self._database.call(self._all, query, values)

    def _all(self, query: Any, values: Mapping[str, Any]) -> Sequence[Any]:
        with self._database.transactions.single() as connection:
            return connection.execute(query, values).all()

    def _execute(self, statement: Any, values: Mapping[str, Any]) -> int:
        with self._database.transactions.single() as connection:
            rows: int = connection.execute(statement, values).rowcount
            return rows


def _in_order(rows: Iterable[Any]) -> Iterator[CredentialRecord]:
    records = map(to_record, rows)
    yield from sorted(records, key=lambda record: (serving_order(record.slot), record.id))
