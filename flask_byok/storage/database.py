"""One database as a store uses it: prepared, guarded by a breaker, and replaced unseen after a restart."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, TypeVar

from sqlalchemy import Connection, Table
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..errors import ByokError, StoreError
from .breaker import Breaker
from .engine import Transactions, missing_file, open_engine
from .migrate import prepare, rights
from .reasons import reason_of

_logger = logging.getLogger("flask_byok.stores")
_FAULTS = (OperationalError, InterfaceError, PoolTimeoutError, TimeoutError)
#: Two workers that add the same row at once meet in the database; this many tries are plenty.
TRIES = 8

T = TypeVar("T")


class Database:
    """Runs functions on an engine, and turns its errors into ``StoreError``.

    It works on connections of its own and commits nobody else's work. On PostgreSQL a function has
    ``LIMIT`` seconds, unless it is given more; making the tables takes longer, once.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tier: what a ``StoreError`` names.
    :param tables: what has to be there.
    :param own_file: nothing else uses it, so an older version's tables are upgraded.
    """

    def __init__(
        self,
        engine_or_url: Any,
        tables: Iterable[Table],
        *,
        tier: str | None = None,
        own_file: bool = False,
    ) -> None:
        new = None if own_file else missing_file(engine_or_url)
        self.engine = open_engine(engine_or_url)
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
        # Whose end disposes of the engine.
        self._origin: Database | None = None

    def apart(self) -> Database:
        """Return the same database for work that nobody waits for: its faults keep no request away."""
        twin = copy(self)
        twin.breaker = Breaker()
        twin._origin = self
        return twin

    def call(self, function: Callable[..., T], *args: Any, limit: float | None = None) -> T:
        """Run a function that may run twice: what was not acknowledged may have happened or not.

        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its tables are older than this version, or not for us to use.
        """
        result: T = self._guarded(limit, self._repeated, function, *args)
        return result

    def change(self, work: Callable[[Connection], T], *, limit: float | None = None) -> T:
        """Run a function within a transaction, and again only if nothing of it can have stayed."""
        result: T = self._guarded(limit, self._transaction, work)
        return result

    def _guarded(self, limit: float | None, function: Callable[..., T], *args: Any) -> T:
        if not self.breaker.allow():
            raise StoreError(tier=self._tier)
        try:
            with rights():
                result = self.transactions.call(function, *args, limit=limit)
        except (SQLAlchemyError, TimeoutError) as error:
            if isinstance(error, _FAULTS) and not _is_held(error):
                self.breaker.fault()
            else:
                self.breaker.success()  # it answered
            self._ready = False
            # The error's own text may hold an address or what was sent.
            _logger.warning("The database failed: %s", reason_of(error) or type(error).__name__)
            raise StoreError(tier=self._tier) from None
        except ByokError:
            self.breaker.success()  # what it answered was refused
            raise
        self.breaker.success()
        return result

    def _prepare(self) -> None:
        if not self._ready:
            prepare(self.transactions, self._tables, own_file=self._own_file)
            self._ready = True

    def _repeated(self, function: Callable[..., T], *args: Any) -> T:
        try:
            self._prepare()
            return function(*args)
        except DBAPIError as error:
            again = error.connection_invalidated or _is_deadlock(error)
            if not (again and self.transactions.in_time()):
                raise
        # The server was restarted since the pool was filled; SQLAlchemy has emptied it.
        self._prepare()
        return function(*args)

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
                again = (
                    isinstance(error, IntegrityError)
                    or _is_deadlock(error)
                    or (error.connection_invalidated and attempt == 0)
                )
                late = attempt == TRIES - 1 or not self.transactions.in_time()
                # A commit that failed may have happened: the caller has to look.
                if committing or late or not again:
                    raise
        raise AssertionError("unreachable")


def _is_held(error: Exception) -> bool:
    """Say whether somebody holds a row for too long: the database answers, and others get theirs."""
    return any(code in _codes(error) for code in ("55P03", 1205))


def _is_deadlock(error: Exception) -> bool:
    """Say whether MariaDB undid the transaction so that another could go on."""
    return 1213 in _codes(error)


def _codes(error: Exception) -> tuple[Any, ...]:
    """Return PostgreSQL's name of an error, and MariaDB's number."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None), *getattr(cause, "args", ())[:1]
