"""Databases as stores use them, and session documents in one: the default, for apps without Redis."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from copy import copy
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ..errors import ByokError, OutdatedTablesError, StoreError
from .breaker import Breaker, Reporter, measured
from .engine import Transactions, open_engine
from .tables import canaries, session_documents, session_names

#: Two workers that add the same row at once meet in the database; this many tries are plenty.
_TRIES = 8
#: Seconds after which no further one begins, on engines without a limit of ours: a database that is away must not hold
#: a request for all of them.
_PATIENCE = 1

_FAULTS = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, TimeoutError)
#: PostgreSQL's lock_not_available and insufficient_privilege.
_HELD, _NO_RIGHT = "55P03", "42501"
_REFUSED = (
    "The database's user may not make tables, or not use those that begin with byok_: let an administrator run "
    "what 'flask byok db sql' prints, and grant it SELECT, INSERT, UPDATE and DELETE on them."
)
#: Sessions and accounts may share an engine, whose faults are then logged once.
_reporters: weakref.WeakKeyDictionary[Engine, Reporter] = weakref.WeakKeyDictionary()

T = TypeVar("T")
#: Opens a connection, with a transaction or without.
Connect = Callable[[], AbstractContextManager[Connection]]


class Database:
    """Runs functions on an engine, and turns its errors into ``StoreError``.

    It works on connections of its own and commits none of the host's work.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tables: the tables that must be there.
    :param tier: the tier that a ``StoreError`` names.
    :param opening: how to open a URL, see ``open_engine``. With ``own_file`` nothing else uses the SQLite file, so an
        older version's tables are upgraded.
    """

    def __init__(
        self,
        engine_or_url: Any,
        tables: Iterable[Table],
        *,
        tier: str | None = None,
        **opening: Any,
    ) -> None:
        self.engine = open_engine(engine_or_url, **opening)
        self.transactions = Transactions(self.engine)
        if self.engine is not engine_or_url:
            # Our connections end with us and our twins; the host's stay the host's.
            weakref.finalize(self.transactions, self.engine.dispose)
        self.breaker = Breaker()
        self._reporter = _reporters.setdefault(self.engine, Reporter("The database"))
        self.measured_as = "sessions" if tier == "session" else "accounts"
        self._tables, self._tier = tuple(tables), tier
        self._own_file: bool = opening.get("own_file", False)
        self._ready = False

    def apart(self) -> Database:
        """Return the same database for work that no request waits for; its faults keep no request away."""
        twin = copy(self)
        twin.breaker, twin.measured_as = Breaker(), "counts"
        return twin

    def run(self, work: Callable[[Connection], T], *, changes: bool = False) -> T:
        """Run a function on a connection whose statements each commit by themselves.

        It may run again: it may have happened although its answer was lost.

        :param changes: see ``call``.
        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its tables are older than this version, or may not be used.
        """
        return self.call(lambda: self._try(self.transactions.single, work), changes=changes)

    def read(self, query: Any, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Return all rows of a query; see ``run``."""
        return self.run(lambda one: one.execute(query, values).all())

    def write(self, statement: Any, values: Mapping[str, Any] | None = None) -> int:
        """Run one statement and return how many rows it changed; see ``run``."""
        return self.run(lambda one: one.execute(statement, values).rowcount, changes=True)

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run a function within a transaction, and again only if nothing of it can have stayed."""
        return self.call(lambda: self._try(self.transactions.several, work), changes=True)

    @measured
    def call(self, function: Callable[[], T], *, changes: bool = False) -> T:
        """Call a function that uses the transactions, even if there are no tables.

        :param changes: its success tells that the database takes changes.
        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its user has not the rights.
        """
        if not self.breaker.allow():
            raise StoreError(tier=self._tier)
        try:
            result = self.transactions.call(function)
        except (SQLAlchemyError, TimeoutError) as error:
            is_fault = isinstance(error, _FAULTS) and sql_state(error) not in (_HELD, _NO_RIGHT)
            if is_fault:
                self.breaker.fault()
            else:
                self.breaker.success()  # it answered
            self._ready = False
            if is_without_right(error):
                raise OutdatedTablesError(_REFUSED) from None
            self._reporter.failed(error)
            raise StoreError(tier=self._tier) from None
        except ByokError:
            self.breaker.success()  # what it answered was refused
            raise
        self.breaker.success()
        self._reporter.success(changed=changes)
        return result

    def _try(self, connect: Connect, work: Callable[[Connection], T]) -> T:
        until = time.monotonic() + _PATIENCE
        for attempt in range(_TRIES):
            ended = False
            try:
                if not self._ready:
                    from .migrations import prepare

                    prepare(self.transactions, self._tables, own_file=self._own_file)
                    self._ready = True
                with connect() as connection:
                    result = work(connection)
                    ended = True
                return result
            except DBAPIError as error:
                # The server was restarted since the pool was filled, and SQLAlchemy has emptied it.
                lost = error.connection_invalidated and attempt == 0
                # Other workers are making the tables, or one has added the same row.
                met = not self._ready or isinstance(error, IntegrityError)
                late = attempt == _TRIES - 1 or not self.transactions.in_time(until)
                # A commit that failed may have happened: the caller has to look.
                if ended or late or not (lost or met):
                    raise
        raise AssertionError("unreachable")


def sql_state(error: BaseException) -> str | None:
    """Return PostgreSQL's SQLSTATE of an error."""
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state


