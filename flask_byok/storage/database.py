"""One database as a store uses it: its tables made, guarded by a breaker, reconnected after a restart."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import ByokError, OutdatedTablesError, StoreError
from . import deadline
from .breaker import Breaker
from .engine import LIMITED, OWN, missing_file, open_engine
from .reasons import reason_of

#: Two workers that add the same row at once meet in the database; this many tries are plenty.
TRIES = 8

_FAULTS = (OperationalError, InterfaceError, PoolTimeoutError, TimeoutError)
#: PostgreSQL's lock_not_available and insufficient_privilege.
_HELD, _NO_RIGHT = "55P03", "42501"
REFUSED = (
    "The database's user may not make tables, or not use those that begin with byok_: let an administrator run "
    "what 'flask byok db sql' prints, and grant it SELECT, INSERT, UPDATE and DELETE on them."
)
# For one transaction.
_RAISE_LIMITS = text(
    "SELECT set_config('lock_timeout', :limit, true), set_config('statement_timeout', :limit, true)"
)

_logger = logging.getLogger("flask_byok.stores")

T = TypeVar("T")


class Transactions:
    """The two ways of using an engine: one statement at a time, and several as one.

    Isolation is set for our own connections only; the host's setting stays. On an engine of our own
    PostgreSQL has ``deadline.LIMIT`` to answer, and a connection that did not is closed. A host's engine
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
        return deadline.within_call(limit or self._limit, function, *args)

    def in_time(self) -> bool:
        """Return True if the call under way may still ask."""
        return not self._limited or deadline.time_left() > 0

    @contextmanager
    def single(self) -> Iterator[Connection]:
        """Yield a connection whose statements each commit by themselves."""
        if self._limited:
            # Only within a transaction are the server's limits raised.
            with self.several() if self._is_long() else self._watched(self._single) as connection:
                yield connection
            return
        with self._single.connect() as connection:
            yield connection

    @contextmanager
    def several(self) -> Iterator[Connection]:
        """Yield a connection with a transaction; on SQLite no other connection writes meanwhile."""
        if self._limited:
            with self._watched(self._several) as connection, connection.begin():
                if self._is_long():
                    connection.execute(_RAISE_LIMITS, {"limit": f"{deadline.seconds():.0f}s"})
                yield connection
            return
        with self._several.connect() as connection, connection.begin():
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def _is_long(self) -> bool:
        """Return True if the call under way has more time than the server gives by itself."""
        return deadline.seconds() > (self._limit or deadline.LIMIT)

    @contextmanager
    def _watched(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect() as connection, deadline.watched(connection):
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

    def call(self, function: Callable[..., T], *args: Any, limit: float | None = None) -> T:
        """Run a function that may run twice: it may have happened although its answer was lost.

        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its tables are older than this version, or may not be used.
        """
        result: T = self._guarded(limit, self._twice, function, *args)
        return result

    def run(self, work: Callable[[Connection], T], *, limit: float | None = None) -> T:
        """Run a function as ``call`` does, on a connection whose statements each commit by themselves."""
        result: T = self._guarded(limit, self._twice, self._on_one, work)
        return result

    def change(self, work: Callable[[Connection], T], *, limit: float | None = None) -> T:
        """Run a function within a transaction, and again only if nothing of it can have stayed."""
        result: T = self._guarded(limit, self._transaction, work)
        return result

    def _guarded(self, limit: float | None, function: Callable[..., T], *args: Any) -> T:
        if not self.breaker.allow():
            raise StoreError(tier=self._tier)
        try:
            result = self.transactions.call(function, *args, limit=limit)
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
            from .migrate import prepare

            prepare(self.transactions, self._tables, own_file=self._own_file)
            self._ready = True

    def _twice(self, function: Callable[..., T], *args: Any) -> T:
        try:
            self._prepare()
            return function(*args)
        except DBAPIError as error:
            if not (error.connection_invalidated and self.transactions.in_time()):
                raise
        # The server was restarted since the pool was filled; SQLAlchemy has emptied it.
        self._prepare()
        return function(*args)

    def _on_one(self, work: Callable[[Connection], T]) -> T:
        with self.transactions.single() as connection:
            return work(connection)

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
