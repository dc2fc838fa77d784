"""Databases as stores use them, and session documents in one: the default, for apps without Redis."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, exc
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ..errors import ByokError, OutdatedTablesError, StoreError
from .breaker import Breaker
from .engine import (
    LIMITED,
    LONG_LIMIT,
    OWN,
    is_long,
    missing_file,
    open_engine,
    seconds,
    time_left,
    watched,
    within_call,
)
from .reasons import reason_of
from .tables import canaries, session_documents, session_names

#: Two workers that add the same row at once meet in the database; this many tries are plenty.
TRIES = 8

_FAULTS = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, TimeoutError)
#: PostgreSQL's lock_not_available and insufficient_privilege.
_HELD, _NO_RIGHT = "55P03", "42501"
REFUSED = (
    "The database's user may not make tables, or not use those that begin with byok_: let an administrator run "
    "what 'flask byok db sql' prints, and grant it SELECT, INSERT, UPDATE and DELETE on them."
)
# For one transaction.
_RAISE_LIMITS = sa.text(
    "SELECT set_config('lock_timeout', :limit, true), set_config('statement_timeout', :limit, true)"
)

_logger = logging.getLogger("flask_byok.stores")

T = TypeVar("T")


class Transactions:
    """The two ways of using an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays. On an engine of our own
    PostgreSQL has ``LIMIT`` to answer, and a connection that did not is closed. A host's engine
    keeps the host's limits.
    """

    def __init__(self, engine: Engine) -> None:
        options = engine.get_execution_options()
        self.dialect = engine.dialect.name
        self._limited = LIMITED in options
        self._limit: float | None = options.get(LIMITED)
        self._single: Engine = engine
        if OWN not in options:
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._several: Engine = self._single
        if self.dialect != "sqlite":
            # The statements rely on seeing what was committed while they waited for a row.
            self._several = engine.execution_options(isolation_level="READ COMMITTED")

    def call(self, function: Callable[..., T], *args: Any, limit: float | None = None) -> T:
        """Call a function that uses transactions, all of which together have ``limit`` seconds."""
        if not self._limited:
            return function(*args)
        return within_call(limit or self._limit, function, *args)

    def in_time(self) -> bool:
        """Return True if the call under way may still ask."""
        return not self._limited or time_left() > 0

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """Yield a connection whose statements each commit by themselves."""
        # Only within a transaction are the server's limits raised.
        opened = self.several() if self._is_long() else self._watched(self._single)
        with opened as connection:
            yield connection

    @contextmanager
    def several(self) -> Iterator[Connection]:
        """Yield a connection with a transaction; on SQLite no other connection writes meanwhile."""
        with self._watched(self._several) as connection, connection.begin():
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif self._is_long():
                connection.execute(_RAISE_LIMITS, {"limit": f"{seconds():.0f}s"})
            yield connection

    def _is_long(self) -> bool:
        """Return True if the call under way has more time than the server gives by itself."""
        return self._limited and is_long(self._limit)

    @contextmanager
    def _watched(self, engine: Engine) -> Iterator[Connection]:
        with (
            engine.connect() as connection,
            watched(connection) if self._limited else nullcontext(),
        ):
            yield connection


class Database:
    """Runs functions on an engine, and turns its errors into ``StoreError``.

    It works on connections of its own and commits none of the host's work.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tables: the tables that must be there.
    :param tier: the tier that a ``StoreError`` names.
    :param own_file: nothing else uses the SQLite file, so an older version's tables are upgraded.
    :param limit: seconds that a call may take on a PostgreSQL engine of our own.
    """

    def __init__(
        self,
        engine_or_url: Any,
        tables: Iterable[Table],
        *,
        tier: str | None = None,
        own_file: bool = False,
        limit: float | None = None,
    ) -> None:
        new = None if own_file else missing_file(engine_or_url)
        self.engine = open_engine(engine_or_url, limit=limit)
        if new is not None:
            _logger.warning("There was no SQLite file %s: an empty one was made.", new)
        if self.engine is not engine_or_url:
            # Our connections end with us; the host's stay the host's.
            weakref.finalize(self, self.engine.dispose)
        self.breaker = Breaker()
        self.transactions = Transactions(self.engine)
        self._tables = tuple(tables)
        self._tier = tier
        self._own_file = own_file
        self._ready = False
        # The engine is disposed of when this one ends.
        self._origin: Database | None = None

    def apart(self) -> Database:
        """Return the same database for work that no request waits for; its faults keep no request away."""
        twin = copy(self)
        twin.breaker = Breaker()
        twin._origin = self
        return twin

    def run(self, work: Callable[[Connection], T], *, limit: float | None = None) -> T:
        """Run a function on a connection whose statements each commit by themselves.

        It may run twice: it may have happened although its answer was lost.

        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its tables are older than this version, or may not be used.
        """

        def on_one() -> T:
            with self.transactions.single() as connection:
                return work(connection)

        return self._guarded(limit, lambda: self._twice(on_one))

    def read(
        self, query: Any, values: Mapping[str, Any] | None = None, *, limit: float | None = None
    ) -> Sequence[Any]:
        """Return all rows of a query; see ``run``."""
        return self.run(lambda connection: connection.execute(query, values).all(), limit=limit)

    def write(
        self, statement: Any, values: Mapping[str, Any] | None = None, *, limit: float | None = None
    ) -> int:
        """Run one statement and return how many rows it changed; see ``run``."""
        return self.run(
            lambda connection: connection.execute(statement, values).rowcount, limit=limit
        )

    def change(self, work: Callable[[Connection], T], *, limit: float | None = None) -> T:
        """Run a function within a transaction, and again only if nothing of it can have stayed."""
        return self._guarded(limit, lambda: self._transaction(work))

    def _guarded(self, limit: float | None, function: Callable[[], T]) -> T:
        if not self.breaker.allow():
            raise StoreError(tier=self._tier)
        try:
            result = self.transactions.call(function, limit=limit)
        except (SQLAlchemyError, TimeoutError) as error:
            if isinstance(error, _FAULTS) and sql_state(error) not in (_HELD, _NO_RIGHT):
                self.breaker.fault()
            else:
                self.breaker.success()  # it answered
            self._ready = False
            if is_without_right(error):
                raise OutdatedTablesError(REFUSED) from None
            # The error's own text may hold an address, or what was sent.
            _logger.warning("The database failed: %s", reason_of(error) or type(error).__name__)
            raise StoreError(tier=self._tier) from None
        except ByokError:
            self.breaker.success()  # what it answered was refused
            raise
        self.breaker.success()
        return result

    def _prepare(self) -> None:
        if not self._ready:
            from .migrations import prepare

            prepare(self.transactions, self._tables, own_file=self._own_file)
            self._ready = True

    def _twice(self, function: Callable[[], T]) -> T:
        try:
            self._prepare()
            return function()
        except DBAPIError as error:
            if not (error.connection_invalidated and self.transactions.in_time()):
                raise
        # The server was restarted since the pool was filled; SQLAlchemy has emptied it.
        self._prepare()
        return function()

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        for attempt in range(TRIES):
            committing = False
            try:
                self._prepare()
                with self.transactions.several() as connection:
                    result = work(connection)
                    committing = True
                return result
            except DBAPIError as error:
                again = isinstance(error, IntegrityError) or (
                    error.connection_invalidated and attempt == 0
                )
                late = attempt == TRIES - 1 or not self.transactions.in_time()
                # A commit that failed may have happened: the caller has to look.
                if committing or late or not again:
                    raise
        raise AssertionError("unreachable")


def sql_state(error: BaseException) -> str | None:
    """Return PostgreSQL's SQLSTATE of an error."""
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state