def is_without_right(error: BaseException) -> bool:
    """Return True if the database refused for want of a right."""
    return sql_state(error) == _NO_RIGHT


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an INSERT that may say what to do if the row is there already."""
    dialects = {"postgresql": postgresql, "sqlite": sqlite}
    return dialects[connection.dialect.name].insert(table)


#: Rows of a table that one purge deletes, and documents that one step of a count reads.
BATCH = 200
#: Seconds between two purges by a process, and while there is more to delete than one batch.
_PAUSE, _SHORT_PAUSE = 60, 1

_document, _name, _canary = session_documents.c, session_names.c, canaries.c

# Built once, as each call of the session tier needs it.
_LOAD = sa.select(_document.revision, _document.body).where(_document.ref == sa.bindparam("of_ref"))


def keep_text(connection: Connection, name: str, text: str, *, replace: bool) -> str:
    """Return the text kept under a name; the given one if there is none, or to ``replace`` it."""
    this = _canary.name == name
    held: str | None = connection.execute(sa.select(_canary.sealed).where(this)).scalar()
    if held is None:
        connection.execute(sa.insert(canaries).values(name=name, sealed=text))
    elif replace:
        connection.execute(sa.update(canaries).where(this).values(sealed=text))
    else:
        return held
    return text


class SqlDocuments:
    """Keeps each document in one row, and each session id in another.

    Changes delete expired rows, a batch a minute in each process. SQLite has one writer at a time, and
    writers queue for it for 5 seconds.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param opening: how to open a URL, see ``Database``.
    """

    name = "the database"

    def __init__(
        self, engine_or_url: Any, *, clock: Callable[[], float] = time.time, **opening: Any
    ) -> None:
        needed = (session_documents, session_names, canaries)
        self.database = Database(engine_or_url, needed, tier="session", **opening)
        self.engine = self.database.engine
        self._clock = clock
        self._next_purge = 0.0

    def apart(self) -> SqlDocuments:
        """Return the same store for counts, behind a breaker of its own."""
        twin = copy(self)
        twin.database = self.database.apart()
        return twin

    def find(self, sid: str) -> str | None:
        """Return the ref that a session id leads to, or None."""
        query = sa.select(_name.ref).where(_name.sid == sid, _name.expires_at > self._clock())
        return self.database.run(lambda connection: connection.execute(query).scalar())

    def point(self, sid: str, ref: str, ttl: float, *, instead_of: str | None) -> str:
        """Let a session id lead to a ref if it leads nowhere or to ``instead_of``; return what it leads to."""
        now, there = self._clock(), _name.sid == sid
        values = {"ref": ref, "expires_at": now + ttl}
        free = (_name.ref == (instead_of or "")) | (_name.expires_at <= now)

        def work(connection: Connection) -> str:
            pointed = sa.update(session_names).where(there, free).values(values)
            if connection.execute(pointed).rowcount:
                return ref
            held = connection.execute(sa.select(_name.ref).where(there)).scalar()
            if held is None:
                # Of two that insert at once, one meets the other's row and looks again.
                connection.execute(sa.insert(session_names).values(sid=sid, **values))
            return held or ref

        return self.database.change(work)

    def forget(self, sid: str, ref: str) -> None:
        """Let a session id lead nowhere if it leads to this ref."""
        self.database.write(sa.delete(session_names).where(_name.sid == sid, _name.ref == ref))

    def load(self, ref: str) -> tuple[str, bytes] | None:
        """Return a document's revision and body, or None."""
        row = self.database.run(lambda one: one.execute(_LOAD, {"of_ref": ref}).first())
        return None if row is None else (row[0], row[1])

    def swap(self, ref: str, seen: str | None, revision: str, body: bytes, ttl: float) -> bool:
        """Replace a document if its revision is still ``seen`` (None: if there is none)."""
        values = {"revision": revision, "body": body, "expires_at": self._clock() + ttl}
        if seen is None:
            self.database.write(sa.insert(session_documents).values(ref=ref, **values))
            rows = 1  # of an INSERT the driver may not say it
        else:
            same = (_document.ref == ref) & (_document.revision == seen)
            rows = self.database.write(sa.update(session_documents).where(same).values(values))
        if rows == 1:
            self._purge_if_due()
        return rows == 1

    def delete(self, ref: str) -> None:
        """Delete a document."""
        self.database.write(sa.delete(session_documents).where(_document.ref == ref))
        self._purge_if_due()

    def hold(self, name: str, text: str, *, replace: bool = False) -> str:
        """Return the text kept under a name; this one if there is none, or to ``replace`` it."""
        return self.database.change(partial(keep_text, name=name, text=text, replace=replace))

    def occurrences(self, mark: bytes) -> int | None:
        """Return how often bytes occur in living documents; it reads all of them."""
        living = sa.select(_document.ref, _document.body).where(
            _document.expires_at > self._clock(), _document.ref > sa.bindparam("after")
        )
        query, total, values = living.order_by(_document.ref).limit(BATCH), 0, {"after": ""}
        while rows := self.database.read(query, values):
            total += sum(row.body.count(mark) for row in rows)
            values["after"] = rows[-1].ref
        return total

    def _purge_if_due(self) -> None:
        """Delete rows that have expired, if it is time to."""
        now = self._clock()
        if now < self._next_purge:
            return
        self._next_purge = now + _PAUSE
        with suppress(StoreError):  # the change itself was acknowledged
            for table, key in (session_documents, _document.ref), (session_names, _name.sid):
                # Several workers do this at once, each to other rows.
                expired = sa.select(key).where(table.c.expires_at < now).limit(BATCH)
                expired = expired.with_for_update(skip_locked=True)
                if self.database.write(sa.delete(table).where(key.in_(expired))) == BATCH:
                    self._next_purge = now + _SHORT_PAUSE
