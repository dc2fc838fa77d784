"""Read the audit log, and find whatever was changed, removed or reordered in it.

What the database alone cannot tell is a log, or one owner's chain together with all of its keys,
taken away as a whole or put back to what it was; nor that the last rows of a chain are gone, with
the head put back, if they are about nothing that was changed. Heads that are kept elsewhere tell.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, and_, func, or_, select, tuple_

from ...errors import UnreadableCredentialError
from ...keys.session_store import AuditEvent, Head
from ...model.credential import Secret
from ...sealing.keyring import Keyring
from ...sealing.records import open_record
from ...storage.database import Database
from ...storage.deadline import LONG_LIMIT
from ...storage.tables import audit, audit_heads, credentials
from .audit_chain import NOTHING, Chain, Subject, from_milliseconds, to_milliseconds
from .audit_hashes import head_seal, is_mac
from .audit_restart import Restarted, hold_all, restart
from .audit_verify import Finding, Follower, compare_keys, keys_and_news
from .canary import Canary

__all__ = ["AuditEntry", "AuditEvent", "AuditLog", "Finding", "Head"]

#: Rows that ``verify`` holds at a time.
_PAGE = 1000
#: Seconds for a restart, which writes a row for every key.
_RESTART_LIMIT = 3600
#: Chains that are compared with keys or heads at a time.
_BATCH = 200

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


class AuditLog:
    """Reads the log, and opens chains for writing."""

    def __init__(self, database: Database, canary: Canary, keyring: Keyring) -> None:
        self._database = database
        self._canary = canary
        self._keyring = keyring

    def change(
        self, owner: str, work: Callable[[Connection, Chain], T], *, limit: float | None = None
    ) -> T:
        """Run a function in a transaction that holds the owner's chain, and write what it appends."""
        secret = self._canary.secret()

        def within(connection: Connection) -> T:
            chain = Chain(connection, owner, secret, self._canary.look_up, self._stored_fingerprint)
            result = work(connection, chain)
            chain.close()
            return result

        return self._database.change(within, limit=limit)

    def fingerprint(self, fields: Mapping[str, Secret]) -> str:
        """Return a keyed hash of a key (64 hex digits), the same whatever the encryption key is."""
        return _fingerprint(self._canary.secret(), fields)

    def restart(self, event: AuditEvent) -> Restarted:
        """Delete the whole log and begin a new one under a new secret, with a row for every key.

        It waits for changes of keys under way, and they wait for it. It needs no secret that opens.
        """

        def work(connection: Connection) -> Restarted:
            hold_all(connection)
            secret = self._canary.replace(connection)
            return restart(connection, secret, event, self._stored_fingerprint)

        return self._database.change(work, limit=_RESTART_LIMIT)

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

    def heads(self, owner: str | None = None) -> Iterator[Head]:
        """Yield where every chain ends, for a place that whoever writes to the database cannot change."""
        query = select(audit_heads).order_by(audit_heads.c.owner).limit(_PAGE)
        if owner is not None:
            query = query.where(audit_heads.c.owner == owner)
        page = self._patiently(query)
        while page:
            yield from (
                Head(_text(row.owner), row.number, _text(row.hash)) for row in page if row.hash
            )
            page = self._patiently(query.where(audit_heads.c.owner > page[-1].owner))

    def missing(self, heads: Iterable[Head]) -> Iterator[Finding]:
        """Find chains that do not contain what was once their head."""
        place = (audit.c.owner, audit.c.number)
        heads = iter(heads)
        while batch := list(islice(heads, _BATCH)):
            wanted = [(head.owner, head.number) for head in batch]
            query = select(*place, audit.c.hash).where(tuple_(*place).in_(wanted))
            there = {(row.owner, row.number): row.hash for row in self._patiently(query)}
            for head in batch:
                if there.get((head.owner, head.number)) != head.hash:
                    yield Finding(
                        head.owner, head.number, "this was its end once, and is not in it"
                    )

    def verify(
        self, owner: str | None = None, report: Callable[[int, int], object] | None = None
    ) -> list[Finding]:
        """Return everything that is wrong, of one owner or all; nothing is good.

        It may run beside writers: each page is read with the head as it then was, and keys with the
        rows that came since.

        :param report: is told now and then, and at the end, of how many rows and chains were looked at.
        """
        secret = self._canary.secret()
        findings = self._headless(owner)
        empty = {chain.owner: chain for chain in self._rowless(owner, secret, findings)}
        chains: list[Follower] = []
        rows = done = 0
        for row in self._rows(owner):
            if not chains or chains[-1].owner != row.owner:
                if len(chains) >= _BATCH:
                    findings += self._finish(chains, secret)
                    chains = []
                # Where there was none before, its first row has come since.
                chains.append(empty.pop(row.owner, Follower(row.owner, secret)))
                done += 1
            findings += chains[-1].row(row)
            rows += 1
            if report is not None and rows % _PAGE == 0:
                report(rows, done)
        if report is not None:
            report(rows, done)
        return findings + self._finish([*chains, *empty.values()], secret)

    def _finish(self, chains: Iterable[Follower], secret: bytes) -> list[Finding]:
        findings, chains = list[Finding](), iter(chains)
        while batch := list(islice(chains, _BATCH)):
            for chain in batch:
                findings += chain.finish()
            found = self._patiently(keys_and_news(batch))
            findings += compare_keys(batch, found, secret, self._stored_fingerprint)
        return findings

    def _stored_fingerprint(self, secret: bytes, row: Any) -> str | None:
        try:
            fields, _ = open_record(self._keyring, "account", row.owner, row)
        except UnreadableCredentialError:
            return None
        return _fingerprint(secret, fields)

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

    def _rowless(self, owner: str | None, secret: bytes, findings: list[Finding]) -> list[Follower]:
        """Find chains whose rows are all gone, and return those that never had any."""
        query = select(audit_heads).where(
            ~select(audit.c.number).where(audit.c.owner == audit_heads.c.owner).exists()
        )
        if owner is not None:
            query = query.where(audit_heads.c.owner == owner)
        empty = []
        for head in self._patiently(query):
            if head.number == 0 and is_mac(head.seal, head_seal(secret, head.owner, 0, "")):
                empty.append(Follower(head.owner, secret))
            else:
                findings.append(Finding(head.owner, None, "all rows are missing"))
        return empty

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
        with self._database.transactions.single() as connection, _any_text(connection):
            return connection.execute(query).all()


@contextmanager
def _any_text(connection: Connection) -> Iterator[None]:
    """Let SQLite give a text that is no UTF-8, which somebody has put there, as bytes instead of failing."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    usual, driver.text_factory = driver.text_factory, _decoded
    try:
        yield
    finally:
        driver.text_factory = usual


def _decoded(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _fingerprint(secret: bytes, fields: Mapping[str, Secret]) -> str:
    plain = sorted((name, one.reveal()) for name, one in fields.items())
    return hmac.digest(secret, b"fingerprint" + msgspec.json.encode(plain), "sha256").hex()


def _entry(row: Any) -> AuditEntry:
    about = map(_text, (row.actor, row.action, row.outcome, row.request_id, row.fingerprint))
    key = map(_text, (row.provider, row.slot, row.credential_id))
    return AuditEntry(_text(row.owner), row.number, _moment(row.at), AuditEvent(*about), *key)


def _text(stored: Any) -> Any:
    """Return what a column of text has; on SQLite that may be anything that somebody put there."""
    if isinstance(stored, bytes):
        return stored.decode(errors="replace")
    return stored if stored is None else str(stored)


def _moment(stored: Any) -> datetime:
    try:
        return from_milliseconds(stored)
    except (TypeError, ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)  # somebody has put something there