def is_without_right(error: BaseException) -> bool:
    """Return True if the database refused for want of a right."""
    return sql_state(error) == _NO_RIGHT


#: Rows of a table that one purge deletes, and documents that one step of a count reads.
BATCH = 200
#: Seconds between two purges by a process, and while there is more to delete than one batch.
_PAUSE, _SHORT_PAUSE = 60, 1

_document, _name, _canary = session_documents.c, session_names.c, canaries.c

# Built once, as each call of the session tier needs one of these.
_LOAD = sa.select(_document.revision, _document.body).where(_document.ref == sa.bindparam("of_ref"))
_SWAP = (
    sa.update(session_documents)
    .where(_document.ref == sa.bindparam("of_ref"), _document.revision == sa.bindparam("seen"))
    .values({name: sa.bindparam(name) for name in ("revision", "body", "expires_at")})
)


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
    :param own_file: nothing else uses the SQLite file, so an older version's tables in it are upgraded
        at first use.
    """

    name = "the database"

    def __init__(
        self,
        engine_or_url: Any,
        *,
        clock: Callable[[], float] = time.time,
        own_file: bool = False,
    ) -> None:
        needed = (session_documents, session_names, canaries)
        self._database = Database(engine_or_url, needed, tier="session", own_file=own_file)
        self.engine, self.breaker = self._database.engine, self._database.breaker
        self._clock = clock
        self._next_purge = 0.0

    def apart(self) -> SqlDocuments:
        """Return the same store for counts, behind a breaker of its own."""
        twin = copy(self)
        twin._database = self._database.apart()
        twin.breaker = twin._database.breaker
        return twin

    def find(self, sid: str) -> str | None:
        """Return the ref that a session id leads to, or None."""
        query = sa.select(_name.ref).where(_name.sid == sid, _name.expires_at > self._clock())
        return self._database.run(lambda connection: connection.execute(query).scalar())

    def point(self, sid: str, ref: str, ttl: float, *, instead_of: str | None) -> str:
        """Let a session id lead to a ref if it leads nowhere or to ``instead_of``; return what it leads to."""
        now, there = self._clock(), _name.sid == sid
        values = {"ref": ref, "expires_at": now + ttl}
        free = (_name.ref == (instead_of or "")) | (_name.expires_at <= now)

        def work(connection: Connection) -> str:
            if connection.execute(
                sa.update(session_names).where(there, free).values(values)
            ).rowcount:
                return ref
            held = connection.execute(sa.select(_name.ref).where(there)).scalar()
            if (
                held is None
            ):  # of two that insert at once, one meets the other's row and looks again
                connection.execute(sa.insert(session_names).values(sid=sid, **values))
            return held or ref

        return self._database.change(work)

    def forget(self, sid: str, ref: str) -> None:
        """Let a session id lead nowhere if it leads to this ref."""
        self._database.write(sa.delete(session_names).where(_name.sid == sid, _name.ref == ref))

    def load(self, ref: str) -> tuple[str, bytes] | None:
        """Return a document's revision and body, or None."""
        values = {"of_ref": ref}
        row = self._database.run(lambda connection: connection.execute(_LOAD, values).first())
        return None if row is None else (row[0], row[1])

    def swap(self, ref: str, seen: str | None, revision: str, body: bytes, ttl: float) -> bool:
        """Replace a document if its revision is still ``seen`` (None: if there is none)."""
        values = {"revision": revision, "body": body, "expires_at": self._clock() + ttl}
        if seen is None:
            self._database.write(sa.insert(session_documents).values(ref=ref, **values))
            rows = 1  # of an INSERT the driver may not say it
        else:
            rows = self._database.write(_SWAP, values | {"of_ref": ref, "seen": seen})
        if rows == 1:
            self._purge_if_due()
        return rows == 1

    def delete(self, ref: str) -> None:
        """Delete a document."""
        self._database.write(sa.delete(session_documents).where(_document.ref == ref))
        self._purge_if_due()

    def hold(self, name: str, text: str, *, replace: bool) -> str:
        """Return the text kept under a name; this one if there is none, or to ``replace`` it."""
        return self._database.change(
            lambda connection: keep_text(connection, name, text, replace=replace)
        )

    def occurrences(self, mark: bytes) -> int | None:
        """Return how often bytes occur in living documents; it reads all of them."""
        living = sa.select(_document.ref, _document.body).where(
            _document.expires_at > self._clock(), _document.ref > sa.bindparam("after")
        )
        query, total, values = living.order_by(_document.ref).limit(BATCH), 0, {"after": ""}

        while rows := self._database.read(query, values, limit=LONG_LIMIT):
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
            rows = [self._purge(table, key, now) for table, key in _PURGED]
            if max(rows) == BATCH:
                self._next_purge = now + _SHORT_PAUSE

    def _purge(self, table: Any, key: Any, now: float) -> int:
        expired = sa.select(key).where(table.c.expires_at < now).limit(BATCH)
        # Several workers do this at once, each to other rows.
        return self._database.write(
            sa.delete(table).where(key.in_(expired.with_for_update(skip_locked=True)))
        )


_PURGED = ((session_documents, _document.ref), (session_names, _name.sid))
