"""Session keys in a SQL database: the default, for apps without Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ..accounts.store.audit_chain import from_milliseconds
from ..errors import SessionRequiredError, StoreError
from ..keys.session_store import (
    LEAVING_MARK,
    Adoption,
    SessionView,
    decode_record,
    encode_record,
    encode_verdict,
    new_ticket,
    sealed_mark,
    version_mark,
)
from ..model.credential import CredentialRecord, RecordedVerdict, SessionUse
from ..model.owner import SessionRef
from . import sql_purge
from . import sql_tables as tables
from .database import Database
from .engine import LONG_LIMIT
from .sql_steps import Steps
from .sql_tables import metadata

__all__ = ["SqlSessionStore", "metadata"]

#: A read lets the lifetime slide only after this part of it has passed.
_SLIDE = 20
_DEAD = SessionView(alive=False)


class SqlSessionStore:
    """Keeps each session in one row, and each of its records in another.

    In an empty database the tables are made at the start. It works on connections of its own and
    commits nobody else's work.

    A PostgreSQL that does not answer is a ``StoreError`` within half a second, on the host's engine
    too. SQLite has one writer at a time, and writers queue for it for 5 seconds: under many of them
    a shorter time would refuse what only has to wait its turn.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param ttl: lifetime after the last use; it slides in steps of a twentieth.
    :param max_age: lifetime after the session was established, however much it is used.
    :param own_file: the address is of a file that nothing else uses; an older version's tables in
        it are upgraded at first use.
    """

    name = "the database"

    def __init__(
        self,
        engine_or_url: Any,
        *,
        ttl: timedelta,
        max_age: timedelta,
        clock: Callable[[], float] = time.time,
        own_file: bool = False,
    ) -> None:
        needed = (tables.sessions, tables.keys, tables.canaries)
        database = Database(engine_or_url, needed, tier="session", own_file=own_file)
        self.engine, self.breaker = database.engine, database.breaker
        self._steps = Steps(database.transactions)
        self._guarded = database.call
        # Counts that cannot be written keep no request away.
        self._aside = database.apart()
        self._ttl = ttl.total_seconds()
        self._max_age = max_age.total_seconds()
        self._clock = clock
        self._purge = sql_purge.Purge(database.transactions, clock)

    def establish(self, sid: str, dead: str | None = None) -> str:
        """Return the ref for a session id, making one where there is none or it is ``dead``."""
        found = self.find(sid)
        if found is not None and found != dead:
            return found
        ref = self._guarded(self._steps.establish, {"session_sid": sid, **self._times()}, dead)
        self._purge_if_due()
        return ref

    def find(self, sid: str) -> str | None:
        """Return the ref for a session id, or None."""
        return self._guarded(self._steps.find, {"session_sid": sid, **self._times()})

    def read(self, session: SessionRef, identity: str, providers: Sequence[str]) -> SessionView:
        """Return the records for these providers and let the lifetime slide."""
        rows = self._guarded(self._steps.read, session.ref, providers)
        if not rows or not self._usable(session, identity, rows[0]):
            return _DEAD
        if not identity:
            return SessionView(_records(rows, "v"))
        return SessionView(_records(rows, "u"), _records(rows, "v"))

    def write(self, session: SessionRef, identity: str, record: CredentialRecord) -> None:
        """Store one record under its provider, replacing the one before it.

        :raises SessionRequiredError: the session is not alive for this id and identity; nothing is
            stored.
        """
        values = self._record_values(session, identity, record)
        if not self._guarded(self._steps.write, values):
            self._end_if_foreign(session, identity)
            raise SessionRequiredError(provider=record.provider, tier="session")
        self._purge_if_due()

    def clear(
        self, session: SessionRef, identity: str, providers: Sequence[str], *, visitor: bool = False
    ) -> list[str]:
        """Delete the records of these providers and return those that were there."""
        values = self._guard_values(session, identity) | {
            "in_scope": _scope(identity, visitor),
            "providers": list(providers),
        }
        cleared = self._guarded(self._steps.clear, values)
        if not cleared:
            self._end_if_foreign(session, identity)
        return [provider for provider in providers if provider in cleared]

    def adopt(
        self, session: SessionRef, identity: str, record: CredentialRecord, *, replace: bool
    ) -> Adoption:
        """Put the identity's record in the place of the visitor's of the same version."""
        values = self._record_values(session, identity, record) | {
            "providers": [record.provider],
            "from_scope": "v",
            "mark": version_mark(record.version),
        }
        return self._guarded(self._steps.adopt, values, replace)

    def exchange(
        self,
        session: SessionRef,
        identity: str,
        record: CredentialRecord,
        *,
        visitor: bool = False,
    ) -> bool:
        """Put a record in the place of the one of the same version."""
        values = self._guard_values(session, identity) | {
            "in_scope": _scope(identity, visitor),
            "of_provider": record.provider,
            "sealed": encode_record(record).decode(),
            "mark": version_mark(record.version),
            "leaving_mark": LEAVING_MARK,
            "is_leaving": int(record.leaving),
        }
        return self._conditional(session, identity, tables.CLAIM, tables.EXCHANGE, values)

    def discard(
        self,
        session: SessionRef,
        identity: str,
        provider: str,
        version: str,
        *,
        visitor: bool = False,
    ) -> bool:
        """Delete the record, if it is of that version still, and say whether it was."""
        values = self._guard_values(session, identity) | {
            "from_scope": _scope(identity, visitor),
            "of_provider": provider,
            "mark": version_mark(version),
        }
        return self._conditional(session, identity, tables.TOUCH, tables.TAKE, values)

    def record_verdict(self, session: SessionRef, provider: str, verdict: RecordedVerdict) -> None:
        """Store a verdict beside the record of that version."""
        values = {
            "session_ref": session.ref,
            "of_provider": provider,
            "found": encode_verdict(verdict).decode(),
            "mark": version_mark(verdict.version),
        }
        is_open = verdict.verdict.valid is None
        statement = tables.OPEN_VERDICT if is_open else tables.VERDICT
        self._guarded(self._steps.single, statement, values)

    def count(self, use: SessionUse) -> None:
        """Add uses to what is counted beside the record of that version."""
        use.ticket = use.ticket or new_ticket()
        values = {
            "session_ref": use.ref,
            "of_provider": use.provider,
            "mark": version_mark(use.version),
            "more": use.uses,
            "at": use.last_used_at,
            "ticket": use.ticket,
        }
        self._aside.call(self._steps.single, tables.COUNT, values)

    def renew(self, session: SessionRef, new_sid: str) -> None:
        """Make what is stored valid for another session id, and for the old one no longer."""
        if new_sid != session.sid:
            self._guarded(self._steps.renew, session, new_sid)

    def end(self, session: SessionRef) -> None:
        """Delete everything of the session and refuse whatever is still written to it."""
        self._guarded(
            self._steps.end, {"session_ref": session.ref, "until": self._clock() + self._ttl}
        )
        self._purge_if_due()

    def canary(self, name: str, sealed: str, *, replace: bool = False) -> str:
        """Return the text stored under this name; this one if there is none, or to ``replace`` it."""
        return self._guarded(self._steps.canary, {"called": name, "text": sealed}, replace)

    def count_sealed_with(self, key_id: str) -> int:
        """Return how many keys in living sessions this encryption key has sealed; it reads all of them."""
        values = self._times() | {"mark": sealed_mark(key_id)}
        return self._guarded(self._steps.count, tables.SEALED_WITH, values, limit=LONG_LIMIT)

    def purge(self, limit: int) -> int:
        """Delete up to so many sessions that expired over an hour ago; return how many there were.

        Changes do so as well, a batch a minute in each process.
        """
        deleted = 0
        while deleted < limit:
            size = min(limit - deleted, sql_purge.BATCH)
            found = self._guarded(self._purge.batch, size)
            deleted += found
            if found < size:
                break
        return deleted

    def _purge_if_due(self) -> None:
        try:
            if self._purge.is_due():
                self.purge(sql_purge.BATCH)
        except StoreError:
            return  # the change itself was acknowledged

    def _conditional(
        self, session: SessionRef, identity: str, hold: Any, change: Any, values: dict[str, Any]
    ) -> bool:
        done = self._guarded(self._steps.both, hold, change, values)
        if not done:
            self._end_if_foreign(session, identity)
        return done

    def _record_values(
        self, session: SessionRef, identity: str, record: CredentialRecord
    ) -> dict[str, Any]:
        return self._guard_values(session, identity) | {
            "in_scope": _scope(identity),
            "of_provider": record.provider,
            "sealed": encode_record(record).decode(),
            "found": encode_verdict(record.validity).decode() or None,
        }

    def _usable(self, session: SessionRef, identity: str, row: Any) -> bool:
        now = self._clock()
        if row.dead or row.sid != session.sid or row.expires_at <= now:
            return False
        if row.owner not in ("", identity) or row.created_at <= now - self._max_age:
            self.end(session)
            return False
        if (self._ttl - (row.expires_at - now)) * _SLIDE > self._ttl:
            self._slide(session, identity)
        return True

    def _slide(self, session: SessionRef, identity: str) -> None:
        try:
            self._guarded(self._steps.single, tables.TOUCH, self._guard_values(session, identity))
        except StoreError:
            return  # the read itself was answered

    def _end_if_foreign(self, session: SessionRef, identity: str) -> None:
        row = self._guarded(self._steps.state, session.ref)
        if row is None or row.dead or row.sid != session.sid:
            return
        if row.owner not in ("", identity) or row.created_at <= self._clock() - self._max_age:
            self.end(session)

    def _guard_values(self, session: SessionRef, identity: str) -> dict[str, Any]:
        return {
            "session_ref": session.ref,
            "session_sid": session.sid,
            "identity": identity,
            **self._times(),
        }

    def _times(self) -> dict[str, float]:
        now = self._clock()
        return {"now": now, "oldest": now - self._max_age, "until": now + self._ttl}


def _scope(identity: str, visitor: bool = False) -> str:
    return "u" if identity and not visitor else "v"


def _records(rows: Iterable[Any], scope: str) -> dict[str, CredentialRecord]:
    return {row.provider: _record(row) for row in rows if row.scope == scope}


def _record(row: Any) -> CredentialRecord:
    record = decode_record(row.record, row.provider, row.verdict)
    if row.usage_count is None:
        return record
    at = from_milliseconds(row.last_used_at)
    return replace(record, usage_count=row.usage_count, last_used_at=at)
