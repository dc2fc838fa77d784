"""One database as a store uses it: prepared, guarded by a breaker, and replaced unseen after a restart."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
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

from ..errors import StoreError
from .breaker import Breaker
from .migrate import prepare
from .sql_engine import Transactions, open_engine

_logger = logging.getLogger("flask_byok.stores")
_FAULTS = (OperationalError, InterfaceError, PoolTimeoutError)
#: Two workers that add the same row at once meet in the database; this many tries are plenty.
TRIES = 8

T = TypeVar("T")


class Database:
    """Runs functions on an engine, and turns its errors into ``StoreError``.

    It works on connections of its own and commits nobody else's work.

    :param engine_or_url: a SQLAlchemy engine, which stays the host's, or a URL.
    :param tier: what a ``StoreError`` names.
    :param tables: what has to be there.
    """

    def __init__(
        self, engine_or_url: Any, tables: Iterable[Table], *, tier: str | None = None
    ) -> None:
        self.engine = open_engine(engine_or_url)
        if self.engine is not engine_or_url:
            # Our connections end with us; the host's stay the host's.
            weakref.finalize(self, self.engine.dispose)
        self.breaker = Breaker()
        self.transactions = Transactions(self.engine)
        self._tables = tuple(tables)
        self._tier = tier
        self._ready = False

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that may run twice: what was not acknowledged may have happened or not.

        :raises StoreError: the database does not answer, or refuses.
        :raises ConfigurationError: its tables are older than this version.
        """
        result: T = self._guarded(self._repeated, function, *args)
        return result

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run a function within a transaction, and again only if nothing of it can have stayed."""
        result: T = self._guarded(self._transaction, work)
        return result

    def _guarded(self, function: Callable[..., T], *args: Any) -> T:
        if not self.breaker.allow():
            raise StoreError(tier=self._tier)
        try:
            result = function(*args)
        except SQLAlchemyError as error:
            if isinstance(error, _FAULTS):
                self.breaker.fault()
            else:
                self.breaker.success()  # it answered
            self._ready = False
            # The error's own text may hold an address or what was sent.
            _logger.warning("The database failed: %s", type(error).__name__)
            raise StoreError(tier=self._tier) from None
        self.breaker.success()
        return result

    def _prepare(self) -> None:
        if not self._ready:
            prepare(self.engine, self._tables)
            self._ready = True

    def _repeated(self, function: Callable[..., T], *args: Any) -> T:
        try:
            self._prepare()
            return function(*args)
        except DBAPIError as error:
            if not error.connection_invalidated:
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
                again = isinstance(error, IntegrityError) or (
                    error.connection_invalidated and attempt == 0
                )
                # A commit that failed may have happened: the caller has to look.
                if committing or not again or attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")
